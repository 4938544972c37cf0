"""Mixtures of experts: which modules are some, what their routers decide, and what is left without experts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunecli
from prunecli.criteria.base import Calibration, default_loss
from prunecli.criteria.experts import at_random, frequency, loss_without, norm, probability
from prunecli.errors import MethodError, VerificationError
from prunecli.surgery.experts.finding import expert_layers
from prunecli.surgery.experts.removing import remove_experts
from prunecli.surgery.proof.without_experts import verify_without_experts

WIDTH, EXPERTS, CHOSEN = 8, 6, 2


class Mixture(nn.Module):
    """Modules in a list, a linear layer as the router, and noise on its logits while training."""

    def __init__(self, experts: int = EXPERTS, chosen: int = CHOSEN, noise: float = 0.0) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, WIDTH))
            for _ in range(experts)
        )
        self.num_experts, self.top_k, self.noise = experts, chosen, noise

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        if self.training and self.noise:
            logits = logits + self.noise * torch.randn_like(logits)
        weights, indices = logits.softmax(dim=-1).topk(self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        for index in range(self.num_experts):
            share = (weights * (indices == index)).sum(dim=-1, keepdim=True)
            out = out + share * self.experts[index](x)
        return out


class Router(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(EXPERTS, WIDTH))
        self.correction_bias = nn.Buffer(torch.randn(EXPERTS))
        self.n_group, self.n_experts = groups, EXPERTS

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x, self.weight).sigmoid()
        choice = scores + self.correction_bias
        if self.n_group > 1:
            grouped = choice.unflatten(-1, (self.n_group, -1))
            best = grouped.topk(2, dim=-1).values.sum(dim=-1).argmax(dim=-1, keepdim=True)
            mask = torch.zeros_like(grouped).scatter(-2, best.unsqueeze(-1).expand(*best.shape, grouped.shape[-1]), 1.0)
            choice = choice.masked_fill(mask.flatten(-2) == 0, float("-inf"))
        indices = choice.topk(CHOSEN, dim=-1).indices
        weights = scores.gather(-1, indices)
        return weights / weights.sum(dim=-1, keepdim=True), indices


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.empty(EXPERTS, WIDTH, 5)), nn.Parameter(torch.empty(EXPERTS, 5, WIDTH))
        self.up_bias = nn.Parameter(torch.empty(EXPERTS, 5))
        self.num_experts = EXPERTS

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        hidden = torch.einsum("...i,eij->...ej", x, self.up) + self.up_bias
        every = torch.einsum("...ej,ejo->...eo", hidden.relu(), self.down)
        chosen = every.gather(-2, indices.unsqueeze(-1).expand(*indices.shape, WIDTH))
        return (chosen * weights.unsqueeze(-1)).sum(dim=-2)


class Grouped(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.gate, self.experts = Router(groups), Experts()

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x, *self.gate(x))  # type: ignore[no-any-return]


class Network(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.stem, self.layers, self.head = nn.Linear(5, WIDTH), nn.ModuleList(layers), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.head(x)  # type: ignore[no-any-return]


def network(*layers: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(0)
    made = Network(*(layers or (Mixture(), Mixture())))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return made.eval()


def x(*shape: int) -> Tensor:
    return torch.randn(shape or (2, 7, 5), generator=torch.Generator().manual_seed(1))


def masked(made: Any, off: dict[int, list[int]], inputs: Tensor) -> Tensor:
    """What a network of `Mixture` layers computes while experts have logits of minus infinity, in float64."""
    made, stream = made.double(), inputs.double()
    stream = made.stem(stream)
    for number, layer in enumerate(made.layers):
        logits = layer.router(stream)
        logits[..., off.get(number, [])] = float("-inf")
        weights, indices = logits.softmax(dim=-1).topk(layer.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        every = torch.stack([expert(stream) for expert in layer.experts], dim=-2)
        chosen = every.gather(-2, indices.unsqueeze(-1).expand(*indices.shape, WIDTH))
        stream = stream + (chosen * weights.unsqueeze(-1)).sum(dim=-2)
    scores: Tensor = made.head(stream)
    made.float()
    return scores


def test_mixtures_are_found_by_what_they_hold_and_compute() -> None:
    layers = expert_layers(network(Mixture(), Grouped(groups=2)), x())
    first, second = layers
    assert (first.name, first.router, first.holders) == ("layers.0", "layers.0.router", ("layers.0.experts",))
    assert (first.experts, first.chosen, first.listed, first.groups) == (EXPERTS, CHOSEN, True, 1)
    assert (second.router, second.holders) == ("layers.1.gate", ("layers.1.experts",))
    assert (second.experts, second.chosen, second.listed, second.groups) == (EXPERTS, CHOSEN, False, 2)


def test_a_classifier_of_as_many_classes_as_blocks_is_no_router() -> None:
    blocks = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    assert expert_layers(network(*blocks), x()) == []
    with pytest.raises(MethodError, match=r"no mixture of experts.*such as l1"):
        prunecli.prune(network(*blocks), "experts", example_inputs=x(), ratio=0.3)


def test_what_is_left_computes_what_the_others_compute() -> None:
    made = network()
    result = prunecli.prune(made, "experts", example_inputs=x(), experts=2)
    gone = {number: [int(name.rpartition(".")[2]) for name in result.report.removed if f"layers.{number}." in name]
            for number in range(2)}  # fmt: skip
    assert all(len(indices) == 2 for indices in gone.values()) and result.report.verify_error < 1e-12
    small: Any = result.model
    for layer in small.layers:
        assert len(layer.experts) == 4 and layer.num_experts == 4 and layer.router.out_features == 4
        assert layer.router.weight.shape == (4, WIDTH) and layer.router.bias.shape == (4,)
    wanted = masked(made, gone, x(3, 9, 5))
    assert torch.allclose(small.double()(x(3, 9, 5).double()), wanted, rtol=0, atol=1e-12)
    norms = norm(made, expert_layers(made, x()), Calibration())["layers.0"]
    assert sorted(gone[0]) == sorted(norms.argsort()[:2].tolist())
    weights = nn.utils.parameters_to_vector(made.layers[0].experts[3].parameters()).detach()
    assert norms[3] == pytest.approx(float(weights.norm()))


@pytest.mark.parametrize("layer", [Grouped(1), Mixture(noise=0.5), Mixture(chosen=1)])
def test_every_kind_comes_back_from_its_file(layer: nn.Module, tmp_path: Path) -> None:
    made = network(layer)
    result = prunecli.prune(made, "experts", example_inputs=x(), data=[x()], ratio=0.35)
    assert len(result.report.removed) == 2 and result.report.verify_error < 1e-12
    result.save(tmp_path / "small.safetensors")
    restored = prunecli.load(tmp_path / "small.safetensors", made)
    assert torch.equal(restored(x()), result.model(x()))
    again = prunecli.prune(restored, "experts", example_inputs=x(), data=[x()], experts=1)
    again.save(tmp_path / "smaller.safetensors")
    assert torch.equal(prunecli.load(tmp_path / "smaller.safetensors", made)(x()), again.model(x()))
    assert again.report.present == 4


def test_groups_stay_equally_large() -> None:
    made = network(Grouped(groups=3))
    layer = expert_layers(made, x())[0]
    assert layer.groups == 3
    with pytest.raises(MethodError, match="3 groups of experts, which have to stay equally large; remove a multiple"):
        prunecli.prune(made, "experts", example_inputs=x(), experts=2)
    made = network(Grouped(groups=2))
    result = prunecli.prune(made, "experts", example_inputs=x(), ratio=0.4)
    gone = [int(name.rpartition(".")[2]) for name in result.report.removed]
    assert len(gone) == 2 and gone[0] < 3 <= gone[1]


def test_groups_under_another_name_are_refused_by_the_proof() -> None:
    class Hidden(Router):
        def __init__(self) -> None:
            super().__init__(1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            self.n_group = 2
            try:
                return super().forward(x)
            finally:
                self.n_group = 1

    layer = Grouped()
    layer.gate = Hidden()
    with pytest.raises(VerificationError, match="experts"):
        prunecli.prune(network(layer), "experts", example_inputs=x(4, 30, 5), experts=1)


@pytest.mark.parametrize("wrong", ["rows", "experts", "correction", "another", "bias"])
def test_the_proof_sees_what_went_wrong(wrong: str) -> None:
    made = network(Grouped()) if wrong == "correction" else network(Mixture())
    layers = expert_layers(made, x())
    keep = {"layers.0": torch.tensor([0, 1, 3, 5])}
    small: Any = copy.deepcopy(made)
    remove_experts(small, layers, keep)
    assert verify_without_experts(made, small, layers, keep, x()) < 1e-12
    small = copy.deepcopy(made)
    other = {"layers.0": torch.tensor([0, 1, 2, 5])}
    remove_experts(small, layers, other if wrong == "another" else keep)
    layer = small.layers[0]
    with torch.no_grad():
        if wrong == "rows":
            layer.router.weight.copy_(made.layers[0].router.weight[[0, 1, 2, 5]])
        elif wrong == "bias":
            layer.router.bias.copy_(made.layers[0].router.bias[[0, 1, 2, 5]])
        elif wrong == "experts":
            layer.experts[2], layer.experts[3] = layer.experts[3], layer.experts[2]
        elif wrong == "correction":
            layer.gate.correction_bias.copy_(made.layers[0].gate.correction_bias[[0, 1, 2, 5]])
    with pytest.raises(VerificationError):
        verify_without_experts(made, small, layers, keep, x())


def test_scores_are_what_their_names_say() -> None:
    made = network(Mixture())
    layers = expert_layers(made, x())
    data = [(x(2, 7, 5), torch.zeros(2, 7, dtype=torch.long)), (x(3, 4, 5), torch.ones(3, 4, dtype=torch.long))]
    calibration = Calibration(batches=data, example_inputs=x())
    with torch.no_grad():
        logits = torch.cat([made.layers[0].router(made.stem(inputs)).double().flatten(0, 1) for inputs, _ in data])
    assert torch.allclose(probability(made, layers, calibration)["layers.0"], logits.softmax(1).mean(0), atol=1e-6)
    counts = torch.bincount(logits.topk(CHOSEN, dim=1).indices.flatten(), minlength=EXPERTS).double()
    assert torch.allclose(frequency(made, layers, calibration)["layers.0"], counts / len(logits))

    def loss(off: list[int]) -> float:
        with torch.no_grad():
            return sum(float(default_loss(masked(made, {0: off}, inputs), labels)) for inputs, labels in data) / 5

    rises = loss_without(made, layers, calibration)["layers.0"]
    assert rises.tolist() == pytest.approx([loss([index]) - loss([]) for index in range(EXPERTS)], abs=1e-5)
    numbers = [at_random(made, layers, Calibration(torch.Generator().manual_seed(0)))["layers.0"] for _ in range(2)]
    assert torch.equal(*numbers) and len(set(numbers[0].tolist())) == EXPERTS


def test_where_all_experts_are_weighed_none_is_chosen() -> None:
    class Soft(Mixture):
        def forward(self, x: Tensor) -> Tensor:
            weights = self.router(x).softmax(dim=-1)
            every = torch.stack([expert(x) for expert in self.experts], dim=-1)
            return (every * weights.unsqueeze(-2)).sum(dim=-1)  # type: ignore[no-any-return]

    made = network(Soft())
    assert expert_layers(made, x())[0].chosen == 0
    result = prunecli.prune(made, "experts", example_inputs=x(), data=[x()], score="frequency", ratio=0.5)
    assert len(result.model.layers[0].experts) == 3 and result.report.verify_error < 1e-12  # type: ignore[index, union-attr]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ratio": 0.5, "experts": 2}, "ratio and experts both say how many experts go"),
        ({"experts": 5}, r"layers.0: 1 of its 6 experts would be left, and every token is sent to 2; remove fewer"),
        ({"experts": 7}, r"layers.0: -1 of its 6 experts would be left"),
        ({"ratio": 0.05}, "a share of 0.05 of 6 experts is less than one; give experts=1"),
        ({"keep": ["layers.*"]}, "all 2 mixtures are kept by patterns"),
        ({"keep": ["body"]}, "layer pattern 'body'"),
        ({"score": "probability"}, "measured on data"),
        ({"score": "colour"}, "score"),
        ({"compensate": "ls"}, "takes neither compensate"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(params: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError, match=message) as raised:
        prunecli.prune(network(), "experts", example_inputs=x(), **params)
    assert "\n" not in str(raised.value)


def test_a_kept_layer_keeps_all_and_the_others_lose() -> None:
    result = prunecli.prune(network(), "experts", example_inputs=x(), ratio=0.5, keep=["layers.0"])
    assert [len(layer.experts) for layer in result.model.layers] == [6, 3]  # type: ignore[union-attr]
    assert {entry.name for entry in result.report.untouched} == {"layers.0"}


def test_width_depth_and_experts_in_one_network(tmp_path: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mixture = nn.LayerNorm(WIDTH), Mixture()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mixture(self.norm(x))  # type: ignore[no-any-return]

    class Blocks(Network):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for layer in self.layers:
                x = layer(x)
            return self.head(x)  # type: ignore[no-any-return]

    made = Blocks(Block(), Block(), Block())
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.5)
    made.eval()
    fewer = prunecli.prune(made, "experts", example_inputs=x(), ratio=0.35)
    shallow = prunecli.prune(fewer.model, "depth", example_inputs=x(), drop="layers.1")
    last = prunecli.prune(shallow.model, "experts", example_inputs=x(), experts=1)
    last.save(tmp_path / "small.safetensors")
    restored = prunecli.load(tmp_path / "small.safetensors", made)
    assert torch.equal(restored(x()), last.model(x()))
    assert [len(layer.mixture.experts) for layer in restored.layers] == [3, 3]  # type: ignore[union-attr]
