"""Proof that removing equals masking: both networks are run in float64 and compared."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import VerificationError
from prunecli.measure.forward import Inputs, call, cast_inputs, output_tensors
from prunecli.surgery.groups import ChannelGroup, Keep, dropped_units
from prunecli.surgery.slice import remove

TOLERANCE = 1e-9
"""Largest accepted difference relative to the largest output; a correct removal in float64 stays below 1e-12."""
_SINGLE_TOLERANCE = 1e-4
"""The same for networks that only run in float32."""


def verify(original: nn.Module, pruned: nn.Module, groups: Sequence[ChannelGroup], keep: Keep, inputs: Inputs) -> float:
    """Checks that `pruned` computes what `original` computes with the removed units masked.

    The mask is applied where every reader of a removed channel takes it in, which is after normalisation,
    activation and gating; so a unit that is removed contributes exactly nothing to the reference.

    Args:
        original: The model before removal.
        pruned: The model after removal and before compensation.
        groups: The groups of `trace`.
        keep: Kept unit indices by group name.
        inputs: Inputs both models accept.

    Returns:
        Largest absolute difference divided by the largest absolute reference output.

    Raises:
        VerificationError: They differ by more than `TOLERANCE`; the message names the first group at fault.
    """
    difference = _difference(original, pruned, groups, keep, inputs)
    if difference <= TOLERANCE:
        return difference
    name = next(iter(_faults(original, groups, inputs, keep)), None)
    where = f"at {name}" if name else "though each layer alone is right: the sliced weights are not the original's"
    raise VerificationError(
        f"the pruned network differs from the masked original by {difference:.2e} (relative) {where}; nothing was saved"
    )


def faulty_groups(model: nn.Module, groups: Sequence[ChannelGroup], inputs: Inputs) -> dict[str, str]:
    """Tries a seeded half of every group's units on a copy whose degenerate weights are replaced by random ones.

    Random weights matter: a residual branch that ends in a zero-initialised scale hides any mistake before it.

    Returns:
        The reason by group name, for groups whose removal is not the same as masking. Empty when all are right.
    """
    probe = _randomised(model)
    generator = torch.Generator().manual_seed(0)
    keep = {
        group.name: torch.randperm(group.units, generator=generator)[: max(1, group.units // 2)].sort().values
        for group in groups
    }
    try:
        trial = copy.deepcopy(probe)
        remove(trial, groups, keep)
        if _difference(probe, trial, groups, keep, inputs) <= TOLERANCE and _trains(trial, probe, inputs):
            return {}
    except Exception:  # any failure of the joint trial is looked into group by group below
        pass
    return _faults(probe, groups, inputs, keep)


def _faults(model: nn.Module, groups: Sequence[ChannelGroup], inputs: Inputs, keep: Keep) -> dict[str, str]:
    faults: dict[str, str] = {}
    for group in groups:
        if group.name not in keep:
            continue
        alone = {group.name: keep[group.name]}
        try:
            trial = copy.deepcopy(model)
            remove(trial, [group], alone)
            if (difference := _difference(model, trial, [group], alone, inputs)) > TOLERANCE:
                faults[group.name] = f"removing its channels is not the same as masking them (off by {difference:.1e})"
            elif not _trains(trial, model, inputs):
                faults[group.name] = "a branch that only training uses reads its channels"
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0][:120]
            faults[group.name] = f"the network does not run without its channels ({type(error).__name__}: {first})"
    return faults


def _trains(trial: nn.Module, original: nn.Module, inputs: Inputs) -> bool:
    """Whether a pruned copy runs in training mode, where auxiliary branches join in; true if the original does not."""

    def runs(model: nn.Module) -> bool:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                call(copy.deepcopy(model).train(), _doubled_batch(inputs))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            return False
        return True

    return runs(trial) or not runs(original)


def _doubled_batch(inputs: Inputs) -> Inputs:
    """Every tensor twice along its first dimension: batch normalisation cannot train on one value."""
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs])
    if isinstance(inputs, Mapping):
        return {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}
    return tuple(torch.cat([tensor, tensor]) for tensor in inputs)


def _difference(
    original: nn.Module, pruned: nn.Module, groups: Sequence[ChannelGroup], keep: Keep, inputs: Inputs
) -> float:
    """Largest difference relative to the largest output, scaled so that one bound serves both precisions."""
    dtype = _precision(original, inputs)
    masked = _evaluated(original, dtype)
    for group in groups:
        if group.name in keep:
            _mask_readers(masked, group, dropped_units(group, keep[group.name]))
    exact = cast_inputs(inputs, device="cpu", dtype=dtype)
    with torch.no_grad():
        references = output_tensors(call(masked, exact))
        outputs = output_tensors(call(_evaluated(pruned, dtype), exact))
    if not references or [tuple(t.shape) for t in references] != [tuple(t.shape) for t in outputs]:
        raise VerificationError("the pruned network's output has another shape")
    worst = max(_relative(reference, output) for reference, output in zip(references, outputs, strict=True))
    return worst if dtype == torch.float64 else worst * (TOLERANCE / _SINGLE_TOLERANCE)


def _relative(reference: Tensor, output: Tensor) -> float:
    finite = torch.isfinite(reference)
    if not bool(finite.any()):
        raise VerificationError("the network's output is not finite, so nothing can be compared; check its weights")
    # What is not finite has to be the same infinity, or not a number, in both.
    if not torch.equal(reference[~finite].nan_to_num(0.0), output[~finite].nan_to_num(0.0)):
        return float("inf")
    scale = max(float(reference[finite].abs().max()), torch.finfo(reference.dtype).tiny)
    return float((reference[finite] - output[finite]).abs().nan_to_num(float("inf")).max()) / scale


def _precision(model: nn.Module, inputs: Inputs) -> torch.dtype:
    """float64, except for networks that cast to float32 inside and so cannot run in it."""
    try:
        with torch.no_grad():
            call(_evaluated(model, torch.float64), cast_inputs(inputs, device="cpu", dtype=torch.float64))
    except RuntimeError:
        return torch.float32
    return torch.float64


def _mask_readers(model: nn.Module, group: ChannelGroup, dropped: Tensor) -> None:
    for member in group.members:
        if member.role != "consumer":
            continue
        module = model.get_submodule(member.module)
        positions = _input_positions(module, member.index[dropped].flatten())

        def silence(_: nn.Module, args: tuple[Any, ...], positions: Tensor = positions) -> tuple[Any, ...]:
            channels = args[0].movedim(-1 if isinstance(_, nn.Linear) else 1, 0).clone()
            channels[positions] = 0
            return (channels.movedim(0, -1 if isinstance(_, nn.Linear) else 1), *args[1:])

        module.register_forward_pre_hook(silence)


def _input_positions(module: nn.Module, positions: Tensor) -> Tensor:
    """Input channels behind weight columns: a grouped convolution reads one channel of every block per column."""
    blocks = getattr(module, "groups", 1)
    if blocks == 1 or isinstance(module, nn.Linear):
        return positions
    block = int(module.in_channels) // blocks  # type: ignore[arg-type]
    return (torch.arange(blocks)[:, None] * block + positions[None, :]).flatten()


def _evaluated(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(model).cpu().to(dtype).eval()


def _randomised(model: nn.Module) -> nn.Module:
    """A copy whose constant tensors (fresh scales, shifts and statistics) are drawn from U(0.5, 1.5)."""
    probe = copy.deepcopy(model).cpu()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*probe.parameters(), *probe.buffers()):
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return probe
