"""Other people's state dicts: which architecture they belong to and with which arguments it has to be built."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from prunecli.checkpoint.manifest import ARGUMENTS, Architecture
from prunecli.checkpoint.records import printable
from prunecli.errors import ModelError
from prunecli.models.catalog import build, built_from, rebuild_dense, settled_arguments
from prunecli.models.dialects.segformer import reference_of
from prunecli.models.fingerprints import nearest_references

_CANDIDATES = 16
_PREFERENCE = {
    source: place for place, source in enumerate(("cifar", "torchvision", "segformer", "timm", "open_clip", "spiking"))
}
_PACKAGES = {
    "torchvision.models.": "torchvision",
    "timm.models.": "timm",
    "open_clip.": "open_clip",
    "transformers.models.segformer.": "segformer",
    "prunecli.models.cifar.": "cifar",
    "prunecli.models.spiking": "spiking",
    "spikingjelly.": "spiking",
}
"""Where the classes of each source live."""
_SEGFORMER = "segformer.stages.0.layer_norm.weight"

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Identified:
    """An architecture whose tensors agree with the weights, and others that agree just as well."""

    architecture: Architecture
    also: tuple[str, ...] = ()


def identify(tensors: Mapping[str, Tensor], path: Path, class_path: str | None = None) -> Identified:
    """Finds the architecture of a state dict by its keys and shapes.

    Args:
        tensors: The state dict.
        path: Its file, for messages.
        class_path: Name of the class of the model it was taken from, if the file says. Of architectures that fit, one
            from that package is chosen.

    Raises:
        ModelError: Nothing in the catalogue fits; the three nearest are named.
    """
    if _SEGFORMER in tensors:  # its depths and widths say which one it is, with no network to build
        return Identified(architecture_for(reference_of(tensors, path), tensors, path))
    shapes = _shapes(tensors)
    candidates = nearest_references(shapes, _CANDIDATES)
    fitting: list[Architecture] = []
    for ref, _ in candidates:
        try:
            fitting.append(architecture_for(ref, tensors, path))
        except ModelError:
            continue
    if not fitting:
        near = ", ".join(f"{ref} ({similarity:.0%} alike)" for ref, similarity in candidates[:3])
        whole = f"; the file pickles a {printable(class_path)}" if class_path else ""
        raise ModelError(
            f"{path}: no known architecture has these weights{whole}; nearest: {near}; name one with --arch source:name"
        )
    own = _source_of(class_path)
    fitting.sort(key=lambda a: (_source(a) != own, _PREFERENCE[_source(a)], len(a.ref), a.ref))
    return Identified(fitting[0], tuple(architecture.ref for architecture in fitting[1:]))


def architecture_for(
    ref: str, tensors: Mapping[str, Tensor], path: Path, given: Mapping[str, Any] | None = None
) -> Architecture:
    """Reads class count and input channels from the weights and checks that everything else fits `ref`.

    Args:
        ref: The architecture.
        tensors: The state dict.
        path: Its file, for messages.
        given: Arguments that are settled.

    Raises:
        ModelError: The weights do not fit; the message names the first tensor that differs.
    """
    found = _shapes(tensors)
    kwargs: dict[str, Any] = dict(given or {})
    dense = build(ref, meta=True, **kwargs)
    wanted = _model_shapes(dense)
    first = next((name for name, shape in wanted.items() if len(shape) == 4), "")
    for name in wanted.keys() & found.keys():
        ours, theirs = wanted[name], found[name]
        if ours == theirs or len(ours) != len(theirs):
            continue
        if name == first and ours[0] == theirs[0] and ours[2:] == theirs[2:]:
            kwargs["in_chans"] = theirs[1]
        elif ours[1:] == theirs[1:] and ours[0] == _class_count(dense):
            kwargs["num_classes"] = theirs[0]
    if "in_chans" in kwargs and ref.startswith("torchvision:"):
        raise ModelError(f"{path}: {first!r} has {kwargs['in_chans']} input channels; {ref} is always built with 3")
    if kwargs:
        wanted = _model_shapes(build(ref, meta=True, **kwargs))
    problem = _mismatch(wanted, found)
    if problem:
        near = ", ".join(r for r, _ in nearest_references(found, 3))
        raise ModelError(f"{path}: the weights do not fit {ref}: {problem}; nearest by keys and shapes: {near}")
    return recorded(ref, kwargs)


def recorded(ref: str, kwargs: Mapping[str, Any]) -> Architecture:
    """An architecture as a manifest records it.

    Raises:
        ModelError: An argument is none that a checkpoint may set, or out of bounds.
    """
    try:
        known = {name: value for name, value in kwargs.items() if name in ARGUMENTS}
        Architecture(ref=ref, kwargs=known)  # before anything computes with them
        return Architecture(ref=ref, kwargs=settled_arguments(ref, kwargs))
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ModelError(f"{ref}: {reason}; see --model-kwargs") from error


def _source(architecture: Architecture) -> str:
    return architecture.ref.partition(":")[0]


def _source_of(class_path: str | None) -> str | None:
    return next((source for package, source in _PACKAGES.items() if (class_path or "").startswith(package)), None)


def recognise(model: nn.Module) -> Architecture:
    """The architecture of a live, dense model; an empty reference when it is none of the catalogue's."""
    shapes = _model_shapes(model)
    made = built_from(model)
    if made is not None:
        fresh = build(made[0], meta=True, **made[1])
        if _mismatch(_model_shapes(fresh), shapes) is None and _same_modules(fresh, model):
            with suppress(ModelError):  # arguments that a checkpoint may not set
                return recorded(*made).model_copy(update={"class_name": type(model).__name__})
    if shapes:
        for ref in _likely_references(model, shapes):
            try:
                architecture = architecture_for(ref, model.state_dict(), Path("model"))
                fresh = rebuild_dense(architecture)
            except ModelError:
                continue
            if _same_modules(fresh, model):
                return architecture.model_copy(update={"class_name": type(model).__name__})
    return Architecture(ref="", class_name=type(model).__name__)


def _likely_references(model: nn.Module, shapes: Shapes) -> list[str]:
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else None
    near = [ref for ref, _ in nearest_references(shapes, _CANDIDATES)]
    return [f"timm:{name}", *near] if name else near


def _same_modules(first: nn.Module, second: nn.Module) -> bool:
    return [(n, type(m)) for n, m in first.named_modules()] == [(n, type(m)) for n, m in second.named_modules()]


def _class_count(model: nn.Module) -> int:
    count = getattr(model, "num_classes", None)
    if isinstance(count, int):
        return count
    linear = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    if linear:
        return linear[-1]
    convolutions = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1] if convolutions else 0


def _shapes(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _model_shapes(model: nn.Module) -> Shapes:
    return _shapes(model.state_dict())


def _mismatch(wanted: Shapes, found: Shapes) -> str | None:
    missing = [name for name in wanted if name not in found]
    surplus = [name for name in found if name not in wanted]
    # Old checkpoints lack the batch counter, which plays no part in the result.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        return f"{len(missing)} of its {len(wanted)} tensors are missing, first {missing[0]!r}"
    if surplus:
        return f"{len(surplus)} tensors are unknown to it, first {surplus[0]!r}"
    for name in wanted:
        if name in found and wanted[name] != found[name]:
            return f"tensor {name!r} is {list(found[name])}, the architecture has {list(wanted[name])}"
    return None
