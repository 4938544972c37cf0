"""The algebra of dimensions: positions are traced through it as tensors move them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunecli.surgery.axes import (
    Axis,
    Prod,
    Seq,
    channel_of_position,
    cut,
    factor,
    fixed,
    is_fixed,
    kept_mask,
    leaves,
    product,
    reshape,
    sequence,
    strided,
    unify,
)


def positions(term: object) -> list[tuple[int, ...]]:
    """For every position of a dimension the channels of all its axes."""
    axes = [leaf for leaf in dict.fromkeys(leaves(term)) if leaf.reason is None]  # type: ignore[arg-type]
    columns = [channel_of_position(term, axis) for axis in axes]  # type: ignore[arg-type]
    return [tuple(int(c) for c in row) for row in np.stack(columns, axis=1)] if columns else []


SHAPES = [(2, 3, 4), (6, 4), (24,), (4, 6), (2, 12), (3, 8), (2, 3, 2, 2)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_views_move_labels_as_they_move_elements(data: st.DataObject) -> None:
    """A chain of views and transpositions: what the algebra says lies at a place is what torch puts there."""
    shape = data.draw(st.sampled_from(SHAPES))
    axes = [Axis(size) for size in shape]
    terms: list = list(axes)
    tensor = torch.arange(int(np.prod(shape))).reshape(shape)
    original = tensor
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()) and tensor.dim() > 1:
            order = data.draw(st.permutations(range(tensor.dim())))
            tensor, terms = tensor.permute(*order), [terms[place] for place in order]
        else:
            target = data.draw(st.sampled_from([s for s in SHAPES if int(np.prod(s)) == tensor.numel()]))
            terms, tensor = reshape(terms, target), tensor.reshape(target)
    assert [term.size for term in terms] == list(tensor.shape)
    leaf = data.draw(st.sampled_from([leaf for axis in axes for leaf in leaves(axis)]))
    if leaf.reason is not None:
        return
    gone = data.draw(st.integers(0, leaf.size - 1))
    kept = {leaf: np.arange(leaf.size) != gone}

    def outer(parts: list) -> torch.Tensor:
        mask = torch.ones((), dtype=torch.bool)
        for part in parts:
            mask = mask[..., None] & torch.from_numpy(kept_mask(part, kept))
        return mask

    before = {int(v) for v in original[~outer(axes)]}
    after = {int(v) for v in tensor[~outer(terms)]}
    assert before == after


def test_a_view_to_heads_is_a_product_and_back_is_the_same_dimension() -> None:
    width = Axis(12)
    heads, dim = reshape([width], (3, 4))
    assert (heads.size, dim.size) == (3, 4)
    assert positions(width) == [(h, d) for h in range(3) for d in range(4)]
    (back,) = reshape([heads, dim], (12,))
    assert positions(back) == positions(width)


def test_concatenation_splits_what_it_is_added_to() -> None:
    a, b, total = Axis(3), Axis(5), Axis(8)
    unify(total, sequence((a, b)))
    assert [leaf.size for leaf in leaves(total)] == [3, 5]
    head, tail = cut(total, 3)
    assert list(leaves(head)) == list(leaves(a)) and list(leaves(tail)) == list(leaves(b))


def test_unequal_regroupings_are_frozen_not_guessed() -> None:
    width = Axis(12)
    reshape([width], (3, 4))
    reshape([width], (4, 3))  # runs of 4 and of 3 have no common part
    assert is_fixed(width)


def test_what_unequal_regroupings_have_in_common_stays_free() -> None:
    width = Axis(12)
    reshape([width], (3, 4))
    _, inner = reshape([width], (2, 6))
    (free,) = [leaf for leaf in dict.fromkeys(leaves(width)) if leaf.reason is None]
    assert channel_of_position(width, free).tolist() == [0, 1] * 6
    assert channel_of_position(inner, free).tolist() == [0, 1] * 3


def test_groups_across_the_boundary_of_a_concatenation_are_cut_where_it_lies() -> None:
    a, b = Axis(64), Axis(32)
    outer, inner = factor(sequence((a, b)), 12)  # the boundary lies within the sixth group
    assert is_fixed(outer) and (outer.size, inner.size) == (8, 12)
    first, second = leaves(inner)
    assert (first.size, second.size) == (4, 8) and not is_fixed(first) and not is_fixed(second)
    assert channel_of_position(a, first).tolist() == [*([0, 1, 2, 3] + [-1] * 8) * 5, 0, 1, 2, 3]
    assert channel_of_position(b, second).tolist() == [*range(8), *([-1] * 4 + [*range(8)]) * 2]


def test_with_many_groups_across_a_boundary_shorter_runs_stay_free() -> None:
    a, b = Axis(12 * 100 + 4), Axis(8)
    outer, inner = factor(sequence((a, b)), 12)
    assert is_fixed(outer) and (outer.size, inner.size) == (101, 12)
    (free,) = [leaf for leaf in leaves(inner) if leaf.reason is None]
    assert channel_of_position(a, free).tolist() == [0, 1, 2, 3] * 301
    assert channel_of_position(b, free).tolist() == [0, 1, 2, 3] * 2


def test_a_cut_within_a_run_holds_the_divided_run_alone() -> None:
    width = Axis(40)
    outer, inner = reshape([width], (10, 4))
    head, tail = cut(width, 22)
    first, divided, last = leaves(outer)
    assert [leaf.size for leaf in (first, divided, last)] == [5, 1, 4]
    assert divided.reason and not first.reason and not last.reason
    assert channel_of_position(head, first).tolist() == [channel for channel in range(5) for _ in range(4)] + [-1] * 2
    assert channel_of_position(tail, last).tolist() == [-1] * 2 + [channel for channel in range(4) for _ in range(4)]
    assert [leaf.size for leaf in leaves(inner)] == [2, 2]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_cuts_concatenations_and_regroupings_move_labels_as_they_move_elements(data: st.DataObject) -> None:
    axes = [Axis(data.draw(st.sampled_from([4, 6, 8, 12]))) for _ in range(2)]
    terms: list = list(axes)
    values = [torch.arange(axes[0].size), 100 + torch.arange(axes[1].size)]
    originals = list(values)
    for _ in range(data.draw(st.integers(1, 5))):
        what = data.draw(st.sampled_from(["cut", "join", "regroup"]))
        at = data.draw(st.integers(0, len(terms) - 1))
        size = terms[at].size
        if what == "cut":
            place = data.draw(st.integers(1, max(1, size - 1)))
            terms[at : at + 1] = list(cut(terms[at], place))
            values[at : at + 1] = [values[at][:place], values[at][place:]]
        elif what == "join":
            other = data.draw(st.integers(0, len(terms) - 1))
            terms.append(sequence((terms[at], terms[other])))
            values.append(torch.cat((values[at], values[other])))
        else:
            inner = data.draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0] or [1]))
            if size:
                outer, run = factor(terms[at], inner)
                terms.append(product((run, outer)))
                values.append(values[at].reshape(-1, inner).T.flatten())
    free = [leaf for axis in axes for leaf in leaves(axis) if leaf.reason is None and leaf.size > 1]
    if not free:
        return
    leaf = data.draw(st.sampled_from(free))
    kept = {leaf: np.arange(leaf.size) != data.draw(st.integers(0, leaf.size - 1))}
    gone = {int(v) for o, a in zip(originals, axes, strict=True) for v in o[~torch.from_numpy(kept_mask(a, kept))]}
    for term, value in zip(terms, values, strict=True):
        assert term.size == len(value)
        mask = kept_mask(term, kept)
        assert [int(v) not in gone for v in value] == mask.tolist()


def test_compatible_regroupings_find_their_common_cut() -> None:
    width = Axis(24)
    reshape([width], (6, 4))
    outer, inner = factor(width, 12)  # 2 x (3 x 4)
    assert (outer.size, inner.size) == (2, 12) and not is_fixed(width)
    assert sorted(leaf.size for leaf in leaves(width)) == [2, 3, 4]


def test_frozen_meets_free_and_wins() -> None:
    free, held = Axis(4), fixed(4, "held")
    unify(free, held)
    assert [leaf.reason for leaf in leaves(free)] == ["held"]


def test_every_second_position_is_one_half_of_pairs() -> None:
    width = Axis(8)
    half = strided(width, 2)
    assert half.size == 4 and channel_of_position(width, next(iter(leaves(half)))).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_axis_is_never_bound_to_itself() -> None:
    width = Axis(4)
    unify(width, sequence((width,)))
    assert list(leaves(width)) == [width]
    pair = Axis(2)
    unify(Axis(4), product((pair, pair)))
    with pytest.raises(AssertionError):
        assert isinstance(width, (Seq, Prod))
