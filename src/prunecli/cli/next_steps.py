"""What one may do next: after each command a command that works as it stands, with the files that were just written."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.cli.options import shared_options
from prunecli.cli.output import Output
from prunecli.own_code import PREFIX
from prunecli.recipe.schema import ModelSection, Recipe

if TYPE_CHECKING:
    from prunecli.pipeline.run import RunOutcome
    from prunecli.pipeline.workspace import Workspace

_EPOCHS, _RATIO = 5, 0.5


def after_recipe(output: Output, path: Path, model: str = "") -> None:
    """A recipe for a network was written."""
    code = ("--allow-code", model.removeprefix(PREFIX).partition(":")[0]) if model.startswith(PREFIX) else ()
    output.hint(f"{_line('recipe', 'check', path)} && {_line('run', path, *code)}")


def after_run(output: Output, outcome: RunOutcome) -> None:
    """A recipe was run."""
    output.hint(_line("report", outcome.folder, "-o", _free(outcome.folder / "report.html")))


def after_training(output: Output, space: Workspace, path: Path) -> None:
    """A network was trained."""
    if output.mode == "human":
        output.hint(_line("l1", path, "--ratio", _RATIO, *_settings(space)))


def after_finetuning(output: Output, space: Workspace, path: Path) -> None:
    """A smaller network was trained on."""
    if output.mode == "human":
        output.hint(_line("eval", path, "-o", _free(path.with_suffix(".json")), *_settings(space)))


def after_pruning(output: Output, space: Workspace, path: Path, *, finetunes: bool) -> None:
    """A network was made smaller; `finetunes` says whether training it on makes sense."""
    if output.mode != "human":
        return
    if finetunes and space.data_name() is not None and space.data().trainable:
        from prunecli.pipeline.stages.teacher import to_be_named

        teacher = to_be_named(space)
        named = () if teacher is None else ("--teacher", teacher)
        output.hint(_line("finetune", path, "--epochs", _EPOCHS, *named, *_settings(space)))
    elif (compared := _compared_with_the_original(space, path)) is not None:
        output.hint(compared)
    else:
        output.hint(_line("inspect", path, *_code(space)))


def after_search(output: Output, space: Workspace, path: Path) -> None:
    """A smaller network was found and trained."""
    if output.mode == "human":
        output.hint(_compared_with_the_original(space, path) or _line("inspect", path, *_code(space)))


def after_measuring(output: Output, space: Workspace, model: str) -> None:
    """A network was measured."""
    if output.mode != "human":
        return
    step = space.stored_model().manifest.last("prune")
    if step is None:
        if Path(model).suffix not in (".yaml", ".yml") and not space.untrained():
            output.hint(_line("l1", model, "--ratio", _RATIO, *_settings(space, of_model=True)))
    elif step.parent is not None and Path(step.parent).is_file() and (path := space.stored_model().path) is not None:
        output.hint(_line("compare", step.parent, path, *_settings(space)))


def _compared_with_the_original(space: Workspace, path: Path) -> str | None:
    """`compare` with the network that was pruned, if it can be loaded there as it was here."""
    section = space.recipe.model
    if section.weights is None:
        return _line("compare", section.ref or "", path, *_settings(space, of_model=True))
    if section != ModelSection(weights=section.weights, ref=section.ref):
        return None
    return _line("compare", section.weights, path, *_settings(space, of_model=True))


def _settings(space: Workspace, *, of_model: bool = False) -> Iterator[object]:
    """The options with which the next command reads the same data in the same way; `of_model`: and the same network."""
    yield from _code(space)
    defaults = Recipe()
    for spec in shared_options():
        if spec.path is None or (spec.path[0] == "model" and not of_model) or spec.path == ("seed",):
            continue
        value, default = _at(space.recipe, spec.path), _at(defaults, spec.path)
        if value == default or (spec.path == ("model", "ref") and space.recipe.model.weights is None):
            continue
        yield from _words("--" + spec.name.replace("_", "-"), value)


def _code(space: Workspace) -> Iterator[str]:
    """What allows the code of a network of the user's own, which a checkpoint may not run by itself."""
    ref = space.stored_model().manifest.architecture.ref
    if ref.startswith(PREFIX):
        yield from ("--allow-code", ref.removeprefix(PREFIX).partition(":")[0])


def _at(recipe: Recipe, path: Iterable[str | int]) -> Any:
    value: Any = recipe
    for name in path:
        value = getattr(value, str(name))
    return value


def _words(flag: str, value: Any) -> Iterator[object]:
    """An option as it is typed."""
    if isinstance(value, bool):
        yield flag if value else f"--no-{flag[2:]}"
    elif isinstance(value, Mapping):
        from prunecli.recipe.writing import value_text

        for key, item in value.items():
            yield from (flag, f"{key}={value_text(item)}")
    else:
        for item in value if isinstance(value, tuple) else (value,):
            yield from (flag, item)


def _free(path: Path) -> Path:
    """A name like this that no file has yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _line(*words: object) -> str:
    return shlex.join(["prune", *map(str, words)])


def after_sweep(output: Output, folder: Path, finished: Sequence[str]) -> None:
    """A sweep has ended, with these cells finished."""
    if len(finished) > 1:
        output.hint(_line("compare", folder, "--plot", _free(folder / "front.png")))
