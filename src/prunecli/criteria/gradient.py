"""How the loss responds to a gate on each channel.

A gate m = 1 multiplies a channel where its readers take it in; closing it is removing the channel. Its derivative for
one sample is the sum of activation times gradient over positions and readers. It needs one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.criteria.base import Calibration, Loss, member_tensor, sum_by_unit
from prunecli.criteria.readers import by_unit, readers_of
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, cast_inputs, explained, model_device, run_batch, sample_count, take_samples
from prunecli.measure.neurons import spiking_neurons
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.taps import channels_last, layer_input
from prunecli.surgery.tracing.running import without_fastpath

_AGREEMENT = 1e-2
_NO_READER = "no layer reads or writes it alone, so its gradient is unknown"
_NO_GRADIENT = "the loss does not depend on the layers that read it"


def taylor(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Mean over samples of |dL/dm|: the loss change to first order (Molchanov et al., ICLR 2017), per channel."""
    return _mean_over_samples(model, groups, calibration, torch.abs)


def fisher(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Mean over samples of (dL/dm)^2: the empirical Fisher information of the gate (Theis et al., 2018)."""
    return _mean_over_samples(model, groups, calibration, torch.square)


def _mean_over_samples(
    model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration, size: Callable[[Tensor], Tensor]
) -> dict[str, Tensor | str]:
    if not groups:
        return {}
    totals: dict[str, Tensor] = {}
    samples = 0
    for gates in gate_gradients(model, groups, calibration):
        for name, values in gates.items():
            total = size(values).sum(dim=0)
            totals[name] = totals[name] + total if name in totals else total
        samples += len(next(iter(gates.values()), ()))
    return {
        group.name: totals[group.name] / samples if group.name in totals else _why_unknown(model, group)
        for group in groups
    }


def _why_unknown(model: nn.Module, group: ChannelGroup) -> str:
    return _NO_GRADIENT if _gated(model, group) else _NO_READER


def gate_gradients(
    model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration
) -> Iterator[dict[str, Tensor]]:
    """Yields for every batch, by group name, the gates' derivatives, shape (samples, units), in float64 on the CPU.

    Readers that are layers are watched, and give all samples of a batch at once where the samples lie along the first
    dimension (which is checked on the first batch). For every other group samples are run one by one, and the
    derivative is the sum of w * dL/dw over the weights that read the unit, which is the same number; where no weight
    reads it, as a query that is only multiplied with a key, over those that write it. Groups on which the loss does not
    depend are left out.

    Args:
        model: Not changed; a copy in evaluation mode is run, in single precision at least: small gradients are zero in
            half precision.
        groups: The groups of the trace.
        calibration: Data and loss.

    Raises:
        MethodError: The network does not run on the data, or the loss has no gradient.
    """
    probe = copied(model).eval()
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in probe.parameters()):
        probe = probe.float()
    for parameter in probe.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    watched: list[ChannelGroup] | None = None
    with without_fastpath(), torch.enable_grad():
        for inputs, labels in calibration.pairs():
            labels = cast_inputs(labels, model_device(probe))
            if watched is None:
                watched = _watchable(probe, groups, inputs, labels, calibration.loss)
            gates = _at_readers(probe, watched, inputs, labels, calibration.loss)
            others = [group for group in groups if group.name not in gates]
            if others:
                gates |= _at_weights(probe, others, inputs, labels, calibration.loss)
            yield gates


def _watchable(
    probe: nn.Module, groups: Sequence[ChannelGroup], inputs: Inputs, labels: Any, loss: Loss
) -> list[ChannelGroup]:
    """Groups with watched readers whose derivatives for the first sample are the same alone and in its batch."""
    alone = take_samples(inputs, 0, 1), take_samples(labels, 0, 1)
    single = _at_readers(probe, groups, *alone, loss)
    exact = _at_weights(probe, groups, *alone, loss)
    batch = _at_readers(probe, groups, inputs, labels, loss)

    def agrees(name: str) -> bool:
        if name not in exact:
            return False
        scale = float(exact[name].abs().max()) * _AGREEMENT + torch.finfo(torch.float32).tiny
        return all(float((gates[name][:1] - exact[name]).abs().max()) <= scale for gates in (single, batch))

    return [group for group in groups if group.name in single and group.name in batch and agrees(group.name)]


def _at_readers(
    probe: nn.Module, groups: Sequence[ChannelGroup], inputs: Inputs, labels: Any, loss: Loss
) -> dict[str, Tensor]:
    """Derivatives for the groups whose readers all ran: activations times gradients, summed by sample."""
    taken: list[tuple[str, Tensor]] = []

    def taker(name: str) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
        def hook(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            # A view of its own, so that the gradient is this reader's alone.
            taken_in = layer_input(args, kwargs)
            if taken_in is None:
                return args, kwargs
            own = taken_in.view_as(taken_in)
            taken.append((name, own))
            named = {key: own if value is taken_in else value for key, value in kwargs.items()}
            return tuple(own if value is taken_in else value for value in args), named

        return hook

    names = dict.fromkeys(member.module for group in groups for member in readers_of(probe, group))
    hooks = [probe.get_submodule(name).register_forward_pre_hook(taker(name), with_kwargs=True) for name in names]
    try:
        total = _loss_of(probe, inputs, labels, loss)
    finally:
        for hook in hooks:
            hook.remove()
    samples, timed = sample_count(inputs), bool(spiking_neurons(probe))
    seen = [(name, own) for name, own in taken if own.requires_grad and (timed or len(own) % max(samples, 1) == 0)]
    gradients = torch.autograd.grad(total, [own for _, own in seen], allow_unused=True) if seen else ()
    products: dict[str, Tensor] = {}
    for (name, own), gradient in zip(seen, gradients, strict=True):
        if gradient is None:
            continue
        product = channels_last(probe.get_submodule(name), own.detach() * gradient)
        by_sample = _by_sample(product, samples, timed=timed).cpu().double()
        products[name] = products[name] + by_sample if name in products else by_sample
    gates: dict[str, Tensor] = {}
    for group in groups:
        readers = readers_of(probe, group)
        if readers and all(member.module in products for member in readers):
            derivatives = [by_unit(probe, member, products[member.module]) for member in readers]
            gates[group.name] = torch.stack(derivatives).sum(dim=0)
    return gates


def _by_sample(product: Tensor, samples: int, *, timed: bool) -> Tensor:
    """Sums over positions and steps, shape (samples, channels).

    Args:
        product: Samples along the first dimension, channels along the last; or, `timed`, steps first: (T, N, ...), or
            both in one, T * N. The check on the first batch detects where this guess is wrong.
        samples: Number of samples.
        timed: Whether there are time steps.
    """
    channels = product.shape[-1]
    if not timed:
        return product.reshape(samples, -1, channels).sum(dim=1)
    if product.dim() > 2 and product.shape[1] == samples:
        product = product.flatten(0, 1)
    if len(product) % samples:
        return product.new_zeros(samples, channels)
    return product.reshape(len(product) // samples, samples, -1, channels).sum(dim=(0, 2))


def _at_weights(
    probe: nn.Module, groups: Sequence[ChannelGroup], inputs: Inputs, labels: Any, loss: Loss
) -> dict[str, Tensor]:
    """The same, from the weights that read each unit, sample by sample."""
    rows: dict[str, list[Tensor]] = {}
    members = {group.name: _gated(probe, group) for group in groups}
    tensors = {member.name: member_tensor(probe, member) for gated in members.values() for member in gated}
    if not tensors:
        return {}
    for sample in range(sample_count(inputs)):
        part = take_samples(inputs, sample, sample + 1), take_samples(labels, sample, sample + 1)
        total = _loss_of(probe, *part, loss)
        gradients = torch.autograd.grad(total, list(tensors.values()), allow_unused=True)
        products = {
            name: (tensor.detach() * gradient).cpu().double()
            for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True)
            if gradient is not None
        }
        for group in groups:
            known = [member for member in members[group.name] if member.name in products]
            if known:
                rows.setdefault(group.name, []).append(_gate(group, known, products))
    return {name: torch.stack(gates) for name, gates in rows.items()}


def _gate(group: ChannelGroup, members: Sequence[Member], products: Mapping[str, Tensor]) -> Tensor:
    """The derivative by each unit's gate, shape (units,), from weights times their gradients, by name."""
    gate = torch.zeros(group.units, dtype=torch.float64)
    for member in members:
        product = products[member.name].movedim(member.dim, 0)
        gate += sum_by_unit(product.reshape(len(product), -1).sum(dim=1), member)
    # Every layer that writes the channels has the whole derivative.
    writers = {member.module for member in members if member.role == "producer"}
    return gate / max(len(writers), 1)


def _gated(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The weights that read the group's units alone; if there is none, those that write them."""
    own = [member for member in group.members if isinstance(member_tensor(model, member), nn.Parameter)]
    readers = [member for member in own if member.role == "consumer"]
    return readers or [member for member in own if member.role == "producer"]


def _loss_of(probe: nn.Module, inputs: Inputs, labels: Any, loss: Loss) -> Tensor:
    """The loss of a batch.

    Raises:
        MethodError: The network does not run on it, or the loss cannot be differentiated.
    """
    output = run_batch(probe, inputs)
    with explained("the loss cannot be computed", MethodError, "check the labels, or give loss= one of your own"):
        total = loss(output, labels)
    if not isinstance(total, Tensor) or not total.requires_grad:
        raise MethodError(
            "the loss has no gradient: the network runs under no_grad, or its output is not differentiable; choose a "
            "method without gradients, such as l1"
        )
    return total
