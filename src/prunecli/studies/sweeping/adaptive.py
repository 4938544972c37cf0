"""An adaptive search: Optuna proposes cells where those before were best, and remembers them in a file of the sweep."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunecli.errors import RecipeError
from prunecli.recipe.axes import Setting
from prunecli.recipe.sweep_file import Axis, Range, Search
from prunecli.report.pareto import Choice
from prunecli.report.sweep import SweepRow
from prunecli.studies.sweeping.cells import Cell, CellMaker

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

_JOURNAL = "search.journal"
_CELL, _FAILED = "cell", "failed"
"""What trials are marked with: their cell, and whether that has failed."""
_REPEATS = 10
"""Proposals of a cell that there is already, for each cell asked for, from which on the search has nothing new."""


class Adaptive:
    """Cells that a tree-structured Parzen estimator proposes (Bergstra et al., NeurIPS 2011).

    What was asked and what it came to is in a journal, which only the driver writes, under the lock of the sweep. A
    proposal whose driver died is proposed again first, so that its cell is finished.

    Args:
        settings: Axes with their options.
        search: How many cells, and the seed.
        make: Makes cells.
        objective: What is looked for.
        folder: Of the sweep.

    Raises:
        RecipeError: Optuna is not installed, an axis is the seed, or a value gives no plan.
    """

    def __init__(
        self, settings: Sequence[Setting], search: Search, make: CellMaker, objective: Choice, folder: Path
    ) -> None:
        for setting in settings:
            if setting.path == ("seed",):
                raise RecipeError(
                    f"{setting.axis.origin}: axis {setting.axis.name!r}: an adaptive search would find a lucky seed; "
                    "give one in `set:`, or use a grid"
                )
        assert search.cells is not None
        try:
            import optuna
        except ImportError as error:
            raise RecipeError("an adaptive search needs Optuna: pip install 'prunecli[optuna]'") from error
        self._optuna = optuna
        self._axes = [setting.axis for setting in settings]
        self._make, self._objective, self._search = make, objective, search
        self._folder = folder
        self._distributions = {axis.name: _distribution(axis) for axis in self._axes}
        self.total: int = search.cells
        self._first = self._checked()
        self._study: Study | None = None
        self._live: dict[str, list[Trial]] = {}
        self._known: set[str] = set()
        self._repeats = 0

    def _checked(self) -> Cell:
        """Makes a cell with every listed value, so that a wrong one is noticed before anything runs."""
        firsts = [_examples(axis) for axis in self._axes]
        usual = [values[0] for values in firsts]
        for index, values in enumerate(firsts):
            for value in values:
                self._make([*usual[:index], value, *usual[index + 1 :]])
        return self._make(usual)

    @property
    def exhausted(self) -> bool:
        """Whether there are as many cells as were asked for, or nothing new is found."""
        return len(self._known) >= self.total or self._repeats > _REPEATS * self.total

    def proposed(self) -> Iterator[Cell]:
        """The cells that earlier calls have asked for and that have ended."""
        if not (self._folder / _JOURNAL).is_file():
            return
        for trial in self._opened().get_trials(deepcopy=False):
            if trial.user_attrs.get(_CELL) is not None and self._is_over(trial):
                cell = self._make(self._values(trial.params))
                self._known.add(cell.name)
                yield cell

    def next(self) -> Cell | None:
        """A cell where the objective is expected to be better; None: there are enough."""
        while not self.exhausted:
            trial = self._opened().ask(self._distributions)
            cell = self._make(self._values(trial.params))
            trial.set_user_attr(_CELL, cell.name)
            self._live.setdefault(cell.name, []).append(trial)
            if cell.name not in self._known:
                self._known.add(cell.name)
                return cell
            self._repeats += 1
            if len(self._live[cell.name]) == 1:  # it has ended: what it came to counts once more
                return cell
        return None

    def ended(self, row: SweepRow) -> None:
        """Tells the search what a cell has come to."""
        figures = row.row()
        for trial in self._live.pop(row.cell, ()):
            if row.status == "finished" and self._objective.known_of(figures):
                trial.set_constraint("objective", 0.0 if self._objective.met_by(figures) else 1.0)
                self._opened().tell(trial, self._objective.cost_of(figures))
            else:
                trial.set_user_attr(_FAILED, True)
                self._opened().tell(trial, state=self._optuna.trial.TrialState.FAIL)

    def _is_over(self, trial: FrozenTrial) -> bool:
        states = self._optuna.trial.TrialState
        return trial.state == states.COMPLETE or bool(trial.user_attrs.get(_FAILED))

    def _opened(self) -> Study:
        if self._study is None:
            self._study = self._study_of(self._folder / _JOURNAL)
        return self._study

    def _study_of(self, path: Path) -> Study:
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self._optuna.logging.set_verbosity(self._optuna.logging.ERROR)
        path.parent.mkdir(parents=True, exist_ok=True)
        _repair(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is experimental in Optuna
            storage = JournalStorage(JournalFileBackend(str(path)))
            study = self._optuna.create_study(
                storage=storage, study_name=self._name(), load_if_exists=True, direction="minimize"
            )
            trials = study.get_trials(deepcopy=False)
            # A sampler that starts anew would draw what it has drawn already.
            study.sampler = self._optuna.samplers.TPESampler(seed=self._search.seed + len(trials), constant_liar=True)
        running = [trial for trial in trials if trial.state == self._optuna.trial.TrialState.RUNNING]
        for trial in running:
            if set(trial.params) == set(self._distributions):
                study.enqueue_trial(trial.params, skip_if_exists=False)
        for trial in running:
            study.tell(trial.number, state=self._optuna.trial.TrialState.FAIL)
        return study

    def _name(self) -> str:
        """What a study is about: results of another recipe, other axes or another objective say nothing here."""
        described = [[axis.name, repr(axis.values)] for axis in self._axes]
        about = [self._first.name, described, self._objective.text, self._search.seed]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]

    def _values(self, params: Mapping[str, Any]) -> list[Any]:
        return [_value(axis, params[axis.name]) for axis in self._axes]


def _repair(path: Path) -> None:
    """Removes what a driver that died has left: a lock, and half a line."""
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.is_file():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(content.rfind(b"\n") + 1)


def _examples(axis: Axis) -> tuple[Any, ...]:
    """All listed values, or one in the middle of a range."""
    listed = axis.listed()
    if listed is not None:
        return listed
    assert isinstance(axis.values, Range)
    return (axis.values.at(0.5),)


def _distribution(axis: Axis) -> BaseDistribution:
    """Where Optuna draws from: numbers in a range, the place in an ordered list, or one of many."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    listed = axis.listed()
    if listed is None:
        values = axis.values
        assert isinstance(values, Range)
        if values.whole:
            return IntDistribution(int(values.low), int(values.high), log=values.log)
        return FloatDistribution(values.low, values.high, log=values.log)
    numbers = all(type(value) in (int, float) for value in listed)
    if numbers and list(listed) == sorted(listed) and len(listed) > 1:
        return IntDistribution(0, len(listed) - 1)
    return CategoricalDistribution([str(index) for index in range(len(listed))])


def _value(axis: Axis, drawn: Any) -> Any:
    """The value that a drawn number stands for."""
    listed = axis.listed()
    if listed is not None:
        return listed[int(drawn)]
    assert isinstance(axis.values, Range)
    return drawn if axis.values.whole else axis.values.rounded(drawn)
