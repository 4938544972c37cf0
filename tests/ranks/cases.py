"""Networks, data and every score or repair that processes share, as functions that give the same wherever they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.criteria.activation import activation
from prunecli.criteria.base import Calibration
from prunecli.criteria.enhanced import enhanced
from prunecli.criteria.fluctuation import flap
from prunecli.criteria.gate_hessian import gate_obd
from prunecli.criteria.gradient import fisher, taylor
from prunecli.criteria.hessian import hap, obd
from prunecli.criteria.obs import obs, obs_greedy
from prunecli.criteria.parts import observed_parts
from prunecli.criteria.samples import SomeSamples
from prunecli.criteria.spike import spike
from prunecli.criteria.wanda import wanda
from prunecli.methods.registry import get_structural
from prunecli.methods.request import PruneRequest
from prunecli.methods.sparse import SparseRequest, mask_weights
from prunecli.methods.sparse_params import SparseParams
from prunecli.methods.structural import prune_structural
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.tracing.trace import trace
from tests.unit.recurrent import Words, tokens, words_groups

CRITERIA: Mapping[str, tuple[Any, Mapping[str, Any]]] = {
    "taylor": (taylor, {}),
    "fisher": (fisher, {}),
    "activation": (activation, {}),
    "activation std": (activation, {"statistic": "std"}),
    "wanda": (wanda, {}),
    "flap": (flap, {}),
    "obs": (obs, {}),
    "obs without taps": (obs, {"taps": False}),
    "obs-greedy": (obs_greedy, {}),
    "hap": (hap, {"min_probes": 4, "max_probes": 7}),
    "obd": (obd, {"min_probes": 4, "max_probes": 7}),
    "gate-obd": (gate_obd, {"min_probes": 4, "max_probes": 7}),
    "enhanced": (enhanced, {"min_probes": 4, "max_probes": 6}),
    "enhanced learned": (enhanced, {"min_probes": 4, "max_probes": 6, "fusion": "learned", "ablations": 8}),
}
SPIKES = ("rate", "rate+v", "entropy", "variance", "singular")
WEIGHTS = ("wanda-weights", "snip", "grasp", "synflow", "sparsegpt", "magnitude", "random-weights")
REPAIRS = ("bias", "ls", "reconstruct", "auto")


class Convolutions(nn.Module):
    """Convolutions with normalisations and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12))
        self.hidden, self.head = nn.Linear(12, 24), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.relu(x + self.outer(self.inner(x)))
        return self.head(torch.relu(self.hidden(x.mean((2, 3)))))


