"""All methods by name. Every criterion is a method; others are an entry here and one file. Torch-free."""

from __future__ import annotations

from prunecli.criteria.index import CRITERIA, CriterionSpec
from prunecli.errors import MethodError
from prunecli.methods.sparse_index import SPARSE
from prunecli.methods.spec import MethodSpec
from prunecli.registry import Registry


def method_of(criterion: CriterionSpec) -> MethodSpec:
    """The structural method that ranks by a criterion; it takes the criterion's options beside its own parameters."""
    return MethodSpec(
        criterion.name,
        criterion.summary,
        criterion.paper,
        "structural",
        (criterion.options, "prunecli.methods.params:StructuralParams"),
        criterion.entry,
        criterion.needs_data,
        criterion.without_data,
        source=criterion.source,
        members=criterion.members,
    )


_BEST = MethodSpec(
    "best",
    "Widths by what layers cost on trial, channels by obs-greedy.",
    "https://arxiv.org/abs/2302.04089",
    "structural",
    "prunecli.methods.best_params:BestParams",
    "prunecli.criteria.obs:obs_greedy",
    needs_data=True,
)
_TOKEN = MethodSpec(
    "token",
    "Leave out tokens of a vision transformer while it runs.",
    "https://arxiv.org/abs/2202.07800",
    "runtime",
    "prunecli.methods.params:TokenParams",
    "prunecli.methods.token:TokenMethod",
    command="prunecli.cli.commands.token:method_command",
    renamed={"keep": "keep_share"},  # which names layers in every other method
)
_DEPTH = MethodSpec(
    "depth",
    "Remove whole residual blocks.",
    "https://arxiv.org/abs/2403.03853",
    "parts",
    "prunecli.methods.depth_params:DepthParams",
    "prunecli.methods.depth:prune_depth",
    without_data={"score": "cosine"},
)
_EXPERTS = MethodSpec(
    "experts",
    "Remove experts of mixtures with their router's rows.",
    "https://arxiv.org/abs/2404.05089",
    "parts",
    "prunecli.methods.experts_params:ExpertsParams",
    "prunecli.methods.experts:prune_experts",
    without_data={"score": "norm"},
)
_UNSTRUCTURED = MethodSpec(
    "unstructured",
    "Learn masks of single weights and neurons while training.",
    "https://openreview.net/forum?id=eoSeaK4QJo",
    "trained",
    "prunecli.methods.unstructured_params:UnstructuredParams",
    "prunecli.methods.unstructured:Unstructured",
    aliases="prunecli.methods.unstructured_params:ALIASES",
)
_SCA = MethodSpec(
    "sca",
    "Prune and regrow channels by spiking activity while training.",
    "https://arxiv.org/abs/2406.01072",
    "trained",
    "prunecli.methods.sca_params:ScaParams",
    "prunecli.methods.sca:Sca",
    aliases="prunecli.methods.sca_params:ALIASES",
)
_HYBRID = MethodSpec(
    "hybrid",
    "Choose how many units of a hybrid network stay, and how many spike.",
    "https://doi.org/10.1038/s41467-024-51641-x",
    "structural",
    "prunecli.methods.hybrid_params:HybridParams",
    "prunecli.methods.hybrid:hybrid",
    needs_data=True,
    ratios="prunecli.methods.hybrid:composed",
)
_RANKED = {name: method_of(CRITERIA.load(name)) for name in CRITERIA.built_in}
_BASELINE = {"random": _RANKED.pop("random")}  # listed last

_FIRST = {_BEST.name: _BEST}
_OTHERS = {spec.name: spec for spec in (_DEPTH, _EXPERTS, _SCA, _UNSTRUCTURED, _HYBRID, _TOKEN)}

METHODS: Registry[MethodSpec] = Registry(
    "method", "prunecli.methods", _FIRST | _RANKED | SPARSE | _OTHERS | _BASELINE, MethodError, see="prune methods"
)
