"""The shape of the code: data flows one way, and start-up is light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "src" / "prunecli"
LAYERS = [
    {"cli"},
    {"api"},
    {"studies"},
    {"pipeline"},
    {"recipe"},
    {"models", "data"},
    {"methods"},
    {"criteria"},
    {"surgery", "tokens"},
    {"engine"},
    {"checkpoint"},
    {"measure"},
    {"report"},
    {"inputs", "registry"},
    {"errors"},
]
RANK = {name: place for place, names in enumerate(LAYERS) for name in names}
# Torch-free descriptions that higher layers and the command line read.
MODULES = sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunecli"):
            names = (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "prunecli" else {node.module}
            )
            found |= {str(name) for name in names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("prunecli")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_layer_imports_a_higher_one(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for imported in _imports(path):
        other = imported.split(".")[1] if "." in imported else ""
        if other in RANK:
            assert RANK[own] <= RANK[other], f"{own} imports {imported}"


def test_every_folder_has_its_place() -> None:
    folders = {entry.name for entry in PACKAGE.iterdir() if entry.is_dir() and entry.name != "__pycache__"}
    assert folders <= set(RANK)


def test_typers_internals_are_touched_in_one_file() -> None:
    allowed = {"lazy.py"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            if module in ("typer.core", "typer.main", "typer._click") or (module or "").startswith("click"):
                assert path.name in allowed, f"{path} imports {module}"


def test_modules_stay_readable() -> None:
    for path in MODULES:
        tree = ast.parse(path.read_text())
        assert len(path.read_text().splitlines()) <= 420, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 90, f"{path}: {node.name}"


_PROBE = """
import os, sys
from prunecli.cli.app import run
stdout = os.dup(1)
os.dup2(2, 1)
run(sys.argv[1:])
sys.stdout.flush()
os.dup2(stdout, 1)
heavy = ("torch", "timm", "pydantic", "rich.markdown", "numpy", "sklearn", "torchvision", "yaml")
print(",".join(name for name in heavy if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (["--help"], {}),
        (["--version"], {}),
        (["l1", "--help"], {}),
        (["train", "--help"], {}),
        (["eval", "--help"], {}),
        (["compare", "--help"], {}),
        (["recipe", "--help"], {}),
        (["recipe", "check", "--help"], {}),
        ([], {"_PRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "prune\n", "COMP_CWORD": "1"}),
        ([], {"_PRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "prune\nl1\n--arch\ntimm\n:\nres", "COMP_CWORD": "5"}),
        ([], {"_PRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "prune\ntrain\n--data\n", "COMP_CWORD": "3"}),
        ([], {"_PRUNE_COMPLETE": "complete_zsh", "_PRUNE_WORDS": "prune\nprune\n--method\n"}),
        ([], {"_PRUNE_COMPLETE": "complete_fish", "_PRUNE_WORDS": "prune\neval\n--"}),
    ],
)
def test_help_and_completion_import_nothing_heavy(words: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "", done.stdout
    assert "Traceback" not in done.stderr and done.stderr.strip()


def test_importing_the_package_is_free() -> None:
    code = "import sys, prunecli; print('torch' in sys.modules, prunecli.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False 0.")
