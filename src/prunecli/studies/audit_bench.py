"""What an audit needs: a network, groups proven to lose single units exactly, drawn units, and halves of the data."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from typing import Any

from torch import nn

from prunecli.checkpoint.manifest import Untouched
from prunecli.copying import copied
from prunecli.criteria.ablation import Ablation, keep_all_but
from prunecli.criteria.base import Calibration
from prunecli.errors import MethodError, RecipeError, VerificationError
from prunecli.inputs import Inputs, sample_count
from prunecli.measure.memory import peak_memory_of
from prunecli.methods.params import StructuralParams
from prunecli.methods.ranking import Ranking, Selection, score, select, why_nothing
from prunecli.methods.request import PruneRequest
from prunecli.pipeline.stages.structural import refuse_unprunable
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.schema import DataInfo, ModelInfo
from prunecli.studies.ablation import draw_units
from prunecli.studies.audit_figures import Scored
from prunecli.studies.batches import HalfOfBatches, KeptBatches
from prunecli.studies.entrants import Entrant, shared_params
from prunecli.surgery.proof.verify import faulty_groups, verify
from prunecli.surgery.recurrent.forms import in_form
from prunecli.surgery.removal.slice import remove

_FEWEST_SAMPLES = 4


class Bench:
    """A network whose units are removed one at a time, and the data on which its loss is measured.

    Args:
        space: Network, data and device.
        stage: Parameters that all methods share, and patterns.
        units: How many units are drawn.
        batches: How many calibration batches.

    Attributes:
        model: The network.
        batches: Calibration batches.
        halves: Two halves of their samples.
        samples: How many those have.
        selection: The groups whose units may be removed.
        verify_error: Largest difference between removing one unit of every group and masking it.
        units: The units drawn, in random order.

    Raises:
        RecipeError: There are fewer units, or too few samples to compare two halves of them.
        MethodError: No layer can shrink.
        DataError: There is no data set with labels.
    """

    def __init__(self, space: Workspace, stage: PruneStage, units: int, batches: int) -> None:
        self.space, self.keep = space, stage.keep
        refuse_unprunable(space)
        space.judging.check()
        space.judging.labelled_task()
        self.split = space.data().training_split()
        drawn = space.inputs.calibration(self.split, batches * space.recipe.data.batch_size)
        self.batches = KeptBatches(drawn.labelled)
        self._example, self._loss = space.inputs.example(), space.judging.loss()
        self.model = in_form(space.model().model.to(space.device).eval(), self._example)
        self.halves = tuple(HalfOfBatches(self.batches, odd=odd, like=self._example) for odd in (False, True))
        self.samples = tuple(sum(sample_count(inputs) for inputs, _ in half) for half in self.halves)
        if min(self.samples) < _FEWEST_SAMPLES // 2:
            raise RecipeError(
                f"{sum(self.samples)} calibration samples are too few to compare two halves of them; give at least "
                f"{_FEWEST_SAMPLES} with --batches and --batch-size"
            )
        request = self.request("l2", StructuralParams(**shared_params(stage)), self.batches, space.recipe.seed)
        self.selection, self.verify_error = _proven(self.model, select(self.model, request), self._example)
        if not self.selection.groups:
            raise MethodError(f"no layer can shrink; {why_nothing(self.selection.untouched)}")
        self.units = draw_units(self.selection.groups, units, space.recipe.seed)

    def request(self, method: str, params: StructuralParams, batches: Iterable[Any], seed: int) -> PruneRequest:
        """What a method is asked for."""
        return PruneRequest(
            method=method,
            params=params,
            example_inputs=self._example,
            keep=self.keep,
            seed=seed,
            calibration=batches,
            loss=self._loss,
        )

    def check(self, entrant: Entrant) -> None:
        """Checks what would stop a method only after all ablations.

        Raises:
            RecipeError: It asks for more samples than either half has.
        """
        asked, fewest = getattr(entrant.params, "samples", 0), min(self.samples)
        if asked > fewest:
            raise RecipeError(
                f"--methods {entrant.label}: an audit scores halves of its {sum(self.samples)} samples too, and one "
                f"has {fewest}; ask for at most {fewest}, or give more with --batches"
            )

    def ablation(self) -> Ablation:
        """Removes units one by one."""
        first, second = (self._calibration(half) for half in self.halves)
        return Ablation(self.model, self.selection.groups, (first, second))

    def scored(self, entrant: Entrant) -> Scored:
        """What a method gives to the units: with all data, with either half, and what it takes.

        Other random numbers are drawn for the halves, so that they differ by those of the method as well.
        """
        seed = self.space.recipe.seed
        start = time.perf_counter()
        ranking, found = self._ranking(entrant, self.batches, seed)
        seconds = time.perf_counter() - start
        first, second = (self._ranking(entrant, half, seed + 1 + odd)[0].scores for odd, half in enumerate(self.halves))
        one = list(itertools.islice(self.batches, 1))
        known = {entry.name for entry in self.selection.untouched}
        alone = {
            name: self._ranking(member, self.batches, seed)[0].scores for name, member in entrant.members().items()
        }
        return Scored(
            scores=ranking.scores,
            halves=(first, second),
            left_out={entry.name: entry.reason for entry in ranking.untouched if entry.name not in known},
            seconds=seconds,
            peak_memory_bytes=peak_memory_of(lambda: self._ranking(entrant, one, seed), self.model),
            members=alone,
            weights=dict(found.get("weights", {})),
            fitted_on=[(str(group), int(index)) for group, index in found.get("ablated", ())],
        )

    def model_info(self) -> ModelInfo:
        """The network, for a report."""
        return self.space.lineage.model_info()

    def data_info(self) -> DataInfo:
        """The samples behind every figure, for a report."""
        return DataInfo(
            name=self.space.data().name,
            split="train",
            images=sum(self.samples),
            fingerprint=self.split.fingerprint(),
            task=self.space.judging.task_name(),
        )

    def _calibration(self, batches: Iterable[Any]) -> Calibration:
        return Calibration(batches=batches, loss=self._loss, example_inputs=self._example)

    def _ranking(self, entrant: Entrant, batches: Iterable[Any], seed: int) -> tuple[Ranking, dict[str, Any]]:
        """The scores of a method, and what it found out besides."""
        request = self.request(entrant.method.name, entrant.params, batches, seed)
        calibration = request.calibrated()
        return score(self.model, self.selection, entrant.method.load(), calibration), calibration.found


def _proven(model: nn.Module, selection: Selection, example: Inputs) -> tuple[Selection, float]:
    """The groups for which removing one unit is the same as masking it, and the largest difference.

    One unit of every group is removed, in float64, and the result is compared with the original in which the same
    units are masked: what pruning is verified by. Ablations remove units in the same way.

    Raises:
        VerificationError: They differ, and no group is to blame.
    """
    several = [group for group in selection.groups if group.units > 1]
    untouched = [
        *selection.untouched,
        *(
            Untouched(name=group.name, channels=group.channels, reason="it has a single unit")
            for group in selection.groups
            if group.units == 1
        ),
    ]
    while several:
        keep = {group.name: keep_all_but(group, group.units // 2) for group in several}
        smaller = copied(model)
        remove(smaller, several, keep)
        try:
            error = verify(model, smaller, selection.trace, keep, example)
            return Selection(selection.trace, tuple(several), tuple(untouched)), error
        except VerificationError:
            faulty = faulty_groups(model, selection.trace, keep, example)
            if not faulty:
                raise
            untouched += [
                Untouched(name=group.name, channels=group.channels, reason=faulty[group.name])
                for group in several
                if group.name in faulty
            ]
            several = [group for group in several if group.name not in faulty]
    return Selection(selection.trace, (), tuple(untouched)), 0.0
