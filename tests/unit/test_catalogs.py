"""Data sets and model sources that installed packages add."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import invalidate_caches
from pathlib import Path

import pytest

from prunecli import registry
from prunecli.cli.completion import complete
from prunecli.data import catalog as data_catalog
from prunecli.data.catalog import described_datasets, load_data, named_datasets, samples_of
from prunecli.errors import DataError, ModelError
from prunecli.models import catalog as model_catalog
from prunecli.models import index
from prunecli.models.catalog import added_references, build, input_spec, settled_arguments, split_reference
from prunecli.models.loading import load_file, load_reference, save
from prunecli.models.source import ModelSource

Install = Callable[..., None]

DATA = """
import numpy as np
from prunecli.data.splits import ArraySplit, DataSet
SAMPLES = "recordings"

def load(name, root, download):
    split = ArraySplit(np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2)
    return DataSet(name, ("a", "b"), 1, (8, 8), (0.5,), (0.5,), False, split, split)
"""
SOURCE = """
from torch import nn
from prunecli.checkpoint.manifest import InputNormalisation

def names():
    return ["small"]

def build(name, pretrained, num_classes=10, in_chans=3):
    return nn.Sequential(nn.Conv2d(in_chans, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def input_spec(name, model):
    return (16, 16), InputNormalisation(mean=(0.5,) * 3, std=(0.5,) * 3)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a module and an entry point that names it where Python finds installed packages."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def put(group: str, name: str, source: str, module: str = "somebodys") -> None:
        info = site / f"{module}-1.0.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        (site / f"{module}.py").write_text(source)
        invalidate_caches()
        registry._entry_point_texts.cache_clear()  # a package's file changes here, and not the folder it is in

    yield put
    sys.modules.pop("somebodys", None)
    _forget_packages()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    _forget_packages()


def _forget_packages() -> None:
    """Entry points are looked up once per process."""
    for things in (index.SOURCES, data_catalog.DATASETS):
        things.__dict__.pop("_added", None)
        things.__dict__["_loaded"].pop("theirs", None)
    model_catalog.source_names.cache_clear()


def test_a_data_set_of_a_package(install: Install, tmp_path: Path) -> None:
    install("prunecli.data", "theirs", DATA)
    assert named_datasets()[-1] == "theirs" and ("theirs:", "from somebodys") in described_datasets()
    assert ("theirs", "from somebodys") in complete(["prune", "eval", "--data", "the"])
    assert "somebodys" not in sys.modules, "names are known without importing anything"
    data = load_data("theirs", tmp_path)
    assert data.name == "theirs" and len(data.test.labels) == 4
    assert load_data("theirs:a/b", tmp_path).name == "theirs:a/b"
    assert samples_of("theirs:a/b") == "recordings"


def test_a_typing_error_is_pointed_out_with_the_name_of_a_package(install: Install) -> None:
    install("prunecli.data", "theirs", DATA)
    with pytest.raises(DataError, match=r"unknown data set 'thiers': did you mean 'theirs'\?"):
        load_data("thiers")
    install("prunecli.models", "theirs", SOURCE)
    with pytest.raises(ModelError, match=r"unknown model source 'thiers': did you mean 'theirs'\?"):
        split_reference("thiers:small")
    with pytest.raises(ModelError, match=r"did you mean 'theirs:small'"):
        split_reference("theirs:smal")


def test_a_source_of_a_package(install: Install, tmp_path: Path) -> None:
    install("prunecli.models", "theirs", SOURCE)
    assert ("theirs:", "") in complete(["prune", "inspect", "the"])
    assert "somebodys" not in sys.modules
    assert added_references() == ["theirs:small"]
    loaded = load_reference("theirs:small", num_classes=3)
    assert loaded.fixed_size == input_spec("theirs:small", loaded.model)[0] == (16, 16)
    assert settled_arguments("theirs:small", {"num_classes": 3}) == {"num_classes": 3}
    save(tmp_path / "m.safetensors", loaded.model, loaded.manifest)
    again = load_file(tmp_path / "m.safetensors")
    assert again.manifest.architecture.ref == "theirs:small" and again.model[3].out_features == 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import nothing_of_that_name", "package somebodys cannot be loaded: No module named 'nothing_of_that_name'"),
        ("", "package somebodys (has no function load|lacks one of names, build and input_spec)"),
    ],
)
def test_a_broken_package_is_named_and_everything_else_works(install: Install, source: str, message: str) -> None:
    install("prunecli.data", "theirs", source)
    with pytest.raises(DataError, match=message):
        load_data("theirs")
    assert load_data("digits").num_classes == 10
    install("prunecli.models", "theirs", source)
    with pytest.raises(ModelError, match=message):
        build("theirs:small")
    assert build("cifar:resnet20")


def test_a_taken_name_is_refused(install: Install) -> None:
    install("prunecli.data", "mnist", DATA)
    with pytest.raises(DataError, match="data set 'mnist' of package somebodys has a name that is taken"):
        named_datasets()
    install("prunecli.models", "timm", SOURCE)
    with pytest.raises(ModelError, match="model source 'timm' of package somebodys has a name that is taken"):
        added_references()


@pytest.mark.parametrize("source", index.SOURCES.built_in)
def test_built_in_sources_follow_the_protocol(source: str) -> None:
    assert isinstance(index.SOURCES.load(source), ModelSource)


def test_names_and_completion_import_nothing_heavy() -> None:
    code = (
        "import sys\nfrom prunecli.data.catalog import described_datasets, samples_of\n"
        "from prunecli.models.index import SOURCES, known_references\n"
        "described_datasets(), SOURCES.names, known_references(), samples_of('n-mnist')\n"
        "print([name for name in ('torch', 'numpy', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
