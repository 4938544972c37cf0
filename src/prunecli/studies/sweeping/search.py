"""Which cells a sweep has: all combinations, drawn ones, or those that a search proposes as results come in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from prunecli.errors import RecipeError
from prunecli.recipe.sweep_file import Axis, Range, Search
from prunecli.report.sweep import SweepRow, shown
from prunecli.studies.sweeping.cells import Cell, CellMaker

_MOST_CELLS = 100_000
_TRIES = 200
"""Draws in a row that bring nothing new, from which on there is taken to be nothing new."""


class Proposer(Protocol):
    """Says which cells to run."""

    @property
    def total(self) -> int:
        """How many cells there will be, at most."""
        ...

    @property
    def exhausted(self) -> bool:
        """Whether `next` will never give one more."""
        ...

    def proposed(self) -> Iterator[Cell]:
        """The cells that are known without anything being run, in order."""
        ...

    def next(self) -> Cell | None:
        """One more; None: no more now, or at all."""
        ...

    def ended(self, row: SweepRow) -> None:
        """Takes in what a cell has come to."""
        ...


class Listed:
    """Cells that are known from the start.

    Args:
        cells: These.
    """

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._cells = {cell.name: cell for cell in cells}

    @property
    def total(self) -> int:
        """How many."""
        return len(self._cells)

    @property
    def exhausted(self) -> bool:
        """All are known."""
        return True

    def proposed(self) -> Iterator[Cell]:
        """All."""
        yield from self._cells.values()

    def next(self) -> Cell | None:
        """No more."""
        return None

    def ended(self, row: SweepRow) -> None:
        """Nothing follows from it."""


def grid(axes: Sequence[Axis], make: CellMaker) -> Listed:
    """All combinations of the axes' values.

    Raises:
        RecipeError: There are too many, or two that come to the same.
        PruneError: A combination gives no plan.
    """
    values = [axis.listed() or () for axis in axes]
    count = math.prod(map(len, values))
    if count > _MOST_CELLS:
        raise RecipeError(f"{axes[0].origin}: the axes have {count:,} combinations; at most {_MOST_CELLS:,}")
    cells: dict[str, tuple[Any, ...]] = {}
    made = []
    for combination in itertools.product(*values):
        made.append(cell := make(combination))
        _refuse_same(axes, cells.setdefault(cell.name, combination), combination)
    return Listed(made)


def _refuse_same(axes: Sequence[Axis], first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    """Refuses two combinations that come to the same, so that no cell is missing without a word."""
    for axis, one, other in zip(axes, first, second, strict=True):
        if type(one) is not type(other) or one != other:
            raise RecipeError(
                f"{axis.origin_of(other)}: axis {axis.name!r}: {shown(other)} comes to the same as {shown(one)}; leave "
                "one of them out"
            )


def drawn(axes: Sequence[Axis], search: Search, make: CellMaker) -> Listed:
    """Different combinations that are drawn at random; the first ones stay the same when more are asked for.

    Raises:
        RecipeError: There are not so many different ones.
        PruneError: A combination gives no plan.
    """
    assert search.cells is not None
    generator = np.random.default_rng(search.seed)
    cells: dict[str, Cell] = {}
    missed = 0
    while len(cells) < search.cells:
        cell = make([_drawn(axis, generator) for axis in axes])
        missed = missed + 1 if cell.name in cells else 0
        cells[cell.name] = cell
        if missed >= _TRIES:
            raise RecipeError(
                f"{axes[0].origin}: the axes have about {len(cells)} different combinations, and search.cells asks for "
                f"{search.cells}; ask for fewer, or for a grid"
            )
    return Listed([*cells.values()])


def _drawn(axis: Axis, generator: np.random.Generator) -> Any:
    """A value of an axis; every axis takes one number, so that the others' values do not depend on it."""
    share = float(generator.random())
    listed = axis.listed()
    if listed is not None:
        return listed[min(int(share * len(listed)), len(listed) - 1)]
    assert isinstance(axis.values, Range)
    return axis.values.at(share)
