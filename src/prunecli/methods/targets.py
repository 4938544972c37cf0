"""From a target (half the parameters, half the time) to a channel ratio: trials on copies that are really pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from torch import nn

from prunecli.collective import first_decides
from prunecli.copying import copied
from prunecli.errors import MethodError, ModelError, TargetError, VerificationError
from prunecli.inputs import Inputs, explained, model_device
from prunecli.measure.counts import count_macs, count_on_meta, meta_copy, parameter_count
from prunecli.measure.energy import first_images, profile
from prunecli.measure.latency import time_model, time_paired
from prunecli.measure.neurons import spiking_neurons
from prunecli.methods.allocation import Allocation
from prunecli.methods.params import TARGETS, StructuralParams
from prunecli.methods.repair import Repair
from prunecli.naming import give_data, option
from prunecli.phases import phase, reached
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.removal.compensate import Compensation
from prunecli.surgery.removal.slice import remove

_TargetKind = Literal["params", "macs", "latency", "synops", "energy"]
Plan = Callable[[float], Allocation]
"""From a channel ratio to what stays where."""

_NAMES = {
    "params": "parameters",
    "macs": "MACs",
    "latency": "latency",
    "synops": "synaptic operations",
    "energy": "energy",
}
_TRIALS = {"params": 24, "macs": 24, "latency": 10, "synops": 10, "energy": 10}
_ROUNDS, _MOST_ROUNDS = 30, 200
_SECONDS = 2.0
"""Of the dense network's passes in one measurement, if it is fast enough for more rounds."""
_NEAR = 0.01
"""Shares of latency nearer than this cannot be told apart in so many rounds."""
_SLACK = {"params": 0.01, "macs": 0.01, "latency": 0.05, "synops": 0.05, "energy": 0.05}
SPIKE_TARGETS = ("synops", "energy")
"""Figures that depend on what the network is shown."""
_IMAGES = 64
"""Images on which those are measured, for every candidate the same."""


@dataclass(frozen=True)
class Target:
    """A target figure, as a share of the dense network's.

    Attributes:
        kind: Which figure.
        requested: The share that is to remain.
        achieved: The share that remains; None before anything was removed.
    """

    kind: _TargetKind
    requested: float
    achieved: float | None = None

    @property
    def name(self) -> str:
        """The figure in words."""
        return _NAMES[self.kind]


def target_of(params: StructuralParams) -> Target | None:
    """The target that was set, if any.

    Raises:
        MethodError: Two settings exclude each other.
    """
    given = {kind: getattr(params, kind) for kind in TARGETS if getattr(params, kind) is not None}
    asked = [option(kind, value) for kind, value in given.items()]
    if params.layer_ratio:
        asked.append(option("layer_ratio"))
    if asked and params.ratio != StructuralParams.ratio:
        asked.insert(0, option("ratio", params.ratio))
    if len(asked) > 1:
        raise MethodError(f"{' and '.join(asked)} say how much to remove each in its own way; give one of them")
    return next((Target(kind, value) for kind, value in given.items()), None)  # type: ignore[arg-type]


