"""Slicing, and the proof that it is right."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunecli.errors import MethodError, VerificationError
from prunecli.surgery.groups import tie_units
from prunecli.surgery.proof.comparing import SINGLE_TOLERANCE, TOLERANCE, NotComparableError
from prunecli.surgery.proof.verify import faulty_groups, verify
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.traced import Trace
from prunecli.surgery.tracing.trial import half_of
from tests.unit.networks import RIGHT, Plain, Residual, example


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_choice_of_units_equals_masking(data: st.DataObject) -> None:
    torch.manual_seed(0)
    model = data.draw(st.sampled_from(RIGHT))().eval()
    traced = trace(model, example())
    groups = traced.groups
    keep = {}
    for group in groups:
        units = data.draw(st.sets(st.integers(0, group.units - 1), min_size=1), label=group.name)
        keep[group.name] = torch.tensor(sorted(units))
    pruned = copy.deepcopy(model)
    remove(pruned, groups, keep)
    assert verify(model, pruned, traced, keep, example()) <= TOLERANCE
    for module in pruned.modules():
        if isinstance(module, nn.Conv2d):
            assert tuple(module.weight.shape[:2]) == (module.out_channels, module.in_channels // module.groups)
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight) == len(module.running_mean)


def _pruned(model: nn.Module) -> tuple[nn.Module, Trace, dict[str, torch.Tensor]]:
    traced = trace(model, example())
    keep = {group.name: torch.arange(0, group.units, 2) for group in traced.groups}
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    return pruned, traced, keep


def _shift_filters(pruned: Plain, model: Plain) -> None:
    pruned.body[3].weight.data = model.body[3].weight.data[1::2, : pruned.body[3].in_channels].clone()


def _shift_columns(pruned: Plain, model: Plain) -> None:
    pruned.body[6].weight.data = model.body[6].weight.data[::2, 1::2].clone()


def _swap_statistics(pruned: Plain, model: Plain) -> None:
    pruned.body[4].running_mean = pruned.body[4].running_mean.flip(0)


def _scale_one_weight(pruned: Plain, model: Plain) -> None:
    pruned.head.fc.weight.data[0, 0] *= 1.001


@pytest.mark.parametrize("fault", [_shift_filters, _shift_columns, _swap_statistics, _scale_one_weight])
def test_a_wrong_slice_is_caught(fault: object) -> None:
    torch.manual_seed(0)
    model = Plain().train()
    model(example())  # gives batch normalisation statistics that differ by channel
    model.eval()
    pruned, traced, keep = _pruned(model)
    assert verify(model, pruned, traced, keep, example()) <= TOLERANCE
    fault(pruned, model)  # type: ignore[operator]
    with pytest.raises(VerificationError, match=r"does not consist of|differs from the masked original"):
        verify(model, pruned, traced, keep, example())


def test_a_group_with_a_shifted_index_is_found_by_name() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    traced = trace(model, example())
    wrong = traced.group("c")
    member = next(m for m in wrong.members if m.role == "consumer")
    object.__setattr__(member, "index", member.index.roll(1, 0))
    keep = {group.name: torch.arange(0, group.units, 2) for group in traced.groups}
    assert set(faulty_groups(model, traced, keep, example())) == {"c"}


def test_bad_units_are_refused() -> None:
    model = Plain()
    groups = trace(model, example()).groups
    for units in ([], [0, 0], [-1], [groups[0].units]):
        with pytest.raises(ValueError, match=groups[0].name):
            remove(copy.deepcopy(model), groups, {groups[0].name: torch.tensor(units, dtype=torch.int64)})


def test_tied_parameters_stay_tied_and_frozen_ones_frozen() -> None:
    model = Plain()
    model.body[7].weight = model.body[7].bias  # one parameter under two names
    model.body[4].weight.requires_grad_(False)
    traced = trace(model, example())
    pruned = copy.deepcopy(model)
    keep = {"body.3": torch.arange(4), "body.6": torch.arange(5)}
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, example()) <= TOLERANCE
    assert pruned.body[4].weight.shape == (4,) and not pruned.body[4].weight.requires_grad
    assert pruned.body[7].weight is pruned.body[7].bias


def test_a_network_that_is_not_finite_is_not_verified() -> None:
    torch.manual_seed(0)
    model = Plain().eval()
    model.head.fc.bias.data[0] = float("-inf")
    pruned, traced, keep = _pruned(model)
    assert verify(model, pruned, traced, keep, example()) <= TOLERANCE
    _scale_one_weight(pruned, model)
    pruned.head.fc.weight.data[3] *= 1.1
    with pytest.raises(VerificationError, match="does not consist of"):
        verify(model, pruned, traced, keep, example())
    pruned, traced, keep = _pruned(model)
    with pytest.raises(VerificationError, match="not finite"):
        verify(model, pruned, traced, keep, example() * float("nan"))


def test_a_network_that_is_always_zero_cannot_be_compared_and_no_group_is_blamed() -> None:
    class Silent(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 0

    model = Silent().eval()
    pruned, traced, keep = _pruned(model)
    with pytest.raises(NotComparableError, match=r"output is zero for every input tried.*--only"):
        verify(model, pruned, traced, keep, example())
    with pytest.raises(NotComparableError):
        faulty_groups(model, traced, keep, example())


class Boxes(nn.Module):
    """Looks closer at positions with a high score, so that weights decide how many operators run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3)
        self.score, self.head = nn.Conv2d(32, 1, 1), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.second(self.first(x).relu()).relu()
        scores = self.score(features).flatten(1)[0]
        positions = (scores > scores.mean().clamp(max=0.05)).nonzero()[:, 0].tolist()
        columns = features.flatten(2)
        return torch.stack([self.head(columns.mean(2)), *(self.head(columns[:, :, i]) for i in positions)]).sum(0)


