"""Architectures that have the same weights: which compute the same, and which of the others a file means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prunecli.checkpoint.foreign_files import ForeignWeights
from prunecli.checkpoint.manifest import Architecture
from prunecli.errors import ModelError
from prunecli.inputs import input_channels
from prunecli.models.catalog import build_dense, classes_are_texts, input_spec, rebuild_dense
from prunecli.models.stored_settings import contradictions

_NAMES = ("arch", "model_name", "model", "architecture", "backbone", "name")
"""Settings in which programs write what they trained."""
_ANY_SIZE = (64, 64)
_CLOSE = 1e-4
_OPENAI = "input_resolution"


def choose(
    fitting: Sequence[Architecture],
    tensors: Mapping[str, Tensor],
    weights: ForeignWeights,
    path: Path,
    prefer: str | None,
    own: str | None = None,
) -> tuple[list[Architecture], str]:
    """Of architectures that fit the same weights, those that compute what the file means.

    Args:
        fitting: At least one, best first.
        tensors: The state dict.
        weights: What else the file says.
        path: Its path; its name may name one.
        prefer: The source that the method of pruning is for.
        own: The source of a pickled module's class.

    Returns:
        Architectures that compute the same, best first, and what decided between them and others; nothing if there
        were no others.

    Raises:
        ModelError: It is not clear which is meant.
    """
    groups = _alike(fitting, tensors)
    if own is not None:  # a module of one package is not a network of another
        groups = [group for group in groups if any(_source(one) == own for one in group)] or groups
    if len(groups) == 1:
        return groups[0], ""
    for reason, chosen in (
        ("settings of its modules", _by_modules(groups, weights)),
        ("what the file says about itself", _by_settings(groups, weights)),
        ("the method", [group for group in groups if prefer and _source(group[0]) == prefer]),
        ("the name of the file", _by_file_name(groups, path)),
    ):
        if len(chosen) == 1:
            return chosen[0], reason
    refs = [group[0].ref for group in groups]
    raise ModelError(
        f"{path}: has the weights of {' and of '.join(refs)}, which compute different things with them; say which it "
        f"is: {' or '.join(f'--arch {ref}' for ref in refs)}"
    )


def _alike(fitting: Sequence[Architecture], tensors: Mapping[str, Tensor]) -> list[list[Architecture]]:
    """Architectures in groups that compute the same with these weights."""
    by_layers: dict[tuple[str, ...], list[Architecture]] = {}
    for architecture in fitting:
        by_layers.setdefault(_layers(rebuild_dense(architecture)), []).append(architecture)
    if len(by_layers) == 1:
        return list(by_layers.values())
    groups: list[tuple[list[Architecture], Tensor | None]] = []
    for members in by_layers.values():
        scores = _scores(members[0], tensors)
        same = next((group for group, known in groups if _close(scores, known)), None)
        if same is None:
            groups.append((members, scores))
        else:
            same += members
    return [members for members, _ in groups]


def _layers(model: nn.Module) -> tuple[str, ...]:
    """Name, class and settings of all modules."""
    return tuple(f"{name} {type(module).__qualname__} {_settings(module)}" for name, module in model.named_modules())


def _settings(module: nn.Module) -> str:
    """What a module says of itself; the first step of a detector, which resizes images, says it in its own way."""
    return module.extra_repr() if type(module).__repr__ is nn.Module.__repr__ else repr(module)


def _scores(architecture: Architecture, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """What a network computes of one random image; None if it takes no image alone."""
    if classes_are_texts(architecture.ref):
        return None
    model = build_dense(architecture).eval()
    model.load_state_dict(dict(tensors), strict=False)
    size = input_spec(architecture.ref, model)[0] or _ANY_SIZE
    image = torch.randn(1, input_channels(model), *size, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            scores = model.float()(image)
    except Exception:  # whatever it needs beside an image, it is an architecture of its own
        return None
    return scores if isinstance(scores, Tensor) and bool(torch.isfinite(scores).all()) else None


def _close(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return False
    return one.shape == other.shape and bool((one - other).abs().max() <= _CLOSE * one.abs().max())


def _by_modules(groups: list[list[Architecture]], weights: ForeignWeights) -> list[list[Architecture]]:
    """Those that pickled modules do not contradict; of several the ones that consist of the same modules."""
    if not weights.modules:
        return []
    built = [(group, [rebuild_dense(one) for one in group]) for group in groups]
    fitting = [(g, models) for g, models in built if not any(contradictions(weights.modules, m) for m in models)]
    names = set(weights.modules)
    exact = [g for g, models in fitting if any({name for name, _ in m.named_modules()} == names for m in models)]
    return exact or [group for group, _ in fitting]


def _by_settings(groups: list[list[Architecture]], weights: ForeignWeights) -> list[list[Architecture]]:
    if _OPENAI in weights.tensors:  # OpenAI's own archives; all of its networks have quick GELUs
        return [group for group in groups if any("quickgelu" in one.ref for one in group)]
    said = {str(weights.settings[name]) for name in _NAMES if isinstance(weights.settings.get(name), str)}
    return [group for group in groups if any(_name(one) in said or one.ref in said for one in group)]


def _by_file_name(groups: list[list[Architecture]], path: Path) -> list[list[Architecture]]:
    """Those with the longest name that the file's name contains."""
    stem = _letters(path.stem)
    lengths = [max((len(n) for one in group if (n := _letters(_name(one))) in stem), default=0) for group in groups]
    longest = max(lengths)
    return [group for group, length in zip(groups, lengths, strict=True) if longest and length == longest]


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _name(architecture: Architecture) -> str:
    return architecture.ref.partition(":")[2]


def _source(architecture: Architecture) -> str:
    return architecture.ref.partition(":")[0]
