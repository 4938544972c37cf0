"""Files: ours are bit-exact and guarded, other people's are read without running anything."""

from __future__ import annotations

import argparse
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file
from torch import nn

import prunecli
from prunecli.checkpoint.durable import write_atomically
from prunecli.checkpoint.foreign_files import read_foreign
from prunecli.checkpoint.header import MANIFEST_KEY, seal
from prunecli.checkpoint.io import read_checkpoint, read_manifest, write_checkpoint
from prunecli.checkpoint.manifest import Architecture, Edit, Manifest
from prunecli.errors import ModelError, ResourceError

MANIFEST = Manifest(
    architecture=Architecture(ref="cifar:resnet20", kwargs={"num_classes": 7}),
    edits=[Edit(group="a", width_before=4, width_after=2, keep_indices=[0, 3], layers=["a"])],
)


def _tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shared = torch.randn(3, 5)
    return {
        "a.weight": torch.randn(4, 3).t(),
        "b": shared,
        "c": shared,
        "half": torch.randn(3).half(),
        "step": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }


def test_round_trip_is_bit_exact_and_keeps_ties(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, _tensors(), MANIFEST)
    manifest, tensors = read_checkpoint(path)
    for name, tensor in _tensors().items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    assert tensors["b"] is tensors["c"]
    assert manifest.edits == MANIFEST.edits and manifest.architecture == MANIFEST.architecture


def test_equal_content_is_equal_bytes(tmp_path: Path) -> None:
    for name in ("x", "y"):
        write_checkpoint(tmp_path / f"{name}.safetensors", _tensors(), MANIFEST)
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


def test_every_flipped_data_byte_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"w": torch.arange(6.0)}, MANIFEST)
    good = path.read_bytes()
    for place in range(len(good) - 24, len(good)):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bytes(bad))
        with pytest.raises(ModelError, match="tensor 'w' is damaged"):
            read_checkpoint(path)


def test_a_missing_or_added_tensor_is_caught(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"w": torch.ones(2), "v": torch.ones(2)}, MANIFEST)
    manifest = read_manifest(path)
    assert manifest is not None
    save_file({"w": torch.ones(2)}, path, metadata={MANIFEST_KEY: manifest.to_json()})
    with pytest.raises(ModelError, match="its header is damaged"):
        read_checkpoint(path)
    seal(path)
    with pytest.raises(ModelError, match="'v' does not agree with the manifest"):
        read_checkpoint(path)


def test_a_manifest_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(2)}, path, metadata={MANIFEST_KEY: '{"schema": "prunecli.manifest/9"}'})
    with pytest.raises(ModelError, match="another version"):
        read_manifest(path)


def test_writing_is_atomic_and_respects_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    path.write_text("old")

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(ResourceError, match="disk full"):
        write_atomically(path, fails)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.bin"]
    previous = os.umask(0o027)
    try:
        write_atomically(path, lambda temporary: temporary.write_text("new"))
    finally:
        os.umask(previous)
    assert path.read_text() == "new" and stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}, "args": argparse.Namespace(lr=1)},
        lambda state: {"model": {k: v + 1 for k, v in state.items()}, "model_ema": state},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
        lambda state: {"net": {"state_dict": state}},
        lambda state: {f"_orig_mod.module.{k}": v for k, v in state.items()},
        lambda state: {"model_ema": {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in state.items()}}},
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
def test_wrapped_state_dicts_are_unwrapped(tmp_path: Path, wrap: object, suffix: str) -> None:
    state = nn.Linear(3, 2).state_dict()
    path = tmp_path / f"x{suffix}"
    torch.save(wrap(state), path)  # type: ignore[operator]
    found = read_foreign(path).tensors
    assert set(found) == {"weight", "bias"} and all(torch.equal(found[name], state[name]) for name in state)


def test_plain_safetensors_are_read(tmp_path: Path) -> None:
    save_file({"module.w": torch.ones(2)}, tmp_path / "x.safetensors")
    assert list(read_foreign(tmp_path / "x.safetensors").tensors) == ["w"]
    assert load_safetensors(tmp_path / "x.safetensors")


class _Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin"])
def test_a_payload_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Payload()}, f"x{suffix}")
    Path(f"y{suffix}").write_bytes(pickle.dumps(_Payload()))
    for name in "xy":
        with pytest.raises(
            ModelError, match=r"'\w+.mkdir' when it is unpickled|a Python pickle that torch.save did not"
        ):
            read_foreign(Path(f"{name}{suffix}"))
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "cause"),
    [(b"", "empty"), (b"<html>", "web page"), (b"PK\x03\x04abc", "cut short")],
)
def test_garbage_is_one_line(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=cause) as caught:
        read_foreign(path)
    assert "\n" not in str(caught.value) and "weights_only=False" not in str(caught.value)


def test_other_content_and_damaged_numbers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save([1, 2], path)
    with pytest.raises(ModelError, match="holds a list"):
        read_foreign(path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ModelError, match="no tensors"):
        read_foreign(path)
    torch.save({"a": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(ModelError, match="tensor 'a' holds NaN"):
        read_foreign(path)
    (tmp_path / "x.safetensors").write_bytes(b"{}")
    with pytest.raises(ModelError, match="a JSON document"):
        read_foreign(tmp_path / "x.safetensors")


class _Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, float("-inf")]), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.body(images).mean((2, 3)))
        return scores + self.mask.clamp(min=-1)


def test_masks_of_infinity_are_no_damage(tmp_path: Path) -> None:
    result = prunecli.prune(_Masked().eval(), "l1", example_inputs=torch.randn(1, 3, 8, 8))
    result.save(tmp_path / "m.safetensors")
    assert prunecli.load(tmp_path / "m.safetensors", model=_Masked()).head.in_features == 8
    result.model.head.bias.data[0] = float("nan")
    result.save(tmp_path / "n.safetensors")
    with pytest.raises(ModelError, match=r"tensor 'head\.bias' holds NaN"):
        prunecli.load(tmp_path / "n.safetensors", model=_Masked())
    assert prunecli.load(tmp_path / "n.safetensors", model=_Masked(), allow_nonfinite=True) is not None
