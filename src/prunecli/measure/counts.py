"""Parameters and multiply-accumulate operations (MACs)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, shape_wrapper

from prunecli.copying import copied
from prunecli.errors import ModelError
from prunecli.inputs import Inputs, call, cast_inputs, explained, fitted, map_tensors
from prunecli.measure.kernels import without_mkldnn
from prunecli.measure.shapes import uncomputed
from prunecli.widened import Widened

_MULTIPLYING = frozenset(
    "addbmm addmm addmv addr attention baddbmm bmm c2c c2r cdist cholesky combination conv convolution det dot eig "
    "eigh eigvals geqrf gru householder hspmm inv inverse ldl linear lstm lstsq lu matmul mm mv ormqr pdist polar qr "
    "r2c rnn slogdet solve sqrth spsolve sspaddmm svd transformer trilinear vdot".split()
)
"""Words in the names of ATen operators that multiply and accumulate. Torch's counter covers some of these operators."""
_BY_NAME = {"linalg_matrix_exp": True, "polar": False, "slice_inverse": False, "_cudnn_rnn_flatten_weight": False}
"""Operators with misleading names, and whether they multiply."""
_HALF = (torch.float16, torch.bfloat16)


def _grouped_product(first: torch.Size, second: torch.Size, *_: Any, **__: Any) -> int:
    """Operations of a product of rows with the matrix of their group: experts of transformers."""
    return 2 * math.prod(first) * second[-1]


_OWN = {torch.ops.aten._grouped_mm: _grouped_product} if hasattr(torch.ops.aten, "_grouped_mm") else {}
"""Formulas that torch's counter lacks."""
_OWN_FOR_CALLS: dict[Any, Any] = {packet: shape_wrapper(formula) for packet, formula in _OWN.items()}  # type: ignore[no-untyped-call]
"""The same, for the arguments of a call."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        total: MACs for the whole batch.
        uncounted: Operators that ran but have no counting formula; if there are any, `total` is a lower bound.
    """

    total: int
    uncounted: tuple[str, ...] = ()


