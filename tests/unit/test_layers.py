"""The shape of the code: data flows one way, no cycles, readable sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.public_names import measure

PACKAGE = REPOSITORY / "src" / "prunecli"
LAYERS = [
    {"cli"},
    {"api", "arguments"},
    {"studies"},
    {"pipeline"},
    {"recipe"},
    {"exporting"},
    {"models", "data"},
    {"methods"},
    {"criteria"},
    {"surgery", "tokens", "sparsity"},
    {"engine"},
    {"checkpoint"},
    {"measure"},
    {"report"},
    {
        "inputs",
        "copying",
        "modes",
        "registry",
        "own_code",
        "widened",
        "stored",
        "bounds",
        "collective",
        "ranks",
        "phases",
    },
    {"errors", "naming", "patterns"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
IMPORTING = ("import_module", "imported", "__import__")


def _module_name(path: Path) -> str:
    return ".".join(("prunecli", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


NAMES = {_module_name(path) for path in MODULES}


def _imports(source: str) -> set[str]:
    """Modules of this package that a source imports: in functions, for type checking, and by literal names too."""
    imports: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            imports |= {name if name in NAMES else str(node.module) for name in members}
        elif isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in IMPORTING:
                imports.add(str(node.args[0].value).partition(":")[0])
    return {name for name in imports if name.partition(".")[0] == "prunecli"}


@cache
def _graph() -> dict[str, set[str]]:
    return {_module_name(path): _imports(path.read_text()) - {_module_name(path)} for path in MODULES}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_layer_imports_a_higher_one(name: str) -> None:
    layer = name.split(".")[1] if "." in name else ""
    if layer in ("", "__main__"):
        return
    for imported in _graph()[name]:
        other = imported.split(".")[1] if "." in imported else ""
        assert not other or RANK[layer] <= RANK[other], f"{name} imports {imported}"


def test_every_folder_and_file_belongs_to_a_layer() -> None:
    entries = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert entries - {"__init__", "__main__"} == set(RANK)


def test_no_modules_import_each_other() -> None:
    try:
        TopologicalSorter(_graph()).prepare()
    except CycleError as error:
        pytest.fail("a cycle: " + " -> ".join(error.args[1]))


def test_every_way_of_importing_is_seen() -> None:
    source = """
from typing import TYPE_CHECKING
from importlib import import_module
import prunecli.errors
if TYPE_CHECKING:
    from prunecli.inputs import call
def lazy():
    from prunecli import registry
    import_module("prunecli.engine.fit")
    imported("prunecli.report.table:Table")
    print("prunecli.api")
"""
    names = ("errors", "inputs", "registry", "engine.fit", "report.table")
    assert _imports(source) == {f"prunecli.{name}" for name in names}
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"c"}, "c": {"a"}}).prepare()


def test_typers_internals_are_touched_in_one_file() -> None:
    allowed = {"lazy.py"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module in ("typer.core", "typer.main", "typer._click") or (module or "").startswith("click"):
                assert path.name in allowed, f"{path} imports {module}"


def test_modules_and_functions_stay_readable() -> None:
    figures = measure(PACKAGE)
    assert {name: lines for name, lines in figures.modules.items() if lines > 400} == {}
    assert figures.median_module <= 130
    assert {name: lines for name, lines in figures.functions.items() if lines > 60} == {}


def test_a_newcomer_has_fewer_names_to_learn() -> None:
    assert measure(PACKAGE).names_per_1000_lines < 27


def test_importing_the_package_is_free() -> None:
    code = "import sys, prunecli; print('torch' in sys.modules, prunecli.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False 0.")
