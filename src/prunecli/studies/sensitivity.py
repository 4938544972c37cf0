"""What pruning costs layer by layer: curves, a recipe by layer name that keeps within a drop, and a plot."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from prunecli.checkpoint.durable import write_atomically, write_text_atomically
from prunecli.engine.evaluate import evaluate
from prunecli.engine.resources import resource_errors
from prunecli.engine.tasks.base import Task
from prunecli.errors import MethodError, RecipeError
from prunecli.methods.params import TARGETS
from prunecli.methods.ranking import rank, why_nothing
from prunecli.methods.registry import get_structural
from prunecli.methods.repair import Repair
from prunecli.methods.request import PruneRequest
from prunecli.phases import shown_by
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, PruneStage
from prunecli.recipe.writing import recipe_text
from prunecli.report.numbers import fixed
from prunecli.report.plots import sensitivity_plot
from prunecli.report.scores import Score, score_named
from prunecli.report.sensitivity_tables import sensitivity_tables
from prunecli.report.table import Table
from prunecli.studies.layer_curves import Curve, Point, Proposal, Sensitivity
from prunecli.surgery.recurrent.forms import in_form

_IN_MEMORY = 2**29
"""Prepared validation images are kept in memory up to this many bytes, else prepared again for every point."""


@dataclass(frozen=True)
class SensitivityOutcome:
    """Results of a sensitivity study.

    Attributes:
        curves: One for each layer that can shrink.
        baseline: Merit of the unpruned network: its score, or the negative of one of which less is better.
        proposal: Ratios that together keep within the drop.
        left_out: Reasons why layers cannot shrink or be ranked, by name.
        images: Number of validation images behind each accuracy.
        score: What is measured.
    """

    curves: tuple[Curve, ...]
    baseline: float
    proposal: Proposal
    left_out: dict[str, str]
    images: int
    score: Score

    def document(self) -> dict[str, Any]:
        """Returns everything as one JSON document."""
        return {
            "images": self.images,
            f"baseline_{self.score.name}": self.score.merit(self.baseline),
            "curves": [
                {**vars(curve), "points": [self._measured(point) for point in curve.points]} for curve in self.curves
            ],
            "left_out": self.left_out,
            "proposal": self._measured(self.proposal),
        }

    def _measured(self, figures: Point | Proposal) -> dict[str, Any]:
        """Figures with the score as it was measured."""
        return {**dataclasses.asdict(figures), "accuracy": self.score.merit(figures.accuracy)}

    def tables(self) -> list[Table]:
        """Returns the tables for people."""
        return sensitivity_tables(self.curves, self.baseline, self.proposal, self.left_out, self.images, self.score)


def _with_repairs(stage: PruneStage) -> PruneStage:
    """The stage with explicit repairs: regression, and unchanged statistics of normalisations.

    Recalibrating statistics costs some accuracy by itself, more than a lightly pruned layer does, and would hide that.

    Raises:
        RecipeError: Repairs are to be compared.
    """
    if stage.compensate == "auto":
        raise RecipeError("sensitivity repairs all candidates alike: give --compensate ls, reconstruct, bias or none")
    return dataclasses.replace(stage, compensate=stage.compensate or "ls", recalibrate=bool(stage.recalibrate))


def sensitivity_stage(
    space: Workspace, stage: PruneStage, ratios: Sequence[float], max_drop: float, images: int
) -> SensitivityOutcome:
    """Prunes every layer alone at every ratio, judges on held-out training images, and proposes ratios.

    The test split is not touched.

    Args:
        space: Network, data and device.
        stage: Method, its parameters, patterns and repairs, as in a prune stage.
        ratios: Shares of channels.
        max_drop: Points of top-1 that the proposal may lose.
        images: Largest number of validation images to judge on.

    Raises:
        RecipeError: There are no validation images, or the ratios are wrong.
        MethodError: No layer can shrink.
    """
    if not ratios or not all(0 < ratio < 1 for ratio in ratios) or max_drop <= 0:
        raise RecipeError("--ratios must be between 0 and 1, and --max-drop greater than 0")
    loaded, data = space.model(), space.data()
    space.judging.check()
    batches = _held_out(space, images)
    calibration = space.inputs.calibration(data.training_split(), stage.calibration_images).labelled
    model = in_form(loaded.model.to(space.device).eval(), space.inputs.example())
    stage = _with_repairs(stage)
    assert stage.compensate is not None
    request = PruneRequest(
        method=stage.method,
        params=get_structural(stage.method).params_class(**stage.params),
        example_inputs=space.inputs.example(),
        keep=stage.keep,
        seed=space.recipe.seed,
        calibration=calibration,
        loss=space.judging.loss(),
    )
    with resource_errors(space.recipe.data.batch_size), shown_by(space.sink.phase):
        ranking = rank(model, request)
    if not ranking.groups:
        raise MethodError(f"no layer can shrink; {why_nothing(ranking.untouched)}")
    repair = Repair(calibration, stage.compensate, bool(stage.recalibrate))
    task = space.judging.labelled_task()
    score = score_named(task.figures.score_name)
    judge = _judge(space, task, batches)
    order = {name: index for index, (name, _) in enumerate(model.named_modules())}
    names = sorted(ranking.scores, key=lambda name: order.get(name, -1))
    study = Sensitivity(model, ranking.groups, ranking.scores, request.params, judge, repair)
    space.sink.note(
        f"{len(names)} layers at {len(ratios)} ratios, judged on {batches.images} validation {space.inputs.noun} of "
        f"{data.name}; as it is: {score.text(score.merit(study.baseline))}"
    )
    curves = _curves(space, study, names, ratios, score)
    space.report_bad()
    left_out = {entry.name: entry.reason for entry in ranking.untouched}
    proposal = study.propose(curves, max_drop)
    return SensitivityOutcome(tuple(curves), study.baseline, proposal, left_out, batches.images, score)


def _judge(space: Workspace, task: Task, batches: _KeptBatches) -> Callable[[nn.Module], float]:
    """What measures a network's merit."""

    def judge(network: nn.Module) -> float:
        # Networks share one text tower, so prompts are encoded once.
        classifier = space.judging.classifier(network, remember=True)
        return task.merit(float(evaluate(classifier, batches, space.device, task=task).score))

    return judge


