"""Which module attributes hold a width: found by their value and name among the dimensions a module sees.

Code such as `x.reshape(B, N, 3, self.num_heads, self.head_dim)` keeps widths in plain attributes. An integer that
equals the size of a dimension in which the module meets prunable channels is taken to be that size, unless its name
says otherwise. A wrong guess makes the trial run or `verify` fail, so it costs a group and never a wrong
network.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from prunecli.surgery.axes import Axis, Seq, Term, leaves, resolve
from prunecli.surgery.groups import ChannelGroup, Size, Width
from prunecli.surgery.tracing.labels import Followed

_NOT_A_WIDTH = re.compile(
    r"size|stride|max|min|limit|num_embeddings|position|vocab|kernel|pad|dilation|resolution|window|patch|grid|depth|shift|length|seq|pool|area|class|reduction|stage|"
    r"index|prefix|token|level|scale|expansion|radix|groups"
)
_HEADS = re.compile(r"^(n|num|total|global|total_num)?_?(attention_)?(num_|n_)?heads?$|^nhead$")
_HEAD_DIM = re.compile(r"head_dim|dim_head|key_dim|head_size|dim_per_head|^d$|d_head|value_dim|head_channels")
_INNER = re.compile(r"attn|inner|all_head|qkv|^dh$|d_inner")
_WIDTH = re.compile(r"dim|channel|chs|feature|hidden|embed|width|planes|units|head")
Question = tuple[str, tuple[int | str, ...], int]
"""An attribute, the path into it, and the number of widths it could hold."""
_Choices = Mapping[tuple[str, str, tuple[int | str, ...]], int]
"""For (class, attribute, path): which of several possible widths it is."""
_SIZES_OF_HEADS = ("attention_head_size", "all_head_size", "head_size", "hidden_size", "inner_size", "head_hidden_size",
                   "attn_head_size")  # fmt: skip


def _size_of(term: Term, by_axis: Mapping[Axis, str]) -> Size:
    """A term's size as a function of the groups it contains."""
    resolved = resolve(term)
    if isinstance(resolved, Axis):
        name = by_axis.get(resolved)
        return Size("group", resolved.size, name) if name is not None else Size("number", resolved.size)
    parts = tuple(
        _size_of(item, by_axis) for item in (resolved.parts if isinstance(resolved, Seq) else resolved.factors)
    )
    return Size("sum" if isinstance(resolved, Seq) else "product", resolved.size, parts=parts)


def width_attributes(
    model: nn.Module, followed: Followed, groups: Mapping[Axis, ChannelGroup], choices: _Choices
) -> tuple[list[Width], dict[str, list[Question]]]:
    """Every attribute that has to change with the width of a group.

    Args:
        model: The traced model.
        followed: The run of the model.
        groups: Group by axis.
        choices: For attributes that could be several widths, which of them: by class, attribute and path.

    Returns:
        The attributes, and by module those that could be something else.
    """
    by_axis = {axis: group.name for axis, group in groups.items()}
    kinds = {group.name: group.kind for group in groups.values()}
    widths: list[Width] = []
    questions: dict[str, list[Question]] = {}
    for name, module in model.named_modules():
        counted = "num_groups" if isinstance(module, nn.GroupNorm) else "groups"
        if name in followed.blocks and hasattr(module, counted):
            size = _size_of(followed.blocks[name], by_axis)
            if size.groups:
                widths.append(Width(name, counted, (), size))
        if isinstance(module, (_ConvNd, nn.Linear, _BatchNorm, nn.PReLU)):
            continue  # their widths follow from their own tensors
        splits = list(_splits(name, module, followed, by_axis))
        widths += splits
        settled = {width.attribute for width in splits}
        seen = _sizes(followed.modules.get(name, []), by_axis)
        for attribute, path, sizes in _candidates(module, seen, kinds):
            if attribute in settled or (attribute == "normalized_shape" and isinstance(module.weight, Tensor)):
                continue
            questions.setdefault(name, []).append((attribute, path, len(sizes)))
            chosen = sizes[min(choices.get((type(module).__name__, attribute, path), 0), len(sizes) - 1)]
            if chosen is not None:
                widths.append(Width(name, attribute, path, chosen))
        widths += _feature_info(name, module, followed, by_axis)
    return widths, questions


