"""Integers that remember where they come from: an attribute, the size of a dimension, or arithmetic on those.

Code keeps widths in attributes (`self.num_heads`) and takes widths from other tensors' shapes (`B, N, C = x.shape`).
The operators that arrive below hold plain numbers. So on the copy that is followed, every integer attribute is replaced
by an integer of the same value that knows its attribute, and shapes are answered with integers that know their
dimension. Where such a number is used as a size, what it has to be equal to is known, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import nn

from prunecli.surgery.axes import Term
from prunecli.surgery.removal.entries import is_record
from prunecli.surgery.removal.settings import of_class

_DEPTH = 4
"""How far into nested containers attributes are looked for."""


@dataclass(frozen=True)
class Read:
    """An attribute of a module, or an entry inside it.

    Attributes:
        module: Dotted name of the module.
        attribute: Name of the attribute.
        path: Indices, keys and names that lead to the entry, empty for a plain number.
    """

    module: str
    attribute: str
    path: tuple[int | str, ...] = ()

    def __str__(self) -> str:
        inner = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)
        return ".".join(part for part in (self.module, self.attribute) if part) + inner


@dataclass(frozen=True, eq=False)
class Dimension:
    """The size of a tensor's dimension."""

    term: Term


@dataclass(frozen=True, eq=False)
class Combined:
    """Two numbers, at least one of them with an origin, put together."""

    operator: Literal["*", "//", "+", "-"]
    left: int
    right: int


Origin: TypeAlias = Read | Dimension | Combined
Equality: TypeAlias = tuple[int, int]
"""Two numbers that were compared and found equal; the code relies on it."""


Use: TypeAlias = tuple[int, Term, str]
"""A number, the dimension that has its size, and the name of the module that uses it."""


@dataclass
class Uses:
    """How a network used numbers as sizes.

    Attributes:
        sizes: Numbers with an origin and the dimensions they are equal to.
        written: Numbers without an origin that were passed as a size, with the dimension and module: they will not
            follow a width.
        equalities: Numbers that were compared and found equal.
        scalars: Floats that entered an operator: attribute and value, with the modules that used them.
    """

    sizes: list[Use] = field(default_factory=list)
    written: list[Use] = field(default_factory=list)
    equalities: list[Equality] = field(default_factory=list)
    scalars: dict[tuple[Read, float], set[str]] = field(default_factory=dict)


class Watched(int):
    """An integer with an origin. Sums, differences, products and floored quotients of it have one, too."""

    origin: Origin
    equalities: list[Equality] | None

    def __new__(cls, value: int, origin: Origin, equalities: list[Equality] | None = None) -> Watched:
        """A number with an origin; comparisons that hold are noted in `equalities`."""
        number = super().__new__(cls, value)
        number.origin = origin
        number.equalities = equalities
        return number

    def _with(self, operator: Literal["*", "//", "+", "-"], left: Any, right: Any) -> Any:
        if not isinstance(left, int) or not isinstance(right, int) or isinstance(left, bool) or isinstance(right, bool):
            return NotImplemented
        value = getattr(int, {"*": "__mul__", "//": "__floordiv__", "+": "__add__", "-": "__sub__"}[operator])(
            int(left), int(right)
        )
        return Watched(value, Combined(operator, left, right), self.equalities)

    def __mul__(self, other: Any) -> Any:
        return self._with("*", self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._with("*", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return self._with("//", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._with("//", other, self)

    def __add__(self, other: Any) -> Any:
        return self._with("+", self, other)

    def __radd__(self, other: Any) -> Any:
        return self._with("+", other, self)

    def __sub__(self, other: Any) -> Any:
        return self._with("-", self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._with("-", other, self)

    def __neg__(self) -> Any:
        return self._with("-", 0, self)

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        if equal is True and isinstance(other, Watched) and self.equalities is not None and other is not self:
            self.equalities.append((self, other))
        return equal

    def __ne__(self, other: object) -> bool:
        differs = self.__eq__(other)
        return differs if differs is NotImplemented else not differs

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: Any) -> Watched:
        return self

    def item(self) -> Watched:
        """The number itself, as of numpy's integers."""
        return self

    def __reduce__(self) -> Any:
        return int, (int(self),)


class WatchedFloat(float):
    """A number that knows which attribute it was read from."""

    origin: Read

    def __new__(cls, value: float, origin: Read) -> WatchedFloat:
        """The number `value`, read from `origin`."""
        number = super().__new__(cls, value)
        number.origin = origin
        return number

    def __deepcopy__(self, memo: Any) -> WatchedFloat:
        return self

    def __reduce__(self) -> Any:
        return float, (float(self),)


def watch_attributes(model: nn.Module, skip: Callable[[nn.Module], bool], equalities: list[Equality]) -> None:
    """Replaces integers and floats in the attributes of `model`'s modules by watched ones, in place.

    Args:
        model: A copy that is only followed.
        skip: Modules with attributes that follow from their own tensors.
        equalities: Where comparisons that hold are noted.
    """
    seen: dict[int, Any] = {}
    for name, module in model.named_modules():
        if skip(module):
            continue
        for attribute, value in (*of_class(module).items(), *vars(module).items()):
            if attribute in _OF_MODULE:
                continue
            replaced = _watched(value, Read(name, attribute), equalities, seen, 0)
            if replaced is not value:
                module.__dict__[attribute] = replaced


_OF_MODULE = frozenset(vars(nn.Module()))
"""Attributes that every module has: tables of tensors, modules and hooks, and the training flag."""


def _watched(value: Any, read: Read, equalities: list[Equality], seen: dict[int, Any], depth: int) -> Any:
    kind = type(value)
    if kind is int or isinstance(value, np.integer):
        return Watched(int(value), read, equalities) if int(value) > 1 else value
    if kind is float:
        return WatchedFloat(value, read)
    if depth >= _DEPTH or kind in (str, bool, type(None)):
        return value
    if id(value) in seen:
        return seen[id(value)]

    def inner(key: int | str, item: Any) -> Any:
        deeper = Read(read.module, read.attribute, (*read.path, key))
        return _watched(item, deeper, equalities, seen, depth + 1)

    result = value
    if kind in (tuple, list, torch.Size) and len(value) <= 64:
        items = [inner(index, item) for index, item in enumerate(value)]
        if any(new is not old for new, old in zip(items, value, strict=True)):
            result = kind(items)
    elif kind is dict:
        result = {key: inner(key, item) if isinstance(key, (str, int)) else item for key, item in value.items()}
        if all(result[key] is item for key, item in value.items()):
            result = value
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        result = kind(*(inner(name, item) for name, item in zip(value._fields, value, strict=True)))
    elif _holds_settings(value):
        for key, item in list(vars(value).items()):
            new = inner(key, item)
            if new is not item:
                object.__setattr__(value, key, new)
    if not isinstance(value, (int, float)):
        seen[id(value)] = result
    return result


def _holds_settings(value: Any) -> bool:
    return is_record(value) and type(value).__module__.partition(".")[0] not in _LIBRARIES


_LIBRARIES = ("torch", "numpy", "builtins", "collections", "functools", "enum", "pathlib", "logging", "threading")
