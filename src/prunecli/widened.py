"""Tensors that are float64 to everything that computes with them, but lie in memory, or in a file, as they were.

A network is traced and proven in float64. A copy in float64 is four times as large as one in bfloat16, and nothing
needs all of it at once: an operator reads a few tensors. So in the place of a large tensor stands one that widens
whenever an operator reads it, for as long as the operator runs. It is a tensor like any other: code that reads another
module's weight, a parametrisation, or a view that is written to in place get what they would from a whole copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from prunecli.stored import Scratch, Stored

_aten = torch.ops.aten
_Move = Callable[[Tensor], Tensor]
"""Picks or rearranges values without computing, so it may come before widening."""
_WIDER = (torch.float32, torch.float64)


@dataclass(eq=False)
class _Values:
    """What a tensor and its views hold.

    Attributes:
        stored: The values in their own precision, before `moves`, in memory or in a file; maybe somebody else's tensor,
            so never written to.
        moves: What leads from `stored` to the values, in order.
        zeroed: Dimensions and positions that have been set to zero since.
    """

    stored: Tensor | Stored
    moves: tuple[_Move, ...] = ()
    zeroed: list[tuple[int, Tensor]] = field(default_factory=list)

    def own(self) -> Tensor:
        """The values in their own precision; not to be written to."""
        values = self.stored.read() if isinstance(self.stored, Stored) else self.stored
        for move in (*self.moves, *self._zeroings()):
            values = move(values)
        return values

    def snapshot(self, *moves: _Move) -> _Values:
        """Values that start as these after some moves, and are independent of them."""
        return _Values(self.stored, (*self.moves, *self._zeroings(), *moves))

    def zero(self, dim: int, positions: Tensor) -> None:
        """Notes that positions are zero from now on."""
        if not any(dim == known and torch.equal(positions, others) for known, others in self.zeroed):
            self.zeroed.append((dim, positions))

    def scale(self, dim: int, positions: Tensor, factor: float, dtype: torch.dtype) -> None:
        """Notes that positions are multiplied from now on; products have `dtype`, and are computed when they are read.

        Results would be as large as what they are computed from in float64, in every layer of attention.
        """
        self.moves, self.zeroed = (*self.moves, *self._zeroings(), _scaling(dim, positions, factor, dtype)), []

    def write(self, values: Tensor) -> None:
        """Replaces all values; those of a tensor that lies in a file go to a file again."""
        kept = self.stored.scratch.put(values) if isinstance(self.stored, Stored) else values
        self.stored, self.moves, self.zeroed = kept, (), []

    def _zeroings(self) -> tuple[_Move, ...]:
        return tuple(_zeroing(dim, positions) for dim, positions in self.zeroed)


def _zeroing(dim: int, positions: Tensor) -> _Move:
    return lambda values: values.index_fill(dim, positions, 0)


def _scaling(dim: int, positions: Tensor, factor: float, dtype: torch.dtype) -> _Move:
    def move(values: Tensor) -> Tensor:
        wide = values.to(dtype, copy=True)
        _scale(wide, dim, positions, factor)
        return wide

    return move


def _scale(tensor: Tensor, dim: int, positions: Tensor, factor: float) -> None:
    rows = tensor.movedim(dim, 0)
    rows[positions.to(rows.device)] *= factor


class Widened(Tensor):
    """A tensor that keeps narrower values, or values in a file, and widens or reads them for every operator.

    Operators that write to it, or to a view of it, leave it with the result in full; the tensor it was made from is
    never changed.
    """

    _held: _Values
    _views: tuple[_Move, ...]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, values: _Values, geometry: Tensor, views: tuple[_Move, ...] = ()) -> Widened:
        """Makes one from values, a tensor on the meta device that looks like it, and how it is a view of the values."""
        made: Widened = torch.Tensor._make_wrapper_subclass(
            cls,
            geometry.shape,
            geometry.stride(),
            geometry.storage_offset(),
            dtype=geometry.dtype,
            device=torch.device("cpu"),
        )
        made._held, made._views = values, views
        return made

    def __init__(self, values: _Values, geometry: Tensor, views: tuple[_Move, ...] = ()) -> None:
        super().__init__()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Widened({tuple(self.shape)}, {self._held.stored.dtype} as {self.dtype})"

    def __deepcopy__(self, memo: Any) -> Any:
        duplicate: Tensor = Widened(self._held.snapshot(), _geometry(self), self._views)
        if isinstance(self, nn.Parameter):
            return nn.Parameter(duplicate, requires_grad=self.requires_grad)
        return duplicate.requires_grad_(self.requires_grad)

    def data_ptr(self) -> int:
        """A number as unique as an address; the values have none that lasts."""
        return id(self._held) << 40 | int(self.storage_offset()) * self.element_size()

    @property
    def data(self) -> Tensor:
        """The tensor without its graph, as of any tensor; what it is set to is kept as these values were."""
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        new = value if isinstance(value, Widened) else self._kept_like(value)
        self._held, self._views = _moved_values(new), ()
        of_tensors: Any = Tensor.data
        of_tensors.__set__(self, new)

    def _kept_like(self, value: Tensor) -> Widened:
        stored = self._held.stored
        kept = stored.scratch.put(value) if isinstance(stored, Stored) else value.detach()
        return Widened(_Values(kept), torch.empty_like(value, device="meta").contiguous())

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an operator on widened values."""
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            return _written(func, args, kwargs)
        first = args[0] if args and isinstance(args[0], Widened) else None
        if first is not None and func.is_view:
            return _view(func, first, args, kwargs)
        if first is not None and func in _MOVES:
            return _moved(func, first, args, kwargs)
        if func is _aten.embedding.default and isinstance(args[0], Widened):
            return func(_own(args[0]), *args[1:], **kwargs).to(args[0].dtype)  # rows, instead of the table, are widened
        if func is _aten.mm.default and isinstance(args[1], Widened) and args[1].numel() > _BLOCK:
            return _product(plain(args[0]), args[1])
        if first is not None and func is _aten._to_copy.default and set(kwargs) <= {"dtype"}:
            dtype = kwargs.get("dtype", first.dtype)
            if dtype in _WIDER and can_be_widened(first, dtype):
                return Widened(_moved_values(first), _geometry(first).to(dtype))
        plain_args, plain_kwargs = tree_map(plain, args), tree_map(plain, kwargs)
        return func(*plain_args, **plain_kwargs)


