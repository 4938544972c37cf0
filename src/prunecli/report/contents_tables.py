"""What is in weights files, as tables: a tree of modules, and what differs between two files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from prunecli.report.numbers import count, size
from prunecli.report.table import Table

_RANGES = 8


class _Tensor(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def size(self) -> int: ...
    @property
    def zeros(self) -> int | None: ...
    @property
    def sha256(self) -> str | None: ...
    @property
    def numbers(self) -> int: ...


def tree_table(
    tensors: Sequence[_Tensor], kept: Mapping[str, tuple[int, list[int]]], depth: int | None = None
) -> Table:
    """Modules and tensors as a tree, each module with the sum of what is inside.

    Args:
        tensors: In the order in which they are shown.
        kept: By name of a module or tensor, how many channels it had and which it kept.
        depth: Levels to show; default: all.
    """
    inside: dict[str, list[_Tensor]] = {}
    for tensor in tensors:
        words = tensor.name.split(".")
        for length in range(1, len(words) + 1):
            inside.setdefault(".".join(words[:length]), []).append(tensor)
    counted = any(tensor.zeros is not None for tensor in tensors)
    rows = [_row("(all)", list(tensors), None, counted)]
    for name, within in inside.items():
        level = name.count(".")
        if depth is None or level < depth:
            label = "  " * (level + 1) + name
            rows.append(_row(label, within, kept.get(name), counted, is_tensor=within[0].name == name))
    columns = ("module", "shape", "type", "numbers", "bytes", *(("zeros",) if counted else ()), "kept channels")
    if not kept:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table(columns, rows, numeric=(3, 4, 5) if counted else (3, 4))


def ranges(indices: Sequence[int], most: int | None = _RANGES) -> str:
    """Indices in increasing order as ranges: "0-3, 7, 9-11"; of many the first ones."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    shown = spans if most is None else spans[:most]
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in shown)
    return text if len(shown) == len(spans) else f"{text}, ..."


def difference_tables(
    first: Mapping[str, _Tensor], second: Mapping[str, _Tensor], same: Mapping[str, bool]
) -> list[Table]:
    """Tensors that only one of two files has, or that differ in shape, type or values; no table if all are alike.

    Args:
        first: Tensors of the first file by name.
        second: Those of the second.
        same: For tensors of both with one shape and type, whether their bytes are the same.
    """
    rows = []
    for name in dict.fromkeys((*first, *second)):
        one, other = first.get(name), second.get(name)
        if one is None or other is None:
            rows.append(
                (name, _form(one), _form(other), "only in the first" if other is None else "only in the second")
            )
        elif (one.shape, one.dtype) != (other.shape, other.dtype):
            changed = [w for w, a, b in (("shape", one.shape, other.shape), ("type", one.dtype, other.dtype)) if a != b]
            rows.append((name, _form(one), _form(other), " and ".join(changed)))
        elif not same[name]:
            rows.append((name, _form(one), _form(other), "values"))
    return [Table(("tensor", "first", "second", "differs in"), rows)] if rows else []


def _row(
    label: str, within: Sequence[_Tensor], kept: tuple[int, list[int]] | None, counted: bool, is_tensor: bool = False
) -> tuple[str, ...]:
    numbers = sum(tensor.numbers for tensor in within)
    types = dict.fromkeys(tensor.dtype for tensor in within)
    zeros = [tensor.zeros for tensor in within]
    known = sum(value for value in zeros if value is not None)
    share = "-" if None in zeros else f"{100 * known / max(numbers, 1):.2f} %"
    shape = ("x".join(map(str, within[0].shape)) or "scalar") if is_tensor else ""
    stays = "" if kept is None else f"{len(kept[1])} of {kept[0]}: {ranges(kept[1])}"
    cells = (label, shape, ", ".join(types), count(numbers), size(sum(tensor.size for tensor in within)))
    return (*cells, *((share,) if counted else ()), stays)


def _form(tensor: _Tensor | None) -> str:
    return "-" if tensor is None else f"{'x'.join(map(str, tensor.shape)) or 'scalar'} {tensor.dtype}"
