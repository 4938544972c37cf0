"""Any flipped byte of a checkpoint is refused, and `prune inspect --verify` says where."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prunecli.checkpoint.header import read_header, seal
from prunecli.checkpoint.io import read_checkpoint, read_manifest, write_checkpoint
from prunecli.checkpoint.manifest import Architecture, Edit, Manifest, Step
from prunecli.cli.app import run
from prunecli.errors import ModelError
from prunecli.models.loading import load_file, load_reference, save
from tests.conftest import Prune

MANIFEST = Manifest(
    architecture=Architecture(ref="cifar:resnet20", kwargs={"num_classes": 7}, input_shape=(3, 32, 32)),
    edits=[Edit(group="a", width_before=4, width_after=2, keep_indices=[0, 3], layers=["a"])],
    history=[Step(stage="prune", settings={"ratio": 0.5}, command="prune l1 a.pt")],
)
TENSORS = {"a": torch.arange(6.0), "b": torch.ones(2, 3).half(), "n": torch.tensor(3)}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, TENSORS, MANIFEST)
    return path


def test_every_flipped_byte_is_refused(checkpoint: Path) -> None:
    good = checkpoint.read_bytes()
    header = len(read_header(checkpoint).raw)
    assert good[header - 1 :][:1] in b" }" and len(good) > header + 40
    for place in range(len(good)):
        for bit in range(8) if place % 7 == 0 else (place % 8,):
            bad = bytearray(good)
            bad[place] ^= 1 << bit
            checkpoint.write_bytes(bytes(bad))
            for read in (read_checkpoint, load_file):
                with pytest.raises(ModelError) as caught:
                    read(checkpoint)
                assert "\n" not in str(caught.value) and str(checkpoint) in str(caught.value)
            if place >= header:
                assert "is damaged (its sha256 differs)" in str(caught.value), place
            elif place >= 9 and bad[8:9] == b"{":
                assert "header is damaged" in str(caught.value) or "another version" in str(caught.value), place


def test_a_flipped_byte_of_a_dense_network_is_not_taken_for_foreign_weights(tmp_path: Path) -> None:
    """Without its manifest the file would be somebody's weights, and would fit."""
    path = tmp_path / "x.safetensors"
    loaded = load_reference("cifar:resnet20")
    save(path, loaded.model, loaded.manifest)
    good = path.read_bytes()
    for word in (b"__metadata__", b"prunecli.manifest", b"schema", b"sha256", b"tensor_sha256"):
        bad = bytearray(good)
        bad[good.index(word) + 2] ^= 1
        path.write_bytes(bytes(bad))
        with pytest.raises(ModelError, match="header is damaged"):
            load_file(path)


def test_cut_and_lengthened_checkpoints_are_refused(checkpoint: Path) -> None:
    good = checkpoint.read_bytes()
    for content in (*(good[:length] for length in range(0, len(good), 13)), good + b"\0", good + good):
        checkpoint.write_bytes(content)
        with pytest.raises(ModelError):
            load_file(checkpoint)


def test_swapped_tensors_are_refused(checkpoint: Path) -> None:
    """Names and offsets are covered, not only numbers."""
    raw = read_header(checkpoint).raw
    content = json.loads(raw[8:])
    content["a"]["data_offsets"], content["b"]["data_offsets"] = (
        content["b"]["data_offsets"],
        content["a"]["data_offsets"],
    )
    text = json.dumps(content).encode()
    checkpoint.write_bytes(struct.pack("<Q", len(text)) + text + checkpoint.read_bytes()[len(raw) :])
    with pytest.raises(ModelError, match="header is damaged"):
        read_manifest(checkpoint)


def test_equal_networks_are_equal_bytes_with_the_hash(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_checkpoint(
            tmp_path / name, TENSORS, MANIFEST.model_copy(update={"sha256": "f" * 64 if name == "x" else ""})
        )
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    manifest = read_manifest(tmp_path / "x")
    assert manifest is not None and manifest.sha256.strip("0")
    seal(tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_verify_names_the_tensor(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(checkpoint), "--verify"]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines() == ["tensor\tbytes\tstate", "a\t24\tok", "b\t12\tok", "n\t8\tok"]
    assert err == f"{checkpoint}: all 3 tensors and its header are as they were written\n"
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 64
    content[len(read_header(checkpoint).raw) + 3] ^= 1
    checkpoint.write_bytes(bytes(content))
    damaged = {state.split("\t")[0] for state in out.splitlines()[1:]} - {"b"}
    assert run(["inspect", str(checkpoint), "--verify"]) == 2
    out, err = capfd.readouterr()
    shown = {line.split("\t")[0] for line in out.splitlines() if line.endswith("damaged")}
    assert len(shown) == 2 and shown <= damaged | {"b"}
    assert err.count("\n") == 1 and all(f"'{name}'" in err for name in shown) and "2 of 3 tensors" in err


def test_verify_as_json_is_one_document(checkpoint: Path, prune: Prune) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[-1] ^= 1
    checkpoint.write_bytes(bytes(content))
    done = prune("inspect", checkpoint, "--verify", "--json")
    assert done.code == 2 and done.err.count("\n") == 1
    found = done.json
    assert found["header"] == "ok" and [tensor["intact"] for tensor in found["tensors"]].count(False) == 1
    assert found["error"] in done.err


def test_verify_says_what_it_cannot_check(checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "plain.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    for name in ("plain.safetensors", "plain.pt"):
        assert run(["inspect", str(tmp_path / name), "--verify"]) == 2
        assert "no pruning manifest, and so no hashes" in capfd.readouterr().err
    assert run(["inspect", str(tmp_path / "missing"), "--verify"]) == 2
    assert "no such file" in capfd.readouterr().err
    content = bytearray(checkpoint.read_bytes())
    content[content.index(b"prune l1")] ^= 1
    checkpoint.write_bytes(bytes(content))
    assert run(["inspect", str(checkpoint), "--verify"]) == 2
    out, err = capfd.readouterr()
    assert "its header is damaged (its sha256 differs)" in err and err.count("\n") == 1 and not out
