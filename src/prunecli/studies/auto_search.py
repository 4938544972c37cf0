"""The search of `prune auto`: which candidates, how much of each, and which of them are finetuned.

Nothing here knows a network: whoever judges and finetunes is a `Workshop`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prunecli.report.auto import Objective
from prunecli.studies.auto_bench import Judged
from prunecli.studies.auto_candidates import Candidate, Choices

_PROMISING = 5.0
"""At first a candidate is promising if it loses no more than this many times the drop before it is finetuned."""
_STARTS = (0.5, 0.75, 0.9)
"""Shares of the cost at which candidates are compared, in this order, until one is not far from promising."""
_CLEAR = 4.0
"""That is so if it loses no more than this many times what a promising one may lose."""
_STEPS = 3
"""Amounts that are tried for one candidate and one allowance."""
_NEAR = 0.03
"""Shares of the cost nearer than this are not told apart by further amounts."""
_MARGIN = 0.25
"""Part of what lies between the largest network that lost too much and the smallest that did not that is kept to each
side of the next one: one network says too little about the others to go to the very end."""
_MOST_CHANGE = 3.0
_LEAST = 0.1
"""A drop as small as this stands for none where it is multiplied."""
_LARGEST = 0.97
"""The largest share of the cost that is tried."""


class OutOfBudget(Exception):
    """There is no budget for the next trial."""


class Unusable(Exception):
    """A network cannot be a result: its proof fails, or training it diverges. The text says which."""


@dataclass
class Attempt:
    """One network that was tried.

    Attributes:
        number: From 1.
        candidate: How it was pruned.
        asked: Share of the cost that was to be left.
        judged: What it came to straight after repair.
        drop: How much worse than the dense network's its score is.
        after: Score after finetuning.
        after_drop: How much worse than the dense network's that is.
        fate: What became of it.
    """

    number: int
    candidate: Candidate
    asked: float
    judged: Judged
    drop: float
    after: float | None = None
    after_drop: float | None = None
    fate: str = ""

    def cost(self, objective: Objective) -> float:
        """What is to be small, relative to the dense network."""
        if objective == "params":
            return self.judged.params_share
        latency = self.judged.latency_share
        return latency if objective == "latency" and latency is not None else self.judged.macs_share


class Workshop(Protocol):
    """Whoever prunes, judges and finetunes within a budget."""

    def judge(self, candidate: Candidate, share: float, *, last: bool) -> Attempt | None:
        """Prunes and judges; the same attempt again if that was done before. None: so little cannot be left.

        Args:
            candidate: How.
            share: Of the cost, that is left.
            last: Whether candidates are chosen, so that only what finetuning takes has to be left of the budget.

        Raises:
            OutOfBudget: There is no budget for it.
        """
        ...

    def finetune(self, attempt: Attempt) -> None:
        """Finetunes and judges it on other samples.

        Raises:
            OutOfBudget: There is no budget for it.
            Unusable: It cannot be a result.
        """
        ...

    def affordable(self) -> int:
        """About how many candidates can be judged before the first is finetuned."""
        ...


@dataclass(frozen=True)
class Rounds:
    """How many take part in each round.

    Attributes:
        criteria: Criteria that are compared.
        shared: Of these, how many are compared with every way to share; 0: there is no such round.
        repaired: Of these, how many are compared with every repair; 0: likewise.
    """

    criteria: int
    shared: int
    repaired: int


def rounds_within(affordable: int, criteria: int, scopes: int, repairs: int) -> Rounds:
    """The widest rounds that so many trials are enough for: criteria come first, then ways to share, then repairs.

    Args:
        affordable: How many trials there are, those of amounts included.
        criteria: How many criteria there are.
        scopes: How many ways to share.
        repairs: How many repairs.
    """
    half = math.ceil(criteria / 2)
    wide = [(criteria, half, 2), (criteria, 2, 2), (criteria, 2, 1), (criteria, 1, 1), (criteria, 1, 0)]
    narrow = [(count, 0, 0) for count in range(criteria, 0, -1)]
    for count, shared, repaired in [*wide, *narrow]:
        shared, repaired = min(shared, count), min(repaired, min(shared, count) * scopes)
        if count + shared * (scopes - 1) + repaired * (repairs - 1) + _STEPS <= affordable:
            return Rounds(count, shared, repaired)
    return Rounds(1, 0, 0)


@dataclass
class Search:
    """One search.

    Args:
        choices: What candidates are made of.
        objective: What is to be small.
        max_drop: How much worse the score may be after finetuning.
        workshop: Does the work.
    """

    choices: Choices
    objective: Objective
    max_drop: float
    workshop: Workshop
    attempts: list[Attempt] = field(default_factory=list)

    def run(self) -> Attempt | None:
        """The smallest finetuned network within the drop; None: none is."""
        try:
            finalists = self._chosen()
        except OutOfBudget:
            finalists = self._best_so_far()
        return self._finetuned(finalists)

    @property
    def nearest(self) -> Attempt | None:
        """The finetuned network that lost least."""
        done = [attempt for attempt in self.attempts if attempt.after_drop is not None]
        return min(done, key=lambda attempt: (attempt.after_drop, attempt.cost(self.objective)), default=None)

    def _judged(self, candidate: Candidate, share: float, *, last: bool = False) -> Attempt | None:
        attempt = self.workshop.judge(candidate, share, last=last)
        if attempt is not None and attempt not in self.attempts:
            self.attempts.append(attempt)
        return attempt

    def _chosen(self) -> list[Candidate]:
        """Candidates at one cost: criteria first, then how layers share, then repairs; the best of each round go on."""
        choices, clear = self.choices, _CLEAR * _PROMISING * max(self.max_drop, _LEAST)
        self._judged(choices.first_of(choices.criteria[0]), _STARTS[0])  # which says how long one takes
        rounds = rounds_within(
            self.workshop.affordable(), len(choices.criteria), len(choices.scopes), len(choices.repairs)
        )
        pool = [choices.first_of(entrant) for entrant in choices.criteria[: rounds.criteria]]
        kept, share = max(1, rounds.shared), _STARTS[0]
        for share in _STARTS:
            found = self._round(pool, share, [], kept, "criteria")
            pool = found or pool  # so little may be left that none can do it
            if found and self._least_drop(found, share) <= clear:
                break
        if rounds.shared:
            more = [dataclasses.replace(best, scope=scope) for best in pool for scope in choices.scopes[1:]]
            pool = self._round(more, share, pool, max(1, rounds.repaired), "layer shares")
        if rounds.repaired:
            repairs = choices.repairs[1:]
            more = [
                dataclasses.replace(best, compensate=kind, recalibrate=new) for best in pool for kind, new in repairs
            ]
            pool = self._round(more, share, pool, 2, "repairs")
        return pool

    def _least_drop(self, candidates: Sequence[Candidate], share: float) -> float:
        return min(a.drop for a in self.attempts if a.asked == share and a.candidate in candidates)

    def _round(
        self, candidates: Iterable[Candidate], share: float, before: Sequence[Candidate], kept: int, what: str
    ) -> list[Candidate]:
        """Judges candidates at one cost, beside those of the round before, and keeps the best."""
        entered = [
            attempt for candidate in [*before, *candidates] if (attempt := self._judged(candidate, share)) is not None
        ]
        entered.sort(key=lambda attempt: (attempt.drop, attempt.number))
        going: dict[tuple[str, str], Candidate] = {}
        for place, attempt in enumerate(entered, start=1):
            candidate = attempt.candidate
            cut = candidate.entrant.label, candidate.scope  # the same channels go, whatever the repair
            if len(going) < kept and cut not in going:
                going[cut] = candidate
            else:
                attempt.fate = f"{_ordinal(place)} of {len(entered)} {what}"
        return list(going.values())

    def _best_so_far(self) -> list[Candidate]:
        """Where the budget ended before all rounds: the best at one cost, of the cost that most were judged at."""
        if not self.attempts:
            return []
        asked = [attempt.asked for attempt in self.attempts]
        most = max(set(asked), key=lambda share: (asked.count(share), share))
        alike = sorted((a for a in self.attempts if a.asked == most), key=lambda a: (a.drop, a.number))
        return [attempt.candidate for attempt in alike[:2]]

    def _finetuned(self, finalists: Sequence[Candidate]) -> Attempt | None:
        """Finetunes one network after the other; each says how much finetuning makes up for."""
        allowance = _PROMISING * max(self.max_drop, _LEAST)
        low, high = 0.0, 1.0  # shares of the cost: the largest that lost too much, the smallest that did not
        best: Attempt | None = None
        try:
            while high - low >= _NEAR:
                attempt = self._next(finalists, allowance)
                if attempt is None:
                    break
                attempt = self._between(finalists, attempt, low, high)
                if attempt is None or attempt.after_drop is not None:
                    break
                try:
                    self.workshop.finetune(attempt)
                except Unusable as error:  # a larger one may be of use
                    attempt.fate = str(error)
                    low = max(low, attempt.asked)
                    continue
                assert attempt.after_drop is not None
                if attempt.after_drop <= self.max_drop:
                    high = min(high, attempt.asked)
                    if best is None or attempt.cost(self.objective) < best.cost(self.objective):
                        best = attempt
                else:
                    low = max(low, attempt.asked)
                allowance = _next_allowance(attempt, max(self.max_drop, _LEAST))
        except OutOfBudget:
            pass
        return best

    def _between(self, finalists: Sequence[Candidate], attempt: Attempt, low: float, high: float) -> Attempt | None:
        """The attempt, if its cost lies well between two others, else the best of the finalists at a cost that does."""
        if low == 0.0 and high == 1.0:
            return attempt
        margin = _MARGIN * (high - low)
        share = round(min(max(attempt.asked, low + margin), high - margin), 3)
        if share == attempt.asked:
            return attempt
        found = [self._judged(candidate, share, last=True) for candidate in finalists[:1]]
        for candidate in finalists[1:]:
            try:
                found.append(self._judged(candidate, share, last=True))
            except OutOfBudget:
                break
        judged = [other for other in found if other is not None]
        return min(judged, key=lambda other: (other.drop, other.number), default=None)

    def _next(self, finalists: Sequence[Candidate], allowance: float) -> Attempt | None:
        """The cheapest network that loses no more than an allowance before finetuning, else what loses least."""
        found = []
        for candidate in finalists:
            try:
                found.append(self._most(candidate, allowance))
            except OutOfBudget:
                found.append(self._known(candidate, allowance))
        promising = [attempt for attempt in found if attempt is not None]
        if promising:
            return min(promising, key=lambda attempt: (attempt.cost(self.objective), attempt.drop))
        left = [attempt for attempt in self.attempts if attempt.after is None]
        return min(left, key=lambda attempt: (attempt.drop, attempt.number), default=None)

    def _known(self, candidate: Candidate, allowance: float) -> Attempt | None:
        """The cheapest network of a candidate so far that loses no more than an allowance."""
        own = [a for a in self.attempts if a.candidate == candidate and a.drop <= allowance]
        return min(own, key=lambda attempt: attempt.asked, default=None)

    def _most(self, candidate: Candidate, allowance: float) -> Attempt | None:
        """The same after some more amounts, by bisection."""
        impossible = 0.0
        for _ in range(_STEPS):
            known = self._known(candidate, allowance)
            high = known.asked if known is not None else 1.0
            beyond = [a.asked for a in self.attempts if a.candidate == candidate and a.asked < high]
            low = max([impossible, *beyond])
            if high - low < _NEAR:
                break
            attempt = self._judged(candidate, min(round((low + high) / 2, 3), _LARGEST), last=True)
            if attempt is None:
                impossible = round((low + high) / 2, 3)
        return self._known(candidate, allowance)


def _next_allowance(attempt: Attempt, max_drop: float) -> float:
    """What a network may lose before finetuning, if that makes up for as large a part of it as it did last time."""
    assert attempt.after_drop is not None
    before = max(attempt.drop, max_drop / 10)
    left = attempt.after_drop / before
    guess = max_drop / left if left > 0 else _MOST_CHANGE * before
    return min(max(guess, before / _MOST_CHANGE), before * _MOST_CHANGE)


def _ordinal(place: int) -> str:
    ending = "th" if 10 <= place % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{ending}"
