"""From somebody else's weights to a network: names, architecture, and what the weights themselves do not say."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from shlex import quote
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.foreign_files import Chosen, ForeignWeights
from prunecli.checkpoint.manifest import Architecture
from prunecli.checkpoint.records import printable
from prunecli.copying import are_large
from prunecli.errors import ModelError
from prunecli.models.catalog import build_dense, open_network, opens, reading_source
from prunecli.models.dialects.dialect import ForeignRequest, Translation
from prunecli.models.dialects.index import translate
from prunecli.models.offloading import tied_again
from prunecli.models.own_networks import arguments_of
from prunecli.models.prefixes import Reading, likeness, prefix_that_fits, readings
from prunecli.models.recognition import UnfittingWeights, architecture_for, identify, source_of
from prunecli.models.source import Opened, OpenRequest
from prunecli.models.stored_settings import (
    adopt_settings,
    check_settings,
    language_arguments,
    spiking_arguments,
)
from prunecli.own_code import PREFIX
from prunecli.widened import is_on_disk

_RUN = {torch.float16, torch.bfloat16, torch.float32}
"""Precisions in which a large network may wait until it is run."""
_LANGUAGE, _SPIKING = "lm:", "spiking:"


@dataclass(frozen=True)
class Rebuilt:
    """A network with somebody else's weights.

    Attributes:
        model: The network.
        architecture: How it is built.
        dtypes: The dtype of each tensor in the file.
        notes: What the user should know.
        opened: What the source says about its inputs, where it opened the network.
        chosen: Which of the weights in the file they are, where it has others.
    """

    model: nn.Module
    architecture: Architecture
    dtypes: Mapping[str, torch.dtype]
    notes: tuple[str, ...]
    opened: Opened | None = None
    chosen: Chosen | None = None


def rebuild_foreign(weights: ForeignWeights, request: ForeignRequest, kwargs: Mapping[str, Any]) -> Rebuilt:
    """Finds or checks the architecture of somebody else's weights and builds it with them.

    Args:
        weights: The weights.
        request: What the user wants.
        kwargs: Arguments to build the architecture with.

    Raises:
        ModelError: No architecture fits, or it is not clear which, or it would compute something else.
    """
    own = _read_by_its_source(weights, request, kwargs)
    if own is not None:
        return own
    failed: list[tuple[float, UnfittingWeights]] = []
    for reading in readings(weights):
        try:
            rebuilt = _rebuilt(reading.weights, request, kwargs)
        except UnfittingWeights as error:
            failed.append((likeness(reading.weights)[1], error))
        else:
            if reading.rivals:
                raise _undecided(reading, request, rebuilt.architecture.ref)
            chosen = Chosen(prefix=reading.source, aside=reading.aside) if reading.source else None
            return replace(rebuilt, notes=(*reading.notes, *rebuilt.notes), chosen=chosen)
    _, nearest = max(failed, key=lambda pair: pair[0])
    raise UnfittingWeights(f"{nearest}{prefix_that_fits(weights)}") from nearest


def _undecided(reading: Reading, request: ForeignRequest, ref: str) -> ModelError:
    shown = ", ".join(printable(prefix) for prefix in reading.rivals)
    return ModelError(
        f"{request.path}: holds several sets of weights that fit {ref}: under {shown}; choose with --strip-prefix, for "
        f"instance --strip-prefix {quote(reading.rivals[0])}"
    )


def _rebuilt(weights: ForeignWeights, request: ForeignRequest, kwargs: Mapping[str, Any]) -> Rebuilt:
    path = request.path
    if request.arch is not None and opens(request.arch):
        return _into_opened(weights, request, kwargs)
    translation = translate(weights.tensors, request)
    tensors, notes = translation.tensors, translation.notes
    ref = request.arch or translation.ref
    if ref is None:
        if kwargs:
            raise ModelError(f"{path}: --model-kwargs are arguments of an architecture; name it with --arch")
        identified = identify(tensors, path, weights, prefer=request.prefer)
        architecture, ref = identified.architecture, identified.architecture.ref
        class_note = f"class {printable(weights.class_path)}, " if weights.class_path else ""
        decided = f" and {identified.decided}" if identified.decided else ""
        notes += (f"recognised as {ref} by its {class_note}keys and shapes{decided}",)
        translation = replace(translation, kwargs=architecture.kwargs)
    elif ref.startswith(_LANGUAGE):
        read = language_arguments(weights)
        architecture = architecture_for(ref, tensors, path, {**translation.kwargs, **read, **kwargs})
        if "nonlinearity" in architecture.kwargs and "nonlinearity" not in (*read, *kwargs):
            notes += (f"assumed nonlinearity = {architecture.kwargs['nonlinearity']}: weights do not say",)
    elif not ref.startswith(_SPIKING):
        architecture = architecture_for(ref, tensors, path, {**translation.kwargs, **kwargs})
    if ref.startswith(_SPIKING):
        architecture, more = _spiking(ref, weights, translation, request, kwargs)
        notes += more
    on_disk = any(map(is_on_disk, tensors.values()))
    apart = on_disk or _can_be_taken(weights, tensors)
    model = _without_parameters(architecture) if apart else build_dense(architecture, filled=False)
    try:
        with tied_again(model) if apart else nullcontext():
            model.load_state_dict(tensors, assign=apart)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: the weights do not fit {architecture.ref}: {first}; name another with --arch"
        ) from error
    if on_disk:
        model.float()  # as if they had been copied into a new network; one in memory waits until it is run
    translation.adapt(model)
    if ref.startswith(_SPIKING):
        adopt_settings(weights.modules, model, other_than=kwargs)
    # Ours read (N, T), others (T, N): the same numbers in another order.
    order = ("batch_first",) if ref.startswith(_LANGUAGE) else ()
    check_settings(weights, model, ref, path, other_than=(*kwargs, *order))
    return Rebuilt(model, architecture, {name: tensor.dtype for name, tensor in tensors.items()}, notes)


def _can_be_taken(weights: ForeignWeights, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a network is too large to be built with weights of its own first, and may take those of the file."""
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.dim()}
    return weights.own and kinds <= _RUN and are_large(tensors.values())


