"""Places in a network's code that read values which depend on its weights, and the other answers to try there.

`if x.isnan().any()` is one place, however many modules run it and however often.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TypeAlias

Value: TypeAlias = bool | int | float
Place: TypeAlias = tuple[str, int]
"""A file and a line."""

_OURS = ("/torch/", "/prunecli/")
_FAR = 1e4
"""Beyond what activations usually are; not so far that a loop over it would take for ever."""


class Reads:
    """The reads of values in the passes of one network.

    Attributes:
        places: Where values were read, with the module that read first.
        answer: A place and the number of the alternative to be given there instead of what was read.
        decisions: Modules in which what is read may decide what runs, or how many results there are.
    """

    def __init__(self) -> None:
        self.places: dict[Place, str] = {}
        self.answer: tuple[Place, int] | None = None
        self.decisions: list[str] = []
        self._tried: set[Place] = set()
        self._counts: dict[Place, int] = {}

    def answered(self, value: Value, module: str) -> Value:
        """What the network is told: the value itself, or the alternative that is being tried at this place."""
        place = _place()
        if self.answer is not None and self.answer[0] == place:
            alternatives = _alternatives(value)
            return alternatives[min(self.answer[1], len(alternatives) - 1)]
        if self.answer is None:
            self.places.setdefault(place, module)
            self._counts[place] = max(self._counts.get(place, 0), len(_alternatives(value)))
        return value

    def noted(self, module: str) -> None:
        """Notes a read that decides on a number of results and has no other answer."""
        self.decisions.append(module)

    def ran(self, *, alike: bool) -> None:
        """Notes that the network runs with the present answer.

        Args:
            alike: Whether it calls the same operators as before. A yes or no has no third answer, so then nothing
                depends on it; other numbers may still decide.
        """
        if self.answer is not None and not (alike and self._counts[self.answer[0]] == 1):
            self.decisions.append(self.places[self.answer[0]])

    def untried(self) -> Iterator[None]:
        """Sets one alternative after the other, of places that were not tried before."""
        for place, count in list(self._counts.items()):
            if place not in self._tried:
                self._tried.add(place)
                for number in range(count):
                    self.answer = (place, number)
                    yield
        self.answer = None


def _place() -> Place:
    """The innermost line of code that belongs neither to torch nor to this package."""
    frame = sys._getframe(2)
    while frame.f_back is not None and any(part in frame.f_code.co_filename for part in _OURS):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def _alternatives(value: Value) -> list[Value]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [0 if value else 1, value + 1]
    return [_FAR, -_FAR, 0.0 if value else 1.0]