def parameter_count(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def nonzero_count(model: nn.Module) -> int:
    """Number of parameters that are not exactly zero; tied ones count once."""
    return sum(int(torch.count_nonzero(parameter.detach())) for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: Inputs) -> Macs:
    """Counts the MACs of one forward pass without computing anything: the pass runs on the meta device.

    Convolutions, matrix products and attention are counted; biases and element-wise operations are not, by convention.
    The figures are those of torch's FlopCounterMode divided by two, with the fused kernels that it cannot see disabled.

    Networks that do not run on the meta device, because they create CPU tensors or read values, run for real on the
    CPU, with their own weights.

    Args:
        model: Any module, also on the meta device; it is not changed.
        inputs: Inputs of any form that the model accepts, with the batch size to count for.

    Raises:
        ModelError: The model does not run on the inputs.
    """
    counted = count_on_meta(model, inputs)
    if counted is not None:
        return counted
    with explained("MACs cannot be counted, since the network does not run on the example inputs", ModelError):
        return _count_for_real(model, inputs)


def count_on_meta(model: nn.Module, inputs: Inputs) -> Macs | None:
    """Counts like `count_macs`; None for a network that does not run on the meta device."""
    try:
        return _count(meta_copy(model), cast_inputs(fitted(inputs, model), device="meta"))
    except MemoryError:
        raise
    except Exception:  # whatever a network makes of tensors without values
        return None


def _count_for_real(model: nn.Module, inputs: Inputs) -> Macs:
    try:
        return _count(cpu_copy(model), cpu_inputs(fitted(inputs, model)))
    except RuntimeError:
        if not any(parameter.dtype in _HALF for parameter in model.parameters()):
            raise
        # The CPU lacks some operators in half precision; there are as many multiplications in single precision.
        return _count(cpu_copy(model).float(), cast_inputs(cpu_inputs(inputs), dtype=torch.float32))


def module_macs(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """MACs by module name, children included; the empty name is the whole model. Uncounted operators are ignored."""
    counted = cpu_copy(model)
    counter = FlopCounterMode(display=False, custom_mapping=_OWN)
    with _countable_kernels(), torch.no_grad(), counter:
        call(counted, cpu_inputs(fitted(inputs, model)))
    prefix = type(counted).__name__ + "."
    return {
        name.removeprefix(prefix) if name != "Global" else "": sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
    }


def meta_copy(model: nn.Module) -> nn.Module:
    """Copies a model to the meta device, in evaluation mode."""
    tensors = (*model.parameters(), *model.buffers())
    return _copy_with(model, {id(tensor): _on_meta(tensor) for tensor in tensors})


def _on_meta(tensor: Tensor) -> Tensor:
    if isinstance(tensor, Widened):  # to ask it for a tensor like itself would widen its values
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta")


def cpu_copy(model: nn.Module) -> nn.Module:
    """Copies a model to the CPU, in evaluation mode; tensors on the meta device become zeros.

    Parameters that lie on the CPU already are shared with `model`, buffers are not: a forward pass may change them.
    """
    replacements = {id(tensor): _on_cpu(tensor) for tensor in model.parameters()}
    replacements |= {id(tensor): _on_cpu(tensor) for tensor in model.buffers() if tensor.is_meta}
    return _copy_with(model, replacements).cpu()


def _on_cpu(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, device="cpu") if tensor.is_meta else tensor.detach().cpu()


def cpu_inputs(inputs: Inputs) -> Any:
    """Moves inputs to the CPU; tensors on the meta device become zeros."""
    return map_tensors(inputs, _on_cpu)


def _copy_with(model: nn.Module, replacements: dict[int, Tensor]) -> nn.Module:
    """Copies a model with parameters and buffers replaced by id; tied ones stay tied.

    No parameter of the copy requires gradients: torch's counter fails where a module is given one as its input.
    """
    parameters = {id(parameter) for parameter in model.parameters()}
    memo: dict[int, Any] = {
        key: nn.Parameter(tensor, requires_grad=False) if key in parameters else tensor
        for key, tensor in replacements.items()
    }
    return copied(model, memo).eval().requires_grad_(False)


def _count(model: nn.Module, inputs: Inputs) -> Macs:
    counter = _Counter()
    with _countable_kernels(), torch.no_grad(), counter:
        call(model, inputs)
    if not counter.nested:
        return Macs(counter.flops // 2, tuple(sorted(counter.uncounted)))
    inside = FlopCounterMode(display=False, custom_mapping=_OWN)
    recorder = _Counter()
    # The recorder is entered first, so that it sits below the counter and also sees operators without a decomposition.
    with _countable_kernels(), torch.no_grad(), recorder, inside:
        call(model, inputs)
    return Macs(inside.get_total_flops() // 2, tuple(sorted(recorder.uncounted)))


@contextmanager
def _countable_kernels() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with without_mkldnn():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up operations by the formulas of torch's counter, without what that does for every module and operator.

    On the meta device common operators do not run.

    Attributes:
        flops: Two for every multiply-accumulate.
        uncounted: Operators that may multiply and have no formula.
        nested: Whether there was an operator that runs functions, such as the branches of a condition.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.uncounted: set[str] = set()
        self.nested = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self.nested = True
            return func(*args, **kwargs)
        packet = func.overloadpacket
        formula = _OWN_FOR_CALLS.get(packet) or flop_registry.get(packet)
        out = uncomputed(func, args, kwargs) if _runs_on_meta(args) else None
        if out is None and formula is None and func is not torch.ops.prim.device.default:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            if may_multiply(func):
                self.uncounted.add(packet._qualified_op_name)
        if out is None or out is NotImplemented:
            out = func(*args, **kwargs)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def _runs_on_meta(args: Any) -> bool:
    first = args[0] if args else None
    first = first[0] if isinstance(first, (list, tuple)) and first else first
    return isinstance(first, Tensor) and first.is_meta


def may_multiply(func: Any) -> bool:
    """Whether an operator may multiply and accumulate, judged by its name; operators of other libraries may.

    Those of spikingjelly (sj_lif and others) are neurons, which are element-wise. Of torchvision's only the deformable
    convolution does: others compare boxes and interpolate.
    """
    namespace, _, name = func.overloadpacket._qualified_op_name.partition("::")
    if namespace.startswith("sj_") or namespace == "profiler":
        return False
    return namespace not in ("aten", "prims", "prim", "torchvision") or _multiplies(name)


def _multiplies(name: str) -> bool:
    """Judges an ATen operator by the words in its name, such as "conv" in conv_depthwise3d."""
    words = {word.rstrip("123d") if word.startswith("conv") else word for word in name.split("_")}
    return _BY_NAME.get(name, not words.isdisjoint(_MULTIPLYING))
