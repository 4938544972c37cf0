"""How the loss curves with a unit's weights, from products of the Hessian with random vectors.

For a vector v of random signs, E[v * Hv] is the diagonal of the Hessian H (Hutchinson, 1990; Bekas et al., 2007). One
product gives an estimate for every weight of every unit at once, and nothing but sums by unit is kept. H is that of the
mean loss of a sample, by the weights that write the units; weights of other layers stay as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunecli.criteria.base import Calibration, member_tensor, member_values, role_of, sum_by_unit
from prunecli.criteria.probe import check_twice_differentiable, loss_of, probe_of, two_batches_or_more
from prunecli.criteria.sampling import Draw, Estimate, Stop, stable_mean
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, explained, sample_count, summing_dtype
from prunecli.measure.kernels import without_mkldnn
from prunecli.ranks import gathered, rank, world_size
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.tracing.running import without_fastpath

NO_WRITER = "no layer writes it with weights of its own"
_NO_EFFECT = "the loss does not depend on the weights that write it"
_TWICE = "differentiates the loss twice, which this network does not allow"


def hap(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """Trace of the Hessian by a unit's incoming weights, times their mean square (Yu et al., WACV 2022).

    trace * ||w||^2 / number, where w are all weights and biases that write the unit: the filters of a channel, the rows
    of every gate of a recurrent unit. At weights that are no minimum a trace may be negative; such a unit counts as 0,
    as does one whose estimate is negative by chance.
    """
    return _reported(model, groups, calibration, hap_estimate(model, groups, calibration))


def hap_estimate(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> Estimate:
    """The scores of `hap`, and the traces' standard errors.

    Raises:
        MethodError: The data has one sample alone, or the loss cannot be differentiated twice.
    """
    sizes = {group.name: _mean_square(model, incoming(model, group)) for group in groups}
    return _estimated(model, groups, calibration, "hap", lambda _, curvature: curvature, _times(sizes))


def _times(factors: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    return lambda name, mean: mean.clamp_min(0) * factors[name]


def obd(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """1/2 sum of diag(H) w^2 over a unit's incoming weights (LeCun et al., Optimal Brain Damage, NeurIPS 1989).

    To second order, and with weights that do not interact, what the loss gains when all of them become zero at a
    minimum. A unit for which that is negative counts as 0.
    """
    return _reported(model, groups, calibration, obd_estimate(model, groups, calibration))


def obd_estimate(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> Estimate:
    """The scores of `obd`, and their standard errors.

    Raises:
        MethodError: The data has one sample alone, or the loss cannot be differentiated twice.
    """

    def damage(weight: Tensor, curvature: Tensor) -> Tensor:
        return curvature * weight.square() / 2

    return _estimated(model, groups, calibration, "obd", damage, lambda _, mean: mean.clamp_min(0))


def incoming(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The weights and biases that write a group's units."""
    return [
        member
        for member in group.members
        if role_of(model, member) == "producer" and isinstance(member_tensor(model, member), nn.Parameter)
    ]


def _mean_square(model: nn.Module, members: Sequence[Member]) -> Tensor:
    """||w||^2 / number of each unit's weights, shape (units,)."""
    squares, number = torch.zeros(()), 0
    for member in members:
        values = member_values(model, member)
        squares = squares + sum_by_unit(values.square().sum(dim=1), member)
        number += values.shape[1] * member.index.shape[1]
    return squares / max(number, 1)


def _estimated(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    calibration: Calibration,
    method: str,
    part: Callable[[Tensor, Tensor], Tensor],
    score: Callable[[str, Tensor], Tensor],
) -> Estimate:
    """Estimates sums over units of `part` of (weight, diagonal of the Hessian), and scores made from them."""
    stop = Stop.of(calibration)
    probe = probe_of(model).requires_grad_(False)
    members = {group.name: incoming(probe, group) for group in groups}
    leaves = {member.name: member_tensor(probe, member) for own in members.values() for member in own}
    for leaf in leaves.values():
        leaf.requires_grad_(leaf.is_floating_point())

    def by_unit(curvatures: dict[str, Tensor]) -> dict[str, Tensor]:
        parts = {name: part(leaves[name].detach(), curvature) for name, curvature in curvatures.items()}
        sums: dict[str, Tensor] = {}
        for name, own in members.items():
            for member in own:
                if member.name in parts:
                    of_member = _sum_by_unit(parts[member.name], member)
                    sums[name] = sums[name] + of_member if name in sums else of_member
        return sums

    draws = curvature_draws(probe, leaves, calibration, method, summary=by_unit)
    return stable_mean(draws if leaves else (), stop, score)


