"""Operations of a spiking network: multiplications, and accumulations where the inputs are spikes.

A dispatch mode sees every convolution and matrix product of a pass, including those of attention, and keeps no
activations. The number of pairs of a non-zero input and a non-zero weight is a sum over inputs of the number of weights
that read each of them (its fan-out), which depends on the weights and the input size alone, so no second convolution is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.inputs import summing_dtype
from prunecli.measure.counts import may_multiply

_aten = torch.ops.aten


class _InputKind(IntEnum):
    """Kind of values that an operand has, ordered by the work they cause; over data, the largest one counts."""

    SPIKES = 0
    INTEGERS = 1
    REAL = 2


@dataclass(frozen=True)
class LayerOperations:
    """Operations of one layer, or of one product of attention, for one image over all its steps.

    Attributes:
        name: The layer; "blocks.0.attn, product 1" for the first product of two activations in a module.
        arriving: The kind of inputs: "spikes" (0 and 1, or -1), "integers" (sums of spikes) or "real"; for a product of
            activations the larger kind.
        dense: Multiplications of all inputs with all non-zero weights; padding counts, by convention.
        pairs: Pairs of a non-zero input and a non-zero weight: NeuroBench's effective operations.
        macs: Multiply-accumulates: `dense`, unless the inputs are spikes.
        acs: Accumulates: `pairs`, if the inputs are spikes.
        effective_macs: `pairs`, unless the inputs are spikes.
        integer_macs: Multiply-accumulates if an integer is read as that many spikes.
        integer_acs: Accumulates in that reading. In a product of spikes with integers, an integer is added once for
            each spike.
    """

    name: str
    arriving: str
    dense: float
    pairs: float
    macs: float
    acs: float
    effective_macs: float
    integer_macs: float
    integer_acs: float


@dataclass
class _Sums:
    """Sums of one layer so far."""

    product: bool
    dense: float = 0.0
    pairs: float = 0.0
    values: float = 0.0
    arriving: list[_InputKind] = field(default_factory=lambda: [_InputKind.SPIKES, _InputKind.SPIKES])

    def add_kinds(self, *operands: _InputKind) -> None:
        self.arriving = [max(before, now) for before, now in zip(self.arriving, operands, strict=False)]

    def layer(self, name: str, images: int) -> LayerOperations:
        dense, pairs, values = self.dense / images, self.pairs / images, self.values / images
        largest = max(self.arriving)
        spikes = largest == _InputKind.SPIKES
        # An integer times spikes is added once for each spike; two integers have to be multiplied.
        added = largest != _InputKind.REAL and (not self.product or min(self.arriving) == _InputKind.SPIKES)
        return LayerOperations(
            name=name,
            arriving=largest.name.lower(),
            dense=dense,
            pairs=pairs,
            macs=0.0 if spikes else dense,
            acs=pairs if spikes else 0.0,
            effective_macs=0.0 if spikes else pairs,
            integer_macs=0.0 if added else dense,
            integer_acs=(pairs if self.product else values) if added else 0.0,
        )


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of every pass that runs inside it; see `counting`.

    Attributes:
        uncounted: Operators that may multiply and have no rule.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uncounted: set[str] = set()
        self._sums: dict[str, _Sums] = {}
        self._fan_outs: dict[Any, Tensor] = {}
        self._running: list[list[Any]] = [["", 0]]  # names of running modules, and the number of products in each
        self._weights = {
            parameter.untyped_storage().data_ptr(): name.rpartition(".")[0] or name
            for name, parameter in model.named_parameters()
        }

    def layers(self, images: int) -> tuple[LayerOperations, ...]:
        """Operations per image, in the order in which layers first ran."""
        return tuple(sums.layer(name, max(images, 1)) for name, sums in self._sums.items())

    def _enter(self, name: str) -> None:
        self._running.append([name, 0])

    def _leave(self) -> None:
        self._running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        rule = _RULES.get(func.overloadpacket)
        if rule is not None:
            rule(self, args)
        elif may_multiply(func):
            self.uncounted.add(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))

    def _convolution(self, args: tuple[Any, ...]) -> None:
        x, weight, _, stride, padding, dilation, transposed, output_padding, groups = args[:9]
        name = self._weight_name(weight)
        settings = (stride, padding, dilation, transposed, output_padding, groups)
        key = (name, weight.data_ptr(), tuple(x.shape[1:]), *(str(setting) for setting in settings))
        fan_out = self._fan_outs.get(key)
        if fan_out is None:
            fan_out = convolution_fan_out(weight, tuple(x.shape[1:]), *settings)
            if name is not None:
                self._fan_outs[key] = fan_out
        sums = self._layer(name)
        kind, counts, values = _read(x, dims=(0,))
        sums.add_kinds(kind)
        # Padding is multiplied too, so a dense convolution does the same work at every position.
        positions = (
            x.shape[2:] if transposed else _output_size(x.shape[2:], weight.shape[2:], stride, padding, dilation)
        )
        sums.dense += float(torch.count_nonzero(weight)) * positions.numel() * x.shape[0]
        sums.pairs += float((counts * fan_out).sum())
        sums.values += float((values * fan_out).sum())

    def _product(self, left: Tensor, right: Tensor) -> None:
        """Counts (batch, rows, inner) times (batch, inner, columns), or the same without a batch."""
        left_name, right_name = self._weight_name(left), self._weight_name(right)
        row_dim, column_dim = left.dim() - 2, right.dim() - 1
        left_kind, left_counts, left_values = _read(left, dims=(row_dim,))
        right_kind, right_counts, right_values = _read(right, dims=(column_dim,))
        pairs = float((left_counts * right_counts).sum())
        if right_name is not None:
            sums = self._layer(right_name)
            sums.add_kinds(left_kind)
            sums.dense += float(right_counts.sum()) * left.shape[row_dim]
            sums.values += float((left_values * right_counts).sum())
        elif left_name is not None:
            sums = self._layer(left_name)
            sums.add_kinds(right_kind)
            sums.dense += float(left_counts.sum()) * right.shape[column_dim]
            sums.values += float((left_counts * right_values).sum())
        else:
            sums = self._layer(None)
            sums.add_kinds(left_kind, right_kind)
            sums.dense += float(left.numel() * right.shape[column_dim])
        sums.pairs += pairs

    def _weight_name(self, tensor: Tensor) -> str | None:
        """The layer that a weight or a view of it belongs to; None for a computed tensor."""
        return self._weights.get(tensor.untyped_storage().data_ptr())

    def _layer(self, name: str | None) -> _Sums:
        product = name is None
        if name is None:
            module = self._running[-1]
            module[1] += 1
            name = f"{module[0] or 'network'}, product {module[1]}"
        return self._sums.setdefault(name, _Sums(product))


def convolution_fan_out(
    weight: Tensor,
    shape: tuple[int, ...],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    """How many non-zero weights read each input of a convolution.

    It is the gradient of the sum of the convolution's outputs by its inputs, with the 0/1 mask of the weights. All
    outputs count equally, so the mask is summed over them first, which leaves a depthwise convolution.

    Args:
        weight: (out, in / groups, ...), or (in, out / groups, ...) if `transposed`.
        shape: Channels and size of one input.
        stride: As in aten.convolution, like the following arguments.
        padding: Zeros around the input, which do not count as inputs.
        dilation: Distance between weights.
        transposed: Whether it is a transposed convolution.
        output_padding: Output padding of a transposed convolution.
        groups: Groups of channels.

    Returns:
        Float64 of shape `shape`, on the CPU.
    """
    mask = (weight != 0).cpu().double()
    per_input = mask.sum(1) if transposed else mask.view(groups, -1, *mask.shape[1:]).sum(1).flatten(0, 1)
    channels = shape[0]
    kernel = per_input.unsqueeze(1)  # (in, 1, ...)
    inputs = torch.zeros(1, *shape, dtype=torch.float64)
    settings = (stride, padding, dilation, transposed, output_padding, channels)
    ones = torch.ones_like(_aten.convolution(inputs, kernel, None, *settings))
    gradient = _aten.convolution_backward(ones, inputs, kernel, None, *settings, [True, False, False])[0]
    return gradient[0]  # type: ignore[no-any-return]


@contextmanager
def counting(model: nn.Module, counter: OperationCounter) -> Iterator[None]:
    """Counts the operations of passes of `model` inside the block; fused attention is decomposed.

    Gradients have to be off, but not by inference mode, which does not decompose composite operators.
    """
    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda _m, _a, name=name: counter._enter(name)))
            hooks.append(module.register_forward_hook(lambda _m, _a, _o: counter._leave()))
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), counter:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for hook in hooks:
            hook.remove()


def _read(tensor: Tensor, dims: tuple[int, ...]) -> tuple[_InputKind, Tensor, Tensor]:
    """Kind of the values, their number of non-zeros and the sum of their magnitudes, both summed over `dims`."""
    sizes = tensor.detach().abs()
    mask = (sizes != 0).to(sizes.dtype)
    counts = mask.sum(dims, dtype=summing_dtype(mask)).cpu().double()
    if torch.equal(sizes, mask):
        return _InputKind.SPIKES, counts, counts
    values = sizes.sum(dims, dtype=summing_dtype(sizes)).cpu().double()
    whole = torch.equal(sizes, sizes.round())
    return _InputKind.INTEGERS if whole else _InputKind.REAL, counts, values


def _output_size(
    size: torch.Size, kernel: torch.Size, stride: list[int], padding: list[int], dilation: list[int]
) -> torch.Size:
    return torch.Size(
        (length + 2 * pad - gap * (width - 1) - 1) // step + 1
        for length, width, step, pad, gap in zip(size, kernel, stride, padding, dilation, strict=True)
    )


_RULES: dict[Any, Callable[[OperationCounter, tuple[Any, ...]], None]] = {
    _aten.convolution: lambda counter, args: counter._convolution(args),
    _aten.mm: lambda counter, args: counter._product(args[0], args[1]),
    _aten.bmm: lambda counter, args: counter._product(args[0], args[1]),
    _aten.addmm: lambda counter, args: counter._product(args[1], args[2]),
    _aten.baddbmm: lambda counter, args: counter._product(args[1], args[2]),
    _aten.mv: lambda counter, args: counter._product(args[0], args[1].unsqueeze(-1)),
    _aten.addmv: lambda counter, args: counter._product(args[1], args[2].unsqueeze(-1)),
    _aten.dot: lambda counter, args: counter._product(args[0].unsqueeze(0), args[1].unsqueeze(-1)),
}
