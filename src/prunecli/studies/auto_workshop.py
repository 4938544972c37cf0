"""Who does the work of `prune auto`: prunes, judges, finetunes, keeps within the budget, and remembers what is done.

What was tried is remembered by what it was, so a search that is resumed takes the same decisions again without doing
anything twice.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from prunecli.checkpoint.manifest import as_json
from prunecli.checkpoint.runstate import StateStore
from prunecli.errors import DivergedError, MethodError, VerificationError
from prunecli.models.loading import load_file
from prunecli.pipeline.answers import Answers, answers
from prunecli.pipeline.resumption import discard_states
from prunecli.pipeline.sink import Advance
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import FinetuneStage, PruneStage
from prunecli.report.auto import COST_NAMES, Claim, Objective
from prunecli.report.numbers import fixed
from prunecli.studies.auto_bench import Bench, Judged
from prunecli.studies.auto_budget import Budget, Deadline
from prunecli.studies.auto_candidates import SENSITIVITY, Candidate
from prunecli.studies.auto_claims import claim
from prunecli.studies.auto_finalists import finalist
from prunecli.studies.auto_search import Attempt, Unusable
from prunecli.studies.batches import KeptBatches

_UNUSABLE = "unusable"
"""Key of why a network cannot be a result, in what is remembered of it."""


@dataclasses.dataclass(frozen=True)
class Stages:
    """What all candidates share.

    Attributes:
        prune: Patterns, samples and parameters.
        finetune: How networks are trained.
        split: Name of the split on which finetuned networks are judged.
        objective: What is to be small.
    """

    prune: PruneStage
    finetune: FinetuneStage
    split: str
    objective: Objective


class Shop:
    """Prunes, judges and finetunes copies of one network.

    Args:
        space: The network and its data.
        bench: Judges networks before they are finetuned.
        stages: What all candidates share.
        budget: How much may be done.
        states: Where what is done is saved.
        folder: Where networks are kept until the search is over.
        advance: Moves the bar.

    Attributes:
        left_out: What cannot be tried, and why.
        claims: How finetuned networks do, by number.
        dense: What the dense network says of the samples that these are judged on.
    """

    def __init__(
        self,
        space: Workspace,
        bench: Bench,
        stages: Stages,
        budget: Budget,
        states: StateStore,
        folder: Path,
        advance: Advance,
    ) -> None:
        self._space, self._bench, self._stages, self._budget = space, bench, stages, budget
        self._states, self._folder, self._advance = states, folder, advance
        saved = states.load() or {}
        self._done: dict[str, Any] = saved.get("done", {})
        self._trained: dict[int, Any] = saved.get("trained", {})
        self._affordable: int | None = saved.get("affordable")
        budget.spent = saved.get("seconds", 0.0)
        self._attempts: dict[str, Attempt] = {}
        self.left_out: dict[str, str] = {}
        self.claims: dict[int, Claim] = {}
        self._batches = KeptBatches(space.inputs.batches(space.split(stages.split)))
        start = time.monotonic()
        self.dense: Answers = answers(space, bench.model, self._batches)
        self.judging = time.monotonic() - start

    def judge(self, candidate: Candidate, share: float, *, last: bool) -> Attempt | None:
        """Prunes a copy and judges it; see `prunecli.studies.auto_search.Workshop`."""
        key = f"{candidate.key}, {share}"
        if key in self._attempts:
            return self._attempts[key]
        if key not in self._done:
            self._budget.require_judging(last=last)
            start = time.monotonic()
            first = not self._done
            found = self._judged(candidate, share)
            self._budget.note(time.monotonic() - start)
            if first:
                self._budget.require_one(self._stages.finetune.epochs)
            self._done[key] = as_json(dataclasses.asdict(found)) if found is not None else None
            self._budget.used += 1
            self._save(key)
        else:
            self._budget.used += 1
        if self._done[key] is None:
            return None
        judged = Judged(**self._done[key])
        attempt = Attempt(len(self._attempts) + 1, candidate, share, judged, self._bench.drop(judged.score))
        self._attempts[key] = attempt
        self._tell(attempt)
        return attempt

    def finetune(self, attempt: Attempt) -> None:
        """Finetunes a network and judges it on other samples; see `prunecli.studies.auto_search.Workshop`."""
        number = attempt.number
        if number not in self._trained:
            self._budget.require_finetuning()
            start = time.monotonic()
            self._folder.mkdir(exist_ok=True)
            self._show(f"finetuning {number}")
            hooks = [Deadline(self._budget)]
            path, stage = self.path(number), self.prune_stage(attempt)
            try:
                trained = finalist(self._space, stage, self._stages.finetune, path, hooks, self._show)
            except (VerificationError, DivergedError) as error:
                self._trained[number] = {_UNUSABLE: str(error)}
                discard_states(path)
            else:
                found = answers(self._space, trained.model, self._batches)
                made = claim(self._stages.split, self._bench.score, self.dense, found, decided=True)
                self._budget.training = max(time.monotonic() - start, 0.9 * self._budget.training)
                self._trained[number] = made.model_dump()
            self._budget.used += 1
            self._save(f"network {number}")
        else:
            self._budget.used += 1
        if _UNUSABLE in self._trained[number]:
            reason = self._trained[number][_UNUSABLE]
            self._space.sink.warn(f"network {number} is dropped: {reason}")
            raise Unusable(reason)
        self.claims[number] = Claim(**self._trained[number])
        attempt.after, attempt.after_drop = self.claims[number].pruned, self.claims[number].drop
        score = self._bench.score
        self._space.sink.note(
            f"network {number} after finetuning: {score.label} {score.text(attempt.after)}, "
            f"{fixed(attempt.after_drop, score.digits)} {score.lost_unit} ({self._stages.split})"
        )

    def affordable(self) -> int:
        """About how many candidates can be judged before the first is finetuned; the same when it is asked again."""
        if self._affordable is None:
            self._affordable = self._budget.affordable()
            self._save("the rounds")
        return self._affordable

    def path(self, number: int) -> Path:
        """Where a finetuned network is kept."""
        return self._folder / f"network-{number}.safetensors"

    def prune_stage(self, attempt: Attempt) -> PruneStage:
        """The stage that prunes as an attempt did."""
        candidate, stage = attempt.candidate, self._stages.prune
        method = candidate.entrant.method
        params = dataclasses.asdict(method.params_class(**attempt.judged.params))
        return dataclasses.replace(
            stage,
            method=method.name,
            params=params,
            compensate=candidate.compensate,
            recalibrate=candidate.recalibrate,
            calibration_images=self._bench.calibration_images,
        )

    def closing_claim(self, number: int, split: str) -> Claim:
        """How a finetuned network and the dense one do on a split that nothing was decided on."""
        space, batches = self._space, KeptBatches(self._space.inputs.batches(self._space.split(split)))
        dense = answers(space, self._bench.model, batches)
        loaded = load_file(self.path(number), allow_nonfinite=space.recipe.model.allow_nonfinite)
        return claim(split, self._bench.score, dense, answers(space, loaded.model, batches), decided=False)

    def clean(self) -> None:
        """Removes the networks."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _judged(self, candidate: Candidate, share: float) -> Judged | None:
        name = candidate.entrant.label
        if name in self.left_out:
            return None
        try:
            self._bench.prepare(candidate.entrant)
        except MethodError as error:
            self.left_out[name] = str(error)
            self._space.sink.warn(f"{name} is left out: {error}")
            return None
        try:
            return self._bench.trial(candidate, share)
        except MethodError as error:
            self.left_out[candidate.key] = str(error)
            self._space.sink.warn(f"{candidate.key} is left out: {error}")
            return None

    def _save(self, position: str) -> None:
        state = {
            "done": self._done,
            "trained": self._trained,
            "affordable": self._affordable,
            "seconds": self._budget.elapsed,
        }
        self._states.save(state, position)

    def _show(self, text: str) -> None:
        budget = self._budget
        self._advance(int(budget.elapsed) if budget.trials is None else budget.used, text)

    def _tell(self, attempt: Attempt) -> None:
        candidate, score = attempt.candidate, self._bench.score
        cost = (
            f"{fixed(100 * attempt.cost(self._stages.objective), 1, ' %')} of the {COST_NAMES[self._stages.objective]}"
        )
        shares = "sensitivity" if candidate.scope == SENSITIVITY else candidate.scope
        text = f"{candidate.entrant.label}, {shares}, {candidate.repair}, {cost}"
        self._space.sink.note(f"network {attempt.number}: {text}: {score.label} {score.text(attempt.judged.score)}")
        self._show(f"network {attempt.number}")
