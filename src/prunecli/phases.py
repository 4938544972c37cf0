"""What a long computation is doing at the moment, for whoever shows it; nobody by default.

Whoever computes says which phase begins and how far it has come. Whoever runs the computation says once where that is
shown, so that the layers in between pass nothing on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

T = TypeVar("T")
Reached = Callable[[int, int | None, str], None]
"""Called with how much of a phase is done, of how much (None: nobody knows), and what is counted, as in "batch"."""


class Begin(Protocol):
    """Shows that a phase has begun, until its context ends."""

    def __call__(self, name: str, *, undisturbed: bool = False) -> AbstractContextManager[Reached]:
        """Returns the context; see `phase`."""
        ...


_begin: ContextVar[Begin | None] = ContextVar("_begin", default=None)
_reached: ContextVar[Reached | None] = ContextVar("_reached", default=None)
_name: ContextVar[str] = ContextVar("_name", default="")


@contextmanager
def shown_by(begin: Begin) -> Iterator[None]:
    """What runs in this block has its phases shown by `begin`."""
    before = _begin.set(begin)
    try:
        yield
    finally:
        _begin.reset(before)


@contextmanager
def phase(name: str, *, undisturbed: bool = False) -> Iterator[None]:
    """A block, or as a decorator a function, that is one phase. Phases may contain others; by the same name, it is one.

    Args:
        name: A short verb, as in "trace".
        undisturbed: Whether time is measured in it, so that nothing is to be drawn but between two steps.
    """
    begin = _begin.get()
    if begin is None or name == _name.get():
        yield
        return
    with begin(name, undisturbed=undisturbed) as told:
        before, around = _reached.set(told), _name.set(name)
        try:
            yield
        finally:
            _name.reset(around)
            _reached.reset(before)


def reached(done: int, total: int | None, counted: str) -> None:
    """Says how far the present phase has come; costs next to nothing, so it may stand in loops.

    Args:
        done: How much is done.
        total: Of how much; None: nobody knows.
        counted: One of what is counted, as in "batch".
    """
    told = _reached.get()
    if told is not None:
        told(done, total, counted)


@contextmanager
def step(done: int, total: int | None, counted: str) -> Iterator[None]:
    """A block that is one step of the present phase, whose own smaller steps are not told; see `reached`."""
    reached(done, total, counted)
    before = _reached.set(None)
    try:
        yield
    finally:
        _reached.reset(before)


def counting(items: Iterable[T], counted: str) -> Iterator[T]:
    """Yields `items`, and says how far the present phase has come with them."""
    told = _reached.get()
    if told is None:
        yield from items
        return
    total = len(items) if isinstance(items, Sized) else None
    for done, item in enumerate(items):
        told(done, total, counted)
        yield item
