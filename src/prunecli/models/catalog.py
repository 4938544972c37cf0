"""From a reference such as "timm:resnet50" to a network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.manifest import Architecture, InputNormalisation
from prunecli.errors import ModelError, unknown

SOURCES: dict[str, str] = {
    "cifar": "prunecli.models.cifar",
    "open_clip": "prunecli.models.from_open_clip",
    "segformer": "prunecli.models.segformer",
    "spiking": "prunecli.models.spiking",
    "timm": "prunecli.models.from_timm",
    "torchvision": "prunecli.models.from_torchvision",
}
_BUILT_FROM = "_prunecli_built_from"


def built_from(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The reference and the arguments that `build` made this network, or what it was copied from, with."""
    found: tuple[str, dict[str, Any]] | None = getattr(model, _BUILT_FROM, None)
    return found


@cache
def source_names(source: str) -> tuple[str, ...]:
    """All model names of one source."""
    return tuple(_module(source).names())


def split_reference(ref: str) -> tuple[str, str]:
    """Splits "source:name" and checks both.

    Raises:
        ModelError: The source or the name does not exist; the message names the nearest.
    """
    source, colon, name = ref.partition(":")
    if not colon:
        known = [f"{s}:{ref}" for s in SOURCES if ref in source_names(s)]
        hint = f"did you mean {' or '.join(known)}?" if known else "write it as source:name, for instance timm:resnet50"
        raise ModelError(f"unknown architecture {ref!r}: {hint}")
    if source not in SOURCES:
        raise ModelError(unknown("model source", source, SOURCES))
    if name not in source_names(source):
        message = unknown("architecture", ref, (f"{source}:{n}" for n in source_names(source)), see="prune models")
        raise ModelError(message)
    return source, name


def build(ref: str, *, pretrained: bool = False, meta: bool = False, **kwargs: Any) -> nn.Module:
    """Builds a dense network.

    Args:
        ref: "source:name".
        pretrained: Whether to fetch published weights (timm and torchvision).
        meta: Whether to build without memory for the weights.
        **kwargs: num_classes, in_chans and whatever else the source takes.

    Raises:
        ModelError: The reference does not exist or the source refuses the arguments.
    """
    source, name = split_reference(ref)
    module = _module(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.device("meta") if meta else nullcontext():
                model: nn.Module = module.build(name, pretrained and not meta, **kwargs)
            object.__setattr__(model, _BUILT_FROM, (ref, kwargs))
            return model
    except ModelError:
        raise  # it already says what is wrong and what to do
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{ref} cannot be built with {kwargs or 'its defaults'}: {first}") from error


def settled_arguments(ref: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments to record for a network: what it was built with, and defaults that its weights do not show."""
    source, name = split_reference(ref)
    complete = getattr(_module(source), "settled", None)
    return dict(kwargs) if complete is None else dict(complete(name, kwargs))


def classes_are_texts(ref: str) -> bool:
    """Whether networks of a reference compare images with texts, so that no number of classes belongs to them."""
    return bool(getattr(_module(split_reference(ref)[0]), "CLASSES_ARE_TEXTS", False))


def input_spec(ref: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation]:
    """Image height and width (None: any) and normalisation that go with a reference."""
    source, name = split_reference(ref)
    found: tuple[tuple[int, int] | None, InputNormalisation] = _module(source).input_spec(name, model)
    return found


def rebuild_dense(architecture: Architecture) -> nn.Module:
    """Builds the dense network a manifest names, on the meta device where the architecture allows it."""
    try:
        return build_dense(architecture, meta=True)
    except ModelError:
        return build_dense(architecture)


def build_dense(architecture: Architecture, *, meta: bool = False) -> nn.Module:
    """Builds the dense network a manifest names, with new weights."""
    arguments: dict[str, Any] = dict(architecture.kwargs)
    return build(architecture.ref, meta=meta, **arguments)


def _module(source: str) -> ModuleType:
    return import_module(SOURCES[source])
