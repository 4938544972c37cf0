"""Making dimensions agree with the numbers that the network's code uses as their sizes.

Every use of a number as a size is an equation: the number, as the code would compute it after a removal, has to be
equal to the width of the dimension. Most hold already, because the operators tied the same axes. The others are made to
hold by unifying dimensions; what cannot be made to hold is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from prunecli.surgery.axes import (
    Axis,
    Prod,
    Seq,
    Term,
    cut,
    factor,
    fixed,
    freeze,
    is_fixed,
    product,
    resolve,
    sequence,
    unify,
)
from prunecli.surgery.tracing.watched import Combined, Dimension, Origin, Read, Uses, Watched

_Polynomial: TypeAlias = dict[tuple[int, ...], int]
"""A width as a polynomial: sorted ids of the axes that may shrink, each as often as its power, to the coefficient."""


@dataclass(frozen=True)
class Held:
    """A width that an attribute holds, divided by `divisor`."""

    term: Term
    divisor: int = 1


def settle(uses: Uses, known: Mapping[Read, Held]) -> dict[Read, Held]:
    """Unifies what has to be equal.

    Args:
        uses: Numbers and the dimensions whose size they were.
        known: Attributes that hold a width for another reason.

    Returns:
        The attributes that hold the size of a dimension.
    """
    solver = _Solver(known)
    waiting = [(number, term, where) for number, term, where in uses.sizes if isinstance(number, Watched)]
    waiting.sort(key=lambda use: isinstance(use[0].origin, Combined))
    for number, term, _ in waiting:
        solver.equate(number, term)
    for left, right in uses.equalities:
        solver.agree(left, right)
    broken = True
    while broken:  # what is frozen for one equation may break another
        broken = False
        for number, term, where in waiting:
            involved = [item for item in (term, *solver.terms_in(number)) if not is_fixed(item)]
            if involved and not solver.holds(number, term):
                broken = True
                for item in involved:
                    freeze(item, f"{where or 'the model itself'} computes its width in a way that cannot be followed")
    return solver.held


class _Solver:
    def __init__(self, known: Mapping[Read, Held]) -> None:
        self.held: dict[Read, Held] = dict(known)

    def equate(self, number: int, term: Term) -> None:
        """Makes `number` the width of `term`."""
        if self.holds(number, term) or int(number) != term.size:
            return
        origin = _origin(number)
        if origin is None:
            freeze(term, "its width is a number in the code")
        elif isinstance(origin, Dimension):
            unify(origin.term, term)
        elif isinstance(origin, Read):
            self._hold(origin, term)
        else:
            self._combine(origin, term)

    def _hold(self, read: Read, term: Term) -> None:
        known = self.held.get(read)
        if known is None:
            self.held[read] = Held(term)
        elif known.divisor == 1:
            unify(known.term, term)
        else:
            freeze(known.term, f"{read} holds two widths")
            freeze(term, f"{read} holds two widths")

    def _combine(self, origin: Combined, term: Term) -> None:
        left, right = origin.left, origin.right
        if origin.operator == "//":
            inner = self.term_of(right)
            self.equate(left, product((inner, term)))
        elif origin.operator == "+":
            head, tail = cut(term, int(left))
            self.equate(left, head)
            self.equate(right, tail)
        elif origin.operator == "-":
            self.equate(left, sequence((self.term_of(right), term)))
        else:
            self._multiply(left, right, term)

    def _multiply(self, left: int, right: int, term: Term) -> None:
        unknown = [number for number in (left, right) if self._unknown(number)]
        if len(unknown) != 1:
            outer, inner = factor(term, int(right))
            self.equate(left, outer)
            self.equate(right, inner)
            return
        read, known = unknown[0], right if unknown[0] is left else left
        origin = _origin(read)
        count = _polynomial(self.term_of(known))
        if isinstance(origin, Read) and set(count) == {()} and _divides(_polynomial(term), count[()]):
            self.held[origin] = Held(term, count[()])
            return
        outer, inner = factor(term, int(read))
        self.equate(known, outer)
        self.equate(read, inner)

    def _unknown(self, number: int) -> bool:
        origin = _origin(number)
        if isinstance(origin, Read):
            return origin not in self.held
        return isinstance(origin, Combined) and (self._unknown(origin.left) or self._unknown(origin.right))

    def agree(self, left: int, right: int) -> None:
        """Keeps two numbers equal that the code found to be equal."""
        first, second = _origin(left), _origin(right)
        for one, other, number in ((first, second, right), (second, first, left)):
            if isinstance(one, Read) and one not in self.held and not isinstance(other, Read):
                term = self.term_of(number)
                if not is_fixed(term):
                    self.held[one] = Held(term)
                    return
        a, b = self.term_of(left), self.term_of(right)
        if _polynomial(a) != _polynomial(b):
            unify(a, b)

    def holds(self, number: int, term: Term) -> bool:
        """Whether the number is the width of `term` no matter which channels are removed."""
        value = self._value(number)
        return value is not None and value == _polynomial(term)

    def _value(self, number: int) -> _Polynomial | None:
        """The number as a polynomial in the widths of axes; None if it is not one."""
        origin = _origin(number)
        if origin is None:
            return _constant(int(number))
        if isinstance(origin, Dimension):
            return _polynomial(origin.term)
        if isinstance(origin, Read):
            held = self.held.get(origin)
            if held is None:
                return _constant(int(number))
            return {powers: count // held.divisor for powers, count in _polynomial(held.term).items()}
        left, right = self._value(origin.left), self._value(origin.right)
        if left is None or right is None:
            return None
        if origin.operator == "*":
            return _times(left, right)
        if origin.operator == "//":
            return _over(left, right)
        return _plus(left, right, 1 if origin.operator == "+" else -1)

    def term_of(self, number: int) -> Term:
        """A dimension of that size: made of the dimensions that the number was computed from."""
        origin = _origin(number)
        if isinstance(origin, Dimension):
            return origin.term
        if isinstance(origin, Read) and origin in self.held and self.held[origin].divisor == 1:
            return self.held[origin].term
        if isinstance(origin, Combined):
            if origin.operator == "*":
                return product((self.term_of(origin.left), self.term_of(origin.right)))
            if origin.operator == "+":
                return sequence((self.term_of(origin.left), self.term_of(origin.right)))
            left, right = self.term_of(origin.left), self.term_of(origin.right)
            if origin.operator == "//" and int(origin.left) % int(origin.right) == 0:
                return factor(left, int(number))[1]
            if origin.operator == "-" and 0 < int(number) < left.size:
                unify(cut(left, int(origin.right))[0], right)
                return cut(left, int(origin.right))[1]
            freeze(left, "its width enters a computation that cannot be followed")
            freeze(right, "its width enters a computation that cannot be followed")
        return fixed(int(number))

    def terms_in(self, number: int) -> Iterator[Term]:
        """All dimensions that a number was computed from."""
        origin = _origin(number)
        if isinstance(origin, Combined):
            yield from self.terms_in(origin.left)
            yield from self.terms_in(origin.right)
        elif isinstance(origin, Dimension):
            yield origin.term
        elif isinstance(origin, Read) and origin in self.held:
            yield self.held[origin].term


def _origin(number: int) -> Origin | None:
    return number.origin if isinstance(number, Watched) else None


def _constant(value: int) -> _Polynomial:
    return {(): value} if value else {}


def _polynomial(term: Term) -> _Polynomial:
    resolved = resolve(term)
    if isinstance(resolved, Axis):
        return _constant(resolved.size) if resolved.reason is not None else {(id(resolved),): 1}
    if isinstance(resolved, Seq):
        total: _Polynomial = {}
        for part in resolved.parts:
            total = _plus(total, _polynomial(part), 1)
        return total
    assert isinstance(resolved, Prod)
    result = _constant(1)
    for item in resolved.factors:
        result = _times(result, _polynomial(item))
    return result


def _plus(left: _Polynomial, right: _Polynomial, sign: int) -> _Polynomial:
    total = dict(left)
    for powers, count in right.items():
        total[powers] = total.get(powers, 0) + sign * count
    return {powers: count for powers, count in total.items() if count}


def _times(left: _Polynomial, right: _Polynomial) -> _Polynomial:
    total: _Polynomial = {}
    for a, x in left.items():
        for b, y in right.items():
            powers = tuple(sorted((*a, *b)))
            total[powers] = total.get(powers, 0) + x * y
    return total


def _over(left: _Polynomial, right: _Polynomial) -> _Polynomial | None:
    """The quotient by a single product, if it is exact."""
    if len(right) != 1:
        return None
    ((by, count),) = right.items()
    result: _Polynomial = {}
    for powers, own in left.items():
        rest = list(powers)
        for axis in by:
            if axis not in rest:
                return None
            rest.remove(axis)
        if own % count:
            return None
        result[tuple(rest)] = own // count
    return result


def _divides(polynomial: _Polynomial, count: int) -> bool:
    return math.gcd(0, *polynomial.values()) % count == 0
