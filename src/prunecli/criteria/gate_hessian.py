"""How the loss curves with a gate on each unit."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from prunecli.criteria.base import Calibration, member_tensor, role_of
from prunecli.criteria.gradient import gated, why_unknown
from prunecli.criteria.hessian import curvature_draws
from prunecli.criteria.probe import probe_of
from prunecli.criteria.sampling import Estimate, Stop, stable_mean
from prunecli.surgery.groups import ChannelGroup, Member


def gate_obd(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """1/2 d2L/dm2, with a gate m = 1 that multiplies a unit where its readers take it in.

    To second order what the loss gains when the gate closes, at a minimum: optimal brain damage of the gates instead of
    the weights. A unit for which that is negative counts as 0.
    """
    estimate = gate_obd_estimate(model, groups, calibration)
    estimate.note(calibration.found)
    return {group.name: estimate.scores.get(group.name, why_unknown(model, group)) for group in groups}


def gate_obd_estimate(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> Estimate:
    """The scores of `gate_obd`, and their standard errors.

    Raises:
        MethodError: The data has one sample alone, or the loss cannot be differentiated twice.
    """
    probe = probe_of(model).requires_grad_(False)
    gates = _WeightGates(probe, groups)

    def halved(curvatures: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.cpu().double() / 2 for name, value in curvatures.items()}

    draws = curvature_draws(probe, gates.factors, calibration, "gate-obd", gates.apply, halved)
    return stable_mean(draws if gates.factors else (), Stop.of(calibration), lambda _, mean: mean.clamp_min(0))


class _WeightGates:
    """Gates in the weights that read units: a column times its gate is what it makes of the gated unit.

    So they reach whatever a weight reads, also within a fused recurrent layer. Units that no weight reads, such as
    queries that are only multiplied with keys, are gated where the first layer that writes them does.

    Args:
        probe: The network; weights that are gated are no parameters of it any more.
        groups: The groups of the trace.

    Attributes:
        factors: The gates by group name, each of shape (units,).
    """

    def __init__(self, probe: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        self._probe = probe
        self.factors: dict[str, Tensor] = {}
        self._weights: dict[tuple[str, str], Tensor] = {}
        self._members: list[tuple[str, Member]] = []
        for group in groups:
            for member in _first_writer(probe, gated(probe, group)):
                weight = member_tensor(probe, member)
                self._weights[member.module, member.tensor] = weight.detach()
                self._members.append((group.name, member))
                if group.name not in self.factors:
                    self.factors[group.name] = weight.new_ones(group.units, requires_grad=True)
        for module, tensor in self._weights:
            probe.get_submodule(module)._parameters.pop(tensor)

    def apply(self) -> None:
        """Multiplies the weights again, for a backward pass of its own."""
        weights = dict(self._weights)
        for name, member in self._members:
            weight = weights[member.module, member.tensor]
            positions = member.index.flatten().to(weight.device)
            own = self.factors[name].repeat_interleave(member.index.shape[1])
            along = weight.new_ones(weight.shape[member.dim]).index_copy(0, positions, own)
            shape = [1] * weight.dim()
            shape[member.dim] = -1
            weights[member.module, member.tensor] = weight * along.view(shape)
        for (module, tensor), weight in weights.items():
            setattr(self._probe.get_submodule(module), tensor, weight)


def _first_writer(probe: nn.Module, members: Sequence[Member]) -> list[Member]:
    """All readers; of writers those of one layer, because each has the whole effect."""
    writers = [member for member in members if role_of(probe, member) == "producer"]
    return [member for member in members if not writers or member.module == writers[0].module]
