"""What a file says about its network beside the weights: settings of pickled modules, and numbers saved with them.

Weights do not hold the time constant of a neuron, the stride of a convolution or the kind of an activation. A module
that was pickled as a whole does, in attributes that are read without running anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from torch import nn

from prunecli.checkpoint.foreign_files import ForeignWeights
from prunecli.checkpoint.inert import Plain, StoredModule
from prunecli.errors import ModelError

_STEPS = ("T", "time_step", "time_steps", "timestep", "timesteps", "num_steps", "simulation_steps")
_NEURON_SETTINGS = ("tau", "v_threshold", "v_reset", "decay_input", "detach_reset")
_KNOWN = (
    *_NEURON_SETTINGS,
    *(
        "num_heads",
        "scale",
        "patch_size",
        "window_size",
        "eps",
        "connect_f",
        "cnf",
        "global_pool",
        "pool_type",
        "negative_slope",
        "alpha",
    ),
)
"""Attributes that change what a module computes, of whatever class."""
_SIZES = frozenset("in_channels out_channels num_features in_features out_features inplace p device dtype".split())
HARMLESS = ("Dropout", "Identity", "DropPath", "StochasticDepth")
"""Classes of modules, by how their names begin, that do nothing in evaluation mode."""
_PACKAGES = ("torch.nn.", "spikingjelly.")
_NEURONS = {"ParametricLIF": "plif", "PLIF": "plif", "LIF": "lif", "IF": "if"}
_SURROGATES = {
    "Sigmoid": "sigmoid",
    "ATan": "atan",
    "PiecewiseQuadratic": "piecewise-quadratic",
    "SoftSign": "soft-sign",
    "Erf": "erf",
}
_PLAIN_RNN = "RNN_"
_CLOSE = 1e-6
_CONNECTION = "cnf"
"""How spike-element-wise blocks connect; other spiking residual blocks with the same weights have none."""


@dataclass(frozen=True)
class Contradiction:
    """One setting in which a stored module and a rebuilt one differ."""

    module: str
    setting: str
    stored: Any
    rebuilt: Any

    def __str__(self) -> str:
        return f"{self.module or 'the network'}: {self.setting} is {self.stored}, not {self.rebuilt}"


def contradictions(stored: Mapping[str, StoredModule], model: nn.Module) -> list[Contradiction]:
    """Where pickled modules compute something else than those of the same name in a rebuilt network.

    Layers of torch and spikingjelly are compared by class and settings, others by well-known attributes.
    """
    differing: list[Contradiction] = []
    spiking = any("v_threshold" in module.settings for module in stored.values())
    if stored and spiking != any(hasattr(module, "v_threshold") for module in model.modules()):
        differing.append(Contradiction("", "whether it has spiking neurons", spiking, not spiking))
    for name, module in model.named_modules():
        theirs = stored.get(name)
        if theirs is None:
            continue
        kind, own = theirs.path.rpartition(".")[2], type(module)
        comparable = theirs.path.startswith(_PACKAGES) and own.__module__.startswith(_PACKAGES)
        bare = next(module.children(), None) is None and next(module.parameters(), None) is None
        if (comparable or bare) and kind != own.__name__ and next(module.parameters(recurse=False), None) is None:
            harmless = kind.startswith(HARMLESS) and own.__name__.startswith(HARMLESS)
            if not harmless and not _same_kind(kind, own):
                differing.append(Contradiction(name, "its class", kind, own.__name__))
            continue
        if hasattr(module, _CONNECTION) and _CONNECTION not in theirs.settings:
            differing.append(Contradiction(name, _CONNECTION, "not there", getattr(module, _CONNECTION)))
        constants = tuple(getattr(module, "__constants__", ())) if comparable else ()
        for setting in dict.fromkeys((*constants, *_KNOWN)):
            ours = getattr(module, setting, None)
            if setting in _SIZES or setting not in theirs.settings or not hasattr(module, setting) or not _plain(ours):
                continue
            if not _equal(theirs.settings[setting], ours):
                differing.append(Contradiction(name, setting, theirs.settings[setting], ours))
    return differing


def check_settings(
    weights: ForeignWeights, model: nn.Module, ref: str, path: Path, *, other_than: Container[str] = ()
) -> None:
    """Compares what was rebuilt with what was pickled.

    Args:
        weights: The file's content.
        model: What was rebuilt.
        ref: Its architecture, for messages.
        path: The file, for messages.
        other_than: Settings that the user gave.

    Raises:
        ModelError: They would not compute the same.
    """
    differing = [one for one in contradictions(weights.modules, model) if one.setting not in other_than]
    if not differing and not set(weights.modules) & {name for name, _ in model.named_modules() if name}:
        differing = _other_neurons(weights.modules.values(), model)
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise ModelError(
            f"{path}: has the weights of {ref}, but its modules have other settings: {differing[0]}{more}; prune "
            "the network itself in Python, prunecli.prune(model, ...), or give the argument that sets it with "
            "--model-kwargs, where it takes one"
        )


def _other_neurons(stored: Iterable[StoredModule], model: nn.Module) -> list[Contradiction]:
    """Neurons that have settings which none of the network rebuilt under other names has, or the other way round."""
    theirs = {_neuron_values(module.settings) for module in stored if "v_threshold" in module.settings}
    ours = {_neuron_values(vars(module)) for module in model.modules() if hasattr(module, "v_threshold")}
    if not theirs or theirs == ours:
        return []
    first, second = sorted(map(str, theirs - ours)) or ["none"], sorted(map(str, ours - theirs)) or ["none"]
    return [Contradiction("its neurons", "v_threshold, v_reset", first[0], second[0])]


def _neuron_values(settings: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(
        float(v) if isinstance(v := settings.get(name), (int, float)) else v for name in ("v_threshold", "v_reset")
    )


def adopt_settings(stored: Mapping[str, StoredModule], model: nn.Module, *, other_than: Container[str] = ()) -> None:
    """Gives neurons the settings that the pickled ones of the same names have, one by one.

    Args:
        stored: The pickled modules by name.
        model: The network; changed.
        other_than: Settings that the user gave.
    """
    for name, module in model.named_modules():
        theirs = stored.get(name)
        if theirs is None or not hasattr(module, "v_threshold"):
            continue
        for setting in (name for name in _NEURON_SETTINGS if name not in other_than):
            value = theirs.settings.get(setting)
            if setting in theirs.settings and hasattr(module, setting) and not _equal(value, getattr(module, setting)):
                setattr(module, setting, value)


def spiking_arguments(weights: ForeignWeights, allowed: Sequence[str]) -> dict[str, Plain]:
    """Arguments of a spiking network that its file states.

    Args:
        weights: The file's content.
        allowed: Arguments that the architecture takes.
    """
    arguments: dict[str, Plain] = {}
    modules = list(weights.modules.values())
    said = {name: _number(value) for name, value in weights.settings.items()}
    if isinstance(tau := said.get("tau"), (int, float)) and tau <= 1:
        del said["tau"]  # of an average or a loss, not of a neuron
    everywhere = [said, *(module.settings for module in modules)]
    for name in (*_NEURON_SETTINGS, "num_heads"):
        values = Counter(s[name] for s in everywhere if name in s and _is_scalar(s[name]))
        if values:
            arguments[name] = values.most_common(1)[0][0]
    steps = next((count for s in everywhere for name in _STEPS if (count := _whole(s.get(name))) is not None), None)
    if steps is not None:
        arguments["T"] = steps
    patch = next((s["patch_size"] for s in everywhere if "patch_size" in s), None)
    if patch is not None:
        arguments["patch_size"] = patch[0] if isinstance(patch, tuple) and patch else patch
    arguments |= _of_classes(modules)
    return {name: value for name, value in arguments.items() if name in allowed}


def language_arguments(weights: ForeignWeights) -> dict[str, Plain]:
    """Arguments of a recurrent language model that its file states: dropout and, of plain RNNs, the nonlinearity."""
    settings = weights.modules["rnn"].settings if "rnn" in weights.modules else {}
    arguments: dict[str, Plain] = {}
    if isinstance(dropout := settings.get("dropout"), (int, float)):
        arguments["dropout"] = float(dropout)
    mode = settings.get("mode")
    if isinstance(mode, str) and mode.startswith(_PLAIN_RNN):
        arguments["nonlinearity"] = mode.removeprefix(_PLAIN_RNN).lower()
    return arguments


def _of_classes(modules: Sequence[StoredModule]) -> dict[str, Plain]:
    """What the classes of pickled modules tell: the kind of neuron and surrogate, and of pooling."""
    arguments: dict[str, Plain] = {}
    kinds = [module.path.rpartition(".")[2] for module in modules if "v_threshold" in module.settings]
    neurons = Counter(next((n for sign, n in _NEURONS.items() if sign in kind), None) for kind in kinds)
    if neurons and (kind := neurons.most_common(1)[0][0]) is not None:
        arguments["neuron"] = kind
    surrogates = [module for module in modules if ".surrogate." in f".{module.path}"]
    known = Counter(_SURROGATES.get(module.path.rpartition(".")[2]) for module in surrogates)
    if known and (surrogate := known.most_common(1)[0][0]) is not None:
        arguments["surrogate"] = surrogate
        alpha = surrogates[0].settings.get("alpha")
        if isinstance(alpha, (int, float)):
            arguments["alpha"] = float(alpha)
    pools = {kind for module in modules if (kind := module.path.rpartition(".")[2]) in ("MaxPool2d", "AvgPool2d")}
    if len(pools) == 1 and any(module.path.endswith("SpikingVGG") for module in modules):
        arguments["pool"] = "max" if pools == {"MaxPool2d"} else "avg"
    return arguments


def _same_kind(stored: str, own: type) -> bool:
    """Whether one class is the other, or made from it: AdaptiveAvgPool2d of two packages, for instance."""
    return any(parent.__name__ == stored for parent in own.__mro__)


def _plain(value: Any) -> bool:
    items = value if isinstance(value, (tuple, list)) else (value,)
    return all(item is None or isinstance(item, (bool, int, float, str)) for item in items)


def _number(value: Plain) -> Plain:
    """A number that was written as a word."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _whole(value: Any) -> int | None:
    number = _number(value)
    return int(number) if isinstance(number, (int, float)) and number == int(number) else None


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float))


def _equal(stored: Any, ours: Any) -> bool:
    one, other = (tuple(v) if isinstance(v, (tuple, list)) else (v,) for v in (stored, ours))
    if len(one) != len(other):
        one, other = sorted((one, other), key=len)
        one = one * len(other)
    return all(_equal_items(a, b) for a, b in zip(one, other, strict=False))


def _equal_items(one: Any, other: Any) -> bool:
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return isclose(one, other, rel_tol=_CLOSE)
    return bool(one == other)
