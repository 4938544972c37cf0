"""The parts of `enhanced`: each gives every unit a score made of a few statistics, by their ranks within the group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunecli.criteria.activity import Activity, limit_of
from prunecli.criteria.base import Calibration, matrices_of, member_values, sum_by_unit
from prunecli.criteria.gradient import gate_gradients
from prunecli.criteria.hessian import hap_estimate
from prunecli.criteria.ranks import ranks
from prunecli.criteria.readers import by_unit, column_norms, tappable, watch_readers
from prunecli.criteria.samples import FirstBatch, SomeSamples, Turns
from prunecli.criteria.surgeon import Covariance, Covariances, Readers, Surgeon
from prunecli.ranks import alone, gathered, rank, summed_by_name, together
from prunecli.surgery.groups import ChannelGroup

Scores = dict[str, Tensor]
"""By group name, shape (units,), float64."""


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        scores: Its scores, of the groups that it can rank.
        halves: Its scores from either half of the data; None for a part that does not look at data.
    """

    scores: Scores
    halves: tuple[Scores, Scores] | None = None


def mixed(*components: tuple[float, Tensor]) -> Tensor:
    """The weighted mean of ranks of several statistics, shape (units,).

    Args:
        *components: Weights, and the statistics of all units of a group.
    """
    return torch.stack([weight * ranks(values) for weight, values in components]).sum(dim=0)


def magnitude_part(model: nn.Module, groups: Sequence[ChannelGroup]) -> Part:
    """Euclidean norms of the weights that write a unit, and of those that read it, half and half."""
    scores: Scores = {}
    for group in groups:
        sides = [_joint_norm(model, group, "producer"), _joint_norm(model, group, "consumer")]
        known = [side for side in sides if side is not None]
        if known:
            scores[group.name] = mixed(*((1 / len(known), side) for side in known))
    return Part(scores)


def _joint_norm(model: nn.Module, group: ChannelGroup, role: str) -> Tensor | None:
    members = matrices_of(model, group, role)  # type: ignore[arg-type]
    squares = [sum_by_unit(member_values(model, member).square().sum(dim=1), member) for member in members]
    return torch.stack(squares).sum(dim=0).sqrt() if squares else None


def observed_parts(
    model: nn.Module, groups: Sequence[ChannelGroup], data: SomeSamples, names: Sequence[str], ridge: float
) -> dict[str, Part]:
    """The parts that look at activations, from one pass without gradients: those of `names` among the following.

    activation: deviation times the norm of the weights that read it (1/2), firing rate (1/5), entropy over 32 bins
    (1/5) and the range from the 5 % to the 95 % quantile (1/10). cooperative: the norm of the weights that read it
    times the variance that the other channels do not explain, 1 / (H^-1)_jj as in `prunecli.criteria.obs`; added up
    over readers.

    Args:
        model: The network.
        groups: Its groups.
        data: Calibration data.
        names: What is asked for.
        ridge: Added to covariances, relative to the mean of their diagonal.
    """
    turns, readers = Turns(data, shared=True), Readers(model, groups)
    activities: tuple[dict[str, Activity], dict[str, Activity]] = ({}, {})
    covariances: tuple[Covariances, Covariances] = ({}, {})
    limits = _first_limits(model, groups, data) if "activation" in names else {}

    def see(name: str, rows: Tensor) -> None:
        if "activation" in names:
            seen = Activity.of(rows, limits.setdefault(name, limit_of(rows)))
            own = activities[turns.half]
            own[name] = own[name] + seen if name in own else seen
        if "cooperative" in names:
            readers.see(covariances[turns.half], name, rows)

    watch_readers(model, groups, turns, see)
    everywhere = gathered(limits)
    known = {name: limit for found in everywhere for name, limit in found.items()}
    if any(known[name] != limit for found in everywhere for name, limit in found.items()):
        with alone():  # a layer that the first batch does not run: only who looks at all batches knows its limit
            return observed_parts(model, groups, data, names, ridge)
    activities = Activity.over_ranks(activities[0], known), Activity.over_ranks(activities[1], known)
    covariances = Covariance.over_ranks(covariances[0]), Covariance.over_ranks(covariances[1])
    parts: dict[str, Part] = {}
    if "activation" in names:
        parts["activation"] = _in_halves(activities, lambda seen: _activation_scores(model, groups, seen))
    if "cooperative" in names:
        parts["cooperative"] = _in_halves(
            covariances, lambda seen: _cooperation_scores(dict(readers.surgeons(dict(seen), ridge)))
        )
    return parts


