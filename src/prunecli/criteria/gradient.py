"""How the loss responds to a gate on each channel.

A gate m = 1 multiplies a channel where its readers take it in; closing it is removing the channel. Its derivative for
one sample is the sum of activation times gradient over positions and readers. It needs one backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, Loss, OwnShare, Paired, member_tensor, role_of, sum_by_unit
from prunecli.criteria.independence import require_independent_samples
from prunecli.criteria.probe import loss_of, probe_of
from prunecli.criteria.readers import by_unit, tappable
from prunecli.inputs import Inputs, sample_count, summing_dtype, take_samples
from prunecli.ranks import summed, summed_by_name
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.taps import channels_last, tapped
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
    for gates in gate_gradients(model, groups, calibration, OwnShare(calibration)):
        for name, values in gates.items():
            total = size(values).sum(dim=0)
            totals[name] = totals[name] + total if name in totals else total
        samples += len(next(iter(gates.values()), ()))
    totals, (number,) = summed_by_name(totals), summed([torch.tensor(samples)])
    return {
        group.name: totals[group.name] / number if group.name in totals else why_unknown(model, group)
        for group in groups
    }


def why_unknown(model: nn.Module, group: ChannelGroup) -> str:
    """Why there is no derivative by a group's gates."""
    return _NO_GRADIENT if gated(model, group) else _NO_READER