def _held_out(space: Workspace, images: int) -> _KeptBatches:
    """At most `images` of the validation images, drawn with the recipe's seed.

    Raises:
        DataError: There are no training images to hold them out of.
        RecipeError: There are none.
    """
    if not space.model().manifest.history:
        space.sink.note("these weights may have been trained on the validation images; drops then look larger")
    data = space.data()
    if data.validation is None:
        data.training_split()  # which they are some of
        raise RecipeError(f"{data.name} has no validation images to judge on; set --val-fraction above 0")
    indices = np.random.default_rng(space.recipe.seed).permutation(len(data.validation.labels))[:images]
    held_out = space.inputs.batches(data.validation.subset(np.sort(indices)))
    return _KeptBatches(held_out, len(indices), space.inputs.example_shape())


def _curves(
    space: Workspace, study: Sensitivity, names: Sequence[str], ratios: Sequence[float], score: Score
) -> list[Curve]:
    """Prunes one layer after another, and tells how far it is."""
    curves = []
    done = itertools.count(1)
    with space.sink.progress("sensitivity", len(names) * len(ratios)) as advance:
        for number, name in enumerate(names):
            curves.append(study.curve(name, ratios, lambda point: advance(next(done), f"{100 * point.ratio:g} %")))
            worst = max(point.drop for point in curves[-1].points)
            space.sink.note(f"{number + 1}/{len(names)} {name}: at most {fixed(worst, score.digits)} {score.lost_unit}")
    return curves


def write_recipe(space: Workspace, stage: PruneStage, outcome: SensitivityOutcome, path: Path) -> None:
    """Writes the proposal as a recipe with one prune stage.

    Raises:
        MethodError: No layer can lose channels within the drop.
    """
    proposal, stage = outcome.proposal, _with_repairs(stage)
    if not any(proposal.ratios.values()):
        raise MethodError("no layer can lose channels within this drop, so no recipe was written; raise --max-drop")
    recipe = space.recipe
    own = {key: value for key, value in stage.params.items() if key not in ("ratio", "layer_ratio", *TARGETS)}
    defaults = dataclasses.asdict(get_structural(stage.method).params_class())
    params = {key: value for key, value in own.items() if value != defaults[key]}
    params["layer_ratio"] = proposal.ratios
    written: dict[str, Any] = {
        "version": 1,
        "description": (
            f"Ratios by layer for {Path(space.model().name).name}: "
            f"{outcome.score.label} {fixed(proposal.drop, outcome.score.digits)} {outcome.score.lost_unit} on "
            f"{outcome.images} validation {space.inputs.noun} straight after pruning"
        ),
        "model": _differing(recipe.model, ModelSection()),
        "data": _differing(recipe.data, DataSection()) | {"name": space.data().name},
        "seed": recipe.seed,
        "stages": [
            {"stage": "prune", "method": stage.method} | _differing(stage, PruneStage()) | {"params": params},
        ],
    }
    head = "# Written by `prune sensitivity`; use it with `prune run` or `prune prune`.\n"
    write_text_atomically(path, recipe_text(written, head), replace=space.force)


def write_plot(outcome: SensitivityOutcome, max_drop: float, title: str, path: Path, *, replace: bool) -> None:
    """Draws the curves to a .png, .svg or .pdf file."""
    curves = {curve.group: [(point.removed, point.drop) for point in curve.points] for curve in outcome.curves}
    label = f"{outcome.score.label}, {outcome.score.lost_unit}"
    picture = sensitivity_plot(curves, max_drop, title, path.suffix.removeprefix("."), label)
    write_atomically(path, lambda temporary: temporary.write_bytes(picture), replace=replace)


class _KeptBatches:
    """Batches that are prepared once, if they fit into memory."""

    def __init__(self, batches: Any, images: int, shape: tuple[int, ...]) -> None:
        self.images = images
        fits = 4 * images * int(np.prod(shape)) <= _IN_MEMORY
        self._batches = list(batches) if fits else batches

    def __iter__(self) -> Any:
        return iter(self._batches)


def _differing(section: Any, default: Any) -> dict[str, Any]:
    """Fields of a section that differ from their defaults, as plain data."""
    plain = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if value != getattr(default, field.name):
            plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain
