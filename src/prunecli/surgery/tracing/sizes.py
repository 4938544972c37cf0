"""Where numbers with an origin are used as sizes, and which dimension they have to agree with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunecli.surgery.axes import Term, cut, fixed, is_fixed
from prunecli.surgery.tracing.labels import Labels
from prunecli.surgery.tracing.watched import Dimension, Uses, Watched, WatchedFloat

_SIZES_BEHIND_TENSOR = frozenset(
    "view reshape expand new_zeros new_ones new_empty new_full broadcast_to resize_ repeat".split()
)
_SIZES_FIRST = frozenset("zeros ones empty full rand randn".split())
_SPLITS = ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")
_ORDERED = frozenset("arange linspace logspace eye one_hot hann_window tril_indices triu_indices".split())
"""Functions whose result depends on positions, so that the size they are given cannot change."""
_LEAVING = frozenset(("numpy", "tolist", "__array__", "__dlpack__"))
"""Methods that give values to code which runs no operators."""


class SizeWatcher(TorchFunctionMode):
    """Answers shapes with numbers that know their dimension, and notes numbers that are used as sizes."""

    def __init__(self, labels: Labels, uses: Uses) -> None:
        super().__init__()
        self._labels = labels
        self._uses = uses

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":
            out = func(*args, **kwargs)
            return self._shape(args[0], out) if isinstance(out, torch.Size) else out
        out = func(*args, **kwargs)
        if name == "size":
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            return self._shape(args[0], out) if dim is None else self._shape(args[0], args[0].shape)[dim]
        if name in ("__len__", "numel", "nelement"):
            return out
        if name in _LEAVING and not self._labels.values:
            label = self._labels.of(args[0])
            if label.from_input and label.learned:
                self._labels.need_values(f"{name} reads what {self._labels.module or 'the model'} computes")
        sizes = list(_sizes(name, args, kwargs))
        if sizes:
            self._note(name, args, kwargs, out, sizes)
        for number in _watched_floats(args, kwargs):
            self._uses.scalars.setdefault((number.origin, float(number)), set()).add(self._labels.module)
        return out

    def _shape(self, tensor: Tensor, shape: torch.Size) -> torch.Size:
        if tensor not in self._labels:
            return shape
        terms = self._labels.of(tensor).dims
        return torch.Size(
            [
                size if size < 2 or is_fixed(term) else Watched(size, Dimension(term), self._uses.equalities)
                for size, term in zip(shape, terms, strict=True)
            ]
        )

    def _note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, sizes: list[Any]) -> None:
        module = self._labels.module
        for number, term in self._pairs(name, args, kwargs, out, sizes):
            if isinstance(number, Watched):
                self._uses.sizes.append((number, term, module))
            elif number > 1 and not is_fixed(term):
                self._uses.written.append((number, term, module))

    def _pairs(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, sizes: list[Any]
    ) -> Iterator[tuple[int, Term]]:
        if name == "__getitem__":
            yield from self._ranges(args[0], sizes)
        elif name in _SPLITS:
            dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
            pieces = [self._labels.of(piece).dims[dim] for piece in out]
            yield from zip(sizes, pieces if len(sizes) > 1 else pieces[:1], strict=False)
        elif name == "repeat":
            x, terms = self._labels.of(args[0]).dims, self._labels.of(out).dims
            known = [fixed(1)] * (len(terms) - len(x)) + list(x)
            yield from ((n, term) for n, old, term in zip(sizes, known, terms, strict=True) if old.size == 1 < n)
        elif name == "narrow":
            dim, start, length = sizes
            yield length, self._labels.of(out).dims[dim]
            if isinstance(start, Watched):
                yield start, cut(self._labels.of(args[0]).dims[dim], int(start))[0]
        elif name in ("layer_norm", "rms_norm", "group_norm"):
            term = self._labels.followed.blocks.get(self._labels.module) if name == "group_norm" else None
            terms = self._labels.of(out).dims[-len(sizes) :] if name != "group_norm" else (term,) if term else ()
            yield from zip(sizes, terms, strict=False)
        elif name in _ORDERED:
            yield from ((size, fixed(int(size))) for size in sizes if isinstance(size, Watched))
        elif name == "unflatten":
            yield from self._matching(sizes[1:], self._labels.of(out).dims[int(sizes[0]) :][: len(sizes) - 1])
        elif isinstance(out, Tensor):
            yield from self._matching(sizes, self._labels.of(out).dims)

    @staticmethod
    def _matching(sizes: Sequence[Any], terms: Sequence[Term]) -> Iterator[tuple[int, Term]]:
        if len(sizes) == len(terms):
            yield from ((size, term) for size, term in zip(sizes, terms, strict=True) if size == term.size)

    def _ranges(self, x: Tensor, index: Sequence[Any]) -> Iterator[tuple[int, Term]]:
        """Bounds of slices: a bound is as many positions as lie before it, or behind it if it is negative."""
        terms = list(self._labels.of(x).dims)
        consumed = sum(_consumed(item) for item in index)
        dim = 0
        for item in index:
            if item is Ellipsis:
                dim += max(0, len(terms) - consumed)
            elif item is not None:
                if isinstance(item, slice) and item.step in (None, 1) and dim < len(terms):
                    yield from _bounds(terms[dim], item)
                dim += _consumed(item)


def _watched_floats(*values: Any) -> Iterator[WatchedFloat]:
    for value in values:
        if isinstance(value, WatchedFloat):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _watched_floats(*value)
        elif isinstance(value, dict) and value:
            yield from _watched_floats(*value.values())


def _consumed(item: Any) -> int:
    """How many dimensions an entry of an index takes up."""
    if item is None or item is Ellipsis:
        return 0
    return item.dim() if isinstance(item, Tensor) and item.dtype == torch.bool else 1


def _bounds(term: Term, item: slice) -> Iterator[tuple[int, Term]]:
    for bound in (item.start, item.stop):
        if not isinstance(bound, int) or isinstance(bound, bool) or not 0 < abs(bound) < term.size:
            continue
        if bound > 0:
            yield bound, cut(term, int(bound))[0]
        else:
            yield -bound, cut(term, term.size + int(bound))[1]


def _sizes(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """The numbers in a call that are sizes, in order; nothing for functions that take none."""
    if name in _SIZES_BEHIND_TENSOR:
        yield from _flat(args[1:2] if len(args) > 1 and not isinstance(args[1], int) else args[1:])
        yield from _flat(kwargs[key] for key in ("size", "shape") if key in kwargs)
    elif name in _SIZES_FIRST:
        yield from _flat(args[:1] if args and not isinstance(args[0], int) else args)
        yield from _flat((kwargs["size"],) if "size" in kwargs else ())
    elif name in _ORDERED:
        yield from (value for value in (*args, *kwargs.values()) if isinstance(value, Watched))
    elif name in _SPLITS:
        named = (kwargs[key] for key in ("split_size_or_sections", "split_size", "split_sizes") if key in kwargs)
        yield from _flat((args[1],) if len(args) > 1 else named)
    elif name == "__getitem__":
        yield from args[1] if isinstance(args[1], tuple) else (args[1],)
    elif name == "narrow":
        values = dict(zip(("dim", "start", "length"), args[1:], strict=False)) | kwargs
        yield from (values["dim"], values["start"], values["length"])
    elif name in ("layer_norm", "rms_norm"):
        yield from _flat((args[1] if len(args) > 1 else kwargs["normalized_shape"],))
    elif name == "group_norm":
        yield args[1] if len(args) > 1 else kwargs["num_groups"]
    elif name == "unflatten":
        values = dict(zip(("dim", "sizes"), args[1:], strict=False)) | kwargs
        yield values["dim"] % args[0].dim()
        yield from _flat((values["sizes"],))


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _flat(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield value
