"""Networks of transformers on texts, on the command line: language models and classifiers with tokenizers."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from prunecli.checkpoint.io import read_manifest
from prunecli.checkpoint.tokenizers import TENSOR
from prunecli.data.tokenizer import read_tokenizer
from prunecli.models.loading import restore
from tests.conftest import Prune
from tests.faults.processes import Processes
from tests.unit.test_text_tables import write

pytestmark = pytest.mark.usefixtures("transformers_ready")
_WORDS = "the cat sat on a mat and saw it run by some old tree near our house".split()
_SMALL = (
    "--model-kwargs hidden_size=16 --model-kwargs intermediate_size=24 --model-kwargs num_hidden_layers=2 "
    "--model-kwargs num_attention_heads=4 --model-kwargs max_position_embeddings=24"
)
LLAMA = (
    f"train hf:LlamaForCausalLM {_SMALL} --model-kwargs num_key_value_heads=2 --data text:corpus.txt --tokenizer "
    "bpe:280 --batch-size 8 --epochs 1 --lr 0.01 --set stages.0.optimizer=adamw -o lm.safetensors"
).split()
BERT = (
    f"train hf:BertForSequenceClassification {_SMALL} --data text:table --tokenizer bpe:280 --batch-size 16 --epochs 2 "
    "--lr 0.02 --set stages.0.optimizer=adamw --set stages.0.weight_decay=0 -o c.safetensors"
).split()
QUICK = ("--measure", "accuracy", "--measure", "params", "--measure", "macs")


def _sentence(generator: random.Random) -> str:
    return " ".join(generator.choices(_WORDS, k=generator.randint(3, 9)))


def _rows(generator: random.Random, count: int) -> list[dict[str, Any]]:
    rows = []
    for word in generator.choices(("yes", "no"), k=count):
        words = [drawn if generator.random() < 0.5 else word for drawn in _sentence(generator).split()]
        rows.append({"text": " ".join([word, *words]), "label": word})
    return rows


@pytest.fixture(scope="module")
def trained(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, tables, a language model and a classifier."""
    folder, generator = tmp_path_factory.mktemp("texts"), random.Random(0)
    (folder / "corpus.txt").write_text("\n".join(_sentence(generator) for _ in range(600)))
    for part, count in (("train", 300), ("valid", 40), ("test", 40)):
        write(folder / "table" / f"{part}.jsonl", _rows(generator, count))
    for arguments in (LLAMA, BERT):
        done = processes.run(arguments, folder)
        assert done.code == 0, done.err
    return folder


def test_a_language_model_keeps_its_tokenizer_through_everything(prune: Prune, trained: Path, tmp_path: Path) -> None:
    manifest = read_manifest(trained / "lm.safetensors")
    assert manifest is not None and manifest.tokenizer is not None and manifest.vocabulary is None
    assert manifest.tokenizer.tokens == 280 == manifest.architecture.config["config"]["vocab_size"]  # type: ignore[index,call-overload]
    assert manifest.architecture.input_shape == (24,)  # all that it can read
    done = prune("obs", "lm.safetensors", "--ratio", "0.4", "--latency-rounds", "2", "--calibration-images", "32",
                 "-o", "p.safetensors", "--force", "--json", cwd=trained)  # fmt: skip
    assert done.code == 0 and done.json["compensated"] > 0, done.err
    score = done.json["score"]
    assert score["score"] == "perplexity" and score["drop"] == score["after"] - score["before"]
    assert score["images"] == score["of"] and score["drop_interval"] is None
    done = prune("finetune", "p.safetensors", "--epochs", "1", "--teacher", "parent", "-o", "f.safetensors", "--force",
                 "--batch-size", "8", cwd=trained)  # fmt: skip
    assert done.code == 0, done.err
    # The file needs nothing beside it: not the tokenizer, nor the folder that it was made in.
    shutil.copy(trained / "f.safetensors", tmp_path)
    shutil.copy(trained / "corpus.txt", tmp_path)
    done = prune("eval", "f.safetensors", *QUICK, "--json", "-o", "f.json", cwd=tmp_path)
    metrics, data = done.json["metrics"], done.json["data"]
    assert done.code == 0 and data["task"] == "token-language", done.err
    text = (tmp_path / "corpus.txt").read_text()
    tail = len(text) - round(len(text) * 0.95)
    assert metrics["bits_per_byte"] == metrics["bits_per_character"] < metrics["bits_per_token"]
    assert metrics["bits_per_byte"] * tail == pytest.approx(metrics["bits_per_token"] * metrics["tokens"], rel=0.01)
    first, second = (restore(path)[1].tokenizer for path in (trained / "lm.safetensors", tmp_path / "f.safetensors"))
    assert first is not None and second is not None and first.definition == second.definition != ""
    done = prune("inspect", "f.safetensors", cwd=tmp_path)
    assert done.code == 0 and "tokenizer\t280 tokens, " in done.out
    done = prune("inspect", "f.safetensors", "--verify", cwd=tmp_path)
    assert done.code == 0 and TENSOR in done.out, done.out + done.err


def test_a_classifier_is_pruned_and_judged_by_its_own_classes(prune: Prune, trained: Path, tmp_path: Path) -> None:
    manifest = read_manifest(trained / "c.safetensors")
    assert manifest is not None and manifest.history[0].data is not None
    assert [label.name for label in manifest.history[0].data.labels] == ["no", "yes"]
    base = prune("eval", "c.safetensors", *QUICK, "--json", "-o", "c.json", "--force", cwd=trained)
    assert base.code == 0 and base.json["metrics"]["top1"] > 90, base.err
    done = prune("fisher", "c.safetensors", "--ratio", "0.3", "--latency-rounds", "2", "--calibration-images", "64",
                 "-o", "cp.safetensors", "--force", cwd=trained)  # fmt: skip
    assert done.code == 0 and f"\ntop-1 (test)\t{base.json['metrics']['top1']:.2f} %\t" in done.out, done.err
    done = prune("eval", "cp.safetensors", *QUICK, "-o", "cp.json", "--force", cwd=trained)
    assert done.code == 0 and "\ntexts\t40 of text:table" in done.out, done.out
    done = prune("compare", "c.safetensors", "cp.safetensors", "--rounds", "2", "--data", "text:table", cwd=trained)
    assert done.code == 0 and "speed-up" in done.out, done.err
    # A table with one class only, written another way: its number is the one that was learned, not 0.
    write(tmp_path / "some" / "test.csv", [{"review": "the cat yes", "answer": "YES"}] * 8)
    done = prune("eval", trained / "c.safetensors", "--data", "text:some", "--text-column", "review", "--label-column",
                 "answer", *QUICK, "--json", "-o", "s.json", cwd=tmp_path)  # fmt: skip
    assert done.code == 0 and done.json["metrics"]["top1"] == 100, done.err


