"""Parameters and MACs by module, counted twice: by torch's counter, as everywhere else, and by fvcore."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import ModelError, first_line
from prunecli.inputs import Inputs, call, map_tensors, output_tensors
from prunecli.measure.counts import cpu_copy, cpu_inputs, may_multiply, module_macs

TOLERANCE = 0.01
"""Share by which the two counts of a module may differ before it is named."""

_NETWORK = "network"
_NOT_MACS = (
    "batch_norm group_norm layer_norm instance_norm adaptive_avg_pool2d grid_sampler upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d upsample_linear1d upsample_trilinear3d"
).split()
"""Operators that fvcore counts although they are not MACs."""


@dataclass(frozen=True)
class ModuleMacs:
    """One module, children included.

    Attributes:
        name: Dotted name; empty for the whole network.
        kind: Class name.
        depth: Depth in the tree of modules; 0 for the network.
        params: Its parameters, as fvcore counts them.
        macs: Multiply-accumulates of the example.
        fvcore_macs: The same according to fvcore.
        uncounted: Operators that ran in it, may multiply, and that fvcore does not count.
    """

    name: str
    kind: str
    depth: int
    params: int
    macs: int
    fvcore_macs: int
    uncounted: tuple[str, ...] = ()

    @property
    def difference(self) -> float:
        """fvcore's count against ours: 0.1 if it is 10 % higher; infinite if ours is 0 and fvcore's is not."""
        if self.macs == 0:
            return math.inf if self.fvcore_macs else 0.0
        return self.fvcore_macs / self.macs - 1

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what has no finite difference has None."""
        difference = self.difference if math.isfinite(self.difference) else None
        return {**vars(self), "uncounted": list(self.uncounted), "difference": difference}


def macs_by_module(model: nn.Module, inputs: Inputs, depth: int) -> list[ModuleMacs]:
    """Counts parameters and MACs of every module with either, down to a depth.

    fvcore gets handles for attention and recurrent layers, which it leaves out, and does not count normalisation,
    pooling and resizing, which are not MACs.

    Args:
        model: Any module; it is not changed.
        inputs: Inputs of any form that the model accepts.
        depth: 1 for the direct children of the network.

    Raises:
        ModelError: fvcore cannot trace the model.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing fvcore warns about its own use of torch.jit
        from fvcore.nn import parameter_count

    ours = _with_containers(model, module_macs(model, inputs))
    counter = _fvcore_counter(model, inputs)
    try:
        theirs = counter.by_module()
        uncounted = {
            name: counter.unsupported_ops(f"{_NETWORK}.{name}" if name else _NETWORK)
            for name, _ in model.named_modules()
        }
    except Exception as error:  # torch.jit raises whatever the model or the tracer does
        raise ModelError(f"fvcore cannot trace this network ({first_line(error)}); leave out --modules") from error
    params = parameter_count(model)
    modules = []
    for name, module in model.named_modules():
        level = name.count(".") + 1 if name else 0
        macs, fvcore_macs = ours[name], int(theirs.get(f"{_NETWORK}.{name}" if name else _NETWORK, 0))
        if level <= depth and (params[name] or macs or fvcore_macs):
            operators = tuple(sorted(operator for operator in uncounted[name] if _multiplies(operator)))
            modules.append(ModuleMacs(name, type(module).__name__, level, params[name], macs, fvcore_macs, operators))
    return modules


def disagreements(modules: Sequence[ModuleMacs]) -> dict[str, str]:
    """Why fvcore's count differs by more than `TOLERANCE`, by the names of the innermost modules for which it does."""
    differing = [module for module in modules if abs(module.difference) > TOLERANCE]
    names = [module.name for module in differing]
    return {
        module.name: _reason(module)
        for module in differing
        if not any(name != module.name and name.startswith(f"{module.name}." if module.name else "") for name in names)
    }


def _with_containers(model: nn.Module, macs: dict[str, int]) -> dict[str, int]:
    """MACs of every module; a container that is never called, such as a ModuleList, has those of its children."""
    complete: dict[str, int] = {}
    for name, module in reversed(list(model.named_modules())):
        children = (f"{name}.{child}".removeprefix(".") for child, _ in module.named_children())
        complete[name] = macs.get(name) or sum(complete.get(child, 0) for child in children)
    return complete


def _reason(module: ModuleMacs) -> str:
    if module.uncounted:
        return f"fvcore does not count {', '.join(module.uncounted)}"
    if module.difference > 0:
        return "fvcore counts operators that torch's counter does not see"
    return "fvcore attributes operators to another module"


class _Flat(nn.Module):
    """Takes and returns tensors only, which torch.jit can trace, whatever inputs and outputs the network has."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network, self._inputs = network, inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        return tuple(output_tensors(call(self.network, map_tensors(self._inputs, lambda _: next(remaining)))))


def _fvcore_counter(model: nn.Module, inputs: Inputs) -> Any:
    from fvcore.nn import FlopCountAnalysis

    class Counter(FlopCountAnalysis):  # type: ignore[misc]
        """Traces without gradients and without fused attention, which has no operators to count."""

        def _analyze(self) -> Any:
            fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                with torch.no_grad(), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return super()._analyze()
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)

    example = cpu_inputs(inputs)
    counter = Counter(_Flat(cpu_copy(model), example), tuple(output_tensors(example)))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    for name in _NOT_MACS:  # a handle of None would leave fvcore's own in place
        counter.set_op_handle(f"aten::{name}", lambda inputs, outputs: 0)
    counter.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        counter.set_op_handle(f"aten::{name}", _recurrent_macs, f"aten::{name}_cell", _cell_macs)
    return counter


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Query times key, and weights times value."""
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """Every weight matrix once for each time step and sample; the first input has its features last."""
    lists = [value.node().inputs() for value in inputs if value.node().kind() == "prim::ListConstruct"]
    shapes = [_shape(element) for elements in lists for element in elements]  # initial states have three dimensions
    return math.prod(_shape(inputs[0])[:-1]) * sum(math.prod(shape) for shape in shapes if len(shape) == 2)


def _cell_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """One time step: input, state, two weight matrices, biases."""
    return math.prod(_shape(inputs[0])[:-1]) * sum(math.prod(_shape(weight)) for weight in inputs[2:4])


def _shape(value: Any) -> list[int]:
    """Sizes of a traced value; empty if it is not a tensor."""
    sizes = getattr(value.type(), "sizes", None)
    return list((sizes() if sizes is not None else None) or [])


def _multiplies(operator: str) -> bool:
    """Whether an operator such as "aten::lstm" may multiply and accumulate."""
    namespace, _, name = operator.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name, None) if namespace != "prim" else None
    return packet is not None and may_multiply(getattr(packet, packet.overloads()[0]))
