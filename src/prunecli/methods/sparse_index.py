"""Methods that set single weights to zero: a new one is a file in `criteria/weights/` and a line here. Torch-free."""

from __future__ import annotations

from prunecli.methods.spec import MethodSpec


def _method(name: str, summary: str, paper: str, entry: str, *, needs_data: bool = False) -> MethodSpec:
    module = f"prunecli.criteria.weights.{entry}"
    return MethodSpec(name, summary, paper, "sparse", "prunecli.methods.sparse_params:SparseParams", module, needs_data)


_BUILT_IN = (
    _method(
        "magnitude",
        "Set the weights of smallest magnitude to zero.",
        "https://arxiv.org/abs/1506.02626",
        "magnitude:MAGNITUDE",
    ),
    _method(
        "wanda-weights",
        "Set the weights of smallest magnitude times input norm to zero.",
        "https://arxiv.org/abs/2306.11695",
        "wanda:WANDA",
        needs_data=True,
    ),
    _method(
        "snip",
        "Set the weights to zero without which the loss changes least to first order.",
        "https://arxiv.org/abs/1810.02340",
        "snip:SNIP",
        needs_data=True,
    ),
    _method(
        "grasp",
        "Set the weights to zero without which gradients stay largest.",
        "https://arxiv.org/abs/2002.07376",
        "grasp:GRASP",
        needs_data=True,
    ),
    _method(
        "synflow",
        "Set the weights to zero that carry the least synaptic flow.",
        "https://arxiv.org/abs/2006.05467",
        "synflow:SYNFLOW",
    ),
    _method(
        "sparsegpt",
        "Set weights to zero and adjust the others by second order.",
        "https://arxiv.org/abs/2301.00774",
        "sparsegpt:SPARSEGPT",
        needs_data=True,
    ),
    _method(
        "random-weights",
        "Set weights to zero at random: the baseline to beat.",
        "",
        "random:RANDOM",
    ),
)

SPARSE = {spec.name: spec for spec in _BUILT_IN}
