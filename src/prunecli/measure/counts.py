"""Parameters and multiply-accumulate operations (MACs)."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from prunecli.inputs import Inputs, call, cast_inputs

_MULTIPLYING = frozenset(
    "addbmm addmm addmv addr attention baddbmm bmm c2c c2r cdist cholesky combination conv convolution det dot eig "
    "eigh eigvals geqrf gru householder hspmm inv inverse ldl linear lstm lstsq lu matmul mm mv ormqr pdist polar qr "
    "r2c rnn slogdet solve sqrth spsolve sspaddmm svd transformer trilinear vdot".split()
)
"""Words in the names of ATen operators that multiply and accumulate; those that torch's counter knows are counted."""
_BY_NAME = {"linalg_matrix_exp": True, "polar": False, "slice_inverse": False, "_cudnn_rnn_flatten_weight": False}
"""Operators of which the words in their names say the wrong thing."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one forward pass.

    Attributes:
        total: MACs for the whole batch given.
        uncounted: Operators that were run but that nobody knows how to count; then `total` is a lower bound.
    """

    total: int
    uncounted: tuple[str, ...] = ()

    @property
    def lower_bound(self) -> bool:
        """Whether some operator was not counted."""
        return bool(self.uncounted)


def parameter_count(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def nonzero_count(model: nn.Module) -> int:
    """Number of parameters that are not exactly zero; tied ones count once."""
    return sum(int(torch.count_nonzero(parameter.detach())) for parameter in model.parameters())


def count_macs(model: nn.Module, inputs: Inputs) -> Macs:
    """Counts the MACs of one forward pass without computing anything: the pass runs on the meta device.

    Convolutions, matrix products and attention are counted, biases and element-wise work are not, as is usual. The
    figures are torch's FlopCounterMode divided by two, with the fused kernels that it cannot see switched off.

    Args:
        model: Any module; it is not changed.
        inputs: Inputs the model accepts, with the batch size to count for.
    """
    try:
        return _count(meta_copy(model), cast_inputs(inputs, device="meta"))
    except (NotImplementedError, RuntimeError):
        # Some models make tensors on the CPU inside forward, or look at values: those have to be run for real.
        return _count(copy.deepcopy(model).cpu().eval(), cast_inputs(inputs, device="cpu"))


def module_macs(model: nn.Module, inputs: Inputs) -> dict[str, int]:
    """MACs by module name (the empty name is the whole model), each including its children; no lower-bound check."""
    counted = copy.deepcopy(model).cpu().eval()
    counter = FlopCounterMode(display=False)
    with _countable_kernels(), torch.no_grad(), counter:
        call(counted, cast_inputs(inputs, device="cpu"))
    prefix = type(counted).__name__ + "."
    return {
        name.removeprefix(prefix) if name != "Global" else "": sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
    }


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose tensors have shapes and nothing else."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        meta = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
    return copy.deepcopy(model, memo).eval()


def _count(model: nn.Module, inputs: Inputs) -> Macs:
    counter = FlopCounterMode(display=False)
    seen = _OperatorRecorder()
    # The recorder is entered first, so it stands below the counter and sees the operators that decompose to nothing.
    with _countable_kernels(), torch.no_grad(), seen, counter:
        call(model, inputs)
    return Macs(counter.get_total_flops() // 2, tuple(sorted(seen.uncounted)))


@contextmanager
def _countable_kernels() -> Iterator[None]:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="TF32 acceleration")  # entering the flags warns on every CPU
            flags = torch.backends.mkldnn.flags(enabled=False)
            with flags:
                yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _OperatorRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that may do arithmetic work and that has no counting formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uncounted: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket not in flop_registry and may_multiply(func):
            self.uncounted.add(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


def may_multiply(func: Any) -> bool:
    """Whether an operator that a dispatch mode meets may multiply and accumulate; those of other libraries may.

    spikingjelly's (sj_lif and others) are neurons, which work element by element.
    """
    namespace, _, name = func.overloadpacket._qualified_op_name.partition("::")
    if namespace.startswith("sj_") or namespace == "profiler":
        return False
    return namespace not in ("aten", "prims", "prim") or _multiplies(name)


def _multiplies(name: str) -> bool:
    """Whether an ATen operator does what is counted, by the words in its name, such as "conv" in conv_depthwise3d."""
    words = {word.rstrip("123d") if word.startswith("conv") else word for word in name.split("_")}
    return _BY_NAME.get(name, not words.isdisjoint(_MULTIPLYING))