def _first_limits(model: nn.Module, groups: Sequence[ChannelGroup], data: SomeSamples) -> dict[str, float]:
    """Limits of histograms, which the first batch decides: whose batch that is, finds them on the way."""
    limits: dict[str, float] = {}
    if rank() > 0:
        first = FirstBatch(data)

        def see(name: str, rows: Tensor) -> None:
            limits.setdefault(name, limit_of(rows))

        watch_readers(model, groups, first, see)
    return limits


def _in_halves(halves: tuple[dict, dict], score: Callable[[Mapping], Scores]) -> Part:  # type: ignore[type-arg]
    first, second = halves
    both = {key: first[key] + second[key] if key in second else first[key] for key in first} | {
        key: value for key, value in second.items() if key not in first
    }
    return Part(score(both), (score(first), score(second)))


def _activation_scores(model: nn.Module, groups: Sequence[ChannelGroup], seen: Mapping[str, Activity]) -> Scores:
    scores: Scores = {}
    for group in groups:
        members = [member for member in tappable(model, group) if member.name in seen]
        if not members:
            continue

        def total(statistic: Callable[[str], Tensor], of: list = members) -> Tensor:  # type: ignore[type-arg]
            return torch.stack([by_unit(model, member, statistic(member.name)) for member in of]).sum(dim=0)

        weighted = torch.stack(
            [by_unit(model, each, seen[each.name].moments.std * column_norms(model, each)) for each in members]
        ).sum(dim=0)
        scores[group.name] = mixed(
            (0.5, weighted),
            (0.2, total(lambda name: seen[name].rate)),
            (0.2, total(lambda name: seen[name].entropy())),
            (0.1, total(lambda name: seen[name].range())),
        )
    return scores


def _cooperation_scores(surgeons: Mapping[str, list[Surgeon] | str]) -> Scores:
    return {
        name: torch.stack([each.strengths() * each.own_variances() for each in own]).sum(dim=0)
        for name, own in surgeons.items()
        if not isinstance(own, str)
    }


@dataclass
class _Slopes:
    """Sums over samples of the derivatives by a group's gates."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    sizes: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    squares: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    signs: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def __add__(self, other: _Slopes) -> _Slopes:
        return _Slopes(
            self.count + other.count,
            self.total + other.total,
            self.sizes + other.sizes,
            self.squares + other.squares,
            self.signs + other.signs,
        )

    @classmethod
    def over_ranks(cls, seen: Mapping[str, _Slopes]) -> dict[str, _Slopes]:
        if not together():
            return dict(seen)
        sums = summed_by_name(
            {
                name: torch.stack([torch.full_like(one.total, one.count), one.total, one.sizes, one.squares, one.signs])
                for name, one in seen.items()
            }
        )
        return {name: cls(int(own[0, 0]), *own[1:]) for name, own in sums.items()}

    def score(self) -> Tensor:
        mean = self.total / self.count
        error = ((self.squares / self.count - mean.square()).clamp_min(0) / self.count).sqrt()
        steadiness = mean.abs() / error.clamp_min(torch.finfo(torch.float64).tiny)
        return mixed((0.5, self.sizes / self.count), (0.25, steadiness), (0.25, (self.signs / self.count).abs()))


def gradient_part(model: nn.Module, groups: Sequence[ChannelGroup], data: Calibration) -> Part:
    """The derivative by a unit's gate over samples, from one backward pass for each batch.

    Its mean size (1/2), the size of its mean by the mean's standard error (1/4), and the size of its mean sign (1/4).
    """
    halves: tuple[dict[str, _Slopes], dict[str, _Slopes]] = ({}, {})
    turns = Turns(data, shared=True)
    for gates in gate_gradients(model, groups, data, turns):
        for name, rows in gates.items():
            seen = _Slopes(len(rows), rows.sum(0), rows.abs().sum(0), rows.square().sum(0), rows.sign().sum(0))
            own = halves[turns.half]
            own[name] = own[name] + seen if name in own else seen
    halves = _Slopes.over_ranks(halves[0]), _Slopes.over_ranks(halves[1])
    return _in_halves(halves, lambda seen: {name: slopes.score() for name, slopes in seen.items()})


def hessian_part(model: nn.Module, groups: Sequence[ChannelGroup], data: Calibration) -> Part:
    """The score of `hap`."""
    estimate = hap_estimate(model, groups, data)
    estimate.note(data.found)
    return Part(estimate.scores, estimate.halves)
