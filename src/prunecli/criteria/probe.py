"""A copy of a network that can be differentiated by each of its layers' own weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.criteria.base import Loss, Paired, total_loss
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, sample_count, take_samples
from prunecli.naming import more_samples

_ENDS = ("torch::autograd::Error", "torch::autograd::NotImplemented")


def probe_of(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in single precision at least, in which no two layers share a weight.

    Small gradients are zero in half precision. Of a weight that two layers share, such as an embedding and the decoder
    behind it, autograd gives the sum over both uses, and a channel has one that writes it and one that reads it.

    Args:
        model: The network; not changed.
    """
    probe = copied(model).eval()
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in probe.parameters()):
        probe = probe.float()
    seen: set[int] = set()
    for module in probe.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone()))
            seen.add(id(parameter))
    for parameter in probe.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return probe


def loss_of(probe: nn.Module, inputs: Inputs, labels: Any, loss: Loss) -> Tensor:
    """The loss of a batch.

    Raises:
        MethodError: The network does not run on it, or the loss cannot be differentiated.
    """
    total = total_loss(probe, inputs, labels, loss, "check the labels, or give loss= one of your own")
    if not isinstance(total, Tensor) or not total.requires_grad:
        raise MethodError(
            "the loss has no gradient: the network runs under no_grad, or its output is not differentiable; choose a "
            "method without gradients, such as l1"
        )
    return total


def check_twice_differentiable(gradients: Sequence[Tensor | None]) -> None:
    """Checks that gradients say how they change themselves.

    An operator that allows one derivative alone ends the graph of its gradient, and autograd takes what lies behind it
    for unused: the second derivative would lack it without a word.

    Args:
        gradients: Made with `create_graph=True`.

    Raises:
        RuntimeError: There is such an operator.
    """
    waiting = [gradient.grad_fn for gradient in gradients if gradient is not None]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() in _ENDS:
            raise RuntimeError("an operator in it can be differentiated once")
        waiting += [following for following, _ in node.next_functions]


def two_batches_or_more(calibration: Paired, method: str) -> Iterator[tuple[Inputs, Any]]:
    """Yields (inputs, labels or None) as `Calibration.pairs` does; a single batch is cut in two.

    Args:
        calibration: The data.
        method: Who needs it, for the message.

    Raises:
        MethodError: There is one sample alone, which shows nothing of how scores vary.
    """
    pairs = calibration.pairs()
    first = next(pairs)
    second = next(pairs, None)
    if second is not None:
        yield first
        yield second
        yield from pairs
        return
    samples = sample_count(first[0])
    if samples < 2:
        raise MethodError(
            f"{method} needs two samples at least to say how far its scores vary, and the calibration data has "
            f"one; {more_samples()}"
        )
    for begin, end in ((0, samples // 2), (samples // 2, samples)):
        yield take_samples(first[0], begin, end), take_samples(first[1], begin, end)
