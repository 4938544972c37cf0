"""Tokenizers: training, reading, bounds, and texts and passages in tokens."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunecli.checkpoint.io import read_checkpoint, read_manifest, write_checkpoint
from prunecli.checkpoint.manifest import Architecture, Manifest, parse_manifest
from prunecli.checkpoint.tokenizers import TENSOR
from prunecli.data import tokenizer as tokenizer_module
from prunecli.data.tokenizer import Tokenizer, read_tokenizer
from prunecli.data.tokenizer_training import train_tokenizer, trained_size
from prunecli.errors import DataError, ModelError, RecipeError
from prunecli.models.catalog import build
from prunecli.models.loading import restore, save

TEXT = "the cat sat on the mat, and the dog sat on the log.\nA cat, a mat; a hat!\n" * 20
TRAINED = train_tokenizer([TEXT], 280)
_ANY = st.text(st.characters(codec="utf-8"), max_size=40)


def test_it_learns_as_many_tokens_as_asked_and_knows_every_text() -> None:
    assert len(TRAINED) == 280 == len(TRAINED.tokens) and len(set(TRAINED.tokens)) == 280
    assert (TRAINED.padding, TRAINED.end, TRAINED.unknown) == (0, 2, None)
    encoded = TRAINED.encode([TEXT], "here")
    assert len(encoded.tokens) < len(TEXT) / 2 and TRAINED.decode(encoded.tokens) == TEXT
    assert 0 <= encoded.tokens.min() and encoded.tokens.max() < 280
    assert len(train_tokenizer([TEXT], 5000)) < 300  # there are no more pairs to merge


@settings(max_examples=40, deadline=None)
@given(_ANY, _ANY)
def test_what_tokens_stand_for_adds_up(first: str, second: str) -> None:
    """All characters but those of the first token, which nothing predicts."""
    encoded = TRAINED.encode([first, second], "here")
    assert TRAINED.decode(encoded.tokens) == f"{first}</s>{second}"
    if len(encoded.tokens) and first.isascii() and second.isascii():
        skipped = len(TRAINED.decode(encoded.tokens[:1]).removeprefix("</s>"))
        assert encoded.characters == encoded.bytes == len(first) + len(second) - skipped


def test_the_same_text_gives_the_same_tokenizer_in_another_process() -> None:
    code = (
        "from prunecli.data.tokenizer_training import train_tokenizer; from tests.unit.test_tokenizer import TEXT\n"
        "import hashlib; print(hashlib.sha256(train_tokenizer([TEXT], 280).signature()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == hashlib.sha256(TRAINED.signature()).hexdigest()


def test_a_long_text_has_the_same_tokens_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = TRAINED.encode([TEXT], "here")
    monkeypatch.setattr(tokenizer_module, "_PIECE", 37)
    pieces = list(tokenizer_module._pieces(TEXT))
    assert pieces[0].endswith("\n") and len(pieces) > 10 and "".join(pieces) == TEXT
    parts = TRAINED.encode([TEXT], "here")
    assert parts.tokens.tolist() == whole.tokens.tolist() and parts.characters == whole.characters


def test_passages_have_special_tokens_are_cut_and_know_their_segments() -> None:
    alone, long = TRAINED.passages(["the cat", "the cat sat on the mat"], None, 6, "here")
    assert alone.tokens[0] == 1 and alone.tokens[-1] == 2 and not alone.cut
    assert len(long.tokens) == 6 and long.cut and long.tokens[-1] == 2
    (pair,) = TRAINED.passages(["the cat"], ["a dog"], 50, "here")
    assert pair.tokens.count(2) == 2 and set(pair.segments) == {0, 1} and list(pair.segments) == sorted(pair.segments)
    assert TRAINED.passages([TEXT], None, 10_000, "here")[0].cut is False  # an earlier limit does not stay


def test_padding_and_truncation_of_a_file_do_not_count(tmp_path: Path) -> None:
    """Files of sentence encoders ask for both, and would cut every text."""
    content = json.loads(TRAINED.definition)
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                          "pad_type_id": 0, "pad_token": "<pad>"}  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    tokens = read_tokenizer(str(path)).encode([TEXT], "here").tokens
    assert tokens.tolist() == TRAINED.encode([TEXT], "here").tokens.tolist()


def test_a_folder_says_what_its_special_tokens_are_for(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(TRAINED.definition)
    settings = {"pad_token": {"content": "<mask>"}, "eos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = read_tokenizer(str(tmp_path))
    assert (found.padding, found.end) == (3, 1)
    (tmp_path / "tokenizer_config.json").write_text("{")  # no reason to fail: roles are told by names
    assert (read_tokenizer(str(tmp_path)).padding, read_tokenizer(str(tmp_path)).end) == (0, 2)


def test_a_folder_of_words_is_converted_offline(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    found = read_tokenizer(str(tmp_path))
    assert found.encode(["the cat dog"], "here").tokens.tolist() == [5, 6, 1] and found.unknown == 1
    assert found.padding == 0


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.Own", None]}}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "odd", "auto_map": {"AutoConfig": "own.Own"}}))
    with pytest.raises(DataError, match="no tokenizer that transformers can read"):
        read_tokenizer(str(tmp_path))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "does not work (Model missing"),
        ("not json", "does not work"),
        ("[" * 100_000, "does not work"),
        ('{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":["a b"]}}', "out of vocabulary"),
        ('{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":4000000000},"unk_token":"a"}}', "of at most"),
        ('{"version":"1.0","model":{"type":"WordLevel","vocab":{},"unk_token":"a"}}', "of at most"),
    ],
)  # fmt: skip
def test_damaged_tokenizers_say_so_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        read_tokenizer(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_a_tokenizer_that_fails_on_a_text_says_so() -> None:
    """Its table lacks the token that it has for unknown words."""
    broken = Tokenizer('{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"?"}}')
    with pytest.raises(DataError, match=r"text:x: the tokenizer does not work .*UNK"):
        broken.encode(["b"], "text:x")


def test_missing_ones_and_wrong_sizes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such tokenizer"):
        read_tokenizer(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match="no tokenizer that transformers can read"):
        read_tokenizer(str(tmp_path))
    assert trained_size("bpe:2000") == 2000 and trained_size("folder") is None
    for name in ("bpe:", "bpe:259", "bpe:-5", "bpe:9999999", "bpe:x"):
        with pytest.raises(RecipeError, match="from 260"):
            trained_size(name)


def _network() -> nn.Module:
    return build("cifar:resnet20", num_classes=3)


def _manifest(tokenizer: Tokenizer | None) -> Manifest:
    architecture = Architecture(ref="cifar:resnet20", kwargs={"num_classes": 3})
    return Manifest(architecture=architecture, tokenizer=None if tokenizer is None else tokenizer.record())


def test_a_checkpoint_keeps_its_tokenizer_and_others_keep_their_bytes(tmp_path: Path) -> None:
    network = _network()
    save(tmp_path / "a.safetensors", network, _manifest(TRAINED))
    save(tmp_path / "b.safetensors", network, _manifest(None))
    assert b"tokenizer" not in (tmp_path / "b.safetensors").read_bytes()
    read = read_manifest(tmp_path / "a.safetensors")
    assert read is not None and read.tokenizer is not None and read.tokenizer.definition == ""
    assert (read.tokenizer.tokens, read.tokenizer.size) == (280, len(TRAINED.signature()))
    restored, manifest = restore(tmp_path / "a.safetensors")
    assert manifest.tokenizer is not None and Tokenizer.recorded(manifest.tokenizer) == TRAINED
    assert set(restored.state_dict()) == set(network.state_dict())
    save(tmp_path / "again.safetensors", restored, manifest)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(TENSOR), "tokenizer is missing or has another size"),
        (lambda tensors: tensors.update({TENSOR: tensors[TENSOR][:-1]}), "tokenizer is missing or has another size"),
        (lambda tensors: tensors.update({TENSOR: tensors[TENSOR].float()}), "tokenizer is missing or has another size"),
        (lambda tensors: tensors.update({TENSOR: torch.full_like(tensors[TENSOR], 255)}), "tokenizer is no text"),
    ],
)
def test_a_damaged_tokenizer_in_a_checkpoint_says_so(tmp_path: Path, change: Any, said: str) -> None:
    path = tmp_path / "a.safetensors"
    save(path, _network(), _manifest(TRAINED))
    manifest, tensors = read_checkpoint(path)
    change(tensors)
    write_checkpoint(path, tensors, manifest)
    with pytest.raises(ModelError, match=said):
        restore(path)


def test_a_manifest_alone_cannot_claim_a_large_tokenizer() -> None:
    content = json.loads(_manifest(TRAINED).to_json())
    for field, value in (("size", 1 << 28), ("tokens", 1 << 30), ("padding", -1), ("definition", "x")):
        changed = {**content, "tokenizer": {**content["tokenizer"], field: value}, "sha256": ""}
        with pytest.raises(ModelError, match="its manifest is not one this version reads"):
            parse_manifest(json.dumps(changed), Path("x"), intact=True)
