"""Folding removed channels into kept ones, against the textbook solution."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.surgery.removal.compensate import compensate
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Grouped, Plain, Transposed, example


class Bottleneck(nn.Module):
    """Hidden units that all come from three numbers, so that a few of them determine the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Linear(6, 3), nn.Linear(3, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(self.first(x)))


def _batches(*shape: int, count: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(32, *shape, generator=generator) + 0.5 for _ in range(count)]


def _sliced(model: nn.Module, inputs: Tensor, name: str, units: int) -> tuple[nn.Module, tuple, dict]:
    groups = trace(model, inputs).groups
    keep = {name: torch.arange(units)}
    pruned = copy.deepcopy(model)
    remove(pruned, groups, keep)
    return pruned, groups, keep


def test_redundant_channels_are_made_up_for_exactly() -> None:
    torch.manual_seed(0)
    model = Bottleneck()
    batches = _batches(6)
    pruned, groups, keep = _sliced(model, batches[0], "hidden", 5)
    x = torch.cat(batches)
    lost = float((pruned(x) - model(x)).detach().abs().max())
    assert compensate(model, pruned, groups, keep, batches, "ls", intercept=False) == 1
    left = float((pruned(x) - model(x)).detach().abs().max())
    assert lost > 0.1 and left < 0.01 * lost


def test_regression_is_the_least_squares_solution_up_to_its_ridge() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    batches = _batches(6, count=40)
    groups = trace(model, batches[0], prune_stem=True).groups
    pruned = copy.deepcopy(model)
    keep = {"0": torch.arange(8)}
    remove(pruned, groups, keep)
    compensate(model, pruned, groups, keep, batches, "ls", intercept=False)
    hidden = model[1](model[0](torch.cat(batches))).detach()
    wanted = model[2](hidden).detach()
    design = torch.cat([hidden[:, :8], torch.ones(len(hidden), 1)], dim=1)
    solution = torch.linalg.lstsq(design.double(), wanted.double()).solution
    best = float((design.double() @ solution - wanted).pow(2).mean())
    found = float((pruned[2](hidden[:, :8]) - wanted).detach().pow(2).mean())
    assert best <= found < 1.02 * best


def test_the_mean_shift_keeps_the_mean() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 2))
    batches = _batches(6)
    groups = trace(model, batches[0], prune_stem=True).groups
    keep = {"0": torch.arange(8)}
    pruned = copy.deepcopy(model)
    remove(pruned, groups, keep)
    assert compensate(model, pruned, groups, keep, batches, "bias", intercept=False) == 1
    hidden = model[1](model[0](torch.cat(batches))).detach()
    assert torch.allclose(pruned[2](hidden[:, :8]).mean(0), model[2](hidden).mean(0), atol=1e-5)
    assert torch.equal(pruned[2].weight, model[2].weight[:, :8])


@pytest.mark.parametrize("network", [Plain, Transposed])
def test_convolutions_come_closer_to_the_original(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = network().eval()
    batches = _batches(3, 16, 16, count=4)
    plain = prunecli.prune(model, "random", ratio=0.4, scope="local", example_inputs=example())
    folded = prunecli.prune(
        model, "random", ratio=0.4, scope="local", example_inputs=example(), data=iter(batches), compensate="ls"
    )
    assert folded.report.compensated > 0 and folded.report.verify_error < 1e-9

    def error(pruned: nn.Module) -> float:
        x = torch.cat(batches)
        return float((pruned.eval()(x) - model(x)).detach().pow(2).mean())

    assert error(folded.model) < 0.8 * error(plain.model)


def test_grouped_readers_are_left_alone_and_the_dense_network_too() -> None:
    model = Grouped().train()
    before = copy.deepcopy(model.state_dict())
    batches = _batches(3, 16, 16, count=2)
    pruned, groups, keep = _sliced(model, batches[0], "a", 4)
    assert compensate(model, pruned, groups, keep, batches, "ls", intercept=True) == 0
    assert model.training and all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_nothing_is_done_without_need() -> None:
    model = Plain()
    groups = trace(model, example()).groups
    whole = {group.name: torch.arange(group.units) for group in groups}
    assert compensate(model, model, groups, whole, [example()], "ls", intercept=True) == 0
    assert compensate(model, model, groups, {}, [example()], "none", intercept=True) == 0


def test_a_constant_shift_is_left_to_the_normalisation_that_follows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.eval()
    batches = _batches(6, count=20)
    groups = trace(model, batches[0], prune_stem=True).groups
    keep = {"0": torch.arange(8)}
    hidden = model[1](model[0](torch.cat(batches))).detach()

    def spread(intercept: bool) -> float:
        pruned = copy.deepcopy(model)
        remove(pruned, groups, keep)
        compensate(model, pruned, groups, keep, batches, "ls", intercept=intercept)
        return float((pruned[2](hidden[:, :8]) - model[2](hidden)).detach().var(dim=0).sum())

    assert spread(intercept=True) < 0.98 * spread(intercept=False)


def test_without_a_normalisation_behind_it_a_layer_without_bias_gets_no_intercept() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4, bias=False)).eval()
    batches = _batches(6, count=20)
    groups = trace(model, batches[0], prune_stem=True).groups
    keep = {"0": torch.arange(8)}
    outputs = []
    for intercept in (True, False):
        pruned = copy.deepcopy(model)
        remove(pruned, groups, keep)
        compensate(model, pruned, groups, keep, batches, "ls", intercept=intercept)
        outputs.append(pruned(batches[0]))
    assert torch.equal(outputs[0], outputs[1])


def test_weights_that_are_shared_or_computed_are_left_alone() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 12), nn.Linear(6, 12)
            self.one, self.other = nn.Linear(12, 4), nn.Linear(12, 4)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.one(torch.relu(self.first(x))) + self.other(torch.relu(self.second(x)))

    computed = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(12, 4)))
    for model in (Shared(), computed):
        result = prunecli.prune(
            model, example_inputs=torch.randn(1, 6), data=_batches(6), compensate="ls", ratio=0.5, prune_stem=True
        )
        assert result.report.compensated == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_and_comes_closer_to_the_original(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Bottleneck().to(dtype)
    batches = [batch * 100 for batch in _batches(6)]  # sums of squares leave the range of half precision
    errors = {}
    for mode in ("none", "ls"):
        result = prunecli.prune(
            model, "taylor", example_inputs=batches[0][:1], data=batches, compensate=mode, ratio=0.5, keep=["first"]
        )
        assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
        batch = batches[0].to(dtype)
        with torch.no_grad():
            errors[mode] = float((result.model(batch) - model(batch)).float().abs().mean())
    assert errors["ls"] < errors["none"] / 4
