"""Methods that prune while a network trains, and the removal of the channels they no longer use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Masks, Untouched
from prunecli.collective import first_decides, require_agreed_weights
from prunecli.copying import converted, copied
from prunecli.engine.hooks import Hook
from prunecli.errors import MethodError, VerificationError
from prunecli.inputs import Inputs, cast_inputs, logits, run_batch
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.methods.outcome import Pruned, PruneReport
from prunecli.methods.plans import agreed_plan, edits_of
from prunecli.methods.ranking import Selection
from prunecli.methods.repair import Clock, Repair
from prunecli.phases import phase
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.proof.active_neurons import with_active_neurons
from prunecli.surgery.proof.comparing import TOLERANCE
from prunecli.surgery.proof.verify import faulty_groups, verify
from prunecli.surgery.removal.compensate import Compensation
from prunecli.surgery.removal.slice import remove


class PruningHook(Hook):
    """A hook that prunes."""

    def keep(self) -> Mapping[str, Tensor]:
        """Returns which units stay once training is over.

        Returns:
            For each channel group that is to lose units, the indices of those that stay, sorted; empty where the method
            changes weights alone (sparse masks).
        """
        return {}

    def masks(self) -> Masks | None:
        """Returns what is to stay zero from now on, once training is over; None if nothing is."""
        return None

    def figures(self) -> Mapping[str, JsonValue]:
        """Returns figures for reports and the manifest, once training is over."""
        return {}


@dataclass(frozen=True)
class TrainedContext:
    """The starting point of a trained method.

    Attributes:
        selection: The trace of the network, and the groups that may shrink.
        example_inputs: Inputs the network accepts.
        generator: Source of every random number.
        epochs: Epochs of the run.
        validate: Returns the network's score on validation images as it is now; None where there are none.
        kept: Returns the pattern by which a layer is to stay as it is, if any.
    """

    selection: Selection
    example_inputs: Inputs
    generator: torch.Generator
    epochs: int
    validate: Callable[[], float | None] = lambda: None
    kept: Callable[[str], str | None] = lambda name: None


class TrainedMethod(Protocol):
    """What `MethodSpec.entry` of a trained method names."""

    def __call__(self, model: nn.Module, params: Any, context: TrainedContext) -> PruningHook:
        """Makes the hook that takes part in training `model`.

        Raises:
            MethodError: The network or the parameters do not allow it.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Removal:
    """How channels are removed after training.

    Attributes:
        method: Name of the method.
        selection: The groups that could be pruned.
        example_inputs: Inputs the network accepts.
        calibration: Batches for repairs; None: no repairs.
        compensation: How removed channels are folded into those that stay.
        recalibrate: Whether batch normalisation statistics are measured again.
        dead: Whether removed units do nothing, so that the result has to compute what the network computes.
    """

    method: str
    selection: Selection
    example_inputs: Inputs
    calibration: Iterable[Any] | None = None
    compensation: Compensation = "none"
    recalibrate: bool | None = False
    dead: bool = False


