"""Prune stages of methods that remove whole blocks or experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.checkpoint.durable import crash_point
from prunecli.criteria.base import default_loss
from prunecli.data.splits import Split
from prunecli.engine.resources import resource_errors
from prunecli.errors import RecipeError
from prunecli.measure.latency import PairedTiming
from prunecli.methods.parts import PartReport, PartRequest
from prunecli.methods.registry import get_method
from prunecli.models.loading import LoadedModel
from prunecli.pipeline.pruning import remove_parts
from prunecli.pipeline.stages.structural import refuse_unprunable
from prunecli.pipeline.timed import note_timings, timed_in_turns
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.part_tables import part_table, score_table
from prunecli.report.pruning_tables import left_alone_tables
from prunecli.report.schema import Metrics
from prunecli.report.score_change import ScoreChange
from prunecli.report.table import Table


@dataclass(frozen=True)
class PartsOutcome:
    """What a stage that removed parts left behind.

    Attributes:
        path: The checkpoint.
        report: What was removed.
        timing: The networks before and after, timed in turns.
        energy: Firing and energy before and after, on training images; None without spiking neurons or data.
        score: The score of the task before and after, if it was measured.
    """

    path: Path
    report: PartReport
    timing: PairedTiming
    energy: tuple[Metrics, Metrics] | None = None
    score: ScoreChange | None = None

    def figures(self) -> dict[str, Any]:
        """Share removed, difference to the original with the parts switched off, and the score if it was measured."""
        score = self.score.figures() if self.score is not None else {}
        return {"achieved": self.report.achieved, "verify_error": self.report.verify_error, **score}

    def document(self) -> dict[str, Any]:
        """Everything."""
        return {
            "checkpoint": str(self.path),
            **self.report.to_dict(),
            "latency_ms_before": self.timing.timings[0].median,
            "latency_ms_after": self.timing.timings[1].median,
            "latency_ratio": self.timing.ratios[1],
            "latency_ratio_interval": list(self.timing.ratio_intervals[1]),
            "energy": [figures.model_dump(exclude_none=True) for figures in self.energy] if self.energy else None,
            "score": self.score.document() if self.score is not None else None,
        }

    def tables(self) -> Sequence[Table]:
        """Figures before and after, the scores of parts, and those that stay."""
        medians = [timing.median for timing in self.timing.timings]
        ratio, interval = self.timing.ratios[1], self.timing.ratio_intervals[1]
        table = part_table(self.report, medians, ratio, interval, self.energy, self.score)
        reasons = {entry.name: entry.reason for entry in self.report.untouched}
        return [table, *score_table(self.report), *left_alone_tables(reasons)]


def parts_stage(space: Workspace, stage: PruneStage, out: Path) -> PartsOutcome:
    """Removes parts of the current network, verifies that, and saves it with its manifest.

    Raises:
        MethodError: Nothing can be removed as asked.
        RecipeError: There are no images for what is asked.
        VerificationError: The result is not the original with the parts switched off; nothing is saved.
    """
    loaded, method = space.model(), get_method(stage.method)
    refuse_unprunable(space)
    params = method.params_class(**stage.params)
    split = _images(space, stage)
    if split is None and getattr(params, "chooses", True):
        params = _without_data(space, stage, params)
    calibration = space.inputs.calibration(split, stage.calibration_images).labelled if split is not None else None
    request = PartRequest(
        method=stage.method,
        params=params,
        example_inputs=space.inputs.example(),
        keep=stage.keep,
        seed=space.recipe.seed,
        calibration=calibration,
        recalibrate=split is not None if stage.recalibrate is None else stage.recalibrate,
        loss=default_loss if calibration is None else space.judging.loss(),
    )
    step = space.lineage.step("prune", {}, split=split)
    with resource_errors(space.recipe.data.batch_size):
        result = remove_parts(loaded.model.to(space.device), loaded.manifest, request, step=step)
    space.report_bad()
    for note in result.report.notes:
        space.sink.note(note)
    crash_point("stage:pruned")
    networks, example = [loaded.model.cpu(), result.model.cpu()], space.inputs.example()
    timing = timed_in_turns(space, networks, example, stage.latency_rounds)
    note_timings(space, [timing])
    energy = None
    if space.data_name() is not None:
        energy = space.activity.before_and_after(networks, stage.calibration_images)
    space.parent = loaded
    path = space.lineage.finish(LoadedModel(result.model, result.manifest, loaded.fixed_size), out)
    return PartsOutcome(path, result.report, timing, energy)


def _images(space: Workspace, stage: PruneStage) -> Split | None:
    """The training images, if there are any.

    Raises:
        DataError: They cannot be read.
        RecipeError: None are named, and something needs them.
    """
    if space.data_name() is None:
        if stage.recalibrate:
            raise RecipeError("--recalibrate needs images: name a data set with --data")
        return None
    return space.data().training_split() if space.data().trainable else None


def _without_data(space: Workspace, stage: PruneStage, params: Any) -> Any:
    """Parameters with which a method needs no images.

    Raises:
        RecipeError: Others were asked for.
    """
    method = get_method(stage.method)
    default = method.params_class()
    instead = {name: value for name, value in (method.without_data or {}).items() if getattr(params, name) != value}
    for name in instead:
        if getattr(params, name) != getattr(default, name):
            raise RecipeError(f"--{name} {getattr(params, name)} needs images: name a data set with --data")
    if instead:
        named = ", ".join(f"{name} {value}" for name, value in instead.items())
        space.sink.warn(f"no data set, so {named} chooses, which says less: name one with --data")
    return dataclasses.replace(params, **instead)
