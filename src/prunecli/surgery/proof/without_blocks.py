"""Proof that taking blocks out of a network equals switching them off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import converted, sharing_parameters
from prunecli.errors import VerificationError, described
from prunecli.inputs import Inputs, call, cast_inputs, named_tensors
from prunecli.phases import phase, reached
from prunecli.surgery.blocks.residual import ResidualBlock
from prunecli.surgery.blocks.switching import switched_off
from prunecli.surgery.proof.active_neurons import with_active_neurons
from prunecli.surgery.proof.cached import check_cache
from prunecli.surgery.proof.comparing import (
    SINGLE_TOLERANCE,
    TOLERANCE,
    NotComparableError,
    consisting_of,
    in_turn,
    randomise,
    relative_difference,
)
from prunecli.surgery.proof.randomness import Repeated
from prunecli.surgery.proof.trial_inputs import drawn_like, drawn_samples, reversed_tokens
from prunecli.surgery.removal.rebuild import state_tensors
from prunecli.surgery.tracing.running import plain_kernels, seeded
from prunecli.surgery.tracing.trial import RUNTIME_ERRORS

_LAYER_DROP = ("layerdrop", "layer_drop")
"""Attributes with the rate at which whole layers are left out in training: one draw for each layer of the list."""
_PER_LAYER = ("hidden_states", "attentions")
"""Ends of the names of outputs that have an entry for every block."""


@phase("verify")
def verify_without_blocks(
    original: nn.Module,
    pruned: nn.Module,
    blocks: Sequence[ResidualBlock],
    former: Mapping[str, str],
    inputs: Inputs,
) -> float:
    """Checks that `pruned` computes what `original` computes while `blocks` pass on what they are given.

    Both run in float64, on the inputs, on others drawn from their values and in training mode with equal random
    numbers. Tensors with equal entries are random in both, because a branch that ends in a zero scale hides mistakes.
    Spiking networks are compared a second time with thresholds at which their neurons fire. A network that keeps keys
    and values for the next token has to give the same scores with them as without.

    Args:
        original: The network with the blocks.
        pruned: The network without them.
        blocks: The blocks.
        former: From the names of the pruned network's modules to those in the original.
        inputs: Inputs that both accept.

    Returns:
        Largest absolute difference divided by the largest absolute reference output.

    Raises:
        VerificationError: They differ by more than `TOLERANCE`, or by `SINGLE_TOLERANCE` for a network that only runs
            in float32.
    """
    problem: NotComparableError | None = None
    for dtype, tolerance in ((torch.float64, TOLERANCE), (torch.float32, SINGLE_TOLERANCE)):
        probe, result = _probes(original, pruned, former, dtype)
        exact = cast_inputs(inputs, device="cpu", dtype=dtype)
        try:
            difference = _difference(probe, result, blocks, former, exact)
        except NotComparableError as error:
            problem = problem or error
            continue
        if difference > tolerance:
            raise VerificationError(
                f"the network without its blocks differs from the original with them switched off by "
                f"{difference:.2e} (relative); nothing was saved"
            )
        check_cache(probe, result, exact, tolerance)
        return difference
    assert problem is not None
    raise problem


def _probes(
    original: nn.Module, pruned: nn.Module, former: Mapping[str, str], dtype: torch.dtype
) -> tuple[nn.Module, nn.Module]:
    """The two networks to compare, without constant tensors.

    Raises:
        VerificationError: A tensor of the pruned network is not the original's.
    """
    probe = converted(original, dtype).eval()
    random, whole = randomise(probe), state_tensors(probe)
    names = {name: f"{former[module]}.{leaf}".lstrip(".") for name in state_tensors(pruned)
             for module, _, leaf in [name.rpartition(".")] if module in former}  # fmt: skip
    expected = {name: whole[own] for name, own in names.items() if own in whole}
    result = consisting_of(pruned, expected, {name for name, own in names.items() if own in random})
    for network in (probe, result):
        _without_layer_drop(network)
        in_turn(network)
    return probe, result


def _without_layer_drop(network: nn.Module) -> None:
    for module in network.modules():
        for owner in (module, getattr(module, "config", None)):
            for name in vars(owner) if owner is not None and hasattr(owner, "__dict__") else ():
                if name.endswith(_LAYER_DROP) and isinstance(getattr(owner, name), float):
                    object.__setattr__(owner, name, 0.0)


def _difference(
    probe: nn.Module, result: nn.Module, blocks: Sequence[ResidualBlock], former: Mapping[str, str], inputs: Inputs
) -> float:
    """The largest difference over all trials with outputs that are not all zero.

    Raises:
        NotComparableError: The original does not run on the inputs, or all its outputs are zero.
        VerificationError: The pruned network does not run, or returns other tensors.
    """
    others = [*drawn_like(inputs, least=1), reversed_tokens(inputs)]
    trials: list[tuple[Any, bool]] = [(inputs, False), *((other, False) for other in others if other is not None)]
    trials += [(samples, True) for count in (2, 1) if (samples := _samples(inputs, count)) is not None]
    pairs = [(probe, result)]
    with switched_off(probe, blocks):
        firing = _firing(probe, result, inputs, former)
        pairs += [firing] if firing is not None else []
        differences: list[float] = []
        for half, (first, second) in enumerate(pairs):
            for number, (trial, training) in enumerate(trials):
                reached(half * len(trials) + number, len(pairs) * len(trials), "probe")
                try:
                    reference = _run(first, trial, training)
                except RUNTIME_ERRORS as error:
                    if trial is inputs:
                        raise NotComparableError(f"the network does not run: {described(error)}") from error
                    continue
                if any(bool(tensor.any()) for _, tensor in reference):
                    differences.append(_compared(reference, _pruned_outputs(second, trial, training)))
    if not differences:
        raise NotComparableError("the network's output is zero for every input tried, so nothing can be compared")
    return max(differences)


def _samples(inputs: Inputs, count: int) -> Any:
    try:
        return drawn_samples(inputs, count)
    except RUNTIME_ERRORS:  # inputs of unlike lengths
        return None


def _firing(
    probe: nn.Module, result: nn.Module, inputs: Inputs, former: Mapping[str, str]
) -> tuple[nn.Module, nn.Module] | None:
    with plain_kernels(), seeded():
        try:
            return with_active_neurons(probe, result, inputs, former)
        except RUNTIME_ERRORS as error:
            raise NotComparableError(f"the network does not run: {described(error)}") from error


def _run(network: nn.Module, inputs: Inputs, training: bool) -> list[tuple[str, Tensor]]:
    running = sharing_parameters(network).train(
        training
    )  # what passes change, statistics and states of neurons, is left behind
    with torch.no_grad(), plain_kernels(), seeded(), Repeated():  # type: ignore[no-untyped-call]
        return named_tensors(call(running, inputs))


def _pruned_outputs(network: nn.Module, inputs: Inputs, training: bool) -> list[tuple[str, Tensor]]:
    try:
        return _run(network, inputs, training)
    except RUNTIME_ERRORS as error:
        raise VerificationError(
            f"the network does not run without the block: {described(error)}; nothing was saved"
        ) from error


def _compared(reference: list[tuple[str, Tensor]], outputs: list[tuple[str, Tensor]]) -> float:
    """The largest difference between outputs; of those with an entry for every block, entries may be missing.

    Raises:
        VerificationError: There are others, or they have other shapes.
    """
    worst, position = 0.0, 0
    for name, expected in reference:
        per_layer = any(part.endswith(_PER_LAYER) for part in name.split("."))
        found = outputs[position][1] if position < len(outputs) else None
        alike = found is not None and found.shape == expected.shape
        difference = relative_difference(expected, found) if alike and found is not None else float("inf")
        if difference > TOLERANCE and per_layer and len(outputs) < len(reference):
            continue
        if found is None or not alike:
            raise VerificationError(f"without its blocks the network returns other tensors ({name or 'its output'})")
        worst, position = max(worst, difference), position + 1
    if position < len(outputs):
        raise VerificationError(f"without its blocks the network returns more ({outputs[position][0]})")
    return worst
