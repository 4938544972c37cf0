"""Language models on the command line, in processes of their own."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from prunecli.checkpoint.io import read_manifest
from prunecli.models.loading import restore, save
from tests.conftest import Prune
from tests.faults.processes import Processes, killed_and_resumed, sha256
from tests.unit.test_language import Example

_WORDS = "the cat sat on a mat and saw it run by some old tree near our house".split()
TRAIN = (
    "train lm:lstm --model-kwargs units=12 --model-kwargs dropout=0.2 --data text:corpus --bptt 8 --batch-size 4 "
    "--epochs 2 --lr 0.02 --set stages.0.optimizer=adamw --clip-grad 1 -o x.safetensors --save-every 0"
).split()
QUICK = ("--measure", "accuracy", "--measure", "params", "--measure", "macs")


def _write(folder: Path, extra: str = "") -> None:
    generator = random.Random(0)
    folder.mkdir(exist_ok=True)
    for name, lines in (("train", 40), ("valid", 12), ("test", 12)):
        rows = [" ".join(generator.choices(_WORDS, k=generator.randint(3, 9))) for _ in range(lines)]
        (folder / f"ptb.{name}.txt").write_text("\n".join(rows) + (extra if name == "test" else "") + "\n")


@pytest.fixture(scope="module")
def trained(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a network that has learned it."""
    folder = tmp_path_factory.mktemp("language")
    _write(folder / "corpus")
    done = processes.run(TRAIN, folder)
    assert done.code == 0, done.err
    assert "train lm:lstm on 34 sequences of text:corpus" in done.err and "validation perplexity" in done.err
    manifest = read_manifest(folder / "x.safetensors")
    assert manifest is not None and manifest.vocabulary is not None
    turned = manifest.vocabulary.model_copy(update={"tokens": manifest.vocabulary.tokens[::-1]})
    save(folder / "y.safetensors", restore(folder / "x.safetensors")[0],
         manifest.model_copy(update={"vocabulary": turned}))  # fmt: skip
    return folder


def test_train_eval_and_compare(prune: Prune, trained: Path) -> None:
    manifest = read_manifest(trained / "x.safetensors")
    assert manifest is not None and manifest.vocabulary is not None
    assert manifest.vocabulary.level == "word" and set(manifest.vocabulary.tokens) == {*_WORDS, "<eos>", "<unk>"}
    assert manifest.architecture.kwargs["num_classes"] == 19 and manifest.architecture.input_shape == (8,)
    assert manifest.normalisation is None
    # Without --data: the text that the checkpoint was trained on.
    base = prune("eval", "x.safetensors", *QUICK, "-o", "base.json", "--force", "--json", cwd=trained)
    assert base.code == 0, base.err
    metrics, data = base.json["metrics"], base.json["data"]
    assert 1 < metrics["perplexity"] < 19 and metrics["bits_per_token"] > 0 and metrics["tokens"] > 60
    assert data["task"] == "word-language" and data["skipped"] == 0
    done = prune("finetune", "x.safetensors", "--data", "text:corpus", "--epochs", "1", "--teacher", "x.safetensors",
                 "--batch-size", "4", "-o", "f.safetensors", "--force", cwd=trained)  # fmt: skip
    assert done.code == 0, done.err
    done = prune("eval", "f.safetensors", *QUICK, "-o", "f.json", "--force", cwd=trained)
    assert done.code == 0 and "bits per token\t" in done.out, done.err
    done = prune("compare", "base.json", "f.json", "--json", "--fail-if", "perplexity_rise > 5", cwd=trained)
    assert done.code == 0, done.err
    rise = done.json["candidates"][0]["perplexity_rise"]
    assert rise == pytest.approx(done.json["candidates"][0]["metrics"]["perplexity"] - metrics["perplexity"])
    done = prune("compare", "base.json", "f.json", "--fail-if", "perplexity_rise > -5", cwd=trained)
    assert done.code == 3 and "gate: perplexity_rise > -5 holds" in done.err
    done = prune("compare", "x.safetensors", "f.safetensors", "--rounds", "2", "--data", "text:corpus", cwd=trained)
    assert done.code == 0 and "perplexity\t" in done.out and "speed-up\t1.00x" in done.out, done.err


