"""One network that several methods prune: each removes equally many parameters of a copy, and the copy is trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Edit
from prunecli.copying import copied
from prunecli.data.splits import Split
from prunecli.data.token_batches import TextSplit
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.holding import holding
from prunecli.engine.resources import resource_errors
from prunecli.engine.tasks.base import Figures
from prunecli.errors import MethodError
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.methods.allocation import Demand, allocate
from prunecli.methods.params import StructuralParams
from prunecli.methods.ranking import select, why_nothing
from prunecli.methods.request import PruneRequest
from prunecli.methods.selection import with_scope
from prunecli.methods.structural import prune_structural
from prunecli.methods.targets import Ruler, Target
from prunecli.models.token_networks import remembers
from prunecli.pipeline.stages.structural import calibration_of, refuse_unprunable, repairs
from prunecli.pipeline.stages.train import learning_rate
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import FinetuneStage, PruneStage
from prunecli.report.contest import Cell, Dense, Figure
from prunecli.report.schema import DataInfo, ModelInfo
from prunecli.report.scores import score_named
from prunecli.studies.batches import FirstSteps, KeptBatches
from prunecli.studies.entrants import Entrant, shared_params
from prunecli.surgery.recurrent.forms import in_form


@dataclass(frozen=True)
class Outcome:
    """One method at one seed.

    Attributes:
        label: Of the method.
        cell: Its figures.
        kept: Which units stay, by group, boolean, shape (units,); the same groups for every method.
    """

    label: str
    cell: Cell
    kept: dict[str, Tensor]


class Ring:
    """One network, traced and evaluated once.

    Args:
        space: The network, data and device.
        prune: Parameters that all methods share, patterns and repairs.
        finetune: How a pruned network is trained; its epochs are not used.
        steps: Training steps after pruning; 0: none.
        split: Name of the split to evaluate on.
        images: At most so many samples of it, drawn with seed 0; None: all.

    Attributes:
        space: The network, data and device.
        dense: The network as it is.
        figure: What its score is called.

    Raises:
        DataError: There are no labels to judge by, or no data to train on.
        MethodError: Nothing can be removed.
    """

    def __init__(
        self, space: Workspace, prune: PruneStage, finetune: FinetuneStage, steps: int, split: str, images: int | None
    ) -> None:
        self.space = self._space = space
        self._prune, self._steps, self._split_name = prune, steps, split
        loaded = space.model()
        refuse_unprunable(space)
        space.judging.check()
        self._task = space.judging.labelled_task()
        if steps:
            self._task = space.judging.training_task()
        self._finetune = dataclasses.replace(finetune, epochs=1, lr=learning_rate(finetune, loaded.manifest))
        self._recalibrate, self._compensation = repairs(space, prune)
        self._split = _some(space.split(split), images)
        self._say_how_texts_are_read()
        self._judged_on = KeptBatches(space.inputs.batches(self._split))
        self._example = space.inputs.example()
        self._model = in_form(loaded.model.to(space.device).eval(), self._example)
        self._shared = with_scope(self._model, StructuralParams(**shared_params(prune)))
        with resource_errors(space.recipe.data.batch_size):
            self._selection = select(self._model, self._request("l2", self._shared, None))
        if not self._selection.groups:
            raise MethodError(f"no layer can shrink; {why_nothing(self._selection.untouched)}")
        named = score_named(self._task.figures.score_name)
        self.figure = Figure(
            name=named.name,
            label=named.label,
            unit=named.unit,
            digits=named.digits,
            lower_is_better=self._task.better(0.0, 1.0),
        )
        figures = self._figures(copied(self._model))
        self.dense = Dense(
            params=parameter_count(self._model),
            macs=count_macs(self._model, self._example).total,
            score=figures.score,
            figures=_logged(figures),
        )
        self._evaluated = int(self._task.named(figures).get("images", len(self._split.labels)))

    def share_left(self, ratio: float) -> float:
        """Share of the parameters that are left when every layer loses `ratio` of its channels."""
        params = dataclasses.replace(self._shared, scope="local")
        groups = list(self._selection.groups)
        alike = {group.name: torch.zeros(group.units, dtype=torch.float64) for group in groups}
        allocation = allocate(groups, alike, params, Demand(ratio))
        return Ruler("params", self._model, self._example).share(self._model, groups, allocation)

    def bout(self, entrant: Entrant, seed: int, target: Target) -> Outcome:
        """Prunes a copy to a target, evaluates it, trains it, and evaluates it again.

        The seed decides which calibration samples are drawn, what methods draw, and the order of training batches (of a
        text: where they begin), so at one seed all methods get the same ones.

        Raises:
            TargetError: The method cannot remove as much.
            MethodError: It cannot rank anything, or what it leaves has no score.
            VerificationError: What is left is not the masked original.
        """
        amount: dict[str, Any] = {target.kind: target.requested}
        params = dataclasses.replace(entrant.params, **amount)
        space = self._space
        with self._seeded(seed), resource_errors(space.recipe.data.batch_size):
            calibration = self._calibration(seed)
            request = self._request(entrant.method.name, params, calibration)
            pruned = prune_structural(self._model, dataclasses.replace(request, trace=self._selection.trace))
            before = self._figures(pruned.model)
            after = self._trained(pruned.model, seed) if self._steps else None
        space.report_bad()
        cell = Cell(
            seed=seed,
            params=pruned.report.params_after,
            macs=pruned.report.macs_after.total,
            before=before.score,
            after=after.score if after is not None else None,
            figures_before=_logged(before),
            figures_after=_logged(after) if after is not None else None,
        )
        return Outcome(entrant.label, cell, self._kept(pruned.report.edits))

    def model_info(self) -> ModelInfo:
        """The network, for a report."""
        return self._space.lineage.model_info()

    def data_info(self) -> DataInfo:
        """What was evaluated on, for a report."""
        return DataInfo(
            name=self._space.data().name,
            split=self._split_name,
            images=self._evaluated,
            fingerprint=self._split.fingerprint(),
            skipped=len(self._split.labels) - self._evaluated,
            task=self._space.judging.task_name(),
        )

    def _say_how_texts_are_read(self) -> None:
        split = self._split
        carries = remembers(self._space.model().model)
        if isinstance(split, TextSplit) and split.chosen is not None and carries:
            self._space.sink.note(
                f"--images: {len(split.chosen)} sequences of {split.length} tokens, each without state from the one "
                "before; figures of a whole text, which carries it on, are others"
            )

    def _request(self, method: str, params: StructuralParams, calibration: Iterable[Any] | None) -> PruneRequest:
        space = self._space
        return PruneRequest(
            method=method,
            params=params,
            example_inputs=self._example,
            keep=self._prune.keep,
            seed=space.recipe.seed,
            calibration=calibration,
            loss=space.judging.loss(),
            compensation=self._compensation,
            recalibrate=self._recalibrate,
        )

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        recipe = self._space.recipe
        self._space.recipe = dataclasses.replace(recipe, seed=seed)
        try:
            yield
        finally:
            self._space.recipe = recipe

    def _calibration(self, seed: int) -> Iterable[Any]:
        known, batches = getattr(self, "_drawn", (None, None))
        if known != seed or batches is None:
            batches = KeptBatches(calibration_of(self._space, self._prune, self._space.data().training_split()) or ())
            self._drawn: tuple[int | None, KeptBatches | None] = seed, batches
        return batches

    def _figures(self, network: nn.Module) -> Figures:
        judge = self._space.judging.classifier(network, remember=True)
        figures: Figures = evaluate(judge, self._judged_on, self._space.device, task=self._task)
        if not math.isfinite(figures.score):
            raise MethodError(
                f"{self.figure.label} is {figures.score} with {parameter_count(network):,} parameters, so nothing can "
                "be compared: remove less, or compensate (--compensate ls)"
            )
        return figures

    def _trained(self, network: nn.Module, seed: int) -> Figures:
        space = self._space
        batches = space.inputs.training(space.data().training_split(), self._finetune)
        fit(
            space.judging.classifier(network),
            FirstSteps(batches, self._steps, seed),
            None,
            self._finetune,
            space.device,
            task=self._task,
            seed=seed,
            hooks=holding(network, space.model().manifest.masks),
            tell=space.sink.note,
        )
        return self._figures(network)

    def _kept(self, edits: Iterable[Edit]) -> dict[str, Tensor]:
        kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in self._selection.groups}
        for edit in edits:
            kept[edit.group] = torch.zeros_like(kept[edit.group])
            kept[edit.group][edit.keep_indices] = True
        return kept


def _logged(figures: Figures) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.logged.items()}


def _some(split: Split, images: int | None) -> Split:
    """At most `images` samples of a split, drawn with seed 0."""
    if images is None or images >= len(split.labels):
        return split
    return split.subset(np.sort(np.random.default_rng(0).permutation(len(split.labels))[:images]))


def outcome_state(outcome: Outcome) -> dict[str, Any]:
    """An outcome as plain data and tensors, for a saved state."""
    return {"label": outcome.label, "cell": outcome.cell.model_dump(), "kept": outcome.kept}


def outcome_of(state: dict[str, Any]) -> Outcome:
    """The inverse of `outcome_state`."""
    return Outcome(state["label"], Cell(**state["cell"]), state["kept"])
