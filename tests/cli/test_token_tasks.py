"""Words with tags, and masked tokens, on the command line: networks of transformers from training to comparison."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers

from prunecli.checkpoint.io import read_manifest
from prunecli.data.tokenizer_training import train_tokenizer
from tests.conftest import Prune
from tests.faults.processes import Processes, killed_and_resumed, sha256
from tests.unit.test_text_tables import write

_NAMES = {"O": "the cat sat on a mat and saw it run by".split(), "B-PER": ["Ada", "Bell"], "B-LOC": ["Rome", "Oslo"]}
_SMALL = (
    "--model-kwargs hidden_size=16 --model-kwargs intermediate_size=24 --model-kwargs num_hidden_layers=2 "
    "--model-kwargs num_attention_heads=4 --model-kwargs max_position_embeddings=40"
)
_FIT = "--batch-size 16 --lr 0.02 --set stages.0.optimizer=adamw --set stages.0.weight_decay=0"
TAGS = (
    f"train hf:BertForTokenClassification {_SMALL} --data text:tags --tokenizer bpe:300 --epochs 3 {_FIT} "
    "-o t.safetensors"
).split()
MASKS = (
    f"train hf:BertForMaskedLM {_SMALL} --data text:corpus.txt --bptt 16 --tokenizer bpe:300 --epochs 2 {_FIT} "
    "-o m.safetensors"
).split()
QUICK = ("--measure", "accuracy", "--measure", "params")


def _row(generator: random.Random) -> dict[str, Any]:
    tags = generator.choices(list(_NAMES), (6, 2, 2), k=generator.randint(3, 8))
    return {"tokens": [generator.choice(_NAMES[tag]) for tag in tags], "ner_tags": tags}


@pytest.fixture(scope="module")
def trained(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with words and tags, a text, a network for each, and a report of each network."""
    folder, generator = tmp_path_factory.mktemp("tokens"), random.Random(0)
    for part, count in (("train", 200), ("valid", 30), ("test", 30)):
        write(folder / "tags" / f"{part}.jsonl", [_row(generator) for _ in range(count)])
    (folder / "corpus.txt").write_text("\n".join(" ".join(_row(generator)["tokens"]) for _ in range(300)))
    reports = [["eval", f"{name}.safetensors", *QUICK, "-o", f"{name}.json"] for name in "tm"]
    for arguments in (TAGS, MASKS, *reports):
        done = processes.run(arguments, folder)
        assert done.code == 0, done.err
    return folder


def test_tags_are_learned_pruned_and_judged_by_their_names(prune: Prune, trained: Path) -> None:
    manifest = read_manifest(trained / "t.safetensors")
    assert manifest is not None and manifest.tokenizer is not None and manifest.history[0].data is not None
    assert [label.name for label in manifest.history[0].data.labels] == ["B-LOC", "B-PER", "O"]
    report = json.loads((trained / "t.json").read_text())
    assert report["data"]["task"] == "token-classification"
    assert report["metrics"]["token_accuracy"] > 90 and report["metrics"]["macro_f1"] > 85
    rows = [json.loads(line) for line in (trained / "tags" / "test.jsonl").read_text().splitlines()]
    assert report["metrics"]["tokens"] == sum(len(row["tokens"]) for row in rows)
    done = prune("l1", "t.safetensors", "--ratio", "0.3", "--latency-rounds", "2", "--calibration-images", "64",
                 "--compensate", "ls", "-o", "p.safetensors", "--json", "--force", cwd=trained)  # fmt: skip
    assert done.code == 0 and done.json["compensated"] > 0, done.err
    done = prune("finetune", "p.safetensors", "--epochs", "1", "--batch-size", "16", "--teacher", "parent", "-o",
                 "f.safetensors", "--force", cwd=trained)  # fmt: skip
    assert done.code == 0 and re.search(r"number +class +words", done.err), done.err
    done = prune("eval", "f.safetensors", *QUICK, "-o", "f.json", "--force", cwd=trained)
    assert done.code == 0 and "\ntoken accuracy\t" in done.out and "\nmacro F1\t" in done.out, done.out
    done = prune("compare", "t.json", "f.json", "--fail-if", "token_accuracy_drop > 90", cwd=trained)
    assert done.code == 0 and "macro F1" in done.out, done.err


def test_tags_keep_the_numbers_that_were_learned(prune: Prune, trained: Path, tmp_path: Path) -> None:
    # Of these two tags alone, "B-PER" would be number 0; it is number 1 of those that were learned.
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "test.conll").write_text("Ada X B-PER\nthe X O\n\n" * 8)
    done = prune("eval", trained / "t.safetensors", "--data", "text:some", *QUICK, "--json", "-o", "s.json",
                 cwd=tmp_path)  # fmt: skip
    assert done.code == 0 and done.json["metrics"]["token_accuracy"] > 90, done.err


@pytest.mark.parametrize("method", ["taylor", "fisher", "obs"])
def test_criteria_that_need_data_rank_networks_for_tags(prune: Prune, trained: Path, method: str) -> None:
    done = prune(method, "t.safetensors", "--ratio", "0.3", "--latency-rounds", "2", "--calibration-images", "64", "-o",
                 f"{method}.safetensors", cwd=trained)  # fmt: skip
    assert done.code == 0 and "verified" in done.out, done.err


def test_masked_tokens_are_learned_pruned_and_judged(prune: Prune, trained: Path) -> None:
    base = json.loads((trained / "m.json").read_text())
    assert base["data"]["task"] == "masked-language"
    again = prune("eval", "m.safetensors", *QUICK, "--json", "--batch-size", "3", "-o", "n.json", cwd=trained)
    figures = [report["metrics"] for report in (base, again.json)]
    assert figures[0]["tokens"] == figures[1]["tokens"] > 10 and figures[0].keys() >= {"masked_accuracy"}
    assert figures[0]["pseudo_perplexity"] == pytest.approx(figures[1]["pseudo_perplexity"], rel=1e-5)
    done = prune("l1", "m.safetensors", "--ratio", "0.3", "--latency-rounds", "2", "--calibration-images", "64",
                 "--compensate", "ls", "-o", "mp.safetensors", "--json", "--force", cwd=trained)  # fmt: skip
    assert done.code == 0 and done.json["compensated"] > 0, done.err
    done = prune("finetune", "mp.safetensors", "--epochs", "1", "--batch-size", "16", "--teacher", "parent", "-o",
                 "mf.safetensors", "--force", cwd=trained)  # fmt: skip
    assert done.code == 0 and "validation pseudo-perplexity" in done.out, done.err
    done = prune("eval", "mf.safetensors", *QUICK, "-o", "mf.json", "--force", cwd=trained)
    assert done.code == 0 and "\naccuracy of masked tokens\t" in done.out, done.out
    done = prune("compare", "m.json", "mf.json", "--fail-if", "pseudo_perplexity_rise > 1000", cwd=trained)
    assert done.code == 0 and "pseudo-perplexity" in done.out, done.err


def test_a_resumed_run_has_drawn_the_same_masks(processes: Processes, trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "corpus.txt", tmp_path)
    came = killed_and_resumed(processes, [*MASKS, "--save-every", "0"], tmp_path, fault="fit:step@13")
    assert came["killed"] and came["code"] == 0, came["err"]
    assert sha256(tmp_path / "m.safetensors") == sha256(trained / "m.safetensors")


def test_a_recipe_trains_prunes_and_finetunes_networks_for_tags(prune: Prune, trained: Path, tmp_path: Path) -> None:
    settings = {word.partition("=")[0]: int(word.partition("=")[2]) for word in _SMALL.split() if "=" in word}
    (tmp_path / "recipe.yaml").write_text(
        "version: 1\n"
        f'model: {{ref: "hf:BertForTokenClassification", kwargs: {json.dumps(settings)}}}\n'
        f'data: {{name: "text:{trained / "tags"}", tokenizer: "bpe:300", batch_size: 32}}\n'
        "stages:\n"
        "  - {stage: train, epochs: 1, lr: 0.02, optimizer: adamw}\n"
        "  - {stage: prune, method: fisher, params: {ratio: 0.3}, calibration_images: 64, latency_rounds: 2}\n"
        "  - {stage: finetune, epochs: 1, teacher: parent}\n"
        "  - {stage: eval, measure: [accuracy, params]}\n"
    )
    done = prune("run", "recipe.yaml", "--output", "out", cwd=tmp_path)
    assert done.code == 0, done.err
    report = json.loads((tmp_path / "out" / "finetuned.json").read_text())
    assert report["metrics"]["macro_f1"] is not None and report["data"]["task"] == "token-classification"