@pytest.mark.parametrize("method", ["l2", "taylor"])
def test_pruned_it_is_judged_finetuned_and_inspected(prune: Prune, trained: Path, method: str) -> None:
    done = prune(method, "x.safetensors", "--ratio", "0.5", "--min-width", "1", "--latency-rounds", "2", "--json",
                 "-o", f"{method}.safetensors", "--force", cwd=trained)  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["verify_error"] < 1e-9 and done.json["compensated"] > 0
    shown = prune("inspect", f"{method}.safetensors", "--json", cwd=trained)
    assert shown.code == 0, shown.err
    layers = {layer["name"]: (layer["dense_shape"], layer["shape"]) for layer in shown.json["layers"]}
    assert layers["rnn.l0"][0] == [48, 12] and layers["rnn.l0"][1][0] < 48
    done = prune("finetune", f"{method}.safetensors", "--epochs", "1", "--batch-size", "4", "--teacher", "parent",
                 "-o", f"{method}-f.safetensors", "--force", cwd=trained)  # fmt: skip
    assert done.code == 0, done.err
    done = prune("eval", f"{method}-f.safetensors", *QUICK, "--json", cwd=trained)
    assert done.code == 0 and done.json["metrics"]["perplexity"] > 1, done.err
    done = prune("eval", f"{method}-f.safetensors", "--require", "bits_per_token < 0.01", *QUICK, cwd=trained)
    assert done.code == 3 and "required bits_per_token < 0.01, but bits_per_token is" in done.err


def test_another_text_is_read_by_the_checkpoints_vocabulary(prune: Prune, trained: Path) -> None:
    _write(trained / "other", " zebra zebra")
    (trained / "other" / "ptb.train.txt").unlink()
    done = prune("eval", "x.safetensors", "--data", "text:other", *QUICK, "--json", cwd=trained)
    assert done.code == 0, done.err
    assert "of the test text is <unk>" in done.err and done.json["metrics"]["perplexity"] > 1


@pytest.mark.parametrize("fault", ["fit:step@3", "fit:step@7", "fit:epoch@1", "state:renamed@5"])
def test_killed_and_resumed_it_writes_the_same_bytes(
    processes: Processes, trained: Path, tmp_path: Path, fault: str
) -> None:
    _write(tmp_path / "corpus")
    came = killed_and_resumed(processes, TRAIN, tmp_path, fault=fault)
    assert came["killed"] and came["code"] == 0, came["err"]
    assert sha256(tmp_path / "x.safetensors") == sha256(trained / "x.safetensors")


SCHEDULE = (
    "l2 base.safetensors --data text:corpus --ratio 0.5 --min-width 1 --schedule linear --steps 2 --epochs 1 "
    "--batch-size 4 --latency-rounds 2 -o x.safetensors --save-every 0"
).split()


def _base(trained: Path, folder: Path) -> Path:
    _write(folder / "corpus")
    shutil.copy(trained / "x.safetensors", folder / "base.safetensors")
    return folder