class Ruler:
    """Measures a figure of pruned networks, relative to the dense network.

    Args:
        kind: Which figure.
        dense: The network before anything was removed.
        inputs: Inputs it accepts.
        batches: Calibration batches, inputs or (inputs, labels); the first 64 images are used for figures of spikes.
        compensation: With `recalibrate`, how a candidate is repaired on those images before its spikes are counted:
            a network that was just cut fires much less than it will.
        recalibrate: Whether normalisations are measured again.

    Attributes:
        tried: The kept units of the last candidate.

    Raises:
        MethodError: A figure of spikes is asked for, and the network has none or there is no image.
    """

    def __init__(
        self,
        kind: _TargetKind,
        dense: nn.Module,
        inputs: Inputs,
        batches: Iterable[Any] | None = None,
        compensation: Compensation = "none",
        recalibrate: bool = False,
    ) -> None:
        self.kind, self._dense, self._inputs = kind, dense, inputs
        self._images: list[Inputs] = []
        if kind in SPIKE_TARGETS:
            self._images = _images_for(kind, dense, batches, inputs)
        self._repair = Repair(self._images or None, compensation, recalibrate, inputs)
        # Widths decide parameters and MACs; for time and spikes, and where values are read, tensors have to be there.
        self._on_meta = kind == "params" or (kind == "macs" and count_on_meta(dense, inputs) is not None)
        self._rounds = _ROUNDS
        if kind == "latency":
            first = first_decides(lambda: time_model(dense, inputs, rounds=5, device=model_device(dense)))
            each = first.median / 1e3
            self._rounds = max(_ROUNDS, min(_MOST_ROUNDS, int(_SECONDS / max(each, 1e-9))))
        self.tried: Keep = {}
        self._base = self._count(dense) if kind != "latency" else 0.0
        if self._base == 0 and kind in SPIKE_TARGETS:
            raise MethodError(f"--{kind}: no spike reaches any layer of the network; train it first")

    def share(self, model: nn.Module, groups: list[ChannelGroup], allocation: Allocation) -> float:
        """The share that would remain of the dense network's figure if `model` lost what `allocation` drops.

        Raises:
            VerificationError: The network does not run without these channels.
        """
        self.tried = allocation.keep
        trial = meta_copy(model) if self._on_meta else copied(model)
        remove(trial, groups, allocation.keep)
        if self.kind in SPIKE_TARGETS:
            self._repair(model, trial, groups, allocation.keep)
        with explained(f"--{self.kind}: the network does not run with fewer channels", VerificationError):
            try:
                return self.measure(trial)
            except ModelError as error:
                raise VerificationError(f"--{self.kind} with fewer channels: {error}") from error

    def measure(self, model: nn.Module) -> float:
        """A network's figure relative to the dense network's."""
        if self.kind == "latency":
            pair, inputs = [self._dense, model], [self._inputs, self._inputs]
            device = model_device(self._dense)
            return first_decides(lambda: time_paired(pair, inputs, rounds=self._rounds, device=device)).ratios[1]
        return self._count(model) / max(self._base, 1)

    def _count(self, model: nn.Module) -> float:
        if self.kind in SPIKE_TARGETS:
            activity = profile(model, self._images)
            return activity.synops if self.kind == "synops" else activity.energy_nj
        return parameter_count(model) if self.kind == "params" else count_macs(model, self._inputs).total

    @phase("search")
    def reach(self, share: float, model: nn.Module, groups: list[ChannelGroup], plan: Plan) -> Allocation:
        """The allocation whose share is nearest to `share`, by bisection on the channel ratio.

        Raises:
            TargetError: Even the most that the bounds allow leaves too much.
        """
        most = plan(1.0)
        least_share = self.share(model, groups, most)
        if least_share > 1 and self.kind in SPIKE_TARGETS:
            raise TargetError(
                f"{option(self.kind, share)} cannot be reached: the network hardly does anything, and a repaired "
                f"smaller one {least_share:.1f} times its {_NAMES[self.kind]}; train it first"
            )
        if least_share > share + _SLACK[self.kind]:
            raise TargetError(
                f"{option(self.kind, share)} cannot be reached: {least_share:.3f} of the {_NAMES[self.kind]} is the "
                f"least that {option('max_ratio')}, {option('min_width')} and the protected layers leave; ask for that "
                "or loosen them"
            )
        if self.kind == "latency":
            return self._approached(share, model, groups, plan, (most, least_share))
        best, best_share = most, least_share
        low, high = 0.0, 1.0
        known: dict[tuple[int, ...], float] = {}
        for number in range(_TRIALS[self.kind]):
            reached(number, _TRIALS[self.kind], "trial")
            middle = (low + high) / 2
            allocation = plan(middle)
            # The scores stay, so as many channels are the same channels, and widths are rounded.
            widths = tuple(len(allocation.keep[group.name]) for group in groups)
            if widths not in known:
                known[widths] = self.share(model, groups, allocation)
            left = known[widths]
            if abs(left - share) < abs(best_share - share):
                best, best_share = allocation, left
            low, high = (middle, high) if left > share else (low, middle)
        return best

    def _approached(
        self, share: float, model: nn.Module, groups: list[ChannelGroup], plan: Plan, most: tuple[Allocation, float]
    ) -> Allocation:
        """The same for a figure with noise: each trial is where a falling line through the means so far meets `share`.

        Bisection would never return from one wrong turn. Widths that come out again are measured again, and count with
        the mean. Where many layers change their width at one ratio, some do and some do not.
        """
        # In later steps of a schedule, the present network takes less than the dense one.
        present = 1.0 if parameter_count(model) == parameter_count(self._dense) else self.measure(model)
        tried = {0.0: _Trial(plan(0.0), [present]), 1.0: _Trial(most[0], [most[1]])}
        for number in range(_TRIALS[self.kind]):
            reached(number, _TRIALS[self.kind], "trial")
            ratios = np.array(sorted(tried))
            falling = np.minimum.accumulate([tried[ratio].mean for ratio in ratios])
            ratio = float(np.interp(-share, -falling, ratios))
            allocation = plan(ratio)
            trial = next((known for known in tried.values() if known.same(allocation)), None)
            if trial is not None and len(trial.shares) > 1:
                above = max((place for place, known in tried.items() if known.mean >= share), default=0.0)
                below = min((place for place, known in tried.items() if place > above), default=above)
                allocation = _mixed(tried[above].allocation, tried[below].allocation, ratio, above, below)
                trial = next((known for known in tried.values() if known.same(allocation)), None)
            if trial is None:
                trial = tried[ratio] = _Trial(allocation, [])
            trial.shares.append(self.share(model, groups, allocation))
            if abs(trial.mean - share) < _NEAR * share:
                break
        return min(tried.values(), key=lambda trial: abs(trial.mean - share)).allocation


def _mixed(wide: Allocation, narrow: Allocation, ratio: float, above: float, below: float) -> Allocation:
    """Between two allocations: as many layers as that ratio is far from the wide one, from the last, are narrow."""
    names = list(wide.keep)
    first = round(len(names) * (1 - (ratio - above) / max(below - above, 1e-12)))
    source = {name: wide if place < first else narrow for place, name in enumerate(names)}
    held_back = {name: reason for name in names if (reason := source[name].held_back.get(name)) is not None}
    return replace(wide, keep={name: source[name].keep[name] for name in names}, held_back=held_back)


@dataclass
class _Trial:
    """What stays where, and what it was measured to take."""

    allocation: Allocation
    shares: list[float]

    @property
    def mean(self) -> float:
        return sum(self.shares) / len(self.shares)

    def same(self, other: Allocation) -> bool:
        """Whether as many units stay; of equal numbers these are the same units."""
        return {name: len(keep) for name, keep in self.allocation.keep.items()} == {
            name: len(keep) for name, keep in other.keep.items()
        }


def _images_for(kind: str, model: nn.Module, batches: Iterable[Any] | None, like: Inputs) -> list[Inputs]:
    if not spiking_neurons(model):
        raise MethodError(f"{option(kind)} counts spikes, and the network has no spiking neurons; use {option('macs')}")
    images = list(first_images(batches, _IMAGES, like)) if batches is not None else []
    if not images:
        raise MethodError(f"{option(kind)} counts spikes and needs images: {give_data()}")
    return images