def _sum_by_unit(values: Tensor, member: Member) -> Tensor:
    along = values.movedim(member.dim, 0)
    return sum_by_unit(along.reshape(len(along), -1).sum(dim=1, dtype=summing_dtype(values)).cpu().double(), member)


def curvature_draws(
    probe: nn.Module,
    leaves: Mapping[str, Tensor],
    calibration: Calibration,
    method: str,
    prepare: Callable[[], None] = lambda: None,
    summary: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
) -> Iterator[Draw]:
    """Yields estimates of the diagonal of the Hessian by `leaves`, batch by batch and over again without end.

    Every other batch makes one half of the estimates, the same one every time round: halves share no data. Where
    several processes work together, each makes every so manieth estimate, from the random signs that one alone would
    have drawn for it, and all get all of them, in the same order.

    Args:
        probe: The network.
        leaves: What the mean loss of a sample is differentiated by; left out where it does not depend on it.
        calibration: Data, loss and the generator of random signs.
        method: For messages.
        prepare: Called before every pass of the network.
        summary: What an estimate is made into.

    Raises:
        MethodError: The data has one sample alone, or the loss cannot be differentiated twice.
    """
    checked, generator = False, calibration.generator

    def drawn(inputs: Inputs, labels: Any, half: int) -> Draw:
        nonlocal checked
        samples = sample_count(inputs)
        with torch.enable_grad(), differentiable_twice(probe):
            prepare()
            total = loss_of(probe, inputs, labels, calibration.loss)
            with explained(f"{method} {_TWICE}", MethodError, "choose fisher instead"):
                curvatures = _signed_products(total / max(samples, 1), leaves, generator, check=not checked)
        checked = True
        return Draw(summary(curvatures), samples, half)

    batches = _over_again(calibration, method)
    while True:
        own: Draw | None = None
        states: list[Tensor] = []
        for number, batch in enumerate(itertools.islice(batches, world_size())):
            if number == rank():
                own = drawn(*batch)
            else:
                for leaf in leaves.values():
                    random_signs(leaf, generator)
            states.append(generator.get_state())
        assert own is not None
        for draw, state in zip(gathered(own), states, strict=True):
            generator.set_state(state)  # who takes no more leaves it as one process alone would
            yield draw


def _over_again(calibration: Calibration, method: str) -> Iterator[tuple[Inputs, Any, int]]:
    """Inputs, labels, and which half they belong to, without end."""
    while True:
        for number, (inputs, labels) in enumerate(two_batches_or_more(calibration, method)):
            yield inputs, labels, number % 2


def _signed_products(
    total: Tensor, leaves: Mapping[str, Tensor], generator: torch.Generator, *, check: bool
) -> dict[str, Tensor]:
    """v * Hv for a vector v of random signs, by the name of the leaf."""
    names = list(leaves)
    gradients = torch.autograd.grad(total, [leaves[name] for name in names], create_graph=True, allow_unused=True)
    if check:
        check_twice_differentiable(gradients)
    signs = {name: random_signs(leaves[name], generator) for name in names}
    known = {name: gradient for name, gradient in zip(names, gradients, strict=True) if gradient is not None}
    bent = [(gradient, signs[name]) for name, gradient in known.items() if gradient.requires_grad]
    products: dict[str, Tensor] = {name: torch.zeros_like(leaves[name]) for name in known}  # the loss may be linear
    if bent:
        outputs, vectors = zip(*bent, strict=True)
        second = torch.autograd.grad(outputs, [leaves[name] for name in known], vectors, allow_unused=True)
        for name, product in zip(known, second, strict=True):
            if product is not None:
                products[name] = signs[name] * product.detach()
    return products


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Values of -1 and 1 with equal probability, in a tensor's shape and type."""
    drawn = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return drawn.to(like).mul_(2).sub_(1)


@contextmanager
def differentiable_twice(probe: nn.Module) -> Iterator[None]:
    """Makes layers whose fused kernels have a first derivative alone run without these."""
    with ExitStack() as kernels:
        kernels.enter_context(without_fastpath())
        kernels.enter_context(sdpa_kernel(SDPBackend.MATH))
        if any(isinstance(module, nn.RNNBase) for module in probe.modules()):
            flags: Any = torch.backends
            kernels.enter_context(without_mkldnn())
            kernels.enter_context(flags.cudnn.flags(enabled=False))
        yield


def _reported(
    model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration, estimate: Estimate
) -> dict[str, Tensor | str]:
    """Scores by group name or why there are none."""
    estimate.note(calibration.found)
    return {
        group.name: estimate.scores[group.name]
        if group.name in estimate.scores
        else _NO_EFFECT
        if incoming(model, group)
        else NO_WRITER
        for group in groups
    }
