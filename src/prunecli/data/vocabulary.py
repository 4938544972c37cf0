"""Vocabularies: which word or character has which number."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

UNKNOWN = "<unk>"
END = "<eos>"
Level = Literal["word", "char"]
_CODE_POINTS = 0x110000


class Encoding(Protocol):
    """What the tokens of a text are: a `Vocabulary`, or a tokenizer."""

    def __len__(self) -> int:
        """The number of tokens, which are counted from 0."""
        ...

    @property
    def unknown(self) -> int | None:
        """The number of the token for everything unknown; None: nothing is."""
        ...

    def decode(self, numbers: Sequence[int] | NDArray[np.int64]) -> str:
        """The text of tokens."""
        ...

    def signature(self) -> bytes:
        """What distinguishes it from others."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their numbers.

    Attributes:
        level: "word": what white space separates, and `<eos>` at the end of every line; "char": every character.
        tokens: All tokens; `<unk>` is one of them, and stands for every other.
    """

    level: Level
    tokens: tuple[str, ...]

    @classmethod
    def of(cls, text: str, level: Level) -> Vocabulary:
        """The tokens of a text in the order in which they first occur, and `<unk>` last if it does not occur itself.

        PyTorch's word language model example numbers the words of its training text in the same order.
        """
        if level == "char":
            points, first = np.unique(_code_points(text), return_index=True)
            found = [chr(point) for point in points[np.argsort(first)]]
        else:
            found = list(dict.fromkeys(_words(text)))
        return cls(level, tuple(found if UNKNOWN in found else [*found, UNKNOWN]))

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> NDArray[np.int64]:
        """The numbers of a text's tokens, shape (tokens,)."""
        if self.level == "char":
            return self._of_code_points[_code_points(text)]
        unknown = self.unknown
        return np.frombuffer(array("q", (self._numbers.get(word, unknown) for word in _words(text))), dtype=np.int64)

    def decode(self, numbers: Sequence[int] | NDArray[np.int64]) -> str:
        """The text of numbers: words with a space after each and a line break for `<eos>`, or characters."""
        tokens = [self.tokens[number] for number in numbers]
        if self.level == "char":
            return "".join(tokens)
        return "".join("\n" if token == END else f"{token} " for token in tokens)

    def signature(self) -> bytes:
        """What distinguishes it from others."""
        return "\0".join(self.tokens).encode()

    @property
    def unknown(self) -> int:
        """The number of `<unk>`."""
        return self._numbers[UNKNOWN]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}

    @cached_property
    def _of_code_points(self) -> NDArray[np.int64]:
        table = np.full(_CODE_POINTS, self.unknown, dtype=np.int64)
        for token, number in self._numbers.items():
            if len(token) == 1:
                table[ord(token)] = number
        return table


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _words(text: str) -> Iterable[str]:
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()  # what follows the last line break is no line
    for line in lines:
        yield from line.split()
        yield END