class Transformer(nn.Module):
    """A small vision transformer with attention of its own layers."""

    def __init__(self, width: int = 24, heads: int = 3, blocks: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, length, _ = x.shape
        parts = self.qkv(self.norm1(x)).reshape(samples, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        shares = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)
        x = x + self.projection((shares @ value).transpose(1, 2).reshape(samples, length, -1))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


def network(kind: str) -> nn.Module:
    """A network with weights that are the same everywhere."""
    torch.manual_seed(5)
    model = {"conv": Convolutions, "vit": Transformer, "lstm": Words}[kind]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(batches: int, size: int = 6, last: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Batches of images with labels; the last may be smaller."""
    generator = torch.Generator().manual_seed(3)
    sizes = [size] * (batches - 1) + [last if last is not None else size]
    return [
        (torch.randn(count, 3, 16, 16, generator=generator), torch.randint(0, 10, (count,), generator=generator))
        for count in sizes
    ]


def data_of(kind: str, batches: int) -> list[tuple[Tensor, Tensor]]:
    """Calibration data: one batch is larger, the last of several smaller."""
    if kind == "lstm":
        return tokens(batches)
    # With four batches or more, there are more positions in each than `obs` looks at, so it draws some.
    return images(batches, 10 if batches > 3 else 6, last=4 if batches > 1 else 8)


def groups_of(kind: str, model: nn.Module) -> list[ChannelGroup]:
    return words_groups(model) if kind == "lstm" else list(trace(model, torch.randn(2, 3, 16, 16)).groups)


def scores(criterion: str, kind: str, batches: int) -> dict[str, Tensor | str]:
    """What a criterion says of a network's groups."""
    function, options = CRITERIA[criterion]
    model = network(kind)
    calibration = Calibration(
        generator=torch.Generator().manual_seed(1), batches=data_of(kind, batches), options=dict(options)
    )
    result = function(model, groups_of(kind, model), calibration)
    state = calibration.generator.get_state().double()
    return {**result, "generator": state}


def spiking() -> nn.Module:
    """Two layers of spiking neurons."""
    from tests.methods.test_sca import Spiking

    torch.manual_seed(2)
    return Spiking().eval()


def frames(batches: int) -> list[tuple[Tensor, Tensor]]:
    """Recordings (samples, steps, channels, height, width) with labels."""
    generator = torch.Generator().manual_seed(7)
    return [
        (2 * torch.rand(3, 4, 2, 8, 8, generator=generator), torch.randint(0, 10, (3,), generator=generator))
        for _ in range(batches)
    ]


def spike_scores(criterion: str, batches: int) -> dict[str, Tensor | str]:
    """The same for spiking neurons."""
    model, data = spiking(), [inputs for inputs, _ in frames(batches)]
    groups = list(trace(model, data[0]).groups)
    return spike(model, groups, Calibration(batches=data, options={"criterion": criterion}))


def masked(method: str, kind: str, batches: int) -> dict[str, Tensor]:
    """A network's weights after single weights were set to zero."""
    model = network(kind)
    example = torch.randint(0, 11, (2, 7)) if kind == "lstm" else torch.randn(2, 3, 16, 16)
    params = SparseParams(sparsity=0.5)
    mask_weights(
        model, SparseRequest(method=method, params=params, example_inputs=example, calibration=data_of(kind, batches))
    )
    return dict(model.state_dict())


def pruned(kind: str, compensation: str = "ls", method: str = "fisher", batches: int = 3, **params: Any) -> Any:
    """What `prune_structural` gives."""
    example = torch.randint(0, 11, (2, 7)) if kind == "lstm" else torch.randn(2, 3, 16, 16)
    settings = get_structural(method).params_class(**{"ratio": 0.4, **params})
    request = PruneRequest(
        method=method,
        params=settings,
        example_inputs=example,
        calibration=data_of(kind, batches),
        compensation=compensation,  # type: ignore[arg-type]
        recalibrate=None if compensation == "auto" else True,
    )
    return prune_structural(network(kind), request)


def scores_of_all(kind: str, batches: int, criteria: Sequence[str]) -> dict[str, dict[str, Tensor | str]]:
    """Of several criteria."""
    return {criterion: scores(criterion, kind, batches) for criterion in criteria}


def observed(rising: float) -> dict[str, Tensor]:
    """Statistics of activations, which rise from batch to batch, by the histograms that the first one gives limits."""
    model, data = (
        network("conv"),
        [(inputs * rising**number, labels) for number, (inputs, labels) in enumerate(images(4))],
    )
    some = SomeSamples.of(Calibration(batches=data), 0, "enhanced")
    part = observed_parts(model, groups_of("conv", model), some, ["activation"], 0.01)["activation"]
    assert part.halves is not None
    named = {"whole": part.scores, "first": part.halves[0], "second": part.halves[1]}
    return {f"{half} {name}": values for half, scores in named.items() for name, values in scores.items()}


def spikes_of_all(batches: int) -> dict[str, dict[str, Tensor | str]]:
    return {criterion: spike_scores(criterion, batches) for criterion in SPIKES}


def masked_by_all(kind: str, batches: int, methods: Sequence[str]) -> dict[str, dict[str, Tensor]]:
    return {method: masked(method, kind, batches) for method in methods}


Summary = tuple[dict[str, Tensor], list[tuple[str, list[int] | None]], dict[str, Any]]


def outcome(kind: str, compensation: str = "ls", **settings: Any) -> Summary:
    """Weights, kept units and figures of a pruned network."""
    result = pruned(kind, compensation, **settings)
    edits = [(edit.group, edit.keep_indices) for edit in result.report.edits]
    return dict(result.model.state_dict()), edits, result.report.figures()


def outcomes(jobs: list[tuple[str, str, dict[str, Any]]]) -> list[Summary]:
    return [outcome(kind, compensation, **settings) for kind, compensation, settings in jobs]
