"""Proof that removing equals masking: both networks are run in float64 and compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunecli.copying import converted, copied, sharing_parameters
from prunecli.errors import VerificationError, described
from prunecli.inputs import Inputs, call, cast_inputs, output_tensors
from prunecli.naming import option
from prunecli.phases import phase, reached
from prunecli.surgery.axes import ChannelMasks, kept_mask
from prunecli.surgery.groups import ChannelGroup, Keep, Member, dropped_units
from prunecli.surgery.outputs import chosen_outputs
from prunecli.surgery.proof.active_neurons import with_active_neurons
from prunecli.surgery.proof.comparing import (
    SINGLE_TOLERANCE,
    TOLERANCE,
    NotComparableError,
    randomise,
    relative_difference,
)
from prunecli.surgery.proof.masked import OTHER_OPERATORS, OtherOperatorsError, channel_masks, run_masked
from prunecli.surgery.proof.randomness import Draws, Replayed
from prunecli.surgery.proof.trial_inputs import drawn_like, drawn_samples
from prunecli.surgery.removal.rebuild import state_tensors
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.taps import channels_last, layer_input
from prunecli.surgery.tracing.labels import Label
from prunecli.surgery.tracing.running import plain_kernels, seeded
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.traced import Trace
from prunecli.surgery.tracing.trial import RUNTIME_ERRORS
from prunecli.widened import as_stored, plain


@phase("verify")
def verify(original: nn.Module, pruned: nn.Module, traced: Trace, keep: Keep, inputs: Inputs) -> float:
    """Checks that `pruned` computes what `original` computes with the removed units masked.

    The mask is applied where a removed channel is emitted, after every operator that writes to it; normalisations and
    other means over channels see the kept channels alone. Tensors with equal entries (fresh scales, shifts and
    statistics) are replaced by random ones in both networks, because a branch that ends in a zero scale would hide
    any mistake. They are compared in training mode too, with equal random numbers. Spiking networks are compared a
    second time with thresholds at which their neurons fire.

    Args:
        original: The model before removal.
        pruned: The model after removal and before compensation.
        traced: The trace of `original`.
        keep: Kept unit indices by group name.
        inputs: Inputs both models accept.

    Returns:
        Largest absolute difference divided by the largest absolute reference output.

    Raises:
        VerificationError: They differ by more than `TOLERANCE`, or by `SINGLE_TOLERANCE` for a network that computes in
            float32; the message names the first layer that differs.
    """
    if traced.part is not None:
        name, inner = traced.part.module, traced.part.trace
        own = traced.part.own(keep)
        return verify(original.get_submodule(name), pruned.get_submodule(name), inner, own, traced.part.inputs)
    probe, sliced = _probes(original, pruned, traced, keep)
    exact = cast_inputs(inputs, device="cpu", dtype=traced.dtype)
    try:
        difference = _difference(probe, sliced, traced, keep, exact)
    except OtherBranchesError:
        traced = _traced_again(probe, traced, keep, exact)
        difference = _difference(probe, sliced, traced, keep, exact)
    if difference > _tolerance(traced):
        where = _first_difference(probe, sliced, traced, keep, exact)
        raise VerificationError(
            f"the pruned network differs from the masked original by {difference:.2e} (relative) at {where}; "
            "nothing was saved"
        )
    return difference


@phase("verify")
def faulty_groups(original: nn.Module, traced: Trace, keep: Keep, inputs: Inputs) -> dict[str, str]:
    """Reasons by name for the groups that make removing differ from masking, found by halving."""
    if traced.part is not None:
        part = traced.part
        by_name = faulty_groups(original.get_submodule(part.module), part.trace, part.own(keep), part.inputs)
        return {f"{part.module}.{name}": reason for name, reason in by_name.items()}
    exact = cast_inputs(inputs, device="cpu", dtype=traced.dtype)
    faulty: dict[str, str] = {}

    def search(names: Sequence[str]) -> None:
        part = {name: keep[name] for name in names}
        try:
            pruned = copied(original)
            remove(pruned, traced.groups, part)
            difference = _difference(*_probes(original, pruned, traced, part), traced, part, exact)
            reason = f"removing its channels is not the same as masking them (off by {difference:.1e})"
        except NotComparableError:
            raise
        except VerificationError as error:
            difference, reason = float("inf"), str(error).removesuffix("; nothing was saved")
        if difference <= _tolerance(traced):
            return
        if len(names) == 1:
            faulty[names[0]] = reason
            return
        before = len(faulty)
        search(names[: len(names) // 2])
        search(names[len(names) // 2 :])
        if len(faulty) == before:  # wrong only together
            faulty.update(dict.fromkeys(names, reason))

    search(list(keep))
    return faulty


def differs_from_removal(
    original: nn.Module, close: Callable[[nn.Module], nn.Module], traced: Trace, keep: Keep, inputs: Inputs
) -> bool:
    """Whether a network with closed units computes something else than one without them, in evaluation mode.

    Layers that read a closed unit have to get nothing of it: a difference that is lost further on counts too.

    Args:
        original: The network; not changed.
        close: Closes the units that are not kept in a copy, in place or with hooks, and returns it.
        traced: The trace of `original`.
        keep: Kept unit indices by group name.
        inputs: Inputs the network accepts.
    """
    pruned = copied(original)
    remove(pruned, traced.groups, keep)
    probe, sliced = _probes(original, pruned, traced, keep)
    closed = close(probe)
    exact = cast_inputs(inputs, device="cpu", dtype=traced.dtype)
    firing = with_active_neurons(closed, sliced, exact)
    names = traced.followed.kept_outputs if traced.followed is not None else None
    for trial in (exact, *drawn_like(exact, least=1)):
        for first, second in ((closed, sliced), *((firing,) if firing is not None else ())):
            masked, leaks = sharing_parameters(first), list[str]()
            _watch_leaks(masked, traced, keep, leaks)
            with torch.no_grad(), plain_kernels(), seeded():
                reference = chosen_outputs(call(masked, trial), names)
            with torch.no_grad(), plain_kernels(), seeded():
                output = chosen_outputs(call(sharing_parameters(second), trial), names)
            differences = [relative_difference(a, b) for a, b in zip(reference, output, strict=True)]
            if leaks or any(difference > _tolerance(traced) for difference in differences):
                return True
    return False


def _watch_leaks(network: nn.Module, traced: Trace, keep: Keep, leaks: list[str]) -> None:
    """Notes the layers that take in something else than zero, with weights that are not, where units are closed."""

    def watcher(member: Member, closed: Tensor) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            taken_in = layer_input(args, kwargs)
            weight = getattr(module, member.tensor)
            if taken_in is not None and bool(weight.index_select(member.dim, closed).any()):
                channels = channels_last(module, taken_in)
                blocks = channels.reshape(*channels.shape[:-1], -1, weight.shape[member.dim])
                if bool(blocks[..., closed].any()):
                    leaks.append(member.module)

        return hook

    for group in traced.groups:
        for member in group.members if group.name in keep else ():
            reader = network.get_submodule(member.module)
            if member.role == "consumer" and member.tensor == "weight" and isinstance(reader, (nn.Linear, _ConvNd)):
                closed = member.index[dropped_units(group, keep[group.name])].flatten()
                reader.register_forward_pre_hook(watcher(member, closed), with_kwargs=True)


def _tolerance(traced: Trace) -> float:
    exact = traced.dtype == torch.float64 and traced.followed is not None and not traced.followed.single
    return TOLERANCE if exact else SINGLE_TOLERANCE


def _probes(original: nn.Module, pruned: nn.Module, traced: Trace, keep: Keep) -> tuple[nn.Module, nn.Module]:
    """The two networks to compare, in the precision of the trace and without constant tensors.

    Raises:
        VerificationError: A tensor of `pruned` is not the expected slice of the original's.
    """
    probe = converted(original, traced.dtype).eval()
    random = randomise(probe)
    scaled = {f"{scale.module}.{scale.tensor}".lstrip(".") for group in traced.groups for scale in group.scales}
    sliced = sharing_parameters(probe, scaled)
    remove(sliced, traced.groups, keep)
    slices = state_tensors(sliced)
    rescaled = {id(tensor) for name, tensor in pruned.named_parameters(remove_duplicate=False) if name in scaled}
    for name, tensor in (
        *pruned.named_parameters(remove_duplicate=False),
        *pruned.named_buffers(remove_duplicate=False),
    ):
        expected = slices.get(name)
        if expected is None or expected.shape != tensor.shape:
            raise VerificationError(
                f"{name} of the pruned network does not have the shape of the original's kept channels"
            )
        if name not in random and not _agree(tensor.detach(), expected, computed=id(tensor) in rescaled):
            raise VerificationError(f"{name} of the pruned network does not consist of the original's kept channels")
    # The slices are what is compared: a third copy in twice the precision would only cost memory.
    stand_ins = {
        id(tensor): _like(tensor, slices[name])
        for name, tensor in (*pruned.named_parameters(), *pruned.named_buffers())
    }
    result = copied(pruned, stand_ins).cpu().eval()
    return probe, result.double() if traced.dtype == torch.float64 else result.float()  # what hooks compute, too


def _agree(tensor: Tensor, expected: Tensor, *, computed: bool) -> bool:
    """Whether a tensor of the pruned network is what is expected, but for rounding where it was computed with."""
    stored = as_stored(expected)
    if stored.dtype == tensor.dtype and torch.equal(tensor.cpu(), stored):
        return True
    values, expected = tensor.to(device="cpu", dtype=expected.dtype), plain(expected)
    digits = torch.finfo(tensor.dtype).eps if computed and tensor.is_floating_point() else 0.0
    return torch.allclose(values, expected, rtol=max(1e-5, digits), atol=1e-7, equal_nan=True)


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    return nn.Parameter(values, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _difference(probe: nn.Module, sliced: nn.Module, traced: Trace, keep: Keep, inputs: Inputs) -> float:
    """The largest difference over all trials with outputs that are not all zero.

    Raises:
        VerificationError: The networks do not compute the same outputs.
        NotComparableError: Every output is zero.
    """
    assert traced.followed is not None
    trains = traced.followed.training is not None
    others = drawn_like(inputs, least=0 if trains else 1)
    trials = [(probe, sliced, trial) for trial in (inputs, *others)]
    firing = with_active_neurons(probe, sliced, inputs)
    if firing is not None:  # silent neurons would stay silent on the other inputs
        trials = [trials[0], *((*firing, trial) for _, _, trial in trials)]
    if trains:
        first, second = firing or (probe, sliced)
        samples = drawn_samples(inputs, traced.followed.training_samples)
        trials.append((sharing_parameters(first).train(), second, samples))
    differences: list[float] = []
    for number, (first, second, trial) in enumerate(trials):
        reached(number, len(trials), "probe")
        try:
            references, outputs = _both(first, second, traced, keep, trial)
            if any(bool(reference.any()) for reference in references):
                differences.append(max(relative_difference(a, b) for a, b in zip(references, outputs, strict=True)))
            elif any(bool(output.any()) for output in outputs):
                return float("inf")
        except NotComparableError:
            if trial is inputs:
                raise
    if not differences:
        raise NotComparableError(
            "the network's output is zero for every input tried, so nothing can be compared; give example inputs on "
            f"which it is not, or prune a part with {option('only', 'MODULE')}"
        )
    return max(differences)


class OtherBranchesError(NotComparableError):
    """With removed channels masked, the original calls other operators: a detector finds other boxes, for instance."""


def _traced_again(probe: nn.Module, traced: Trace, keep: Keep, inputs: Inputs) -> Trace:
    """A trace of what the original calls when removed channels are zero, as they are in `probe` by now.

    Raises:
        OtherBranchesError: It has other groups.
    """
    assert traced.followed is not None
    outputs, heads = traced.followed.kept_outputs or None, bool(traced.settings.get("heads"))
    known = traced.assumptions
    again = trace(probe, inputs, prune_stem=True, heads=heads, outputs=outputs, assumptions=known, values=True)
    before, after = ({group.name: _shape(group) for group in one.groups} for one in (traced, again))
    if any(after.get(name) != before[name] for name in keep):
        raise OtherBranchesError(OTHER_OPERATORS)
    return again


def _shape(group: ChannelGroup) -> tuple[int, set[tuple[str, int]]]:
    return group.units, {(member.name, member.dim) for member in group.members}


def _both(
    probe: nn.Module, sliced: nn.Module, traced: Trace, keep: Keep, inputs: Inputs
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs of the masked original and of the pruned network, both in the mode of `probe`."""
    assert traced.followed is not None
    draws: Draws = []
    try:
        reference = run_masked(sharing_parameters(probe), traced.followed, traced.groups, keep, inputs, draws)
    except OtherOperatorsError as error:
        raise OtherBranchesError(str(error)) from error
    except RUNTIME_ERRORS as error:
        raise NotComparableError(str(error)) from error
    replayed = Replayed(draws)
    pruned = sharing_parameters(sliced).train(probe.training)
    try:
        with torch.no_grad(), plain_kernels(), seeded(), replayed:
            output = call(pruned, inputs)
    except RUNTIME_ERRORS as error:
        raise VerificationError(f"the pruned network does not run: {described(error)}; nothing was saved") from error
    names = traced.followed.kept_outputs
    references, outputs = chosen_outputs(reference, names), chosen_outputs(output, names)
    if not replayed.aligned:
        raise VerificationError(
            "a random operator of the pruned network gets or draws other numbers; nothing was saved"
        )
    if not references or [tuple(t.shape) for t in references] != [tuple(t.shape) for t in outputs]:
        mode = "in training mode " if probe.training else ""
        before, after = ([tuple(t.shape) for t in tensors] for tensors in (references, outputs))
        raise VerificationError(
            f"the pruned network's output {mode}has another shape ({after}, not {before}); nothing was saved"
        )
    return references, outputs


