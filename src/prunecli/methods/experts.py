"""Removing experts of mixtures: find the layers, score experts, remove them with their router's rows, and prove it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Untouched
from prunecli.collective import agreed, first_decides
from prunecli.copying import copied, sharing_parameters
from prunecli.criteria.experts import ExpertScore, at_random, frequency, loss_without, norm, probability
from prunecli.errors import MethodError, VerificationError
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.methods.experts_params import ExpertsParams
from prunecli.methods.parts import PartReport, PartRequest, PartsRemoved
from prunecli.methods.plans import edits_of
from prunecli.methods.repair import Clock
from prunecli.methods.selection import require_matches
from prunecli.naming import give_data, option
from prunecli.patterns import matching_pattern
from prunecli.phases import phase
from prunecli.surgery.blocks.taking_out import take_out
from prunecli.surgery.configured.experts import rebuilt_with_fewer_experts
from prunecli.surgery.configured.rebuilt import NOT_CONFIGURED, owner
from prunecli.surgery.experts.finding import ExpertLayer, expert_layers
from prunecli.surgery.experts.removing import ExpertsRemoved, group_of, remove_experts
from prunecli.surgery.proof.without_experts import verify_without_experts
from prunecli.surgery.removal.rebuild import apply_attributes, attribute_differences

_SCORES: Mapping[str, ExpertScore] = {
    "probability": probability,
    "frequency": frequency,
    "loss": loss_without,
    "norm": norm,
    "random": at_random,
}
_ON_DATA = ("probability", "frequency", "loss")
_REFERENCE = "original that does not choose them"


def prune_experts(model: nn.Module, request: PartRequest) -> PartsRemoved:
    """Removes experts of a copy of `model`, with their rows in the routers.

    Args:
        model: Any module; not changed.
        request: How many experts of each layer, and what chooses them.

    Raises:
        MethodError: There are no experts, or so few would be left that tokens could not be sent to as many as before.
        ModelError: The network does not run.
        VerificationError: The result is not the original that does not choose the experts; nothing is returned.
    """
    params: ExpertsParams = request.params
    _check(params, request)
    require_matches(model, request.keep)
    clock = Clock()
    with phase("trace"):
        layers = _layers(model, request)
    clock.lap("find")
    patterns = {layer.name: matching_pattern(layer.name, request.keep) for layer in layers}
    free = [layer for layer in layers if patterns[layer.name] is None]
    counts = {layer.name: _count(layer, params) for layer in free}
    if not any(counts.values()):
        raise MethodError(f"no experts would be removed: {_why_none(layers, free, params)}")
    with phase("score"):
        scores = agreed("the scores", _SCORES[params.score](model, free, request.calibrated()))
    keep = {layer.name: _kept(layer, scores[layer.name], counts[layer.name]) for layer in free if counts[layer.name]}
    clock.lap("score")
    pruned, removed, error, notes = _removed(model, layers, keep, request)
    clock.lap("verify")
    present = sum(layer.experts for layer in layers)
    gone = {layer: _dropped(layer, keep[layer.name]) for layer in free if layer.name in keep}
    report = PartReport(
        method=request.method,
        parts="experts",
        reference=_REFERENCE,
        present=present,
        removed=tuple(layer.expert(index) for layer, indices in gone.items() for index in indices),
        requested=round(sum(counts.values()) / present, 6) if params.experts is not None else params.ratio,
        scores={
            layer.expert(index): float(f"{float(score):.6g}")
            for layer in free
            for index, score in enumerate(scores[layer.name])
        },
        params_before=parameter_count(model),
        params_after=parameter_count(pruned),
        macs_before=count_macs(model, request.example_inputs),
        macs_after=count_macs(pruned, request.example_inputs),
        verify_error=error,
        seconds=clock.laps,
        untouched=tuple(
            Untouched(name=name, channels=0, reason=f"kept by pattern {pattern!r}")
            for name, pattern in patterns.items()
            if pattern is not None
        ),
        edits=tuple(edits_of([group_of(model, layer) for layer in gone], keep)),
        attributes=_changed_attributes(model, removed, pruned),
        notes=notes,
    )
    return PartsRemoved(pruned, report, removed.blocks, removed.former)


def _layers(model: nn.Module, request: PartRequest) -> Sequence[ExpertLayer]:
    """The layers with experts.

    Raises:
        MethodError: There are none.
    """
    layers = expert_layers(model, request.example_inputs)
    if not layers:
        raise MethodError(
            "the network has no mixture of experts: no router chooses among alike modules, or among entries of a "
            "tensor; a method that removes channels, such as l1, suits it"
        )
    return layers


def _check(params: ExpertsParams, request: PartRequest) -> None:
    """Checks settings against each other and the data.

    Raises:
        MethodError: They exclude each other, or there is no data for a score.
    """
    if params.experts is not None and params.ratio != ExpertsParams.ratio:
        raise MethodError(f"{option('ratio')} and {option('experts')} both say how many experts go; give one of them")
    if params.score in _ON_DATA and request.calibration is None:
        raise MethodError(
            f"{option('score', params.score)} is measured on data: {give_data()}, or choose {option('score', 'norm')}"
        )


def _count(layer: ExpertLayer, params: ExpertsParams) -> int:
    """How many experts of a layer go.

    Raises:
        MethodError: Tokens are sent to more experts than would be left, or groups would be of unlike sizes.
    """
    count = params.experts if params.experts is not None else round(params.ratio * layer.experts)
    if layer.groups > 1:
        each = layer.experts // layer.groups
        if params.experts is not None and count % layer.groups:
            raise MethodError(
                f"{layer.name}: its router chooses among {layer.groups} groups of experts, which have to stay equally "
                f"large; remove a multiple of {layer.groups}"
            )
        count = min(round(count / layer.groups), each - 1) * layer.groups
    left = layer.experts - count
    if left < max(layer.chosen, 1):
        raise MethodError(
            f"{layer.name}: {left} of its {layer.experts} experts would be left, and every token is sent to "
            f"{max(layer.chosen, 1)}; remove fewer"
        )
    return count


def _why_none(layers: Sequence[ExpertLayer], free: Sequence[ExpertLayer], params: ExpertsParams) -> str:
    if not free:
        return f"all {len(layers)} mixtures are kept by patterns"
    return f"a share of {params.ratio:g} of {free[0].experts} experts is less than one; give {option('experts', 1)}"


def _kept(layer: ExpertLayer, scores: Tensor, count: int) -> Tensor:
    """The experts that stay, sorted: the highest of every group."""
    size = layer.experts // layer.groups
    kept = []
    for first in range(0, layer.experts, size):
        order = torch.argsort(scores[first : first + size], descending=True, stable=True)
        kept.append(first + order[: size - count // layer.groups])
    return torch.cat(kept).sort().values


def _dropped(layer: ExpertLayer, kept: Tensor) -> list[int]:
    return sorted(set(range(layer.experts)) - set(kept.tolist()))


def _removed(
    model: nn.Module, layers: Sequence[ExpertLayer], keep: Mapping[str, Tensor], request: PartRequest
) -> tuple[nn.Module, ExpertsRemoved, float, tuple[str, ...]]:
    """A copy without the experts, proven, with the attributes that the library would set if that is right.

    Raises:
        VerificationError: It is not the original that does not choose them.
    """
    inputs = request.example_inputs
    for library in (True, False):
        pruned = sharing_parameters(model)
        removed = remove_experts(pruned, layers, keep)
        rebuilt = rebuilt_with_fewer_experts(model, pruned, removed.blocks) if library else None
        if library and rebuilt is None:
            continue
        try:
            if rebuilt is not None:
                apply_attributes(pruned, rebuilt.attributes)
            error = first_decides(partial(verify_without_experts, model, pruned, layers, keep, inputs))
        except VerificationError:
            if not library:
                raise
            continue
        if rebuilt is None or rebuilt.computes_the_same(pruned, inputs):
            configured = owner(model, [layer.name for layer in layers]) is not None
            notes = (NOT_CONFIGURED,) if rebuilt is None and configured else ()
            return copied(pruned), removed, error, notes
    raise AssertionError("the second try returns or raises")


def _changed_attributes(
    model: nn.Module,
    removed: ExpertsRemoved,
    pruned: nn.Module,
) -> dict[str, JsonValue]:
    """What was set beside tensors, by module and attribute."""
    bare = sharing_parameters(model)
    take_out(bare, removed.blocks)
    found = attribute_differences(bare, pruned)
    return {f"{name}.{key}".lstrip("."): value for name, values in found.items() for key, value in values.items()}
