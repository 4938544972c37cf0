"""The inputs that each weight multiplies, with convolutions unfolded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.criteria.base import Paired
from prunecli.criteria.readers import exact
from prunecli.criteria.weights.base import MaskableWeight
from prunecli.inputs import run_batch
from prunecli.modes import evaluating
from prunecli.ranks import summed_by_name, together
from prunecli.surgery.taps import attended_positions, counted_rows, is_layer, layer_input
from prunecli.surgery.tracing.running import without_fastpath

UNSEEN = "its inputs cannot be watched"
_TRANSPOSED = "a transposed convolution, whose inputs are not unfolded"
_AT_ONCE = 1 << 22
"""Numbers in a piece of unfolded inputs."""


def why_unwatched(weight: MaskableWeight) -> str | None:
    """Why a layer's inputs cannot be watched, as far as its kind tells."""
    if isinstance(weight.module, _ConvTransposeNd):
        return _TRANSPOSED
    return None if is_layer(weight.module) else UNSEEN


def watch_inputs(
    model: nn.Module,
    weights: Sequence[MaskableWeight],
    calibration: Paired,
    see: Callable[[MaskableWeight, Tensor], None],
) -> None:
    """Runs all calibration batches in evaluation mode and passes on what each weight is multiplied with.

    Args:
        model: Its mode is restored afterwards.
        weights: What to watch; those of a kind that cannot be watched are left out.
        calibration: The data, or this process's share of them.
        see: Called with the weight and its inputs in float64, shape (groups, positions, inputs) with inputs in the
            order of `MaskableWeight.blocks`; for spiking networks positions include time steps.
    """

    def watcher(weight: MaskableWeight) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken_in = layer_input(args, kwargs)
            if taken_in is not None:
                for piece in input_columns(module, taken_in.detach(), attended):
                    see(weight, piece)

        return hook

    attended: Tensor | None = None
    watched = [(weight, name) for weight in weights if why_unwatched(weight) is None for name in weight.modules]
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(watcher(weight), with_kwargs=True)
        for weight, name in watched
    ]
    try:
        with torch.no_grad(), evaluating(model), without_fastpath():
            for inputs, _ in calibration.pairs():
                attended = attended_positions(inputs)
                run_batch(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()


def over_ranks(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over what all processes have watched, by the name of the weight."""
    if not together():
        return sums
    device = next((total.device for total in sums.values()), torch.device("cpu"))
    return {name: total.to(device) for name, total in summed_by_name(sums).items()}


def input_columns(module: nn.Module, values: Tensor, attended: Tensor | None = None) -> Iterator[Tensor]:
    """A layer's input in pieces of shape (groups, positions, inputs); see `prunecli.surgery.taps.counted_rows`."""
    if not isinstance(module, _ConvNd):
        rows = counted_rows(values, attended)
        for piece in torch.split(rows, max(1, _AT_ONCE // max(rows.shape[-1], 1))):
            yield exact(piece).unsqueeze(0)
        return
    dims = module.weight.dim()
    # Layers of spikingjelly take all steps at once, (T, N, C, ...); others may get a single sample without a batch.
    samples = values.flatten(0, values.dim() - dims) if values.dim() > dims else values
    samples = samples.unsqueeze(0) if samples.dim() < dims else samples
    size = math.prod(samples.shape[1:]) * math.prod(module.kernel_size)
    for piece in torch.split(samples, max(1, _AT_ONCE // max(size, 1))):
        yield _unfolded(module, exact(piece))


def _unfolded(module: _ConvNd, values: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    values = F.pad(values, module._reversed_padding_repeated_twice, mode=mode)
    settings = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for dim, (kernel, stride, dilation) in enumerate(settings, start=2):
        values = values.unfold(dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    spatial = len(module.kernel_size)
    samples, channels = values.shape[:2]
    positions = math.prod(values.shape[2 : 2 + spatial])
    groups = module.groups
    parted = values.reshape(samples, groups, channels // groups, positions, -1)
    return parted.permute(1, 0, 3, 4, 2).reshape(groups, samples * positions, -1)
