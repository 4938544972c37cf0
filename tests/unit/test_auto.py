"""The search of `prune auto`: what it decides, how it keeps within its budget, and what it says of the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from prunecli.data.loader import CalibrationBatches
from prunecli.data.preparation import Preprocessing
from prunecli.data.splits import ArraySplit
from prunecli.errors import DataError, RecipeError
from prunecli.measure.intervals import paired_drop_interval
from prunecli.studies.auto import AutoSettings
from prunecli.studies.auto_bench import Judged, divided
from prunecli.studies.auto_budget import Budget, Deadline
from prunecli.studies.auto_candidates import SENSITIVITY, Candidate, Choices
from prunecli.studies.auto_search import Attempt, OutOfBudget, Rounds, Search, Unusable, rounds_within
from prunecli.studies.entrants import entrants

CRITERIA = entrants("taylor,l2,fisher,random", {})
CHOICES = Choices(CRITERIA, ("global", "local", "measured", SENSITIVITY), (("ls", True), ("reconstruct", False)))


@dataclass
class Surface:
    """Networks whose scores are known: each candidate loses more the less is left, and finetuning returns a part.

    Args:
        steepness: What a candidate loses before it is finetuned, for each unit of cost.
        left: The part that finetuning does not return.
        trials: How many networks may be judged or finetuned.
    """

    steepness: Callable[[Candidate], float]
    left: float = 0.4
    trials: int = 1000
    judged: dict[tuple[str, float], Attempt] = field(default_factory=dict)
    finetuned: list[Attempt] = field(default_factory=list)

    def judge(self, candidate: Candidate, share: float, *, last: bool) -> Attempt | None:
        key = candidate.key, share
        if key not in self.judged:
            if len(self.judged) + len(self.finetuned) + 1 >= self.trials:
                raise OutOfBudget
            drop = self.steepness(candidate) * (1 - share) ** 2
            judged = Judged({}, 90 - drop, share, share, None)
            self.judged[key] = Attempt(len(self.judged) + 1, candidate, share, judged, drop)
        return self.judged[key] if share > 0.05 else None

    def finetune(self, attempt: Attempt) -> None:
        if len(self.judged) + len(self.finetuned) >= self.trials:
            raise OutOfBudget
        assert attempt.after is None, "nothing is finetuned twice"
        attempt.after_drop = self.left * attempt.drop
        attempt.after = 90 - attempt.after_drop
        self.finetuned.append(attempt)

    def affordable(self) -> int:
        return self.trials


def _planted(candidate: Candidate) -> float:
    """Best is fisher with measured shares, reconstructed; each of these alone helps."""
    better = (candidate.entrant.label == "fisher", candidate.scope == "measured", candidate.compensate == "reconstruct")
    return float(60 - 15 * sum(better))


def test_the_planted_candidate_is_found_and_cut_as_far_as_it_goes() -> None:
    surface = Surface(_planted)
    search = Search(CHOICES, "macs", 1.0, surface)
    best = search.run()
    assert best is not None and best.candidate.key == "fisher, measured, reconstruct"
    furthest = 1 - (1.0 / 0.4 / 15) ** 0.5  # where 15 (1 - share)^2, of which 0.4 is left, is 1
    assert furthest <= best.asked <= furthest + 0.06
    assert best.after_drop is not None and best.after_drop <= 1.0
    assert len(surface.judged) < 45 and 2 <= len(surface.finetuned) <= 9
    assert {attempt.number for attempt in search.attempts} == set(range(1, len(surface.judged) + 1))
    fates = [attempt.fate for attempt in search.attempts]
    assert {"3rd of 4 criteria", "8th of 8 layer shares"} < set(fates)
    assert "4th of 4 repairs" in fates and best.fate == ""


@pytest.mark.parametrize("trials", [2, 3, 5, 8, 13, 20, 30])
def test_a_short_budget_leads_to_a_network_that_was_finetuned(trials: int) -> None:
    surface = Surface(_planted, left=0.1, trials=trials)
    best = Search(CHOICES, "macs", 2.0, surface).run()
    assert len(surface.judged) + len(surface.finetuned) <= trials
    assert best is not None and best in surface.finetuned


def test_a_network_that_cannot_be_a_result_is_dropped_and_a_larger_one_follows() -> None:
    class Fragile(Surface):
        def finetune(self, attempt: Attempt) -> None:
            if attempt.asked < 0.8:
                raise Unusable("training diverged")
            super().finetune(attempt)

    surface = Fragile(_planted)
    search = Search(CHOICES, "macs", 1.0, surface)
    best = search.run()
    assert best is not None and 0.8 <= best.asked < 0.87 and best in surface.finetuned
    dropped = [attempt for attempt in search.attempts if attempt.fate == "training diverged"]
    assert dropped and all(attempt.asked < 0.8 and attempt.after is None for attempt in dropped)


def test_a_drop_that_cannot_be_met_leaves_the_nearest() -> None:
    surface = Surface(lambda candidate: 4000.0, trials=40)
    search = Search(CHOICES, "macs", 0.1, surface)
    assert search.run() is None
    assert search.nearest is not None and search.nearest.after_drop == min(a.after_drop or 0 for a in surface.finetuned)


def test_a_drop_of_nothing_is_looked_for_too() -> None:
    search = Search(CHOICES, "params", 0.0, Surface(lambda candidate: 1.0, left=0.0))
    best = search.run()
    assert best is not None and best.after_drop == 0 and best.asked < 0.3


@pytest.mark.parametrize(
    ("affordable", "rounds"),
    [
        (1000, Rounds(8, 4, 2)),
        (24, Rounds(8, 2, 2)),
        (18, Rounds(8, 1, 1)),
        (14, Rounds(8, 1, 0)),
        (12, Rounds(8, 0, 0)),
        (7, Rounds(4, 0, 0)),
        (0, Rounds(1, 0, 0)),
    ],
)
def test_rounds_are_as_wide_as_the_budget_allows(affordable: int, rounds: Rounds) -> None:
    assert rounds_within(affordable, 8, 4, 3) == rounds


def _budget(minutes: float | None, trials: int | None = None) -> tuple[Budget, list[float]]:
    now = [0.0]
    return Budget(None if minutes is None else 60 * minutes, trials, clock=lambda: now[0]), now


def test_half_of_the_time_is_for_choosing_and_finetuning_is_kept_in_mind() -> None:
    budget, now = _budget(10)
    budget.training, budget.closing, budget.used = 120, 30, 1
    budget.note(10)
    now[0] = 280
    budget.require_judging(last=False)
    now[0] = 291
    with pytest.raises(OutOfBudget):
        budget.require_judging(last=False)
    budget.require_judging(last=True)
    now[0] = 451
    with pytest.raises(OutOfBudget):
        budget.require_finetuning()
    hook = Deadline(budget)
    hook.after_step()
    now[0] = 571
    with pytest.raises(OutOfBudget):
        hook.after_step()


def test_a_budget_shorter_than_one_network_is_refused_with_one_that_is_enough() -> None:
    budget, now = _budget(2)
    budget.training = 100
    budget.note(20)
    now[0] = 30
    with pytest.raises(RecipeError) as raised:
        budget.require_one(5)
    message = str(raised.value)
    assert message.startswith("--budget 2: one network takes about 2.8 minutes here, 1.7 minutes of them for 5 epochs")
    assert "give --budget 12, or fewer --epochs" in message
    _budget(20)[0].require_one(5)


def test_counted_networks_leave_some_to_finetune() -> None:
    budget, _ = _budget(None, 20)
    assert budget.affordable() == 15
    budget.used = 11
    budget.require_judging(last=False)
    budget.used = 12
    with pytest.raises(OutOfBudget):
        budget.require_judging(last=False)
    budget.used = 18
    budget.require_judging(last=True)
    budget.used = 19
    with pytest.raises(OutOfBudget):
        budget.require_judging(last=True)
    budget.require_finetuning()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_drop": -1.0}, "--max-drop says how much worse the score may be, at least 0 (got -1)"),
        ({"max_drop": float("nan")}, "--max-drop"),
        ({"budget": 0.0}, "--budget counts minutes, more than 0"),
        ({"trials": 1}, "--trials 1: one network is judged and one finetuned, so at least 2"),
        ({"images": 0}, "--images has to be at least 1"),
    ],
)
def test_settings_out_of_bounds(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        AutoSettings(**{"objective": "macs", "max_drop": 1.0, **settings}).check()  # type: ignore[arg-type]
    assert message in str(raised.value)


def test_samples_to_judge_on_are_no_calibration_samples() -> None:
    count = 300
    images = np.arange(count, dtype=np.uint8).astype(np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2)
    split = ArraySplit(images, np.arange(count, dtype=np.int64))
    for calibration, asked, wanted in ((100, 50, (100, 50)), (1024, 100, (200, 100)), (1024, 1000, (150, 150))):
        left, judged = divided(split, calibration, asked, seed=3)
        assert (left, len(judged.labels)) == wanted
        seen = CalibrationBatches(split, Preprocessing((1, 4, 4), (0.0,), (1.0,)), left, 64, seed=3).labelled
        labels = torch.cat([batch[1] for batch in seen]).tolist()
        assert len(labels) == left and not set(labels) & set(judged.labels.tolist())
    with pytest.raises(DataError, match="too few to repair on some"):
        divided(split.subset(np.arange(9)), 4, 4, seed=0)


def test_the_interval_of_a_paired_drop_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    cells = np.array([0.05, 0.02, 0.93])  # lost, gained, alike: a drop of 3 points
    covered = []
    for lost, gained, _ in generator.multinomial(500, cells, size=2000):
        low, high = paired_drop_interval(int(lost), int(gained), 500)
        covered.append(low <= 3.0 <= high)
    assert 0.93 <= np.mean(covered) <= 0.975
    assert paired_drop_interval(0, 0, 100)[0] < 0 < paired_drop_interval(0, 0, 100)[1]