@pytest.mark.parametrize("seed", range(4))
def test_a_detector_that_finds_other_boxes_without_its_channels_is_compared_with_those(seed: int) -> None:
    torch.manual_seed(seed)
    model, image = Boxes().eval(), torch.randn(1, 3, 8, 8)
    traced = trace(model, image)
    keep = {group.name: torch.arange(0, group.units, 2) for group in traced.groups}
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    assert len(keep) == 1 and verify(model, pruned, traced, keep, image) <= TOLERANCE
    pruned.head.register_forward_hook(lambda module, args, output: output * 1.01)
    with pytest.raises(VerificationError, match="differs from the masked original"):
        verify(model, pruned, traced, keep, image)


def test_a_network_that_casts_inside_is_compared_in_single_precision() -> None:
    class Casting(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float())

    torch.manual_seed(0)
    model = Casting().eval()
    pruned, traced, keep = _pruned(model)
    assert traced.dtype == torch.float32 and len(traced.groups) == 2
    assert verify(model, pruned, traced, keep, example()) <= SINGLE_TOLERANCE
    _shift_columns(pruned, model)
    with pytest.raises(VerificationError, match="does not consist of"):
        verify(model, pruned, traced, keep, example())


def test_branches_that_only_training_uses_lose_the_same_channels() -> None:
    class Auxiliary(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Conv2d(24, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            middle = self.body[:6](x)
            self.extra = self.aux(middle) if self.training else None
            return self.head(self.body[6:](middle))

    model = Auxiliary()
    traced = trace(model, example())
    assert "aux" in traced.group("body.3").modules("consumer")
    remove(model, traced.groups, half_of(traced.groups))
    model.train()(example())
    assert model.extra.shape[1] == 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=12, max_size=12), max_size=3))
def test_tied_units_are_the_connected_components(ties: list[list[int]]) -> None:
    units = tie_units(12, [torch.tensor(labels) for labels in ties]).tolist()
    parent = list(range(12))

    def find(x: int) -> int:
        return x if parent[x] == x else find(parent[x])

    for labels in ties:
        for i in range(12):
            for j in range(i):
                if labels[i] == labels[j]:
                    parent[find(i)] = find(j)
    assert all((units[i] == units[j]) == (find(i) == find(j)) for i in range(12) for j in range(12))
    assert sorted(set(units)) == list(range(max(units) + 1))


def test_recalibration_leaves_what_is_not_run_and_needs_data() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model.spare = nn.BatchNorm2d(2)
    model.spare.running_mean += 3
    model.forward = lambda x: model[1](model[0](x))
    assert recalibrate_batchnorm(model, [torch.randn(4, 3, 2, 2)]) == 1
    assert model.spare.running_mean.tolist() == [3, 3]
    before = model[1].running_mean.clone()
    with pytest.raises(MethodError, match="no batches"):
        recalibrate_batchnorm(model, [])
    assert torch.equal(model[1].running_mean, before)


def test_recalibration_counts_images_not_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    batches = [torch.randn(30, 3, 4, 4), torch.randn(2, 3, 4, 4) + 9]
    recalibrate_batchnorm(model, batches)
    assert torch.allclose(model[0].running_mean, torch.cat(batches).mean((0, 2, 3)), atol=1e-5)


def test_recalibration_measures_the_mean_and_variance_of_what_arrives() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    model(torch.randn(8, 3, 5, 5) + 7)  # statistics of other data, to be forgotten
    model.eval()
    weights = [parameter.clone() for parameter in model.parameters()]
    batches = [torch.randn(8, 3, 5, 5) for _ in range(4)]
    assert recalibrate_batchnorm(model, batches) == 1
    seen = model[0](torch.cat(batches)).detach()
    assert torch.allclose(model[1].running_mean, seen.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(model[1].running_var, seen.var((0, 2, 3)), rtol=0.05)
    assert model[1].momentum == 0.1 and not model.training
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