def remove_kept(model: nn.Module, keep: Mapping[str, Tensor], removal: Removal) -> Pruned:
    """Removes the units that a trained method does not keep from a copy of `model`, and verifies the result.

    Args:
        model: The trained network; not changed. It may be one whose unused channels are not zero.
        keep: Kept units by group name.
        removal: Groups, inputs and repairs.

    Raises:
        MethodError: A group does not exist, or would lose everything.
        RanksDiffer: Processes that work together are to keep other units, or come to other weights.
        VerificationError: The result is not the masked original.
    """
    clock, inputs = Clock(), removal.example_inputs
    trace, by_name = removal.selection.trace, {group.name: group for group in removal.selection.groups}
    untouched = list(removal.selection.untouched) if keep else []  # without, no channel was meant to go
    keep = agreed_plan(_losing_units(keep, by_name, removal.method))
    pruned, groups, error = copied(model), _chosen(by_name, keep), 0.0
    while groups:
        phase("remove")(remove)(pruned, groups, keep)
        clock.lap("remove")
        try:
            error = first_decides(partial(verify, model, pruned, trace, keep, inputs))
            break
        except VerificationError:
            faulty = first_decides(partial(faulty_groups, model, trace, keep, inputs))
            if not faulty:
                raise
        untouched += [Untouched(name=n, channels=by_name[n].channels, reason=why) for n, why in faulty.items()]
        keep = {name: units for name, units in keep.items() if name not in faulty}
        groups, pruned = _chosen(by_name, keep), copied(model)
    if removal.dead and groups:
        error = max(error, first_decides(partial(_changed, model, pruned, inputs)))
    clock.lap("verify")
    repair = Repair(removal.calibration, removal.compensation, removal.recalibrate, inputs)
    if groups:
        repair(model, pruned, groups, keep, clock)
    require_agreed_weights(pruned)
    whole = sum(group.channels for group in by_name.values())
    removed = sum((group.units - len(keep[group.name])) * group.channels_per_unit for group in groups)
    share = round(removed / whole, 6) if whole else 0.0
    report = PruneReport(
        method=removal.method,
        scope="trained",
        steps=1,
        target=None,
        requested=share,
        achieved=share,
        params_before=parameter_count(model),
        params_after=parameter_count(pruned),
        macs_before=count_macs(model, inputs),
        macs_after=count_macs(pruned, inputs),
        verify_error=error,
        compensated=repair.compensated,
        recalibrated=repair.recalibrated,
        seconds=clock.laps,
        edits=tuple(edits_of(groups, keep)),
        untouched=tuple(untouched),
    )
    return Pruned(pruned, report, trace)


def _changed(model: nn.Module, pruned: nn.Module, inputs: Inputs) -> float:
    """Difference between outputs, relative to the largest, also with neurons that fire.

    Raises:
        VerificationError: It is more than rounding.
    """
    pair = converted(model, torch.float64).eval(), converted(pruned, torch.float64).eval()
    exact = cast_inputs(inputs, device="cpu", dtype=torch.float64)
    difference = 0.0
    for first, second in filter(None, (pair, with_active_neurons(*pair, exact))):
        with torch.no_grad():
            expected, output = logits(run_batch(first, exact)), logits(run_batch(second, exact))
        scale = max(float(expected.abs().max()), torch.finfo(torch.float64).tiny)
        difference = max(difference, float((expected - output).abs().max()) / scale)
    if difference > TOLERANCE:
        raise VerificationError(
            f"removing channels that seemed dead changes the network's output by {difference:.1e}; nothing was saved"
        )
    return difference


def _losing_units(keep: Mapping[str, Tensor], by_name: Mapping[str, ChannelGroup], method: str) -> dict[str, Tensor]:
    """The entries of groups that lose units.

    Raises:
        MethodError: A group does not exist or would lose everything, or what stays is not given by sorted indices.
    """
    for name, units in keep.items():
        if name not in by_name:
            raise MethodError(f"{method}: {name} is not a group that may shrink")
        if units.numel() == 0:
            raise MethodError(f"{method}: nothing is left of {name}; prune less")
        # A mask of booleans is as long as the group, so it would look like a group that loses nothing.
        indices = units.dim() == 1 and units.dtype == torch.int64 and bool((units.diff() > 0).all())
        if not indices or not 0 <= int(units[0]) <= int(units[-1]) < by_name[name].units:
            raise MethodError(
                f"{method}: what stays of {name} has to be sorted indices (int64), each once, below "
                f"{by_name[name].units}"
            )
    return {name: units for name, units in keep.items() if len(units) < by_name[name].units}


def _chosen(by_name: Mapping[str, ChannelGroup], keep: Mapping[str, Tensor]) -> Sequence[ChannelGroup]:
    return [group for name, group in by_name.items() if name in keep]