def test_folders_of_transformers_bring_names_of_tags_or_get_a_new_head(
    prune: Prune, trained: Path, tmp_path: Path
) -> None:
    tokenizer = train_tokenizer([(trained / "corpus.txt").read_text()], 280)
    settings = {"vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    names = dict(enumerate(("O", "B-PER", "B-LOC")))
    config = transformers.BertConfig(**settings, num_attention_heads=2, max_position_embeddings=40, id2label=names)
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path / "tagger")
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    for folder in ("tagger", "bert"):
        (tmp_path / folder / "tokenizer.json").write_text(tokenizer.definition)
    shutil.copytree(trained / "tags", tmp_path / "tags")
    for start, order in (
        (["hf:tagger"], ["O", "B-PER", "B-LOC"]),
        (["hf:bert", "--model-kwargs", "head=token-classification"], ["O", "B-PER", "B-LOC"]),
    ):
        done = prune("train", *start, "--data", "text:tags", "--epochs", "1", "-o", "x.safetensors", "--force",
                     cwd=tmp_path)  # fmt: skip
        assert done.code == 0, done.err
        manifest = read_manifest(tmp_path / "x.safetensors")
        assert manifest is not None and manifest.architecture.class_name == "BertForTokenClassification"
        assert [label.name for label in manifest.history[0].data.labels] == order  # type: ignore[union-attr]
    done = prune("eval", "hf:bert", "--data", "text:tags/test.jsonl", "--text-column", "ner_tags", *QUICK, cwd=tmp_path)
    assert done.code == 2 and "'ner_tags' is list, no text" in done.err


def test_classes_without_names_are_given_as_numbers(prune: Prune, trained: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer([(trained / "corpus.txt").read_text()], 280)
    settings = {"vocab_size": 280, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    config = transformers.BertConfig(**settings, num_attention_heads=2, max_position_embeddings=40, num_labels=4)
    transformers.BertForTokenClassification(config).save_pretrained(tmp_path / "tagger")
    (tmp_path / "tagger" / "tokenizer.json").write_text(tokenizer.definition)
    said = "labels are names, and the network has none for the 4 classes"
    done = prune("eval", "hf:tagger", "--data", f"text:{trained / 'tags'}", *QUICK, cwd=tmp_path)
    assert done.code == 2 and said in done.err and "Traceback" not in done.err, done.err
    rows = [{"tokens": ["Ada", "sat"], "tags": [1, 0]}] * 20  # class 3 does not occur
    write(tmp_path / "numbers.jsonl", rows)
    done = prune("l1", "hf:tagger", "--ratio", "0.3", "--latency-rounds", "2", "-o", "p.safetensors", cwd=tmp_path)
    assert done.code == 0, done.err
    for network in ("hf:tagger", "p.safetensors"):
        done = prune("eval", network, "--data", "text:numbers.jsonl", *QUICK, cwd=tmp_path)
        assert done.code == 0 and "token accuracy" in done.out, done.err
    done = prune("eval", "p.safetensors", "--data", f"text:{trained / 'tags'}", *QUICK, cwd=tmp_path)
    assert done.code == 2 and said in done.err, done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("eval t.safetensors --data text:corpus.txt", "has no tags, and the network finds one for every word"),
        ("eval t.safetensors --data text:other", "label 'B-ORG' is none of the 3 classes (B-LOC, B-PER, O)"),
        ("eval t.safetensors --task classification", "t.safetensors finds a class for every token; leave it out"),
        ("eval m.safetensors --bptt 2", "a sequence of 2 tokens has no place beside the 2 special ones"),
        ("eval m.safetensors --label-column x", "the network predicts tokens, not classes"),
        ("train hf:BertForMaskedLM --data text:corpus.txt --epochs 1 -o n.safetensors", "name one with --tokenizer"),
        ("train hf:BertForMaskedLM --data text:corpus.txt --tokenizer words.json --epochs 1 -o n.safetensors",
         "its tokenizer has no token for masks ([MASK], <mask>)"),
        ("train hf:BertForTokenClassification --data text:tags --tokenizer slow --epochs 1 -o n.safetensors",
         "slow: has no tokenizer that transformers can read"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(prune: Prune, trained: Path, words: str, said: str) -> None:
    write(trained / "other" / "test.jsonl", [{"tokens": ["Ada"], "tags": ["B-ORG"]}])
    vocabulary = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"?": 0, "cat": 1}, "unk_token": "?"}}
    (trained / "words.json").write_text(json.dumps(vocabulary))
    (trained / "slow").mkdir(exist_ok=True)
    done = prune(*words.split(), cwd=trained)
    lines = [line for line in done.err.strip().splitlines() if line.startswith("error: ")]
    assert done.code in (1, 2) and len(lines) == 1 and said in lines[0], done.err
    assert "Traceback" not in done.err and not (trained / "n.safetensors").exists()