def _without_parameters(architecture: Architecture) -> nn.Module:
    """A network whose parameters take no memory yet, unless its code reads them."""
    try:
        return build_dense(architecture, filled=False, buffers_alone=True)
    except ModelError:
        return build_dense(architecture, filled=False)


def _read_by_its_source(weights: ForeignWeights, request: ForeignRequest, kwargs: Mapping[str, Any]) -> Rebuilt | None:
    """The network of a file, if the source that it belongs to knows such files.

    Raises:
        ModelError: It knows them, and this one holds another network.
    """
    named, colon, name = (request.arch or "").partition(":")
    source = named if colon else source_of(weights.class_path)
    reader = reading_source(source) if source is not None else None
    if reader is None or source is None:
        return None
    asked = OpenRequest(kwargs, num_classes=request.num_classes, data_classes=request.data_classes)
    opened = reader.read(weights, name or None, request.path, asked)
    dtypes = {name: tensor.dtype for name, tensor in opened.model.state_dict().items()}
    architecture = Architecture(ref=f"{source}:{opened.name}", config=opened.config)
    return Rebuilt(opened.model.float(), architecture, dtypes, opened.notes, opened)


def _into_opened(weights: ForeignWeights, request: ForeignRequest, kwargs: Mapping[str, Any]) -> Rebuilt:
    """Weights in a network that the user names by a file, folder, class or function.

    Raises:
        UnfittingWeights: They are those of another network.
    """
    assert request.arch is not None
    # Whether its own weights are finite does not matter: the file's take their place.
    asked = OpenRequest(
        kwargs, num_classes=request.num_classes, data_classes=request.data_classes, allow_nonfinite=True
    )
    opened = open_network(request.arch, asked)
    assert opened is not None, "its source opens networks"
    opened.model.float()  # a folder in half precision would round the weights of a file in single precision
    named = dict(opened.model.state_dict(keep_vars=True))
    prefix = f"{getattr(opened.model, 'base_model_prefix', '')}."  # taken for a wrapper's where all names have it
    if weights.tensors.keys().isdisjoint(named):
        weights = replace(weights, tensors={f"{prefix}{name}": tensor for name, tensor in weights.tensors.items()})
    try:
        found = opened.model.load_state_dict(weights.tensors, strict=False)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        hint = arguments_of(request.arch.removeprefix(PREFIX)) if request.arch.startswith(PREFIX) else ""
        raise UnfittingWeights(f"{request.path}: the weights do not fit {request.arch}: {first}{hint}") from error
    read = {id(named[name]) for name in weights.tensors if name in named}
    missing = [
        name for name in found.missing_keys if id(named[name]) not in read
    ]  # tied ones are there by another name
    if missing or found.unexpected_keys:
        what, first = ("lack", missing[0]) if missing else ("have an unknown", found.unexpected_keys[0])
        raise UnfittingWeights(f"{request.path}: the weights do not fit {request.arch}: they {what} {printable(first)}")
    source = request.arch.partition(":")[0]
    architecture = Architecture(ref=f"{source}:{opened.name}", config=opened.config)
    dtypes = {name: tensor.dtype for name, tensor in weights.tensors.items()}
    return Rebuilt(opened.model, architecture, dtypes, opened.notes, opened)


def _spiking(
    ref: str, weights: ForeignWeights, translation: Translation, request: ForeignRequest, kwargs: Mapping[str, Any]
) -> tuple[Architecture, tuple[str, ...]]:
    """A spiking architecture with what its file says, and notes on that and on what is assumed."""
    from prunecli.models.spiking import arguments_of  # spikingjelly takes seconds to import

    allowed = arguments_of(ref.partition(":")[2])
    read = {name: value for name, value in spiking_arguments(weights, allowed).items() if name not in kwargs}
    architecture = architecture_for(ref, translation.tensors, request.path, {**translation.kwargs, **read, **kwargs})
    built = architecture.kwargs
    notes: tuple[str, ...] = ()
    if read:
        notes += (f"read from the file: {', '.join(f'{name} = {_shown(built[name])}' for name in read)}",)
    unsaid = [name for name in ("num_heads", "patch_size", "T", "neuron", "tau", "v_threshold") if name in allowed]
    unsaid = [name for name in unsaid if name not in read and name not in kwargs]
    if "plif" in (built["neuron"], read.get("neuron")) and "tau" in unsaid:
        unsaid.remove("tau")  # it is learnt
    if unsaid:
        model = build_dense(architecture, meta=True)
        values = {**_attributes(model), **built}
        stated = ", ".join(f"{name} = {_shown(values[name])}" for name in unsaid if name in values)
        notes += (f"assumed {stated}: weights do not say; see --model-kwargs",)
    return architecture, notes


def _attributes(model: nn.Module) -> dict[str, Any]:
    """Heads and patches of a network."""
    heads = next((m.num_heads for m in model.modules() if isinstance(getattr(m, "num_heads", None), int)), None)
    patch = next((m.patch_size for m in model.modules() if isinstance(getattr(m, "patch_size", None), int)), None)
    return {name: value for name, value in (("num_heads", heads), ("patch_size", patch)) if value is not None}


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
