"""Comparing what is named on the command line: reports, which need no torch, or networks measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.errors import GateFailed, RecipeError, unknown
from prunecli.models.index import is_reference
from prunecli.pipeline.run_folder import RUN_NAME, reports_of_run
from prunecli.pipeline.sink import Sink
from prunecli.pipeline.sweep_cells import read_cells
from prunecli.recipe.schema import Recipe
from prunecli.report.comparison import Comparison, Gate, GateResult, compare_reports
from prunecli.report.pareto import with_fronts
from prunecli.report.schema import read_report
from prunecli.report.sweep import SweepRow, is_sweep, paths_of


@dataclass(frozen=True)
class Compared:
    """A comparison of what could be read, and the damage, to be raised after it is shown.

    Attributes:
        comparison: The comparison; its notes name what is missing in it.
        damage: An error if files of a cell are damaged, so that no gate passes because of what is not there.
    """

    comparison: Comparison
    damage: RecipeError | None = None


def compare_paths(
    paths: Sequence[Path],
    recipe: Recipe,
    sink: Sink,
    *,
    rounds: int = 30,
    command: str = "",
    channels_last: bool = False,
    compiled: bool = False,
    runtime: str | None = None,
) -> Compared:
    """Compares every report or network after the first with the first.

    Networks are measured, with latencies taken in turns so that their ratio is a paired one; given a data set in
    `recipe`, their accuracy is measured too.

    Args:
        paths: Reports (.json), or networks: weights files and references such as timm:resnet50. A reference without
            arguments of its own is built with those of the first checkpoint of its architecture.
        recipe: Data, device, seed, the architecture of foreign weights, and the arguments of references.
        sink: Receives notes and progress.
        rounds: Paired timings.
        command: How to run this again.
        channels_last: Whether networks are timed with their channels last in memory.
        compiled: Whether they are compiled before they are timed.
        runtime: What runs them when they are timed: a name of `prunecli.exporting.index.RUNTIMES`; None: PyTorch.

    Raises:
        RecipeError: There are fewer than two, reports and networks are mixed, or reports are to be timed.
        ModelError: A runtime is not installed, or cannot run a network.
    """
    labels, paths, missing = expanded(paths)
    if len(paths) < 2:
        raise RecipeError("compare needs a baseline and at least one more report or network")
    networked = [path for path in paths if path.suffix in WEIGHT_SUFFIXES or is_reference(path)]
    names = labels or _short_names(paths)
    if not networked:
        options = (("--channels-last", channels_last), ("--compile", compiled), ("--runtime", runtime))
        asked = [word for word, on in options if on]
        if asked:
            raise RecipeError(f"{' and '.join(asked)}: reports are not timed again; name networks, or leave it out")
        return _noted(with_fronts(compare_reports(names, [read_report(path) for path in paths])), missing)
    if len(networked) < len(paths):
        other = next(path for path in paths if path not in networked)
        raise RecipeError(
            f"{other} is neither a weights file ({', '.join(WEIGHT_SUFFIXES)}) nor source:name, but {networked[0]} is; "
            "compare reports with reports, or networks with networks"
        )
    from prunecli.measure.latency import Execution
    from prunecli.pipeline.stages.compare_networks import compare_networks

    if runtime is not None:
        _check_runtime(runtime, recipe, channels_last or compiled)
    execution = Execution(channels_last, compiled)
    compared = compare_networks(
        names, paths, recipe, sink, rounds=rounds, command=command, execution=execution, runtime=runtime
    )
    return _noted(with_fronts(compared), missing)


def _noted(comparison: Comparison, missing: Sequence[SweepRow]) -> Compared:
    """A comparison with notes about cells that are not in it."""
    notes = [f"{row.label} is left out: it {row.status_text}: {row.error}" for row in missing]
    damaged = [row for row in missing if row.status == "damaged"]
    noted = comparison.model_copy(update={"notes": (*comparison.notes, *notes)})
    if not damaged:
        return Compared(noted)
    names = ", ".join(row.label for row in damaged)
    return Compared(noted, RecipeError(f"{names}: damaged, so left out; run the sweep again, which makes it anew"))


def expanded(paths: Sequence[Path]) -> tuple[list[str] | None, list[Path], list[SweepRow]]:
    """Reports instead of folders: of a sweep the dense network and every finished cell, of a run its last report.

    Returns:
        What they are called, where a sweep is among them and says so; the reports; and cells of sweeps without one.

    Raises:
        RecipeError: A folder holds no report yet.
    """
    named: list[tuple[str, Path]] = []
    missing: list[SweepRow] = []
    for path in paths:
        if not path.is_dir() or is_reference(path):
            named.append((str(path), path))
        elif is_sweep(path):
            rows = read_cells(path)
            missing += [row for row in rows if row.status != "finished"]
            named += paths_of(path, rows)
        elif (path / RUN_NAME).is_file():
            reports = reports_of_run(path)
            if not reports:
                raise RecipeError(f"{path}: this run has no report yet; wait, or name a report")
            named.append((str(path), reports[-1]))
        else:
            named.append((str(path), path))
    if not any(name != str(path) for name, path in named):
        return None, list(paths), missing
    names = [name for name, _ in named]
    if len(set(names)) < len(names):  # two sweeps
        names = [str(path) for _, path in named]
    return names, [path for _, path in named], missing


def _check_runtime(runtime: str, recipe: Recipe, changed: bool) -> None:
    """Checks that networks can be timed in a runtime as asked.

    Raises:
        RecipeError: There is none of that name, or it is told what to do with memory, compilers or accelerators.
        ModelError: It is not installed.
    """
    from prunecli.exporting.index import FORMATS, RUNTIMES

    if runtime not in RUNTIMES:
        raise RecipeError(unknown("runtime", runtime, RUNTIMES))
    if changed:
        raise RecipeError("--channels-last and --compile are for PyTorch: leave them out, or --runtime")
    if recipe.device not in ("auto", "cpu"):
        raise RecipeError(f"--runtime {runtime} runs networks on the CPU: leave --device {recipe.device} out")
    FORMATS.load(runtime).require()


def judge(comparison: Comparison, gate: Gate | None) -> tuple[Comparison, GateFailed | None]:
    """The comparison with what the gate came to.

    Returns:
        The comparison, and the failure to raise once it is shown: the condition is true of some candidate.

    Raises:
        RecipeError: The condition needs a figure that was not measured.
    """
    if gate is None:
        return comparison, None
    result = gate.result(comparison)
    judged = comparison.model_copy(update={"gate": result})
    if not result.failed:
        return judged, None
    reasons = {name: _reasons(name, result) for name in result.networks}
    failed = ", ".join(f"{name} ({'; '.join(texts)})" for name, texts in reasons.items())
    return judged, GateFailed(f"gate: {gate.text} holds for {failed}")


def _reasons(network: str, result: GateResult) -> list[str]:
    """The figures for which a gate holds for a network."""
    values: dict[str, float] = {}
    for part in result.parts:
        if part.network == network and part.failed:
            values |= part.values
    return [f"{name} is {value:.4g}" for name, value in values.items()]


def _short_names(paths: Sequence[Path]) -> list[str]:
    """File names, or whole paths where two files share a name."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