@pytest.fixture(scope="module")
def whole(processes: Processes, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a schedule that nobody stops writes."""
    folder = _base(trained, tmp_path_factory.mktemp("whole"))
    done = processes.run(SCHEDULE, folder)
    assert done.code == 0, done.err
    return sha256(folder / "x.safetensors")


@pytest.mark.parametrize("fault", ["fit:step@4", "stage:pruned"])
def test_a_schedule_is_killed_and_resumed(
    processes: Processes, trained: Path, whole: str, tmp_path: Path, fault: str
) -> None:
    came = killed_and_resumed(processes, SCHEDULE, _base(trained, tmp_path), fault=fault)
    assert came["code"] == 0 and came["killed"], came["err"]
    assert sha256(tmp_path / "x.safetensors") == whole


def test_weights_of_the_example_with_the_text_they_belong_to(prune: Prune, trained: Path) -> None:
    torch.manual_seed(0)
    torch.save(Example("LSTM", 19, 6, 6, 2, True).state_dict(), trained / "model.pt")
    done = prune("eval", "model.pt", "--data", "text:corpus", *QUICK, "--json", cwd=trained)
    assert done.code == 0, done.err
    assert done.json["model"]["ref"] == "lm:lstm" and done.json["metrics"]["perplexity"] > 1
    torch.save(Example("LSTM", 20, 6, 6, 2, True).state_dict(), trained / "other.pt")
    done = prune("eval", "other.pt", "--data", "text:corpus", *QUICK, cwd=trained)
    assert done.code == 2
    assert done.err.strip().splitlines()[-1] == (
        "error: other.pt has scores for 20 tokens and the vocabulary of text:corpus has 19: give the text it was "
        "trained on with --data, or another --level"
    )


def test_methods_are_audited_and_compared_by_perplexity(prune: Prune, trained: Path) -> None:
    how = ["--methods", "fisher", "--batch-size", "4"]
    done = prune(
        "audit", "x.safetensors", *how, "--units", "8", "--batches", "4", "-o", "a.json", "--json", cwd=trained
    )
    assert done.code == 0, done.err
    assert done.json["verify_error"] < 1e-9 and {"rnn"} & {unit["group"][:3] for unit in done.json["ablations"]}
    again = prune("audit", "x.safetensors", *how, "--units", "8", "--batches", "4", "-o", "a.json", "--json",
                  "--resume", cwd=trained)  # fmt: skip
    assert again.code == 0 and again.json == done.json | {"seconds": {}}, again.err  # the text is known from x
    done = prune("compare", "x.safetensors", *how, "--seeds", "2", "--recover", "3", "--calibration-images", "16",
                 "-o", "c.json", "--json", cwd=trained)  # fmt: skip
    assert done.code == 0, done.err
    contest = done.json
    assert contest["figure"] == {
        "name": "perplexity", "label": "perplexity", "unit": "", "digits": 3, "lower_is_better": True,
    }  # fmt: skip
    best = min(contest["methods"], key=lambda row: row["after"]["mean"])
    assert contest["verdict"][0].startswith(f"{best['label']} is ahead after 3 training steps: perplexity ")
    assert all(row["cells"][0]["figures_after"]["loss"] > 0 for row in contest["methods"])
    assert "--images" not in done.err
    done = prune("compare", "x.safetensors", *how, "--seeds", "2", "--images", "3", "-o", "d.json", cwd=trained)
    assert done.code == 0, done.err
    assert "--images: 3 sequences of 8 tokens, each without state from the one before" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train lm:lstm", "lm:lstm reads texts and digits has images: name a text with --data text:PATH"),
        ("train cifar:resnet20 --data text:corpus", "cifar:resnet20 reads images and text:corpus is a text"),
        ("train lm:lstm --data text:nowhere", "text:nowhere: no such file or folder"),
        ("train lm:lstm --data text:corpus --batch-size 64",
         "text:corpus: 279 tokens to train on are fewer than one batch of 64 sequences of 35: lower --batch-size"),
        ("train lm:lstm --data text:corpus --bptt 5000", "is shorter than one sequence of 5000 and the word after it"),
        ("train lm:lstm --data text:corpus --mixup 0.2", "--mixup changes images, and text:corpus is a text"),
        ("train lm:lstm --data text:corpus --image-size 32", "--image-size is for images, and text:corpus is a text"),
        ("train lm:lstm --data text:corpus --model-kwargs units=0", "units has to be an integer from 1 to 65,536"),
        ("train lm:lstm --data text:corpus --model-kwargs dropout=1", "dropout has to be a number from 0 to 0.99"),
        ("eval x.safetensors --level char", "--level char: x.safetensors reads words; leave it out"),
        ("eval x.safetensors --task zeroshot", "x.safetensors is a language model; leave it out"),
        ("eval x.safetensors --data digits", "x.safetensors reads texts and digits has images"),
        ("finetune x.safetensors --data text:corpus --batch-size 4 --teacher y.safetensors",
         "--teacher has learned another vocabulary than x.safetensors; give one with the same"),
        ("l2 x.safetensors --data text:corpus --calibration-images 2 --bptt 3",
         "2 sequences have 6 tokens, fewer than the 12 units of a layer, so nothing can be measured on them"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(prune: Prune, trained: Path, words: str, said: str) -> None:
    done = prune(*words.split(), cwd=trained)
    lines = [line for line in done.err.strip().splitlines() if line.startswith("error: ")]
    assert done.code in (1, 2) and len(lines) == 1 and said in lines[0], done.err
    assert done.err.strip().splitlines()[-1] == lines[0]