def _first_difference(probe: nn.Module, sliced: nn.Module, traced: Trace, keep: Keep, inputs: Inputs) -> str:
    """Name of the first module with an output that differs from its masked counterpart."""
    assert traced.followed is not None
    labels = {name: labels[-1] for name, labels in traced.followed.outputs.items()}
    actual: dict[str, Tensor] = {}
    with torch.no_grad(), plain_kernels(), _recorded(sliced, actual):
        call(sliced, inputs)
    masked: dict[str, Tensor] = {}
    masked_probe = sharing_parameters(probe)
    with _recorded(masked_probe, masked):
        run_masked(masked_probe, traced.followed, traced.groups, keep, inputs)
    kept = channel_masks(traced.groups, keep)
    rescaled = {scale.module for group in traced.groups for scale in group.scales}
    for name, reference in masked.items():
        if name in actual and name not in rescaled and not _same(reference, actual[name], labels.get(name), kept):
            return name
    return "the output"


def _same(reference: Tensor, output: Tensor, label: Label | None, kept: ChannelMasks) -> bool:
    if label is None or len(label.dims) != reference.dim() or not reference.is_floating_point():
        return True
    for dim, term in enumerate(label.dims):
        mask = torch.from_numpy(kept_mask(term, kept))
        if len(mask) == reference.shape[dim]:
            reference = reference.index_select(dim, mask.nonzero().flatten())
    if reference.shape != output.shape:
        return False
    return relative_difference(reference, output) <= SINGLE_TOLERANCE


@contextmanager
def _recorded(model: nn.Module, outputs: dict[str, Tensor]) -> Iterator[None]:
    """Records the last tensor of each module's output, children before the modules around them."""

    def noted(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            for tensor in output_tensors(output)[-1:]:
                outputs[name] = tensor  # not a copy: a clone would be an operator that was not recorded

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(noted(name)).remove)
        yield
