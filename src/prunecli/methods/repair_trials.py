"""Which repair is best after a removal: each is tried on some samples and judged on others, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.inputs import Inputs
from prunecli.methods.likeness import Judge, divided
from prunecli.phases import step
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.reconstruction.reconstruct import Reconstructed, reconstruct
from prunecli.surgery.removal.compensate import Compensation, Folding, Readings
from prunecli.surgery.removal.head_basis import concentrated, kept_first
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm
from prunecli.surgery.removal.slice import remove


@dataclass(frozen=True)
class RepairTrial:
    """One repair, judged on calibration samples that it did not use, without labels.

    Attributes:
        compensation: How removed channels were folded into those that stay.
        recalibrated: Whether normalisation statistics were measured again.
        difference: From the dense network: of scores for classes, their Kullback-Leibler divergence in nats; of other
            outputs, the mean squared error relative to their variance.
        agreement: Share of samples that both networks put into the same class; None where outputs are no such scores.
        chosen: Whether it is the one that was kept.
    """

    compensation: Compensation
    recalibrated: bool
    difference: float
    agreement: float | None
    chosen: bool = False


@dataclass(frozen=True)
class Removal:
    """A removal that is to be repaired.

    Attributes:
        dense: The network before it.
        groups: The groups of the trace.
        keep: Kept units by group name.
        seed: Of what is drawn at random.
    """

    dense: nn.Module
    groups: Sequence[ChannelGroup]
    keep: Keep
    seed: int


class Compensator:
    """Makes up for a removal, in as many copies of the pruned network and in as many ways as are tried.

    Args:
        removal: What was removed.
        batches: Inputs.
        kinds: The ways that may be asked for; what all of them need of the dense network is measured once.
    """

    def __init__(self, removal: Removal, batches: Iterable[Inputs], kinds: Sequence[Compensation]) -> None:
        self._removal, self._batches = removal, batches
        self._second = any(kind in ("ls", "reconstruct") for kind in kinds)
        self._readings: Readings | None = None
        self._mixed: dict[str, Tensor] = {}

    def __call__(
        self, network: nn.Module, kind: Compensation, *, recalibrated: bool
    ) -> tuple[int, Reconstructed | None]:
        """Adjusts a network in place; returns how many layers it adjusted, and what reconstruction did.

        Args:
            network: The network after the removal, not adjusted yet.
            kind: How.
            recalibrated: Whether its normalisations are measured again afterwards.
        """
        assert kind != "auto", "that is decided elsewhere"
        if kind == "none":
            return 0, None
        if self._readings is None:
            self._prepare()
            assert self._readings is not None
        removal = self._removal
        _assign(network, self._mixed)
        # With new statistics to come, a constant shift before a normalisation does not matter.
        folding: Folding = "ls" if kind == "reconstruct" else kind
        adjusted = self._readings.fold(network, folding, intercept=recalibrated or kind == "reconstruct")
        adjusted = max(adjusted, len({name.rpartition(".")[0] for name in self._mixed}))
        if kind != "reconstruct":
            return adjusted, None
        done = reconstruct(
            removal.dense,
            network,
            removal.groups,
            removal.keep,
            self._batches,
            removal.seed,
            statistics=recalibrated,
        )
        return max(adjusted, len(done.solved)), done

    def _prepare(self) -> None:
        """Mixes dimensions of heads so that those that were removed matter least, and measures the dense network."""
        removal = self._removal
        dense, names = concentrated(
            removal.dense, removal.groups, kept_first(removal.groups, removal.keep), self._batches
        )
        if names:
            cut = copied(dense)
            remove(cut, removal.groups, removal.keep)
            self._mixed = {name: cut.get_parameter(name).detach() for name in names}
            self._removal = removal = replace(removal, dense=dense)
        self._readings = Readings(removal.dense, removal.groups, removal.keep, self._batches, second=self._second)


def _assign(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            network.get_parameter(name).copy_(tensor)


@dataclass(frozen=True)
class Repaired:
    """A repaired network.

    Attributes:
        network: The network.
        compensated: Layers that were adjusted.
        recalibrated: Batch normalisations that were measured.
        reconstruction: What reconstruction did; None where there was none.
    """

    network: nn.Module
    compensated: int
    recalibrated: int
    reconstruction: Reconstructed | None


@dataclass(frozen=True)
class BestRepair(Repaired):
    """The best of several repairs.

    Attributes:
        trials: All of them.
    """

    trials: tuple[RepairTrial, ...]

    @property
    def best(self) -> RepairTrial:
        """The one that was chosen."""
        return next(trial for trial in self.trials if trial.chosen)


def repaired(
    compensator: Compensator, network: nn.Module, batches: Iterable[Inputs], kind: Compensation, *, recalibrated: bool
) -> Repaired:
    """Repairs a network in place.

    Args:
        compensator: Made for the removal and the same batches.
        network: The network after the removal.
        batches: Inputs.
        kind: How to compensate.
        recalibrated: Whether statistics are measured again.
    """
    compensated, reconstruction = compensator(network, kind, recalibrated=recalibrated)
    measured = recalibrate_batchnorm(network, batches) if recalibrated else 0
    return Repaired(network, compensated, measured, reconstruction)


def best_repair(
    removal: Removal, after: nn.Module, batches: list[Inputs], compensation: Compensation, recalibrate: bool | None
) -> BestRepair:
    """Tries repairs on copies of a pruned network and gives it the weights of the best.

    What adjusts no layer is not tried beside doing nothing.

    Args:
        removal: What was removed.
        after: The pruned network, changed in place.
        batches: Calibration samples, of which the last quarter is held out.
        compensation: The only one to try, or "auto".
        recalibrate: Whether statistics are measured again; None: both are tried.

    Raises:
        NotComparable: The network's outputs are of other sizes than those of the dense one; it has not changed.
    """
    fitted, held_out = divided(batches)
    judge = Judge(removal.dense, held_out)
    kinds = [kind for kind in get_args(Compensation) if kind != "auto"] if compensation == "auto" else [compensation]
    choices = (False, True) if recalibrate is None else (recalibrate,)
    compensator = Compensator(removal, fitted, kinds)
    trials: list[RepairTrial] = []
    best: tuple[int, Repaired] | None = None  # the others' networks are not kept
    ways = list(product(kinds, choices if _has_statistics(after) else (False,)))
    for number, (kind, recalibrated) in enumerate(ways):
        with step(number, len(ways), "trial"):
            tried = repaired(compensator, copied(after), fitted, kind, recalibrated=recalibrated)
        if tried.compensated == 0 and kind != "none" and "none" in kinds:
            continue
        trials.append(RepairTrial(kind, recalibrated, *judge(tried.network)))
        if best is None or trials[-1].difference < trials[best[0]].difference:
            best = len(trials) - 1, tried
    assert best is not None, "at least one repair is tried"
    number, kept = best
    _put_into(after, kept.network)
    trials[number] = replace(trials[number], chosen=True)
    return BestRepair(after, kept.compensated, kept.recalibrated, kept.reconstruction, tuple(trials))


def _has_statistics(network: nn.Module) -> bool:
    return any(isinstance(getattr(module, "running_mean", None), Tensor) for module in network.modules())


def _put_into(network: nn.Module, other: nn.Module) -> None:
    """Gives a network the weights and statistics of a copy of it."""
    with torch.no_grad():
        for own, theirs in ((network.parameters(), other.parameters()), (network.buffers(), other.buffers())):
            for tensor, source in zip(own, theirs, strict=True):
                tensor.copy_(source)
