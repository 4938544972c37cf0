"""How much `prune auto` may do: minutes on the clock, or a number of networks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from prunecli.engine.hooks import Hook
from prunecli.errors import RecipeError
from prunecli.studies.auto_search import OutOfBudget

_SEARCH = 0.5
"""Share of the time in which candidates are chosen."""
_FINETUNED = 4
"""One of so many networks is finetuned, where networks are counted."""
_AMOUNTS = 3
"""Networks for amounts of the candidates that were chosen, there."""


@dataclass
class Budget:
    """What is left of a budget.

    Attributes:
        seconds: How long everything may take; None: as long as it takes.
        trials: How many networks may be judged or finetuned; None: as many as there is time for.
        spent: Seconds before this process, of a search that is resumed.
        used: Networks so far.
        clock: Seconds on a clock.
        training: How long finetuning one network takes, seconds.
        closing: How long it takes to judge the result at the end, seconds.
    """

    seconds: float | None
    trials: int | None
    spent: float = 0.0
    used: int = 0
    clock: Callable[[], float] = time.monotonic
    training: float = 0.0
    closing: float = 0.0

    def __post_init__(self) -> None:
        self._start = self.clock()
        self._judged = self._judging = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds since the search began, those of earlier processes included."""
        return self.spent + self.clock() - self._start

    @property
    def each(self) -> float:
        """Seconds that a network takes before it is finetuned."""
        return self._judging / self._judged if self._judged else 0.0

    def note(self, seconds: float) -> None:
        """A network took so long to prune and judge."""
        self._judging, self._judged = self._judging + seconds, self._judged + 1

    def require_judging(self, *, last: bool) -> None:
        """Checks that one more network may be judged.

        Args:
            last: Whether candidates are chosen, so that only finetuning has to be kept in mind.

        Raises:
            OutOfBudget: It may not.
        """
        if self.trials is not None and self.trials - self.used - 1 < (1 if last else self._kept()):
            raise OutOfBudget
        if self.seconds is not None and self.used:
            kept = self.training + self.closing
            kept = kept if last else max(kept, (1 - _SEARCH) * self.seconds)
            if self.elapsed + self.each + kept > self.seconds:
                raise OutOfBudget

    def require_finetuning(self) -> None:
        """Checks that one more network may be finetuned.

        Raises:
            OutOfBudget: It may not.
        """
        if self.trials is not None and self.used >= self.trials:
            raise OutOfBudget
        if self.seconds is not None and self.elapsed + self.training + self.closing > self.seconds:
            raise OutOfBudget

    def affordable(self) -> int:
        """About how many networks may be judged before the first is finetuned."""
        counts = [1000]
        if self.trials is not None:
            counts.append(self.trials - self.used - self._kept() + _AMOUNTS)
        if self.seconds is not None and self.each:
            kept = max(self.training + self.closing, (1 - _SEARCH) * self.seconds)
            counts.append(int((self.seconds - self.elapsed - kept) / self.each))
        return max(0, min(counts))

    def require_one(self, epochs: int) -> None:
        """Checks that one network can be pruned, judged and finetuned.

        Args:
            epochs: Of finetuning, for the message.

        Raises:
            RecipeError: There is too little time.
        """
        if self.seconds is None:
            return
        needed = self.elapsed + 2 * self.each + self.training + self.closing
        if needed > self.seconds:
            raise RecipeError(
                f"--budget {self.seconds / 60:g}: one network takes about {_minutes(needed)} here, "
                f"{_minutes(self.training)} of them for {epochs} epochs of finetuning, so there is no time to choose; "
                f"give --budget {max(1, round(4 * needed / 60 + 0.5))}, or fewer --epochs"
            )

    def _kept(self) -> int:
        """Networks that are kept for amounts and finetuning while candidates are chosen."""
        assert self.trials is not None, "they are counted"
        finetuned = max(1, self.trials // _FINETUNED)
        return finetuned + _AMOUNTS if self.trials > 2 * _AMOUNTS else finetuned


class Deadline(Hook):
    """Ends a training that takes longer than there is time for.

    Args:
        budget: What is left.
    """

    name = "deadline"

    def __init__(self, budget: Budget) -> None:
        self._budget = budget

    def after_step(self) -> None:
        """Looks at the clock.

        Raises:
            OutOfBudget: The time is up, but for judging the result.
        """
        budget = self._budget
        if budget.seconds is not None and budget.elapsed + budget.closing > budget.seconds:
            raise OutOfBudget


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
