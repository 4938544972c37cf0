"""What sparse kernels make of a masked network's linear layers, measured."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, call, fitted
from prunecli.measure.counts import cpu_inputs

_LAYERS = 3
_ROUNDS = 15
_COLUMNS = 4096
_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
_MIN_SECONDS = 5e-4
"""A timing repeats a product until it takes this long: the clock's own cost would count otherwise."""


@dataclass(frozen=True)
class SparseTiming:
    """One layer as a sparse matrix.

    Attributes:
        layer: Its name.
        outputs: Rows of its weight.
        inputs: Columns of its weight.
        columns: Positions that it is applied to for one sample.
        sparsity: Share of its weights that is zero.
        ratio: Time with the sparse kernel, as a multiple of the dense one.
        break_even: Sparsity from which the sparse kernel is faster; None: not up to the largest one tried.
    """

    layer: str
    outputs: int
    inputs: int
    columns: int
    sparsity: float
    ratio: float
    break_even: float | None


def largest_tried() -> float:
    """The largest sparsity at which `time_csr` looks for the break-even."""
    return _SPARSITIES[-1]


def time_csr(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> list[SparseTiming]:
    """Times the largest linear layers and 1x1 convolutions as products of a CSR matrix on the CPU.

    Dense and sparse products take turns; figures are medians. The break-even is found with random masks of the layer's
    shape at a few sparsities, between which it is interpolated.

    Args:
        model: Not changed.
        inputs: One sample.
        names: The masked layers.
    """
    network = copied(model).cpu().eval()
    positions = _positions(network, inputs, names)
    matrices = {name: network.get_parameter(f"{name}.weight").detach().flatten(1).float() for name in positions}
    largest = sorted(matrices, key=lambda name: -matrices[name].numel())[:_LAYERS]
    generator = torch.Generator().manual_seed(0)
    timings = []
    for name in largest:
        weight = matrices[name]
        columns = torch.randn(weight.shape[1], positions[name], generator=generator)
        sparsity = float((weight == 0).float().mean())
        curve = [_ratio(_at_random(weight, share, generator), columns) for share in _SPARSITIES]
        timings.append(
            SparseTiming(
                name,
                weight.shape[0],
                weight.shape[1],
                positions[name],
                sparsity,
                _ratio(weight, columns),
                crossing(_SPARSITIES, curve),
            )
        )
    return timings


def time_semi_structured(model: nn.Module, names: Sequence[str], device: torch.device) -> list[tuple[str, float]]:
    """Times linear layers with 2:4 weights in half precision with a GPU's sparse tensor cores, against dense ones.

    Returns:
        Names, and times as multiples of the dense ones; layers whose shape the kernels do not take are left out.
    """
    ratios = {}
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, nn.Linear):
            with suppress(RuntimeError):
                ratios[name] = _semi_structured_ratio(module.weight.detach().to(device, torch.float16))
    return list(ratios.items())


def _semi_structured_ratio(weight: Tensor) -> float:
    columns = torch.randn(weight.shape[1], _COLUMNS, device=weight.device, dtype=weight.dtype)
    sparse: Tensor = torch.sparse.to_sparse_semi_structured(weight)
    return _paired(lambda: weight @ columns, lambda: sparse @ columns, weight.device)


def crossing(sparsities: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The sparsity from which on ratios stay under 1, on straight lines between the points; None: nowhere."""
    above = [index for index, ratio in enumerate(ratios) if ratio >= 1]
    if not above:
        return sparsities[0]
    last = above[-1]
    if last == len(ratios) - 1:
        return None
    (low, high), (first, second) = sparsities[last : last + 2], ratios[last : last + 2]
    return low + (high - low) * (first - 1) / (first - second)


def _positions(network: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, int]:
    """By name, for how many positions of one sample each layer that is a matrix is applied."""
    positions: dict[str, int] = {}

    def watcher(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                positions[name] = output.numel() // len(network.get_parameter(f"{name}.weight"))

        return hook

    hooks = [
        network.get_submodule(name).register_forward_hook(watcher(name))
        for name in names
        if _is_matrix(network.get_submodule(name))
    ]
    try:
        with torch.no_grad():
            call(network, cpu_inputs(fitted(inputs, network)))
    finally:
        for hook in hooks:
            hook.remove()
    return positions


def _is_matrix(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    plain = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and module.groups == 1
    return plain and all(size == 1 for size in module.kernel_size)  # type: ignore[union-attr]


def _at_random(weight: Tensor, sparsity: float, generator: torch.Generator) -> Tensor:
    return weight.new_ones(weight.shape) * (torch.rand(weight.shape, generator=generator) >= sparsity)


def _ratio(weight: Tensor, columns: Tensor) -> float:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Sparse CSR tensor support"
        )  # that it may change does not matter here
        sparse = weight.to_sparse_csr()
    return _paired(lambda: weight @ columns, lambda: sparse @ columns, torch.device("cpu"))


def _paired(dense: Callable[[], Tensor], sparse: Callable[[], Tensor], device: torch.device) -> float:
    """Ratio of the medians of two products that take turns."""
    with torch.inference_mode():
        once = min(_seconds(dense, 1, device) for _ in range(3))
        _seconds(sparse, 1, device)
        repeats = max(1, int(_MIN_SECONDS / max(once, 1e-7)))
        times = [(_seconds(dense, repeats, device), _seconds(sparse, repeats, device)) for _ in range(_ROUNDS)]
    medians = np.median(np.asarray(times), axis=0)
    return float(medians[1] / medians[0])


def _seconds(product: Callable[[], Tensor], repeats: int, device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        product()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
