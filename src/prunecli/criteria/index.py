"""All criteria by name: a new one is a function in a file of this folder and an entry below. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunecli.errors import MethodError
from prunecli.registry import Registry


@dataclass(frozen=True)
class CriterionSpec:
    """One criterion; it makes a structural method of the same name.

    Attributes:
        name: The verb on the command line and the value of `method:` in a recipe.
        entry: "module:attribute" of the function, see `prunecli.criteria.base.Criterion`.
        summary: One line of help.
        paper: URL of the paper that it follows, or empty.
        options: A frozen dataclass with annotated fields: options besides those of all structural methods. Or
            "module:attribute" of it: making a dataclass takes long, and most commands need one of them.
        needs_data: Whether it needs calibration data.
        without_data: Options with which it works without data, used where there is none.
        source: Source of the architectures that it is for, as in "spiking:vgg9"; None: any.
        members: Of a criterion that makes one ranking of several: "module:attribute" of a function from its options to
            those with which each of them ranks alone, by name.
    """

    name: str
    entry: str
    summary: str
    paper: str = ""
    options: type[Any] | str = "prunecli.criteria.options:NoOptions"
    needs_data: bool = False
    without_data: Mapping[str, Any] | None = None
    source: str | None = None
    members: str = ""


_OPTIONS = "prunecli.criteria.options:"
_BUILT_IN = (
    CriterionSpec(
        "l1",
        "prunecli.criteria.magnitude:l1",
        "Remove the channels whose weights have the smallest L1 norm.",
        "https://arxiv.org/abs/1608.08710",
        options=_OPTIONS + "RetentionOptions",
    ),
    CriterionSpec(
        "l2",
        "prunecli.criteria.magnitude:l2",
        "Remove the channels whose weights have the smallest L2 norm.",
        "https://arxiv.org/abs/1608.08710",
        options=_OPTIONS + "RetentionOptions",
    ),
    CriterionSpec(
        "group-norm",
        "prunecli.criteria.magnitude:group_norm",
        "Remove the channels with the smallest L2 norm over their group.",
        "https://arxiv.org/abs/2301.12900",
    ),
    CriterionSpec(
        "lamp",
        "prunecli.criteria.lamp:lamp",
        "Rank L2 norms by scores that compare across layers.",
        "https://arxiv.org/abs/2010.07611",
        options=_OPTIONS + "LampOptions",
    ),
    CriterionSpec(
        "fpgm",
        "prunecli.criteria.fpgm:fpgm",
        "Remove the filters nearest to all others of their layer.",
        "https://arxiv.org/abs/1811.00250",
    ),
    CriterionSpec(
        "bn-scale",
        "prunecli.criteria.bn_scale:bn_scale",
        "Remove the channels with the smallest batch normalisation scale.",
        "https://arxiv.org/abs/1708.06519",
    ),
    CriterionSpec(
        "taylor",
        "prunecli.criteria.gradient:taylor",
        "Remove the channels without which the loss changes least to first order.",
        "https://arxiv.org/abs/1611.06440",
        options=_OPTIONS + "RetentionOptions",
        needs_data=True,
    ),
    CriterionSpec(
        "fisher",
        "prunecli.criteria.gradient:fisher",
        "Remove the channels with the least empirical Fisher information.",
        "https://arxiv.org/abs/1801.05787",
        options=_OPTIONS + "RetentionOptions",
        needs_data=True,
    ),
    CriterionSpec(
        "activation",
        "prunecli.criteria.activation:activation",
        "Remove the channels whose activations are small or constant.",
        "https://arxiv.org/abs/1607.03250",
        options=_OPTIONS + "ActivationOptions",
        needs_data=True,
    ),
    CriterionSpec(
        "wanda",
        "prunecli.criteria.wanda:wanda",
        "Remove the channels with the smallest weights times activations.",
        "https://arxiv.org/abs/2306.11695",
        needs_data=True,
    ),
    CriterionSpec(
        "flap",
        "prunecli.criteria.fluctuation:flap",
        "Remove the channels that move their readers' outputs least.",
        "https://arxiv.org/abs/2312.11983",
        options=_OPTIONS + "RetentionOptions",
        needs_data=True,
    ),
    CriterionSpec(
        "hap",
        "prunecli.criteria.hessian:hap",
        "Remove the channels with the smallest Hessian trace times weights.",
        "https://arxiv.org/abs/2101.08940",
        options=_OPTIONS + "HessianOptions",
        needs_data=True,
    ),
    CriterionSpec(
        "obd",
        "prunecli.criteria.hessian:obd",
        "Remove the channels whose weights' curvature costs least.",
        "https://papers.nips.cc/paper/250-optimal-brain-damage",
        options=_OPTIONS + "HessianOptions",
        needs_data=True,
    ),
    CriterionSpec(
        "gate-obd",
        "prunecli.criteria.gate_hessian:gate_obd",
        "Remove the channels whose gates' curvature costs least.",
        "https://papers.nips.cc/paper/250-optimal-brain-damage",
        options=_OPTIONS + "HessianOptions",
        needs_data=True,
    ),
    CriterionSpec(
        "obs",
        "prunecli.criteria.obs:obs",
        "Remove the channels that the others can best make up for.",
        "https://arxiv.org/abs/2302.04089",
        options=_OPTIONS + "ObsOptions",
        needs_data=True,
    ),
    CriterionSpec(
        "obs-greedy",
        "prunecli.criteria.obs:obs_greedy",
        "As obs, one channel after the other.",
        "https://arxiv.org/abs/2302.04089",
        options=_OPTIONS + "ObsOptions",
        needs_data=True,
    ),
    CriterionSpec(
        "enhanced",
        "prunecli.criteria.enhanced:enhanced",
        "Remove the channels that rank low by five kinds of scores.",
        options=_OPTIONS + "EnhancedOptions",
        needs_data=True,
        members="prunecli.criteria.enhanced:members",
    ),
    CriterionSpec(
        "spike",
        "prunecli.criteria.spike:spike",
        "Remove the channels whose spiking neurons do the least.",
        "https://arxiv.org/abs/2209.15425",
        options=_OPTIONS + "SpikeOptions",
        without_data={"criterion": "bn-scale"},
        source="spiking",
    ),
    CriterionSpec(
        "random",
        "prunecli.criteria.random:random",
        "Remove channels at random: the baseline to beat.",
    ),
)

CRITERIA: Registry[CriterionSpec] = Registry(
    "criterion", "prunecli.criteria", {spec.name: spec for spec in _BUILT_IN}, MethodError, see="prune methods"
)
