"""The algebra of tensor dimensions: which positions of which dimensions are the same channels.

Every dimension of every tensor is described by a *term* over *axes*:

- an `Axis` is a run of independent channels; removing its i-th channel removes everything that is described by it;
- `Seq` is a concatenation of terms (`torch.cat`, or a slice and what is left of it);
- `Prod` is a row-major flattening of terms (`view(..., heads, head_dim)` and back).

An operator that needs two dimensions to be the same channels unifies their terms. Unification splits axes where it has
to: a view to (heads, head_dim) turns an axis into a product, a concatenation turns it into a sequence. What cannot be
reconciled is frozen: its width will not change. So a mistake in describing a dimension can only cost opportunities
when it freezes too much, and is found by `verify` when it unifies too little.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray


class Axis:
    """A run of `size` channels that may be removed one by one, unless `reason` says why not.

    Attributes:
        size: Number of channels.
        bound: The term this axis turned out to be, once it was unified with something.
        reason: Why the width has to stay, or None while it may shrink.
    """

    __slots__ = ("bound", "reason", "size")

    def __init__(self, size: int, reason: str | None = None) -> None:
        self.size = size
        self.reason = reason
        self.bound: Term | None = None


class Seq:
    """Terms one after another."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: tuple[Term, ...]) -> None:
        self.parts = parts
        self.size: int = sum(part.size for part in parts)


class Prod:
    """Terms flattened into one dimension, the last one varying fastest."""

    __slots__ = ("factors", "size")

    def __init__(self, factors: tuple[Term, ...]) -> None:
        self.factors = factors
        self.size: int = math.prod(item.size for item in factors)


Term: TypeAlias = Axis | Seq | Prod

CONFLICT = "its channels are regrouped in a way that cannot be followed"


NOT_A_CHANNEL = "tied to a size that is not a number of channels, such as the number of tokens"


def fixed(size: int, reason: str = NOT_A_CHANNEL) -> Axis:
    """An axis whose width has to stay."""
    return Axis(size, reason)


def resolve(term: Term) -> Term:
    """Follows bindings and brings a term into normal form.

    Sequences and products are flat, products have no factor of size 1, neighbouring frozen axes are one, and a product
    whose outermost factor is a sequence is a sequence of products.
    """
    if isinstance(term, Axis):
        if term.bound is None:
            return term
        found = resolve(term.bound)
        term.bound = found
        return found
    if isinstance(term, Seq):
        return sequence(term.parts)
    return product(term.factors)


def sequence(parts: Iterable[Term]) -> Term:
    """The concatenation of `parts` in normal form."""
    flat: list[Term] = []
    for part in parts:
        found = resolve(part)
        for item in found.parts if isinstance(found, Seq) else (found,):
            if item.size == 0:
                continue
            last = flat[-1] if flat else None
            if isinstance(item, Axis) and isinstance(last, Axis) and item.reason and last.reason:
                flat[-1] = Axis(last.size + item.size, last.reason)
            else:
                flat.append(item)
    if not flat:
        return fixed(0)
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def product(factors: Iterable[Term]) -> Term:
    """The row-major flattening of `factors` in normal form."""
    flat: list[Term] = []
    for factor in factors:
        found = resolve(factor)
        for item in found.factors if isinstance(found, Prod) else (found,):
            if item.size == 1:
                continue
            last = flat[-1] if flat else None
            if isinstance(item, Axis) and isinstance(last, Axis) and item.reason and last.reason:
                flat[-1] = Axis(last.size * item.size, last.reason)
            else:
                flat.append(item)
    if not flat:
        return fixed(1)
    if len(flat) == 1:
        return flat[0]
    if isinstance(flat[0], Seq):
        rest = tuple(flat[1:])
        return sequence(product((part, *rest)) for part in flat[0].parts)
    return Prod(tuple(flat))


def leaves(term: Term) -> Iterator[Axis]:
    """The axes a term is made of, frozen ones included, from left to right."""
    found = resolve(term)
    if isinstance(found, Axis):
        yield found
        return
    for item in found.parts if isinstance(found, Seq) else found.factors:
        yield from leaves(item)


