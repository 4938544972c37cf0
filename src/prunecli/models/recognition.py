"""Recognising state dicts and networks: which architecture they belong to, and the arguments to build it with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

from prunecli.checkpoint.arguments import ARGUMENTS
from prunecli.checkpoint.foreign_files import ForeignWeights
from prunecli.checkpoint.manifest import Architecture
from prunecli.checkpoint.records import printable
from prunecli.engine.detectors.index import detector_of
from prunecli.errors import ModelError
from prunecli.models.alternatives import choose
from prunecli.models.catalog import build, built_from, reading_source, rebuild_dense, settled_arguments
from prunecli.models.dialects.segformer import reference_of
from prunecli.models.fingerprints import may_have, nearest_references
from prunecli.models.pickled_networks import named_by

_CANDIDATES = 16
_NEAR = 0.3
"""Likeness of architectures that are worth naming where none fits."""
_AT_MOST = 0.99
"""Of one that does not fit: likeness is estimated, and may come out as 1."""
_PREFERENCE = {
    source: rank
    for rank, source in enumerate(("cifar", "torchvision", "segformer", "timm", "open_clip", "spiking", "lm"))
}
_PACKAGES = {
    "torchvision.models.": "torchvision",
    "timm.models.": "timm",
    "open_clip.": "open_clip",
    "transformers.models.segformer.": "segformer",
    "prunecli.models.cifar.": "cifar",
    "prunecli.models.spiking": "spiking",
    "prunecli.models.recurrent_language.": "lm",
    "spikingjelly.": "spiking",
    "ultralytics.": "ultralytics",
    "models.yolo.": "ultralytics",
    "models.common.": "ultralytics",
}
"""Packages with the classes of each source."""
_SCORES = ("cls_score", "classification_head")
"""Modules in which detectors tell classes apart."""
_SEGFORMER = "segformer.stages.0.layer_norm.weight"

_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Identified:
    """An architecture whose tensors match the weights.

    Attributes:
        architecture: The architecture.
        also: References of others that compute the same with the same weights.
        decided: What chose it before others that have the same weights and compute something else; empty if there are
            none.
    """

    architecture: Architecture
    also: tuple[str, ...] = ()
    decided: str = ""


def identify(
    tensors: Mapping[str, Tensor], path: Path, weights: ForeignWeights | None = None, *, prefer: str | None = None
) -> Identified:
    """Finds the architecture of a state dict by its keys and shapes.

    Args:
        tensors: The state dict.
        path: Its file, for messages.
        weights: What else the file says. Of several architectures that fit and compute the same, one from the package
            of a pickled model is preferred.
        prefer: The source of architectures that the method of pruning is for.

    Raises:
        UnfittingWeights: No architecture of the catalogue fits; the message names the three nearest.
        ModelError: Several fit and compute different things, and nothing tells which it is.
    """
    if _SEGFORMER in tensors:  # its depths and widths tell which one, without building any
        return Identified(architecture_for(reference_of(tensors, path), tensors, path))
    shapes = _shapes(tensors)
    candidates = [(ref, similarity) for ref, similarity in nearest_references(shapes, _CANDIDATES) if similarity > 0]
    problems: dict[str, str] = {}
    likely = [ref for ref, _ in candidates if may_have(ref, shapes)]
    # A package may have changed since the table of sizes was made.
    fitting = _fitting(likely, tensors, path, problems) or _fitting(
        [ref for ref, _ in candidates if ref not in likely], tensors, path, problems
    )
    class_path = weights.class_path if weights is not None else None
    if not fitting:
        near = _near(candidates[:3])
        if near and candidates[0][0] in problems:
            near[0] = f"{near[0][:-1]}: {problems[candidates[0][0]]})"
        nearest = f"; nearest: {', '.join(near)}" if near else ""
        whole = f"; the file pickles a {printable(class_path)}" if class_path else ""
        raise UnfittingWeights(
            f"{path}: no known architecture has these weights{nearest}{whole}; "
            f"{named_by(weights, path, of_package=source_of(class_path) is not None)}"
        )
    own = source_of(class_path)
    fitting.sort(key=lambda a: (_source(a) != own, _PREFERENCE[_source(a)], len(a.ref), a.ref))
    known = weights if weights is not None else ForeignWeights(dict(tensors))
    chosen, decided = choose(fitting, tensors, known, path, prefer, own)
    return Identified(chosen[0], tuple(architecture.ref for architecture in chosen[1:]), decided)


def _fitting(
    refs: Iterable[str], tensors: Mapping[str, Tensor], path: Path, problems: dict[str, str]
) -> list[Architecture]:
    """The references that fit; `problems` gets what is wrong with the others."""
    fitting: list[Architecture] = []
    for ref in refs:
        try:
            fitting.append(architecture_for(ref, tensors, path))
        except UnfittingWeights as error:
            problems[ref] = error.problem
        except ModelError:
            continue
    return fitting


def _near(candidates: Iterable[tuple[str, float]]) -> list[str]:
    """References that are worth naming although they do not fit, with how alike they are."""
    return [f"{ref} ({min(alike, _AT_MOST):.0%} alike)" for ref, alike in candidates if alike >= _NEAR]


class UnfittingWeights(ModelError):
    """Weights that are not those of an architecture, or of none in the catalogue.

    Attributes:
        problem: How they differ from the architecture, if that was named.
    """

    def __init__(self, message: str, problem: str = "") -> None:
        super().__init__(message)
        self.problem = problem


def architecture_for(
    ref: str, tensors: Mapping[str, Tensor], path: Path, kwargs: Mapping[str, Any] | None = None
) -> Architecture:
    """Reads the number of classes and input channels from weights and checks that everything else fits `ref`.

    Args:
        ref: The architecture.
        tensors: The state dict.
        path: Its file, for messages.
        kwargs: Arguments to build it with.

    Raises:
        ModelError: The weights do not fit; the message names the first tensor that differs.
    """
    actual = _shapes(tensors)
    arguments: dict[str, Any] = dict(kwargs or {})
    dense = build(ref, meta=True, **arguments)
    expected = _model_shapes(dense)
    first = next((name for name, shape in expected.items() if len(shape) == 4), "")
    detector = detector_of(dense)
    if detector is not None:
        arguments |= _kinds_of_objects(detector.num_classes(dense), expected, actual)
    classes = _class_count(dense)
    for name in expected.keys() & actual.keys():
        ours, theirs = expected[name], actual[name]
        if ours == theirs or len(ours) != len(theirs):
            continue
        if name == first and ours[0] == theirs[0] and ours[2:] == theirs[2:]:
            arguments["in_chans"] = theirs[1]
        elif detector is None and ours[1:] == theirs[1:] and ours[0] == classes:
            arguments["num_classes"] = theirs[0]
    arguments |= {name: value for name, value in _read_of_vit(dense, expected, actual).items() if name not in arguments}
    if "in_chans" in arguments and ref.startswith("torchvision:"):
        raise ModelError(f"{path}: {first!r} has {arguments['in_chans']} input channels; {ref} is always built with 3")
    if arguments:
        expected = _model_shapes(build(ref, meta=True, **arguments))
    problem = _mismatch(expected, actual)
    if problem:
        near = _near((other, alike) for other, alike in nearest_references(actual, 3) if other != ref)
        nearest = f"; nearest by keys and shapes: {', '.join(near)}" if near else ""
        raise UnfittingWeights(f"{path}: the weights do not fit {ref}: {problem}{nearest}", problem)
    return recorded(ref, arguments)


def _kinds_of_objects(count: int, expected: _Shapes, actual: _Shapes) -> dict[str, Any]:
    """What the scores of a detector of torchvision say: several for each place, each time one for the background."""
    for name, ours in expected.items():
        theirs = actual.get(name, ())
        if len(theirs) != len(ours) or not ours or not any(part in _SCORES for part in name.split(".")):
            continue
        if theirs[0] != ours[0] and ours[0] % (count + 1) == 0:
            return {"num_classes": theirs[0] * (count + 1) // ours[0] - 1}
    return {}


def _read_of_vit(dense: nn.Module, expected: _Shapes, actual: _Shapes) -> dict[str, Any]:
    """What the tensors of a vision transformer of timm say about its pooling and the size of its images."""
    arguments: dict[str, Any] = {}
    if "norm.weight" in expected and "norm.weight" not in actual and "fc_norm.weight" in actual:
        arguments["global_pool"] = "avg"  # as finetuned MAE and BEiT
    ours, theirs = expected.get("pos_embed", ()), actual.get("pos_embed", ())
    patch = getattr(getattr(dense, "patch_embed", None), "patch_size", None)
    if ours == theirs or len(ours) != 3 or len(theirs) != 3 or ours[2] != theirs[2] or patch is None:
        return arguments
    around = ours[1] - getattr(dense, "patch_embed").num_patches  # noqa: B009 - a module's attribute of any type
    side = isqrt(theirs[1] - around) if theirs[1] > around else 0
    if side and side * side == theirs[1] - around and len(set(patch)) == 1:
        arguments["img_size"] = side * patch[0]
    return arguments


def recorded(ref: str, kwargs: Mapping[str, Any]) -> Architecture:
    """An architecture as a manifest records it.

    Raises:
        ModelError: A checkpoint must not set an argument, or its value is out of bounds.
    """
    try:
        known = {name: value for name, value in kwargs.items() if name in ARGUMENTS}
        Architecture(ref=ref, kwargs=known)  # checks bounds before anything computes with the values
        return Architecture(ref=ref, kwargs=settled_arguments(ref, kwargs))
    except ValidationError as error:
        reason = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
        raise ModelError(f"{ref}: {reason}; see --model-kwargs") from error


def _source(architecture: Architecture) -> str:
    return architecture.ref.partition(":")[0]


def source_of(class_path: str | None) -> str | None:
    """The source of a class that is pickled in a file; None if it is of no known package."""
    return next((source for package, source in _PACKAGES.items() if (class_path or "").startswith(package)), None)


def recognise(model: nn.Module) -> Architecture:
    """The architecture of a live, dense model; its reference is empty if the catalogue does not have it."""
    shapes = _model_shapes(model)
    described = _described_by_its_source(model, shapes)
    if described is not None:
        return described
    origin = built_from(model)
    if origin is not None:
        fresh = build(origin[0], meta=True, **origin[1])
        if _mismatch(_model_shapes(fresh), shapes) is None and _same_modules(fresh, model):
            with suppress(ModelError):  # a checkpoint must not set some arguments
                return recorded(*origin).model_copy(update={"class_name": type(model).__name__})
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


def _described_by_its_source(model: nn.Module, shapes: _Shapes) -> Architecture | None:
    """The architecture of a network of a package whose networks say themselves what they were built of."""
    source = source_of(f"{type(model).__module__}.")
    reader = reading_source(source) if source is not None else None
    described = reader.describe(model) if reader is not None else None
    if described is None:
        return None
    name, config = described
    try:
        fresh = build(f"{source}:{name}", meta=True, config=config)
        architecture = Architecture(ref=f"{source}:{name}", config=config, class_name=type(model).__name__)
    except (ModelError, ValidationError):
        return None
    alike = _mismatch(_model_shapes(fresh), shapes) is None and _same_modules(fresh, model)
    return architecture if alike else None


_ALIKE = 0.9
"""Below this share of equal tensors it is another network, not one with another number of classes."""


def _likely_references(model: nn.Module, shapes: _Shapes) -> list[str]:
    config = getattr(model, "pretrained_cfg", None)
    name = config.get("architecture") if isinstance(config, dict) else None
    near = [ref for ref, similarity in nearest_references(shapes, _CANDIDATES) if similarity > _ALIKE]
    return [f"timm:{name}", *near] if name else near


def _same_modules(first: nn.Module, second: nn.Module) -> bool:
    kinds = [
        [(name, type_before_parametrizations(m)) for name, m in model.named_modules()] for model in (first, second)
    ]
    return kinds[0] == kinds[1]


def _class_count(model: nn.Module) -> int:
    count = getattr(model, "num_classes", None)
    if isinstance(count, int):
        return count
    linear = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    if linear:
        return linear[-1]
    convolutions = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    return convolutions[-1] if convolutions else 0


def _shapes(tensors: Mapping[str, Any]) -> _Shapes:
    """Shapes by name; a state dict may hold entries that are no tensors, such as a module's extra state."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def _model_shapes(model: nn.Module) -> _Shapes:
    return _shapes(model.state_dict())


def _mismatch(expected: _Shapes, actual: _Shapes) -> str | None:
    missing = [name for name in expected if name not in actual]
    surplus = [name for name in actual if name not in expected]
    # Old checkpoints lack the batch counter, which does not affect results.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing:
        return f"{len(missing)} of its {len(expected)} tensors are missing, first {missing[0]!r}"
    if surplus:
        return f"{len(surplus)} tensors are unknown to it, first {surplus[0]!r}"
    for name in expected:
        if name in actual and expected[name] != actual[name]:
            return f"tensor {name!r} is {list(actual[name])}, the architecture has {list(expected[name])}"
    return None