def _splits(name: str, module: nn.Module, followed: Followed, by_axis: Mapping[Axis, str]) -> Iterator[Width]:
    """Sequences that hold the sizes of a split, entry by entry."""
    known = followed.splits.get(name, {})
    for attribute, value in vars(module).items():
        pieces = known.get(tuple(value)) if isinstance(value, (list, tuple)) and _all_integers(value) else None
        for position, term in enumerate(pieces or ()):
            size = _size_of(term, by_axis)
            if size.groups and not attribute.startswith("_"):
                yield Width(name, attribute, (position,), size)


def _all_integers(value: Sequence[object]) -> bool:
    return bool(value) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _sizes(terms: list[Term], by_axis: Mapping[Axis, str]) -> dict[int, list[Size]]:
    """Distinct sizes among the terms, and among their parts, by present value."""
    by_value: dict[int, dict[Size, None]] = {}
    known: set[Term] = set()
    stack = list(terms)
    while stack:
        term = resolve(stack.pop())
        if term in known:
            continue
        known.add(term)
        by_value.setdefault(term.size, {})[_size_of(term, by_axis)] = None
        if not isinstance(term, Axis):
            stack.extend(leaves(term))
    return {value: list(sizes) for value, sizes in by_value.items()}


def _candidates(
    module: nn.Module, seen: Mapping[int, list[Size]], kinds: Mapping[str, str]
) -> Iterator[tuple[str, tuple[int | str, ...], list[Size | None]]]:
    """Attributes that may hold widths, with those they may hold, the likeliest first; None: it is not a width."""
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or attribute == "training":
            continue
        for path, number in _integers(value):
            sizes = _matches(attribute, seen.get(number, []), kinds)
            if any(sizes):
                yield attribute, path, sizes


def _integers(value: Any, path: tuple[int | str, ...] = ()) -> Iterator[tuple[tuple[int | str, ...], int]]:
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        yield path, value
    elif isinstance(value, (list, tuple)) and len(value) <= 64:
        for index, item in enumerate(value):
            yield from _integers(item, (*path, index))


def _matches(attribute: str, sizes: list[Size], kinds: Mapping[str, str]) -> list[Size | None]:
    resizable = [size for size in sizes if size.groups]
    lowered = attribute.lower()

    def kind(size: Size) -> str:
        return kinds[size.group] if size.kind == "group" else "mixed"

    if _HEADS.match(lowered):
        return [*(size for size in resizable if kind(size) == "head"), None]
    if _HEAD_DIM.search(lowered) and lowered != "all_head_size":
        exact = [size for size in resizable if kind(size) == "head_dim"]
        return [*exact, *(size for size in resizable if kind(size) not in ("head", "head_dim")), None]
    if _NOT_A_WIDTH.search(lowered) and lowered not in _SIZES_OF_HEADS:
        return []
    unlikely = len(sizes) > len(resizable) and not _WIDTH.search(
        lowered
    )  # just as likely the size of something that does not shrink
    # A number of heads or of dimensions in one head is hardly ever stored under any other name.
    resizable = [size for size in resizable if kind(size) != "head"]
    of_heads = [size for size in resizable if size.kind != "group" and any(kinds[g] != "channel" for g in size.groups)]
    others = [size for size in resizable if size not in of_heads]
    ordered = of_heads + others if _INNER.search(lowered) else others + of_heads
    return [None, *ordered] if unlikely else [*ordered, None]


def _feature_info(name: str, module: nn.Module, followed: Followed, by_axis: Mapping[Axis, str]) -> Iterator[Width]:
    """timm's list of feature maps: `num_chs` of each follows the output of the module it names."""
    info = getattr(module, "feature_info", None)
    if not isinstance(info, list):
        return
    for index, entry in enumerate(info):
        label = followed.outputs.get(f"{name}.{entry.get('module')}".lstrip(".")) if isinstance(entry, dict) else None
        for term in label.dims if label is not None else ():
            size = _size_of(term, by_axis)
            if term.size == entry.get("num_chs") and size.groups:
                yield Width(name, "feature_info", (index, "num_chs"), size)
                break