def gate_gradients(
    model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration, data: Paired | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yields for every batch, by group name, the gates' derivatives, shape (samples, units), in float64 on the CPU.

    What readers take in is watched, in recurrent layers step by step, and gives all samples of a batch at once where
    these lie along its first or its second dimension, which is found out on the first batch. For every other group
    samples are run one by one, and the derivative is the sum of w * dL/dw over the weights that read the unit, which is
    the same number; where no weight reads it, as a query that is only multiplied with a key, over those that write it.
    Groups on which the loss does not depend are left out.

    Args:
        model: Not changed; a copy in evaluation mode is run, in single precision at least: small gradients are zero in
            half precision.
        groups: The groups of the trace.
        calibration: Data and loss.
        data: Data in place of that of `calibration`, such as this process's share of it.

    Raises:
        MethodError: The network does not run on the data, the loss has no gradient, or samples that are to be run one
            by one do not come first.
    """
    probe = probe_of(model)
    watched = _Watched(probe, groups, calibration.loss)
    independent = False
    with without_fastpath(), torch.enable_grad():
        for inputs, labels in (calibration if data is None else data).pairs():
            gates = watched.gates(inputs, labels)
            others = [group for group in groups if group.name not in gates]
            if others:
                if not independent and sample_count(inputs) > 1:
                    require_independent_samples(probe, inputs)
                    independent = True
                gates |= _at_weights(probe, others, inputs, labels, calibration.loss)
            yield gates


class _Watched:
    """Derivatives of all samples of a batch at once, for groups whose readers all show what they take in.

    Where samples lie is known of each reader by itself: in one network some layers may take samples first and others
    steps first. A guess is right if activations times gradients, summed up for one sample, are that sample's
    w * dL/dw, which is checked for the first and the last sample of a batch.
    """

    def __init__(self, probe: nn.Module, groups: Sequence[ChannelGroup], loss: Loss) -> None:
        self._probe, self._loss = probe, loss
        readers = {group.name: tappable(probe, group) for group in groups}
        # A weight that shows nothing, such as a plain parameter, would be missing in the sum.
        self._readers = {
            group.name: readers[group.name]
            for group in groups
            if readers[group.name] and readers[group.name] == gated(probe, group)
        }
        self._members = {member.name: member for own in self._readers.values() for member in own}
        self._layouts: dict[str, int] = {}
        self._undecided = dict.fromkeys(self._members, True)  # by reader: whether it was never checked
        self._most_samples = 0

    def gates(self, inputs: Inputs, labels: Any) -> dict[str, Tensor]:
        """Derivatives by group name; groups for which they are not known in this way are left out."""
        if not self._members:
            return {}
        products, samples = self._products(inputs, labels), sample_count(inputs)
        if self._in_doubt(products, samples):
            self._find_layouts(products, inputs, labels)
        sums: dict[str, Tensor] = {}
        for name, layout in self._layouts.items():
            by_sample = _by_sample(products[name], samples)[layout] if name in products else None
            if by_sample is not None:
                sums[name] = by_sample
        return {
            name: torch.stack([by_unit(self._probe, member, sums[member.name]) for member in readers]).sum(dim=0)
            for name, readers in self._readers.items()
            if all(member.name in sums for member in readers)
        }

    def _products(self, inputs: Inputs, labels: Any) -> dict[str, list[Tensor]]:
        """Activations times gradients by reader, channels last: one tensor for all calls of a shape."""
        taken: list[tuple[str, Tensor]] = []

        def tap(name: str, values: Tensor) -> Tensor:
            # A view of its own, so that the gradient is this reader's alone.
            own = values.view_as(values) if values.requires_grad else values.detach().requires_grad_()
            taken.append((name, own))
            return own

        with tapped(self._probe, self._members, tap):
            total = loss_of(self._probe, inputs, labels, self._loss)
        gradients = torch.autograd.grad(total, [own for _, own in taken], allow_unused=True) if taken else ()
        calls: dict[tuple[str, torch.Size], list[tuple[Tensor, Tensor]]] = {}
        for (name, own), gradient in zip(taken, gradients, strict=True):
            if gradient is not None:
                calls.setdefault((name, own.shape), []).append((own.detach(), gradient))
        products: dict[str, list[Tensor]] = {}
        for (name, _), pairs in calls.items():
            values, slopes = (torch.stack(parts) for parts in zip(*pairs, strict=True))
            product = (values * slopes).sum(dim=0, dtype=summing_dtype(values))
            module = self._probe.get_submodule(self._members[name].module)
            products.setdefault(name, []).append(channels_last(module, product))
        return products

    def _in_doubt(self, products: Mapping[str, list[Tensor]], samples: int) -> bool:
        """Whether this batch can tell layouts apart that earlier ones could not."""
        if samples > 1 and self._most_samples <= 1:
            self._undecided = dict.fromkeys(self._members, True)
        self._most_samples = max(self._most_samples, samples)
        return any(
            never or _differ(_by_sample(products[name], samples))
            for name, never in self._undecided.items()
            if name in products
        )

    def _find_layouts(self, products: Mapping[str, list[Tensor]], inputs: Inputs, labels: Any) -> None:
        """Compares the first and the last sample with what they give when each is run alone."""
        samples = sample_count(inputs)
        alone = {place: self._columns(inputs, labels, place) for place in {0, samples - 1}}
        for name in [name for name in self._undecided if name in products]:
            self._layouts.pop(name, None)
            guesses = _by_sample(products[name], samples)
            for layout, guess in enumerate(guesses):
                if guess is not None and all(
                    name in columns and self._agree(name, guess[place], columns[name])
                    for place, columns in alone.items()
                ):
                    self._layouts.setdefault(name, layout)
            self._undecided[name] = False
            if _differ(guesses):
                del self._undecided[name]

    def _columns(self, inputs: Inputs, labels: Any, place: int) -> dict[str, Tensor]:
        """w * dL/dw for one sample, summed up over each input column of a reader."""
        part = take_samples(inputs, place, place + 1), take_samples(labels, place, place + 1)
        tensors = {name: member_tensor(self._probe, member) for name, member in self._members.items()}
        return {
            name: product.movedim(self._members[name].dim, 0).flatten(1).sum(dim=1)
            for name, product in _weights_times_gradients(self._probe, tensors, part, self._loss).items()
        }

    def _agree(self, name: str, guess: Tensor, exact: Tensor) -> bool:
        columns = len(exact)
        away = guess.cpu().double().reshape(-1, columns).sum(dim=0) - exact
        scale = float(exact.abs().max()) * _AGREEMENT + torch.finfo(torch.float32).tiny
        return float(away.abs().max()) <= scale


def _by_sample(products: Sequence[Tensor], samples: int) -> tuple[Tensor | None, Tensor | None]:
    """Sums over positions and steps, shape (samples, channels), on the CPU, if samples lie as guessed.

    Args:
        products: Channels along the last dimension.
        samples: Number of samples.

    Returns:
        For samples along the first dimension; and for steps first: (T, N, ...), or both in one, T * N.
    """

    def summed(guess: Callable[[Tensor, int], Tensor | None]) -> Tensor | None:
        parts = [guess(product, samples) for product in products]
        known = [part for part in parts if part is not None]
        return torch.stack(known).sum(dim=0).cpu().double() if len(known) == len(parts) else None

    return summed(_samples_first), summed(_steps_first)


def _samples_first(product: Tensor, samples: int) -> Tensor | None:
    if len(product) % max(samples, 1):
        return None
    return product.reshape(samples, -1, product.shape[-1]).sum(dim=1)


def _steps_first(product: Tensor, samples: int) -> Tensor | None:
    if product.dim() > 2 and product.shape[1] == samples:
        product = product.flatten(0, 1)
    if len(product) % max(samples, 1):
        return None
    return product.reshape(len(product) // samples, samples, -1, product.shape[-1]).sum(dim=(0, 2))


def _differ(guesses: tuple[Tensor | None, Tensor | None]) -> bool:
    first, second = guesses
    return first is None or second is None or not torch.equal(first, second)


def _at_weights(
    probe: nn.Module, groups: Sequence[ChannelGroup], inputs: Inputs, labels: Any, loss: Loss
) -> dict[str, Tensor]:
    """The same, from the weights that read each unit, sample by sample."""
    rows: dict[str, list[Tensor]] = {}
    members = {group.name: gated(probe, group) for group in groups}
    tensors = {member.name: member_tensor(probe, member) for own in members.values() for member in own}
    if not tensors:
        return {}
    for sample in range(sample_count(inputs)):
        part = take_samples(inputs, sample, sample + 1), take_samples(labels, sample, sample + 1)
        products = _weights_times_gradients(probe, tensors, part, loss)
        for group in groups:
            known = [member for member in members[group.name] if member.name in products]
            if known:
                rows.setdefault(group.name, []).append(_gate(group, known, products))
    return {name: torch.stack(gates) for name, gates in rows.items()}


def _weights_times_gradients(
    probe: nn.Module, tensors: Mapping[str, Tensor], batch: tuple[Inputs, Any], loss: Loss
) -> dict[str, Tensor]:
    """w * dL/dw in float64 by name; tensors on which the loss does not depend are left out."""
    gradients = torch.autograd.grad(loss_of(probe, *batch, loss), list(tensors.values()), allow_unused=True)
    return {
        name: (tensor.detach() * gradient).cpu().double()
        for (name, tensor), gradient in zip(tensors.items(), gradients, strict=True)
        if gradient is not None
    }


def _gate(group: ChannelGroup, members: Sequence[Member], products: Mapping[str, Tensor]) -> Tensor:
    """The derivative by each unit's gate, shape (units,), from weights times their gradients, by name."""
    gate = torch.zeros(group.units, dtype=torch.float64)
    for member in members:
        product = products[member.name].movedim(member.dim, 0)
        gate += sum_by_unit(product.reshape(len(product), -1).sum(dim=1), member)
    # Every layer that writes the channels has the whole derivative.
    writers = {member.module for member in members if member.role == "producer"}
    return gate / max(len(writers), 1)


def gated(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The weights that a gate stands for: those that read the units alone; if there is none, those that write them."""
    own = [member for member in group.members if isinstance(member_tensor(model, member), nn.Parameter)]
    readers = [member for member in own if role_of(model, member) == "consumer"]
    return readers or [member for member in own if role_of(model, member) == "producer"]