def is_fixed(term: Term) -> bool:
    """Whether no part of the dimension may shrink."""
    return all(leaf.reason is not None for leaf in leaves(term))


def freeze(term: Term, reason: str) -> None:
    """Forbids every change of the dimension's width."""
    for leaf in leaves(term):
        if leaf.reason is None:
            leaf.reason = reason


def freeze_position(term: Term, position: int, reason: str) -> None:
    """Forbids removing the channels that one position of a dimension belongs to."""
    for leaf in leaves(term):
        if leaf.reason is None and channel_of_position(term, leaf)[position] >= 0:
            leaf.reason = reason


def unify(first: Term, second: Term) -> None:
    """States that two dimensions are the same channels, position by position."""
    a, b = resolve(first), resolve(second)
    if a is b:
        return
    if a.size != b.size:
        freeze(a, CONFLICT)
        freeze(b, CONFLICT)
    elif isinstance(a, Axis):
        _bind(a, b)
    elif isinstance(b, Axis):
        _bind(b, a)
    elif isinstance(a, Seq) or isinstance(b, Seq):
        _unify_sequences(a, b)
    else:
        _unify_products(a, b)


def _bind(axis: Axis, term: Term) -> None:
    if axis.reason is not None:
        freeze(term, axis.reason)
    elif isinstance(term, Axis):
        axis.bound = term
    elif any(leaf is axis for leaf in leaves(term)):
        freeze(term, CONFLICT)
    else:
        axis.bound = term


def _unify_sequences(a: Term, b: Term) -> None:
    heads = [term.parts[0].size if isinstance(term, Seq) else term.size for term in (a, b)]
    at = min(heads)
    (a_head, a_tail), (b_head, b_tail) = cut(a, at), cut(b, at)
    unify(a_head, b_head)
    unify(a_tail, b_tail)


def _unify_products(a: Prod, b: Prod) -> None:
    inner = min(a.factors[-1].size, b.factors[-1].size)
    (a_outer, a_inner), (b_outer, b_inner) = factor(a, inner), factor(b, inner)
    unify(a_inner, b_inner)
    unify(a_outer, b_outer)


