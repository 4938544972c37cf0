"""Five kinds of scores, fused by rank: weights, activations, gradients, cooperation, and the trace of the Hessian.

Units are ranked within their group, so after fusion every group has the same spread of scores, and a ranking over all
layers takes the same share of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from prunecli.collective import each
from prunecli.criteria.ablation import Ablation
from prunecli.criteria.base import Calibration
from prunecli.criteria.fusion import fused, learned_weights, units_to_ablate
from prunecli.criteria.options import EnhancedOptions
from prunecli.criteria.parts import Part, gradient_part, hessian_part, magnitude_part, observed_parts
from prunecli.criteria.ranks import reliability
from prunecli.criteria.samples import SomeSamples, half_of
from prunecli.errors import MethodError
from prunecli.naming import option
from prunecli.surgery.groups import ChannelGroup

PARTS = ("magnitude", "activation", "gradient", "cooperative", "hessian")
_BELONGING = {
    "hessian": ("min_probes", "max_probes", "stability"),
    "cooperative": ("ridge",),
}
_UNRANKED = "none of the parts can rank it"


def enhanced(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> dict[str, Tensor | str]:
    """The weighted mean of the ranks that up to five parts give a unit; see `prunecli.criteria.parts`.

    Weights are equal (`simple`), each part's agreement with itself on two halves of the data (`adaptive`), or fitted to
    the ranks of units that are removed one by one (`learned`). For `adaptive`, every other batch is one half, the same
    for all parts; see `prunecli.criteria.ranks.reliability`. The part `hessian` alone has random vectors, whose noise
    lowers its agreement too; a part that looks at no data has 1.
    """
    options = _checked(calibration.options)
    names = [name for name in PARTS if options[name]]
    data = SomeSamples.of(calibration, options["samples"], "enhanced")
    parts = _measured(model, groups, data, names, options["ridge"])
    weights = _weights(model, groups, data, parts, options)
    calibration.found["weights"] = {name: round(weight, 4) for name, weight in weights.items()}
    scores: dict[str, Tensor | str] = {}
    for group in groups:
        known = {name: part.scores[group.name] for name, part in parts.items() if group.name in part.scores}
        scores[group.name] = fused(known, weights) if known else _UNRANKED
        missing = [name for name in parts if name not in known]
        if known and missing:
            calibration.found.setdefault("without", {})[group.name] = missing
    return scores


def members(options: Any) -> dict[str, Any]:
    """Options with which each part that is switched on is the whole score, by its name.

    Args:
        options: An instance of a dataclass with the fields of `EnhancedOptions`.
    """
    defaults = vars(EnhancedOptions())
    alone: dict[str, Any] = {}
    for name in PARTS:
        if getattr(options, name):
            others = [option for part, belonging in _BELONGING.items() if part != name for option in belonging]
            changed = {option: defaults[option] for option in ("ablations", *others)}
            changed |= {"samples": 0} if name == "magnitude" else {}
            parts = {part: part == name for part in PARTS}
            alone[name] = replace(options, **changed, **parts, fusion="simple")
    return alone


def _checked(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options, defaults included.

    Raises:
        MethodError: Options have no effect, or nothing is left to rank by.
    """
    defaults = vars(EnhancedOptions())
    options = {name: given.get(name, value) for name, value in defaults.items()}
    names = [name for name in PARTS if options[name]]
    if not names:
        raise MethodError(f"all five parts are switched off; leave one of them, such as {option('gradient', True)}")
    for part, belonging in _BELONGING.items():
        for name in belonging:
            if not options[part] and options[name] != defaults[name]:
                raise MethodError(
                    f"{option(name)} belongs to the part that {option(part, False)} switches off; leave out one of them"
                )
    if options["fusion"] != "learned" and options["ablations"] != defaults["ablations"]:
        raise MethodError(f"{option('ablations')} belongs to {option('fusion', 'learned')}; add that, or leave it out")
    if names == ["magnitude"] and options["samples"]:
        raise MethodError(
            f"{option('samples')} belongs to parts that look at data, and only magnitude is left; leave it out"
        )
    if len(names) == 1 and options["fusion"] == "learned":
        raise MethodError(f"{option('fusion', 'learned')} weighs parts, and only {names[0]} is left; leave it out")
    return options


def _measured(
    model: nn.Module, groups: Sequence[ChannelGroup], data: SomeSamples, names: Sequence[str], ridge: float
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    if "magnitude" in names:
        parts["magnitude"] = magnitude_part(model, groups)
    if "activation" in names or "cooperative" in names:
        parts |= observed_parts(model, groups, data, names, ridge)
    if "gradient" in names:
        parts["gradient"] = gradient_part(model, groups, data)
    if "hessian" in names:
        parts["hessian"] = hessian_part(model, groups, data)
    return {name: parts[name] for name in PARTS if name in parts}


def _weights(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    data: SomeSamples,
    parts: Mapping[str, Part],
    options: Mapping[str, Any],
) -> dict[str, float]:
    """The parts' weights; they add up to 1."""
    kind, equal = options["fusion"], dict.fromkeys(parts, 1 / len(parts))
    if kind == "simple" or not groups:
        return equal
    if kind == "adaptive":
        weights = {name: _agreement(part) for name, part in parts.items()}
        data.found["agreement"] = {name: round(value, 4) for name, value in weights.items()}
    else:
        units = units_to_ablate(groups, options["ablations"], data.generator)
        ablation = Ablation(model, groups, (half_of(data, 0), half_of(data, 1)))
        rises = each(lambda unit: _mean(ablation.rises(unit), ablation.samples), units)
        weights = learned_weights({name: part.scores for name, part in parts.items()}, units, rises)
        data.found["ablations"] = len(units)
        data.found["ablated"] = [[unit.group, unit.index] for unit in units]
    total = sum(weights.values())
    return {name: value / total for name, value in weights.items()} if total > 0 else equal


def _agreement(part: Part) -> float:
    if part.halves is None:
        return 1.0
    first, second = part.halves
    common = [name for name in first if name in second]
    return reliability({name: first[name] for name in common}, {name: second[name] for name in common})


def _mean(rises: tuple[float, float], samples: tuple[int, ...]) -> float:
    return sum(rise * count for rise, count in zip(rises, samples, strict=True)) / sum(samples)
