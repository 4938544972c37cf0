"""How long the layers of a network take, and how that depends on their widths.

Kernels work on blocks of channels: on a CPU, a convolution with 72 channels may take as long as one with 80. And a
layer with few multiply-accumulates on large maps may take longer than one with many on small ones.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prunecli.copying import copied, sharing_parameters
from prunecli.inputs import Inputs, call, fitted, model_device, output_tensors

_PASSES = 12
"""Of which the fastest counts, for each layer by itself: other programs only ever make a layer slower."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class LayerTimes:
    """Times of one pass, of every module that holds parameters or has no modules inside.

    Attributes:
        seconds: By module name, without those inside that are named too; a module that runs several times, in all.
        inputs: The first tensor that each was last given.
        follows: For modules without parameters, the module with parameters whose outputs they are given.
    """

    seconds: dict[str, float]
    inputs: dict[str, Tensor]
    follows: dict[str, str]


def time_layers(model: nn.Module, inputs: Inputs) -> LayerTimes:
    """Times the layers of a network where they run.

    Args:
        model: The network; not changed.
        inputs: Inputs that it accepts.
    """
    network = sharing_parameters(model).eval()
    watch = _Stopwatch(network)
    best: dict[str, float] = {}
    with torch.inference_mode():
        for _ in range(_PASSES):
            watch.start()
            call(network, fitted(inputs, network))
            for name, seconds in watch.seconds.items():
                best[name] = min(seconds, best.get(name, seconds))
    watch.start()  # lets what was written go
    return LayerTimes(best, watch.inputs, watch.follows)


def width_curve(layer: nn.Module, example: Tensor, dim: int, widths: Sequence[int]) -> NDArray[np.float64] | None:
    """Seconds of one layer at several widths along one dimension of its weight, the other one whole.

    Args:
        layer: The layer; not changed.
        example: What it is given.
        dim: 0: channels that it writes; 1: those that it reads. Of depthwise convolutions, 0 is both.
        widths: Numbers of channels, not more than there are.

    Returns:
        Shape (widths,); None for layers other than plain and depthwise convolutions and linear ones of torch itself.
    """
    if not _is_plain(layer) or dim > 1:
        return None
    assert isinstance(layer, (*_CONVOLUTIONS, nn.Linear))
    depthwise = isinstance(layer, _CONVOLUTIONS) and 1 < layer.groups == layer.in_channels == layer.out_channels
    if isinstance(layer, _CONVOLUTIONS) and layer.groups > 1 and not depthwise:
        return None
    device = model_device(layer)
    along = -1 if isinstance(layer, nn.Linear) else example.dim() - layer.weight.dim() + 1
    best = np.full(len(widths), np.inf)
    with torch.inference_mode():
        for place, width in enumerate(widths):  # one by one, since all would take much memory
            narrow = _narrowed(layer, dim, width, depthwise=depthwise)
            read = example.narrow(along, 0, width) if dim == 1 or depthwise else example
            read = read.contiguous()
            for _ in range(_PASSES // 2):
                start = _now(device)
                narrow(read)
                best[place] = min(best[place], _now(device) - start)
    return best


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what torch's own class does, from a weight and a bias that are its parameters."""
    return (
        type(layer).forward in {kind.forward for kind in (*_CONVOLUTIONS, nn.Linear)}
        and set(layer._parameters) == {"weight", "bias"}
        and layer._parameters["weight"] is not None
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
    )


def _narrowed(layer: Any, dim: int, width: int, *, depthwise: bool) -> nn.Module:
    # What stands for the parameters in the copy, so that the whole ones are not copied for each width.
    shorter: dict[int, Any] = {
        id(layer.weight): nn.Parameter(layer.weight.detach().narrow(dim, 0, width).clone(), requires_grad=False)
    }
    if dim == 0 and layer.bias is not None:
        shorter[id(layer.bias)] = nn.Parameter(layer.bias.detach()[:width].clone(), requires_grad=False)
    narrow: Any = copied(layer, shorter)
    sides = (0, 1) if depthwise else (dim,)
    for side in sides:
        pair = ("out_features", "in_features") if isinstance(layer, nn.Linear) else ("out_channels", "in_channels")
        setattr(narrow, pair[side], width)
    if depthwise:
        narrow.groups = width
    result: nn.Module = narrow.eval()
    return result


class _Stopwatch:
    """Hooks that time modules, each without those inside it that are timed too."""

    def __init__(self, model: nn.Module) -> None:
        self._device = model_device(model)
        self.inputs: dict[str, Tensor] = {}
        self.follows: dict[str, str] = {}
        for name, module in model.named_modules():
            if list(module.parameters(recurse=False)) or not list(module.children()):
                module.register_forward_pre_hook(self._before(name), with_kwargs=True)
                module.register_forward_hook(self._after(name))
        self.start()

    def start(self) -> None:
        """Begins a new pass."""
        self.seconds: dict[str, float] = {}
        self._writers: dict[int, tuple[str, Tensor]] = {}  # by address of what was written, which has to stay taken
        self._open: list[tuple[str, float]] = []
        self._inside = [0.0]

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, named: Any) -> None:
            tensors = output_tensors((arguments, named))
            if tensors:
                self.inputs[name] = tensors[0]
            if not list(module.parameters(recurse=False)):
                source = next((w for t in tensors if (w := self._writers.get(t.data_ptr())) is not None), None)
                if source is not None:
                    self.follows[name] = source[0]
            self._inside.append(0.0)
            self._open.append((name, _now(self._device)))

        return hook

    def _after(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            end = _now(self._device)
            _, start = self._open.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + end - start - self._inside.pop()
            self._inside[-1] += end - start
            writer = name if list(module.parameters(recurse=False)) else self.follows.get(name)
            if writer is not None:
                self._writers |= {tensor.data_ptr(): (writer, tensor) for tensor in output_tensors(output)}

        return hook


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