_MOVES = frozenset((_aten.index_select.default, _aten.clone.default))
"""Operators that only move values."""
WORTH_STORING = 1 << 14
"""Numbers in a tensor that may stay in a file."""
_BLOCK = 1 << 22
"""Numbers of a matrix that are widened at once."""
_THE_SAME = frozenset((_aten.detach.default, _aten.alias.default))
"""Views of the whole tensor as it is."""


def widened(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of `dtype` with the values of `tensor`, on the CPU, without a copy of them; parameters stay parameters.

    Args:
        tensor: A floating tensor, of no more digits than `dtype`. It must not change as long as the result is used.
        dtype: float64 or float32.
    """
    if isinstance(tensor, Widened):
        made: Tensor = Widened(_moved_values(tensor), _geometry(tensor).to(dtype))
    else:
        values = tensor.detach().cpu()
        made = Widened(_Values(values), torch.empty_like(values, dtype=dtype, device="meta"))
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def on_disk(tensor: Tensor, stored: Stored) -> Tensor:
    """A tensor like `tensor`, but with values in a file; parameters stay parameters.

    Args:
        tensor: A contiguous tensor, maybe on the meta device.
        stored: Values of its shape; its dtype may be narrower.
    """
    made = Widened(_Values(stored), torch.empty(stored.shape, dtype=tensor.dtype, device="meta"))
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def moved_to_disk(tensor: Tensor, scratch: Scratch) -> Tensor:
    """A tensor with the same values in a scratch file; itself if its values lie in a file already."""
    return tensor if is_on_disk(tensor) else on_disk(tensor, scratch.put(plain(tensor)))


def scale_positions(tensor: Tensor, dim: int, positions: Tensor, factor: float) -> None:
    """Multiplies positions of a dimension by a factor, in place.

    Args:
        tensor: A floating tensor; its graph is not followed.
        dim: The dimension.
        positions: Positions in it, dtype int64.
        factor: The factor.
    """
    if isinstance(tensor, Widened) and not tensor._views:
        tensor._held.scale(dim, positions, factor, tensor.dtype)
    else:
        _scale(tensor.detach(), dim, positions, factor)


def is_on_disk(tensor: Tensor) -> bool:
    """Whether the values of a tensor lie in a file."""
    return isinstance(tensor, Widened) and isinstance(tensor._held.stored, Stored)


def in_file_as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor of another dtype, also of fewer digits, for whoever writes it: one in a file is read no earlier."""
    if not isinstance(tensor, Widened):
        return tensor.to(dtype)
    return Widened(_moved_values(tensor), _geometry(tensor).to(dtype))


def can_be_widened(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether `widened` takes the tensor and gives exactly its values."""
    if isinstance(tensor, Widened):
        stored = tensor._held.stored
        return _fits(stored, tensor.dtype) and _fits(stored, dtype)
    if tensor.layout != torch.strided or tensor.is_meta or not _fits(tensor, dtype):
        return False
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()  # no gaps, nothing that repeats


def plain(value: Any) -> Any:
    """An ordinary tensor in the place of a widened one; anything else as it is."""
    if not isinstance(value, Widened):
        return value
    return _own(value).to(value.dtype, copy=True)


def as_stored(tensor: Tensor) -> Tensor:
    """The values of a tensor in the precision in which it keeps them; not to be written to."""
    return _own(tensor) if isinstance(tensor, Widened) else tensor


def memory_of(tensor: Tensor) -> int:
    """A number that tensors have in common which share memory, and others do not."""
    return id(tensor._held) if isinstance(tensor, Widened) else int(tensor.untyped_storage().data_ptr())


def _fits(stored: Tensor | Stored, dtype: torch.dtype) -> bool:
    return stored.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64) and (
        stored.dtype.itemsize <= dtype.itemsize
    )


def _geometry(tensor: Tensor) -> Tensor:
    """A tensor without values of the same shape, strides, offset and dtype."""
    if tensor.numel() == 0:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    whole = torch.empty(tensor.storage_offset() + extent, dtype=tensor.dtype, device="meta")
    return whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _own(tensor: Widened) -> Tensor:
    """Its values in their own precision; not to be written to."""
    values = tensor._held.own()
    for view in tensor._views:
        values = view(values)
    return values


def _moved_values(tensor: Widened, *moves: _Move) -> _Values:
    return tensor._held.snapshot(*tensor._views, *moves)


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], part: int | None = None) -> _Move:
    """An operator with all of its arguments but the first."""

    def move(values: Tensor) -> Tensor:
        out = func(values, *args[1:], **kwargs)
        result: Tensor = out if part is None else out[part]
        return result

    return move


def _view(func: Any, tensor: Widened, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A view, or several, of a widened tensor; they are widened ones of the same values."""
    looks = func(_geometry(tensor), *args[1:], **kwargs)
    if func in _THE_SAME:
        return Widened(tensor._held, looks, tensor._views)
    if isinstance(looks, Tensor):
        return Widened(tensor._held, looks, (*tensor._views, _call(func, args, kwargs)))
    return [
        Widened(tensor._held, look, (*tensor._views, _call(func, args, kwargs, part)))
        for part, look in enumerate(looks)
    ]


def _product(left: Tensor, right: Widened) -> Tensor:
    """A matrix product in blocks of columns, for tables of vocabularies: they can be half of a network."""
    columns = max(1, _BLOCK // right.shape[0])
    blocks = torch.split(_own(right), columns, dim=1)
    return torch.cat([torch.mm(left, block.to(right.dtype)) for block in blocks], dim=1)


def _moved(func: Any, tensor: Widened, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    looks = func(_geometry(tensor), *(_on_meta(argument) for argument in args[1:]), **kwargs)
    return Widened(_moved_values(tensor, _call(func, args, kwargs)), looks)


def _on_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs an operator that writes to some of its arguments."""
    target = args[0] if args else None
    if isinstance(target, Widened) and not target._views:
        if func is _aten.index_fill_.int_Scalar and args[3] == 0:
            target._held.zero(args[1] % target.dim(), args[2])
            return target
        if func is _aten.copy_.default and _replaces(args[1], target):
            target._held.write(args[1].detach() if is_on_disk(target) else args[1].detach().clone())
            return target
    written: list[tuple[Widened, Tensor, Tensor]] = []

    def read(value: Any, argument: Any) -> Any:
        writes = argument is not None and argument.alias_info is not None and argument.alias_info.is_write
        if not isinstance(value, Widened) or not writes:
            return tree_map(plain, value)
        whole = value._held.own().to(value.dtype, copy=True)
        part = whole
        for view in value._views:
            part = view(part)
        written.append((value, whole, part))
        return part

    parameters = list(func._schema.arguments)
    by_name = {argument.name: argument for argument in parameters}
    plain_args = [read(value, argument) for value, argument in zip(args, parameters, strict=False)]
    plain_kwargs = {name: read(value, by_name.get(name)) for name, value in kwargs.items()}
    out = func(*plain_args, **plain_kwargs)
    for value, whole, _ in written:
        value._held.write(whole)
    replaced: Sequence[tuple[Tensor, Tensor]] = [(part, value) for value, _, part in written]
    return tree_map(lambda leaf: next((value for part, value in replaced if leaf is part), leaf), out)


def _replaces(source: Any, target: Widened) -> bool:
    return (
        isinstance(source, Tensor)
        and not isinstance(source, Widened)
        and source.shape == target.shape
        and source.stride() == target.stride()
        and source.device.type == "cpu"
        and _fits(source, target.dtype)
    )
