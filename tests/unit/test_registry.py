"""The registry behind methods, criteria, model sources and data sets."""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib import invalidate_caches
from importlib.metadata import Distribution, DistributionFinder, MetadataPathFinder
from pathlib import Path
from typing import Any

import pytest

from prunecli.criteria.index import CRITERIA
from prunecli.data.catalog import DATASETS
from prunecli.errors import DataError, MethodError, ModelError, PruneError
from prunecli.methods.index import METHODS
from prunecli.models.index import SOURCES
from prunecli.registry import Registry

GROUP = "prunecli.tests"
Install = Callable[..., None]


def _registry(**options: Any) -> Registry[Any]:
    built_in = {"square": "math:sqrt", "module": "json", "seven": 7}
    return Registry("tool", GROUP, built_in, MethodError, **options)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package with one module of its name: `install("acme", {"hammer": "acme:TOOL"}, "TOOL = 1")`."""
    monkeypatch.syspath_prepend(tmp_path)
    packages: list[str] = []

    def put(package: str, entries: dict[str, str], source: str) -> None:
        packages.append(package)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        lines = [f"{name} = {reference}" for name, reference in entries.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))
        (tmp_path / f"{package}.py").write_text(source)
        invalidate_caches()

    yield put
    for package in packages:
        sys.modules.pop(package, None)


def test_built_in_things_are_values_or_references() -> None:
    import json
    import math

    registry = _registry()
    assert registry.names == registry.built_in == ("square", "module", "seven")
    assert [registry.load(name) for name in registry.names] == [math.sqrt, json, 7]
    assert registry.package("square") == ""


def test_names_of_packages_are_known_without_importing_them(install: Install) -> None:
    install("acme", {"hammer": "acme:TOOL", "saw": "acme"}, "TOOL = object()")
    registry = _registry()
    assert set(registry.names) == {"square", "module", "seven", "hammer", "saw"}
    assert registry.names[:3] == registry.built_in and registry.package("hammer") == "acme"
    registry.require("hammer")
    assert "acme" not in sys.modules
    tool = registry.load("hammer")
    assert tool is sys.modules["acme"].TOOL and registry.load("hammer") is tool
    assert registry.load("saw") is sys.modules["acme"]


def test_packages_are_found_wherever_python_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether there may be any is seen at a glance into folders; for all else `importlib.metadata` is asked."""
    points = f"[{GROUP}]\n{{}} = json\n"
    info = tmp_path / "eggs" / "older.egg-info"
    info.mkdir(parents=True)
    (info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: older\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(points.format("hammer"))
    with zipfile.ZipFile(tmp_path / "zipped.zip", "w") as archive:
        archive.writestr("zipped-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: zipped\nVersion: 1.0\n")
        archive.writestr("zipped-1.0.dist-info/entry_points.txt", points.format("saw"))
    for place, added in ((tmp_path / "eggs", "hammer"), (tmp_path / "zipped.zip", "saw")):
        assert added not in _registry().names
        monkeypatch.syspath_prepend(place)
        assert added in _registry().names

    class Finder(MetadataPathFinder):
        """Somebody else's, for packages that are in no folder of `sys.path`."""

        def find_distributions(self, context: DistributionFinder.Context) -> Iterator[Distribution]:  # type: ignore[override]
            yield Distribution.at(tmp_path / "apart" / "apart.egg-info")

    apart = tmp_path / "apart" / "apart.egg-info"
    shutil.copytree(info, apart)
    (apart / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: apart\nVersion: 1.0\n")
    (apart / "entry_points.txt").write_text(points.format("plane"))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not path.startswith(str(tmp_path))])
    assert _registry().names == _registry().built_in
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert "plane" in _registry().names


def test_unknown_names_get_the_nearest_a_command_or_the_list(install: Install) -> None:
    install("acme", {"hammer": "acme:TOOL"}, "")
    registry = _registry()
    for check in (registry.require, registry.load):
        with pytest.raises(MethodError, match=r"^unknown tool 'hamer': did you mean 'hammer'\?$"):
            check("hamer")
        with pytest.raises(MethodError, match=r"^unknown tool 'xyz': choose from square, module, seven, hammer$"):
            check("xyz")
    with pytest.raises(MethodError, match=r"^unknown tool 'xyz': run `prune tools` for the list$"):
        _registry(see="prune tools").require("xyz")
    assert "acme" not in sys.modules


@pytest.mark.parametrize(
    ("reference", "source", "cause"),
    [
        ("acme:TOOL", "import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("acme:TOOL", "", "module 'acme' has no attribute 'TOOL'"),
        ("acme:TOOL", "raise ValueError('too old')", "too old"),
        ("elsewhere:TOOL", "", "No module named 'elsewhere'"),
        ("acme:TOOL", "TOOL = (", "'\\(' was never closed"),
    ],
)
def test_a_broken_package_is_named_and_the_rest_works(
    install: Install, reference: str, source: str, cause: str
) -> None:
    install("acme", {"hammer": reference}, source)
    registry = _registry()
    with pytest.raises(MethodError, match=rf"^tool 'hammer' of package acme cannot be loaded: .*{cause}") as caught:
        registry.load("hammer")
    assert "\n" not in str(caught.value)
    assert "hammer" in registry.names and registry.load("seven") == 7


def test_a_taken_name_is_refused_with_the_package(install: Install) -> None:
    install("acme", {"seven": "acme:TOOL"}, "TOOL = 1")
    with pytest.raises(MethodError, match=r"tool 'seven' of package acme has a name that is taken; the package has to"):
        _ = _registry().names


def test_two_packages_cannot_share_a_name(install: Install) -> None:
    install("acme", {"hammer": "acme:TOOL"}, "TOOL = 1")
    install("bolts", {"hammer": "bolts:TOOL"}, "TOOL = 2")
    with pytest.raises(MethodError, match=r"tool 'hammer' of package (acme|bolts) has a name that is taken"):
        _registry().load("hammer")


@pytest.mark.parametrize(
    ("registry", "name", "error", "kind"),
    [
        (METHODS, "tailor", MethodError, "method"),
        (CRITERIA, "tailor", MethodError, "criterion"),
        (SOURCES, "tim", ModelError, "model source"),
        (DATASETS, "digts", DataError, "data set"),
    ],
)
def test_everything_that_can_be_added_is_such_a_registry(
    registry: Registry[Any], name: str, error: type[PruneError], kind: str
) -> None:
    assert len(registry.built_in) > 4 and set(registry.built_in) <= set(registry.names)
    for built_in in registry.built_in:
        assert registry.load(built_in) is registry.load(built_in)
    with pytest.raises(error, match=rf"^unknown {kind} '{name}': did you mean '"):
        registry.load(name)
