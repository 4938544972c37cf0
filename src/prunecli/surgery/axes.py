"""The algebra of tensor dimensions: which positions of which dimensions are the same channels.

Every dimension of every tensor is described by a *term* over *axes*:

- an `Axis` is a run of independent channels; removing its i-th channel removes everything that is described by it;
- `Seq` is a concatenation of terms (`torch.cat`, or a slice and the rest);
- `Prod` is a row-major flattening of terms (`view(..., heads, head_dim)` and back).

An operator for which two dimensions must be the same channels unifies their terms. Unification splits axes as needed: a
view to (heads, head_dim) turns an axis into a product, a concatenation turns it into a sequence. What cannot be
reconciled is frozen: its width will not change. A description that freezes too much can therefore only cost
opportunities, and one that unifies too little is detected by `verify`.
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
        bound: The term this axis is equal to, once it was unified with something.
        reason: Why the width cannot change, or None while it may shrink.
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

_CONFLICT = "its channels are regrouped in a way that cannot be followed"
_MOST = 64
"""Pieces that a dimension is cut into to find the same channels in each; with more, descriptions get too long."""
NOT_A_CHANNEL = "tied to a size that is not a number of channels, such as the number of tokens"


def fixed(size: int, reason: str = NOT_A_CHANNEL) -> Axis:
    """An axis with a width that cannot change."""
    return Axis(size, reason)


def resolve(term: Term) -> Term:
    """Follows bindings and brings a term into normal form.

    Sequences and products are flat, products have no factor of size 1, neighbouring frozen axes are one, and a product
    with a sequence as its outermost factor becomes a sequence of products.
    """
    if isinstance(term, Axis):
        if term.bound is None:
            return term
        target = resolve(term.bound)
        term.bound = target
        return target
    if isinstance(term, Seq):
        return sequence(term.parts)
    return product(term.factors)


def sequence(parts: Iterable[Term]) -> Term:
    """The concatenation of `parts` in normal form."""
    flat: list[Term] = []
    for part in parts:
        resolved = resolve(part)
        for item in resolved.parts if isinstance(resolved, Seq) else (resolved,):
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
        resolved = resolve(factor)
        for item in resolved.factors if isinstance(resolved, Prod) else (resolved,):
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
    resolved = resolve(term)
    if isinstance(resolved, Axis):
        yield resolved
        return
    for item in resolved.parts if isinstance(resolved, Seq) else resolved.factors:
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
        freeze(a, _CONFLICT)
        freeze(b, _CONFLICT)
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
        freeze(term, _CONFLICT)
    else:
        axis.bound = term


def _unify_sequences(a: Term, b: Term) -> None:
    sizes = [term.parts[0].size if isinstance(term, Seq) else term.size for term in (a, b)]
    at = min(sizes)
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
    resolved = resolve(term)
    if at <= 0:
        return fixed(0), resolved
    if at >= resolved.size:
        return resolved, fixed(0)
    if isinstance(resolved, Axis):
        before, after = Axis(at, resolved.reason), Axis(resolved.size - at, resolved.reason)
        if resolved.reason is None:
            resolved.bound = Seq((before, after))
        return before, after
    if isinstance(resolved, Seq):
        offset = 0
        for index, part in enumerate(resolved.parts):
            if at <= offset + part.size:
                head, tail = cut(part, at - offset)
                return sequence((*resolved.parts[:index], head)), sequence((tail, *resolved.parts[index + 1 :]))
            offset += part.size
    assert isinstance(resolved, Prod)
    inner = product(resolved.factors[1:])
    runs, within = divmod(at, inner.size)
    head, rest = cut(resolved.factors[0], runs)
    if within == 0:
        return product((head, inner)), product((rest, inner))
    divided, tail = cut(rest, 1)
    freeze(divided, _CONFLICT)
    first, last = cut(inner, within)
    return sequence((product((head, inner)), first)), sequence((last, product((tail, inner))))


def factor(term: Term, inner: int) -> tuple[Term, Term]:
    """Splits a dimension into (outer, inner) of sizes (size / inner, inner), as a view does.

    Where the dimension already consists of pieces that are no multiples of `inner`, what is left free are positions
    within runs of their greatest common divisor.
    """
    resolved = resolve(term)
    if inner == 1:
        return resolved, fixed(1)
    if inner == resolved.size:
        return fixed(1), resolved
    if isinstance(resolved, Axis) and resolved.size % inner == 0:
        outer_axis, inner_axis = Axis(resolved.size // inner, resolved.reason), Axis(inner, resolved.reason)
        if resolved.reason is None:
            resolved.bound = Prod((outer_axis, inner_axis))
        return outer_axis, inner_axis
    if isinstance(resolved, Prod):
        return _factor_product(resolved, inner)
    if isinstance(resolved, Seq):
        return _factor_sequence(resolved, inner)
    freeze(resolved, _CONFLICT)
    return fixed(max(1, resolved.size // inner), _CONFLICT), fixed(inner, _CONFLICT)


def _factor_sequence(term: Seq, inner: int) -> tuple[Term, Term]:
    runs: list[list[Term]] = [[]]  # parts that together are a multiple of `inner`
    for part in term.parts:
        runs[-1].append(part)
        if sum(item.size for item in runs[-1]) % inner == 0:
            runs.append([])
    if runs.pop() or any(len(run) > 1 and sum(item.size for item in run) > _MOST * inner for run in runs):
        common = math.gcd(inner, *(part.size for part in term.parts))
        if common > 1:
            return _factor_shorter(term, inner, common)
        freeze(term, _CONFLICT)
        return fixed(max(1, term.size // inner), _CONFLICT), fixed(inner, _CONFLICT)
    factored = [factor(run[0], inner) if len(run) == 1 else _equal_pieces(sequence(run), inner) for run in runs]
    for _, other in factored[1:]:
        unify(factored[0][1], other)
    return sequence(outer for outer, _ in factored), resolve(factored[0][1])


def _equal_pieces(term: Term, inner: int) -> tuple[Term, Term]:
    """Factors by cutting, wherever a cut falls; the pieces are the same channels."""
    count = term.size // inner
    piece, rest = cut(term, inner)
    for _ in range(count - 1):
        other, rest = cut(rest, inner)
        unify(piece, other)
    return fixed(count), resolve(piece)


def _factor_product(term: Prod, inner: int) -> tuple[Term, Term]:
    taken: list[Term] = []
    rest, left = list(term.factors), inner
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
            common = math.gcd(left, last.size) * math.prod(item.size for item in taken)
            if common > 1:
                return _factor_shorter(term, inner, common)
            freeze(term, _CONFLICT)
            return fixed(term.size // inner, _CONFLICT), fixed(inner, _CONFLICT)
    return product(rest), product(taken)


def _factor_shorter(term: Term, inner: int, common: int) -> tuple[Term, Term]:
    """Factors by a divisor of `inner` that does fit and freezes what is left of it, and of the outer factor."""
    outer, shared = factor(term, common)
    freeze(outer, _CONFLICT)
    return fixed(term.size // inner, _CONFLICT), product((fixed(inner // common, _CONFLICT), shared))


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
    pieces: list[Term] = []
    for size in reversed(sizes[1:]):
        whole, piece = factor(whole, size)
        pieces.insert(0, piece)
    return [whole, *pieces] if sizes else []


def strided(term: Term, step: int) -> Term:
    """Every `step`-th position of a dimension, beginning with the first."""
    if step == 1 or is_fixed(term):
        return term if step == 1 else fixed(-(-term.size // step))
    if term.size % step:
        freeze(term, _CONFLICT)
        return fixed(-(-term.size // step), _CONFLICT)
    return factor(term, step)[0]


ChannelMasks: TypeAlias = Mapping[Axis, NDArray[np.bool_]]
"""For each axis that loses channels, True for those that are kept, shape (channels,)."""


def kept_mask(term: Term, kept: ChannelMasks) -> NDArray[np.bool_]:
    """Which positions of a dimension are kept, shape (size,)."""
    resolved = resolve(term)
    if isinstance(resolved, Axis):
        mask = kept.get(resolved)
        return np.ones(resolved.size, dtype=bool) if mask is None else mask
    if isinstance(resolved, Seq):
        return np.concatenate([kept_mask(part, kept) for part in resolved.parts])
    mask = np.ones(1, dtype=bool)
    for item in resolved.factors:
        mask = (mask[:, None] & kept_mask(item, kept)[None, :]).reshape(-1)
    return mask


def channel_of_position(term: Term, axis: Axis) -> NDArray[np.int64]:
    """For each position of a dimension the channel of `axis` it belongs to, or -1, shape (size,)."""
    resolved = resolve(term)
    if isinstance(resolved, Axis):
        return np.arange(resolved.size) if resolved is axis else np.full(resolved.size, -1)
    if isinstance(resolved, Seq):
        return np.concatenate([channel_of_position(part, axis) for part in resolved.parts])
    channel = np.full(1, -1)
    for item in resolved.factors:
        inner = channel_of_position(item, axis)
        channel = np.maximum(channel[:, None], inner[None, :]).reshape(-1)
    return channel
