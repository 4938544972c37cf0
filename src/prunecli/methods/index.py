"""All methods by name: a new one is an entry here and one file; packages add theirs by entry point. Torch-free."""

from __future__ import annotations

from prunecli.methods.params import StructuralParams
from prunecli.methods.spec import MethodSpec


def _structural(name: str, entry: str, summary: str, paper: str = "") -> MethodSpec:
    return MethodSpec(name, summary, paper, "structural", StructuralParams, entry)


_BUILT_IN = (
    _structural(
        "l1",
        "prunecli.criteria.magnitude:l1",
        "Remove the channels whose weights have the smallest L1 norm.",
        "https://arxiv.org/abs/1608.08710",
    ),
    _structural(
        "l2",
        "prunecli.criteria.magnitude:l2",
        "Remove the channels whose weights have the smallest L2 norm.",
        "https://arxiv.org/abs/1608.08710",
    ),
    _structural(
        "bn-scale",
        "prunecli.criteria.bn_scale:bn_scale",
        "Remove the channels with the smallest batch normalisation scale.",
        "https://arxiv.org/abs/1708.06519",
    ),
    _structural(
        "random",
        "prunecli.criteria.random:random",
        "Remove channels at random: the baseline to beat.",
    ),
)

METHODS: dict[str, MethodSpec] = {spec.name: spec for spec in _BUILT_IN}
