"""Every bad file is refused with one line that names the file, the cause and the remedy."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from prunecli.checkpoint.foreign_files import read_foreign
from prunecli.checkpoint.io import read_checkpoint, read_manifest, write_checkpoint
from prunecli.checkpoint.manifest import Architecture, Manifest
from prunecli.cli.app import run
from prunecli.errors import ModelError, PruneError
from prunecli.models.catalog import build
from prunecli.models.loading import load_companion, load_file, load_reference, save
from tests.conftest import Prune
from tests.faults.damage import BadFile, bad_files, good_legacy_file, good_safetensors, good_torch_file

BAD_FILES = bad_files()


@pytest.mark.parametrize("bad", BAD_FILES, ids=lambda bad: bad.name)
def test_a_bad_file_is_one_line(bad: BadFile, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for suffix in bad.suffixes:
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(bad.content)
        assert run(["inspect", str(path)]) == 2
        out, err = capfd.readouterr()
        assert not out and err.count("\n") == 1 and err.startswith(f"error: {path}: "), err
        assert re.search(bad.cause, err) and re.search(bad.remedy, err), err
        assert "weights_only" not in err and "Traceback" not in err and len(err) < 600


def test_a_bad_file_is_one_line_for_a_process(prune: Prune, tmp_path: Path) -> None:
    chosen = {bad.name: bad for bad in BAD_FILES}
    (tmp_path / "w.pt").write_bytes(chosen["NaN in safetensors"].content)
    done = prune("l1", "w.pt", "--ratio", "0.5", "-o", "x.safetensors")
    assert done.code == 2 and done.err.count("\n") == 1 and not done.out, done.err
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".weights"])
@pytest.mark.parametrize(
    "content", [good_torch_file(), good_legacy_file(), good_safetensors()], ids=["zip", "old", "safe"]
)
def test_the_name_of_a_file_decides_nothing(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    assert torch.equal(read_foreign(path).tensors["a.weight"], torch.arange(64.0).reshape(8, 8))
    assert read_manifest(path) is None


def test_files_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.pt"):
        with pytest.raises(ModelError, match=re.escape(str(path))):
            load_file(path)
        with pytest.raises(ModelError, match=re.escape(str(path))):
            load_companion(path, None)
        with pytest.raises(ModelError, match=r"cannot be opened \("):
            read_foreign(path)


def test_nonfinite_weights_load_when_they_are_allowed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = build("cifar:resnet20")
    with torch.no_grad():
        model.get_parameter("linear.bias")[1] = torch.nan
        model.get_buffer("bn1.running_var")[0] = torch.inf
    torch.save(model.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"tensors 'bn1.running_var', 'linear.bias' hold NaN.*--allow-nonfinite"):
        load_file(tmp_path / "w.pt")
    loaded = load_file(tmp_path / "w.pt", allow_nonfinite=True)
    assert loaded.model.get_parameter("linear.bias")[1].isnan()
    save(tmp_path / "x.safetensors", loaded.model, loaded.manifest)
    with pytest.raises(ModelError, match=r"'bn1.running_var', 'linear.bias' hold NaN"):
        load_file(tmp_path / "x.safetensors")
    again = load_companion(tmp_path / "x.safetensors", None, allow_nonfinite=True)
    assert again.model.get_buffer("bn1.running_var")[0].isinf()


def test_all_kinds_of_floats_are_looked_at(tmp_path: Path) -> None:
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float64,
        torch.complex64,
        torch.float8_e5m2,
        torch.float8_e4m3fn,
    ):
        torch.save({"a": torch.tensor([1.0, torch.nan]).to(dtype)}, tmp_path / "x.pt")
        with pytest.raises(ModelError, match="tensor 'a' holds NaN"):
            read_foreign(tmp_path / "x.pt")
        torch.save({"a": torch.tensor([1.0, 2.0]).to(dtype)}, tmp_path / "x.pt")
        assert read_foreign(tmp_path / "x.pt").tensors["a"].dtype == dtype


def test_names_in_files_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    name = "a\x1b[2J\nb" * 1000
    torch.save({"fine": torch.ones(1), name: torch.tensor(torch.nan)}, tmp_path / "x.pt")
    with pytest.raises(ModelError) as caught:
        read_foreign(tmp_path / "x.pt")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    torch.save({"fine": torch.ones(1), name[:90]: torch.tensor(torch.nan)}, tmp_path / "x.pt")
    with pytest.raises(ModelError) as caught:
        read_foreign(tmp_path / "x.pt")
    assert str(caught.value).isprintable() and r"\x1b[2J" in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "cause"),
    [
        ({"pretrained": True}, "'pretrained' is not an argument"),
        ({"checkpoint_path": "/etc/passwd"}, "'checkpoint_path' is not an argument"),
        ({"pretrained_cfg": {"url": "http://localhost"}}, "'pretrained_cfg' is not an argument"),
        ({"num_classes": 10**12}, "num_classes has to be"),
        ({"num_classes": True}, "num_classes has to be"),
        ({"in_chans": 0}, "in_chans has to be"),
        ({"in_chans": "3"}, "in_chans has to be"),
    ],
)
def test_a_manifest_may_not_pass_other_arguments(kwargs: dict[str, object], cause: str, tmp_path: Path) -> None:
    architecture = Architecture.model_construct(ref="timm:resnet18", kwargs=kwargs, input_shape=(), class_name="")
    write_checkpoint(tmp_path / "x.safetensors", {"w": torch.ones(1)}, Manifest(architecture=architecture))
    with pytest.raises(ModelError, match=cause):
        load_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize("shape", [(3, 1 << 30, 2), (3, 0, 2), (1,) * 9, (3, 1 << 15, 1 << 15), (3, 32)])
def test_a_manifest_may_not_ask_for_impossible_images(shape: tuple[int, ...], tmp_path: Path) -> None:
    loaded = load_reference("cifar:resnet20")
    loaded.manifest.architecture = loaded.manifest.architecture.model_copy(update={"input_shape": shape})
    save(tmp_path / "x.safetensors", loaded.model, loaded.manifest)
    with pytest.raises(ModelError, match=r"not a valid input shape|shape of an (input|image)|over 67,108,864 numbers"):
        load_file(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        ("conv1", "in_channels", "3"),
        ("conv1", "padding_mode", 3),
        ("conv1", "out_channels", [16]),
        ("conv1", "kernel_size", 3),
        ("conv1", "kernel_size", ["a", "b"]),
        ("bn1", "affine", 1),
        ("bn1", "eps", True),
        ("bn1", "eps", {"a": 1}),
    ],
)
def test_attributes_keep_their_kind(module: str, name: str, value: object, tmp_path: Path) -> None:
    loaded = load_reference("cifar:resnet20")
    changed = {module: {name: value}}
    tensors = loaded.model.state_dict()
    write_checkpoint(tmp_path / "x.safetensors", tensors, loaded.manifest.model_copy(update={"attributes": changed}))
    with pytest.raises(ModelError, match=rf"sets {module}.{name} to a value of another type"):
        load_file(tmp_path / "x.safetensors")


def test_numbers_without_bounds_in_a_manifest_are_refused(tmp_path: Path) -> None:
    loaded = load_reference("cifar:resnet20")
    path = tmp_path / "x.safetensors"
    manifest = loaded.manifest.model_copy(update={"attributes": {"bn1": {"eps": 0.125}}})
    for number, cause in (("1e999", "eps.*finite"), ("NaN", "not valid JSON"), ("-Infinity", "not valid JSON")):
        text = manifest.to_json().replace('"eps":0.125', f'"eps":{number}')
        save_file({"w": torch.ones(1)}, path, metadata={"prunecli.manifest": text.replace('"sha256":"",', "")})
        with pytest.raises(ModelError, match=cause):
            read_checkpoint(path)


def test_a_checkpoint_from_before_headers_had_a_hash_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"w": torch.ones(2)}, Manifest(architecture=Architecture(ref="cifar:resnet20")))
    manifest = read_manifest(path)
    assert manifest is not None and len(manifest.sha256) == 64
    text = manifest.to_json().replace(f'"sha256":"{manifest.sha256}",', "", 1)
    save_file({"w": torch.ones(2)}, path, metadata={"prunecli.manifest": text})
    older, tensors = read_checkpoint(path)
    assert older.sha256 == "" and torch.equal(tensors["w"], torch.ones(2))


def test_reports_and_recipes_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    contents = [bad.content for bad in BAD_FILES]
    contents += [b"[" * 100_000, b'{"schema": ' + b"9" * 5000 + b"}", b'{"schema": {"a": [1]}}', b"a: " + b"9" * 5000]
    for content in contents:
        for name, words in (("r.json", ["compare", "r.json", "r.json"]), ("r.yaml", ["run", "r.yaml"])):
            path = tmp_path / name
            path.write_bytes(content)
            code = run([str(path) if word == name else word for word in words])
            out, err = capfd.readouterr()
            assert code == 2 and err.count("\n") == 1 and str(path) in err and not out, err


def test_arrays_of_objects_are_one_line(tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save({"a": np.ones(3)}, stream)
    (tmp_path / "x.pt").write_bytes(stream.getvalue())
    with pytest.raises(PruneError, match="holds no tensors"):
        read_foreign(tmp_path / "x.pt")
