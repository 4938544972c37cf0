"""Nothing in any file is run, whatever it is called and however it is wrapped."""

from __future__ import annotations

import ast
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.checkpoint.foreign_files import read_foreign
from prunecli.checkpoint.io import read_manifest
from prunecli.data.catalog import load_data
from prunecli.errors import PruneError
from prunecli.recipe.loader import load_yaml
from prunecli.report.schema import read_report
from tests.conftest import REPOSITORY, Prune
from tests.faults.payloads import as_legacy, as_zip, beside_weights, hostile, weights, wrappings

SUFFIXES = (*WEIGHT_SUFFIXES, ".pt2", ".json", ".yaml", ".npz", "")


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "sentinel"


def test_the_payloads_work_where_pickles_are_read(sentinel: Path) -> None:
    payloads = hostile(sentinel)
    assert len(payloads) >= 35
    for name, content in payloads.items():
        try:
            pickle.loads(content)
        except Exception as error:  # some fail after they have done it
            assert sentinel.exists(), (name, error)
        assert sentinel.exists(), name
        shutil.rmtree(sentinel)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.filterwarnings("error")
def test_no_payload_runs(sentinel: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"file{suffix}"
    readers = (read_foreign, read_manifest, read_report, load_yaml)
    for name, content in hostile(sentinel).items():
        for wrapping, wrap in wrappings().items():
            path.write_bytes(wrap(content))
            for read in readers:
                try:
                    read(path)
                except PruneError as error:
                    assert "\n" not in str(error) and str(path) in str(error), error
                assert not sentinel.exists(), (name, wrapping, read)


def test_no_payload_beside_weights_runs(sentinel: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    refused = 0
    for name, content in hostile(sentinel).items():
        numbers = b"\2" + bytes(7) + weights()
        keys = pickle.dumps(["0"], 2)
        for whole in (
            as_zip(beside_weights(content), _0=weights()),
            as_legacy(beside_weights(content), keys=keys, numbers=numbers),
        ):
            path.write_bytes(whole)
            try:
                assert torch.equal(read_foreign(path).tensors["w"], torch.ones(2)), name
            except PruneError:
                refused += 1
            assert not sentinel.exists(), name
    assert refused >= 20


def test_no_payload_in_an_array_runs(sentinel: Path, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.mkdir, (sentinel,)  # type: ignore[return-value]

    path = tmp_path / "images.npz"
    np.savez(path, x_train=np.array([Payload()], dtype=object), y_train=np.array([0]))
    with pytest.raises(PruneError):
        load_data(str(path), tmp_path)
    assert not sentinel.exists()


def test_no_payload_runs_from_the_command_line(sentinel: Path, tmp_path: Path, prune: Prune) -> None:
    payloads = hostile(sentinel)
    everything = (
        b"\x80\x02](" + b"".join(content[2:-1] for content in payloads.values() if content[:2] == b"\x80\x02") + b"e."
    )
    (tmp_path / "x.pt").write_bytes(as_zip(everything))
    done = prune("inspect", "x.pt")
    assert done.code == 2 and done.err.count("\n") == 1 and "Traceback" not in done.err and not done.out
    assert not sentinel.exists()


def test_torch_load_is_only_called_with_weights_only() -> None:
    calls = 0
    for file in (REPOSITORY / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "pickle.load",
                "pickle.loads",
                "torch.jit.load",
            ):
                raise AssertionError(f"{file} unpickles")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "torch.serialization.load"):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("weights_only") == "True", file
                calls += 1
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization", "pickle"):
                assert not {"load", "loads", "Unpickler"} & {alias.name for alias in node.names}, file
    assert calls >= 1


def test_every_name_that_torch_allows_is_known() -> None:
    """A name that torch resolves may not pass for one that an inert object stands in for."""
    from torch._weights_only_unpickler import _get_allowed_globals

    from prunecli.checkpoint.rebuilding import is_foreign
    from prunecli.checkpoint.records import Global

    assert not [name for name in _get_allowed_globals() if is_foreign(Global(name))]
