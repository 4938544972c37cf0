"""All methods by name: a new one is an entry here and one file; packages add theirs by entry point. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunecli.methods.params import ActivationParams, LampParams, SpikeParams, StructuralParams, TokenParams
from prunecli.methods.spec import MethodSpec


def _structural(
    name: str,
    entry: str,
    summary: str,
    paper: str = "",
    *,
    params: type[Any] = StructuralParams,
    needs_data: bool = False,
    without_data: Mapping[str, Any] | None = None,
) -> MethodSpec:
    entry = f"prunecli.criteria.{entry}"
    return MethodSpec(name, summary, paper, "structural", params, entry, needs_data, without_data)


_BUILT_IN = (
    _structural(
        "l1",
        "magnitude:l1",
        "Remove the channels whose weights have the smallest L1 norm.",
        "https://arxiv.org/abs/1608.08710",
    ),
    _structural(
        "l2",
        "magnitude:l2",
        "Remove the channels whose weights have the smallest L2 norm.",
        "https://arxiv.org/abs/1608.08710",
    ),
    _structural(
        "group-norm",
        "magnitude:group_norm",
        "Remove the channels with the smallest L2 norm over their group.",
        "https://arxiv.org/abs/2301.12900",
    ),
    _structural(
        "lamp",
        "lamp:lamp",
        "Rank L2 norms by scores that compare across layers.",
        "https://arxiv.org/abs/2010.07611",
        params=LampParams,
    ),
    _structural(
        "fpgm",
        "fpgm:fpgm",
        "Remove the filters nearest to all others of their layer.",
        "https://arxiv.org/abs/1811.00250",
    ),
    _structural(
        "bn-scale",
        "bn_scale:bn_scale",
        "Remove the channels with the smallest batch normalisation scale.",
        "https://arxiv.org/abs/1708.06519",
    ),
    _structural(
        "taylor",
        "gradient:taylor",
        "Remove the channels whose loss changes least to first order.",
        "https://arxiv.org/abs/1611.06440",
        needs_data=True,
    ),
    _structural(
        "fisher",
        "gradient:fisher",
        "Remove the channels with the least empirical Fisher information.",
        "https://arxiv.org/abs/1801.05787",
        needs_data=True,
    ),
    _structural(
        "activation",
        "activation:activation",
        "Remove the channels whose activations are small or constant.",
        "https://arxiv.org/abs/1607.03250",
        params=ActivationParams,
        needs_data=True,
    ),
    _structural(
        "wanda",
        "wanda:wanda",
        "Remove the channels with the smallest weights times activations.",
        "https://arxiv.org/abs/2306.11695",
        needs_data=True,
    ),
    _structural(
        "spike",
        "spike:spike",
        "Remove the channels whose spiking neurons do the least.",
        "https://arxiv.org/abs/2209.15425",
        params=SpikeParams,
        without_data={"criterion": "bn-scale"},
    ),
    MethodSpec(
        "token",
        "Leave out tokens of a vision transformer while it runs.",
        "https://arxiv.org/abs/2202.07800",
        "runtime",
        TokenParams,
        "prunecli.methods.token:plan_selection",
    ),
    _structural(
        "random",
        "random:random",
        "Remove channels at random: the baseline to beat.",
    ),
)

METHODS: dict[str, MethodSpec] = {spec.name: spec for spec in _BUILT_IN}
