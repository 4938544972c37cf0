"""The recipes that come with the package: found wherever it is installed, and copies that say the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prunecli.errors import RecipeError
from prunecli.recipe.resolve import load_plan
from prunecli.recipe.shipped import located, shipped_folder, shipped_names, shipped_path, shipped_recipes, standalone
from tests.conftest import REPOSITORY


def test_a_checkout_has_its_own_folder() -> None:
    assert shipped_folder() == REPOSITORY / "recipes"
    assert {"quickstart", "resnet56-cifar10"} <= set(shipped_names()) and "cifar10" not in shipped_names()
    assert [recipe.name for recipe in shipped_recipes()] == shipped_names()
    assert all(recipe.description and recipe.stages for recipe in shipped_recipes())


@pytest.mark.parametrize("name", shipped_names())
def test_a_copy_is_the_same_plan(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone in a folder, and still with the variables of the environment as variables."""
    copy = tmp_path / "copy.yaml"
    copy.write_text(standalone(shipped_path(name)))
    assert load_plan(copy).recipe == load_plan(shipped_path(name)).recipe
    monkeypatch.chdir(tmp_path)
    for variable in ("PRUNE_WEIGHTS", "PTB", "PRUNE_DATA"):
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert load_plan(copy).recipe == load_plan(shipped_path(name)).recipe
    assert "extends:" not in copy.read_text() and copy.read_text().startswith("# yaml-language-server")


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notes: list[str] = []
    assert located(Path("quickstart"), notes.append) == shipped_path("quickstart") and not notes
    Path("quickstart.yaml").write_text("stages: []\n")
    assert located(Path("quickstart"), notes.append) == shipped_path("quickstart")
    assert len(notes) == 1 and "not the file quickstart.yaml" in notes[0]
    assert located(Path("quickstart.yaml")) == Path("quickstart.yaml")
    Path("quickstart").write_text("stages: []\n")
    assert located(Path("quickstart")) == Path("quickstart")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("quickstrt", "did you mean 'quickstart'?"),
        ("zzz", "`prune recipe ls` lists them"),
        ("recipes/quickstart.yaml", "the recipe that comes with prune has no path: quickstart"),
        ("mine", "but there is mine.yml; name it with its ending"),
        ("folder/quickstart", "folder/quickstart: no such file"),
    ],
)
def test_a_name_that_is_none(typed: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yml").write_text("stages: []\n")
    with pytest.raises(RecipeError) as raised:
        located(Path(typed))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_the_wheel_has_them(tmp_path: Path) -> None:
    """A wheel that was really built, unpacked where an installation would put it."""
    pytest.importorskip("hatchling")
    run = {"check": True, "capture_output": True, "text": True, "cwd": tmp_path}
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = ["wheel", str(REPOSITORY), "--no-deps", "--no-build-isolation", "--no-index", "-w", "wheels"]
    subprocess.run([*pip, *build], **run)  # type: ignore[call-overload]
    (wheel,) = (tmp_path / "wheels").glob("prunecli-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", "site", str(wheel)], **run)  # type: ignore[call-overload]
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from prunecli.recipe.shipped import shipped_folder, standalone, shipped_path\n"
        "print(shipped_folder()); print(standalone(shipped_path('spikformer-cifar10-progressive')))"
    )
    done = subprocess.run([sys.executable, "-c", program], **run)  # type: ignore[call-overload]
    assert done.stdout.splitlines()[0] == str(tmp_path / "site" / "prunecli" / "recipes")
    assert "spiking:spikformer-4-384" in done.stdout  # which is in a recipe that this one extends