def test_folders_of_transformers_bring_their_tokenizer(prune: Prune, trained: Path, tmp_path: Path) -> None:
    used = restore(trained / "lm.safetensors")[1].tokenizer
    assert used is not None
    settings = {"vocab_size": 288, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 20, "eos_token_id": 2}
    network = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings, bos_token_id=2))
    network.save_pretrained(tmp_path / "gpt")
    (tmp_path / "gpt" / "tokenizer.json").write_text(used.definition)
    shutil.copy(trained / "corpus.txt", tmp_path)
    # Its table of scores is rounded up, as is common.
    done = prune("eval", "hf:gpt", "--data", "text:corpus.txt", *QUICK, "--json", "-o", "g.json", cwd=tmp_path)
    assert done.code == 0 and done.json["model"]["input_shape"] == [20], done.err
    done = prune("l1", "hf:gpt", "--data", "text:corpus.txt", "--ratio", "0.5", "--latency-rounds", "2",
                 "--calibration-images", "32", "-o", "g.safetensors", cwd=tmp_path)  # fmt: skip
    assert done.code == 0, done.err
    kept = restore(tmp_path / "g.safetensors")[1].tokenizer
    assert kept is not None and kept.definition == read_tokenizer(str(tmp_path / "gpt")).definition
    (tmp_path / "gpt" / "tokenizer.json").unlink()
    done = prune("eval", "hf:gpt", "--data", "text:corpus.txt", *QUICK, cwd=tmp_path)
    assert done.code == 2 and "gpt: comes without a tokenizer; name its file" in done.err
    done = prune("eval", "hf:gpt", "--data", "text:corpus.txt", "--tokenizer", "bpe:280", *QUICK, cwd=tmp_path)
    assert done.code == 2 and "has learned already, so a new tokenizer" in done.err
    words = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"?": 0, "cat": 400}, "unk_token": "?"},
             "pre_tokenizer": {"type": "Whitespace"}}  # fmt: skip
    (tmp_path / "words.json").write_text(json.dumps(words))
    done = prune("eval", "hf:gpt", "--data", "text:corpus.txt", "--tokenizer", "words.json", *QUICK, cwd=tmp_path)
    assert done.code == 2 and "text:corpus.txt: has token 400, and" in done.err and "knows 288 tokens" in done.err
    assert "% of the test text is ?" in done.err
    words["model"]["vocab"] = {"?": 0, "cat": 4, "zebra": 400}  # type: ignore[index]
    (tmp_path / "words.json").write_text(json.dumps(words))  # a token that no text has
    done = prune("eval", "hf:gpt", "--data", "text:corpus.txt", "--tokenizer", "words.json", *QUICK, cwd=tmp_path)
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("eval lm.safetensors --bptt 25", "--bptt 25: lm.safetensors reads at most 24 tokens at once"),
        ("eval lm.safetensors --level char", "--level char: texts are read by a tokenizer"),
        ("eval lm.safetensors --label-column x", "the network predicts tokens, not classes"),
        ("eval lm.safetensors --tokenizer nothing", "nothing: no such tokenizer"),
        ("eval lm.safetensors --data digits", "reads texts and digits has images"),
        ("eval c.safetensors --data text:corpus.txt", "is a plain text, and the network finds classes"),
        ("eval c.safetensors --data text:table --text-column y", "has no column 'y'; it has 'text', 'label'"),
        ("eval c.safetensors --task retrieval", "--task retrieval: text:table has no captions"),
        ("l1 lm.safetensors --calibration-images 2 --bptt 3 --data text:corpus.txt --ratio 0.5 -o n.safetensors",
         "2 sequences have 6 tokens, fewer than the 24 units of a layer"),
        (" ".join(LLAMA).replace("bpe:280", "bpe:9"), "--tokenizer bpe:9: the number of tokens has to be from 260"),
        (" ".join(BERT).replace("--tokenizer bpe:280", ""), "name one with --tokenizer"),
        (" ".join(LLAMA).replace("LlamaForCausalLM", "BertLMHeadModel").replace("_key_value_heads=2", "_labels=2"),
         "reads texts in both directions"),
        ("finetune lm.safetensors --teacher y.safetensors --epochs 1 -o n.safetensors",
         "--teacher has learned with another tokenizer"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(prune: Prune, trained: Path, words: str, said: str) -> None:
    if "y.safetensors" in words and not (trained / "y.safetensors").exists():
        again = " ".join(LLAMA).replace("bpe:280", "bpe:279").replace("lm.safe", "y.safe")
        assert prune(*again.split(), "--model-kwargs", "vocab_size=280", cwd=trained).code == 0
    done = prune(*words.split(), "--force", cwd=trained)
    lines = [line for line in done.err.strip().splitlines() if line.startswith("error: ")]
    assert done.code in (1, 2) and len(lines) == 1 and said in lines[0], done.err
    assert "Traceback" not in done.err and not (trained / "n.safetensors").exists()


def test_a_folder_gets_a_classifier_for_the_classes_of_the_texts(prune: Prune, trained: Path, tmp_path: Path) -> None:
    """As everybody finetunes BERT; the texts are read by the folder's tokenizer."""
    used = restore(trained / "c.safetensors")[1].tokenizer
    assert used is not None
    settings = {"vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.BertConfig(**settings, num_attention_heads=2, max_position_embeddings=30)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "tokenizer.json").write_text(used.definition)
    rows = [{"text": f"a {word} {number}", "label": word} for number in range(20) for word in ("x", "y", "z")]
    write(tmp_path / "t.csv", rows)
    done = prune("train", "hf:bert", "--model-kwargs", "head=sequence-classification", "--data", "text:t.csv",
                 "--epochs", "1", "--batch-size", "8", "-o", "b.safetensors", cwd=tmp_path)  # fmt: skip
    assert done.code == 0 and "new weights, to be trained: " in done.err, done.err
    manifest = read_manifest(tmp_path / "b.safetensors")
    assert manifest is not None and manifest.tokenizer is not None and manifest.tokenizer.tokens == 280
    assert manifest.architecture.class_name == "BertForSequenceClassification"
    assert [label.name for label in manifest.history[0].data.labels] == ["x", "y", "z"]  # type: ignore[union-attr]
    done = prune(
        "eval", "hf:bert", "--data", "text:t.csv", "--bptt", "4", *QUICK, "--json", "-o", "m.json", cwd=tmp_path
    )
    assert done.code == 0 and done.json["data"]["task"] == "masked-language", done.err  # what the folder is saved with