def cut(term: Term, at: int) -> tuple[Term, Term]:
    """Splits a dimension into its first `at` positions and the others."""
    found = resolve(term)
    if at <= 0:
        return fixed(0), found
    if at >= found.size:
        return found, fixed(0)
    if isinstance(found, Axis):
        first, rest = Axis(at, found.reason), Axis(found.size - at, found.reason)
        if found.reason is None:
            found.bound = Seq((first, rest))
        return first, rest
    if isinstance(found, Seq):
        place = 0
        for index, part in enumerate(found.parts):
            if at <= place + part.size:
                head, tail = cut(part, at - place)
                return sequence((*found.parts[:index], head)), sequence((tail, *found.parts[index + 1 :]))
            place += part.size
    assert isinstance(found, (Prod, Seq))
    if isinstance(found, Prod):
        inner = product(found.factors[1:])
        if at % inner.size == 0:
            head, tail = cut(found.factors[0], at // inner.size)
            return product((head, inner)), product((tail, inner))
    freeze(found, CONFLICT)
    return fixed(at, CONFLICT), fixed(found.size - at, CONFLICT)


def factor(term: Term, inner: int) -> tuple[Term, Term]:
    """Splits a dimension into (outer, inner) of sizes (size / inner, inner), as a view does."""
    found = resolve(term)
    if inner == 1:
        return found, fixed(1)
    if inner == found.size:
        return fixed(1), found
    if isinstance(found, Axis) and found.size % inner == 0:
        outer_axis, inner_axis = Axis(found.size // inner, found.reason), Axis(inner, found.reason)
        if found.reason is None:
            found.bound = Prod((outer_axis, inner_axis))
        return outer_axis, inner_axis
    if isinstance(found, Prod):
        return _factor_product(found, inner)
    if isinstance(found, Seq) and all(part.size % inner == 0 for part in found.parts):
        pieces = [factor(part, inner) for part in found.parts]
        for _, other in pieces[1:]:
            unify(pieces[0][1], other)
        return sequence(outer for outer, _ in pieces), resolve(pieces[0][1])
    freeze(found, CONFLICT)
    return fixed(max(1, found.size // inner), CONFLICT), fixed(inner, CONFLICT)


def _factor_product(found: Prod, inner: int) -> tuple[Term, Term]:
    taken: list[Term] = []
    rest, left = list(found.factors), inner
    while left > 1:
        last = rest.pop()
        if left % last.size == 0:
            taken.insert(0, last)
            left //= last.size
        elif last.size % left == 0:
            outer, piece = factor(last, left)
            rest.append(outer)
            taken.insert(0, piece)
            left = 1
        else:
            freeze(found, CONFLICT)
            return fixed(found.size // inner, CONFLICT), fixed(inner, CONFLICT)
    return product(rest), product(taken)


def reshape(terms: Iterable[Term], shape: Iterable[int]) -> list[Term]:
    """Terms of a contiguous tensor after a view to `shape` (no -1)."""
    old, new = list(terms), list(shape)
    result: list[Term] = []
    at = 0
    while len(result) < len(new) or at < len(old):
        group: list[Term] = []
        sizes: list[int] = []
        have = want = 1
        while True:
            if (have < want or not group) and at < len(old):
                group.append(old[at])
                have *= old[at].size
                at += 1
            elif (want < have or not sizes) and len(result) + len(sizes) < len(new):
                sizes.append(new[len(result) + len(sizes)])
                want *= sizes[-1]
            else:
                break
            if have == want and group and sizes:
                break
        result += _split_group(group, sizes)
    return result


def _split_group(group: list[Term], sizes: list[int]) -> list[Term]:
    if len(group) == 1 and len(sizes) == 1:
        return [group[0]]
    if all(is_fixed(term) for term in group):
        reason = next((leaf.reason for term in group if term.size > 1 for leaf in leaves(term)), None)
        return [fixed(size, reason or NOT_A_CHANNEL) for size in sizes]
    whole = product(group)
    found: list[Term] = []
    for size in reversed(sizes[1:]):
        whole, piece = factor(whole, size)
        found.insert(0, piece)
    return [whole, *found] if sizes else []


def strided(term: Term, step: int) -> Term:
    """Every `step`-th position of a dimension, beginning with the first."""
    if step == 1 or is_fixed(term):
        return term if step == 1 else fixed(-(-term.size // step))
    if term.size % step:
        freeze(term, CONFLICT)
        return fixed(-(-term.size // step), CONFLICT)
    return factor(term, step)[0]


Kept: TypeAlias = Mapping[Axis, NDArray[np.bool_]]
"""For each axis that loses channels, which ones stay."""


def kept_mask(term: Term, kept: Kept) -> NDArray[np.bool_]:
    """Which positions of a dimension stay, shape (size,)."""
    found = resolve(term)
    if isinstance(found, Axis):
        mask = kept.get(found)
        return np.ones(found.size, dtype=bool) if mask is None else mask
    if isinstance(found, Seq):
        return np.concatenate([kept_mask(part, kept) for part in found.parts])
    mask = np.ones(1, dtype=bool)
    for item in found.factors:
        mask = (mask[:, None] & kept_mask(item, kept)[None, :]).reshape(-1)
    return mask


def channel_of_position(term: Term, axis: Axis) -> NDArray[np.int64]:
    """For each position of a dimension the channel of `axis` it belongs to, or -1, shape (size,)."""
    found = resolve(term)
    if isinstance(found, Axis):
        return np.arange(found.size) if found is axis else np.full(found.size, -1)
    if isinstance(found, Seq):
        return np.concatenate([channel_of_position(part, axis) for part in found.parts])
    channel = np.full(1, -1)
    for item in found.factors:
        inner = channel_of_position(item, axis)
        channel = np.maximum(channel[:, None], inner[None, :]).reshape(-1)
    return channel
