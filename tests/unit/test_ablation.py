"""Exact ablation, against the masked original and against masking by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunecli.criteria.ablation import Ablation, Unit, keep_all_but
from prunecli.criteria.base import Calibration
from prunecli.data.token_batches import StreamBatches, TextSplit
from prunecli.data.vocabulary import UNKNOWN, Vocabulary
from prunecli.errors import RecipeError
from prunecli.inputs import sample_count
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.studies.ablation import draw_units, rise
from prunecli.studies.batches import FirstSteps, HalfOfBatches, KeptBatches
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.proof.masked import run_masked
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Concatenated, Plain, Residual, example

_Batches = list[tuple[Tensor, Tensor]]


def _warm(model: nn.Module) -> nn.Module:
    """A network whose normalisations have statistics, in float64."""
    torch.manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
    return model.double().eval()


def _batches(size: int = 16, count: int = 2, samples: int = 6) -> _Batches:
    draw = torch.Generator().manual_seed(5)
    return [
        (torch.randn(samples, 3, size, size, generator=draw).double(), torch.randint(10, (samples,), generator=draw))
        for _ in range(count)
    ]


def _ablation(model: nn.Module, groups: tuple[ChannelGroup, ...], batches: _Batches) -> Ablation:
    first, second = (Calibration(batches=HalfOfBatches(batches, odd=odd)) for odd in (False, True))
    return Ablation(model, groups, (first, second))


def _loss(model: nn.Module, batches: _Batches) -> float:
    with torch.no_grad():
        return sum(float(functional.cross_entropy(model(x), y, reduction="sum")) for x, y in batches)


@pytest.mark.parametrize("network", [Plain, Residual, Concatenated])
def test_an_ablation_is_what_masking_by_hand_costs(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, batches = _warm(network()), _batches()
    groups = trace(model, example()).groups
    ablation, before = _ablation(model, groups, batches), _loss(model, batches)
    assert ablation.baseline == pytest.approx(before / 12)
    costs = []
    for group in groups:
        unit = group.units // 3
        masked = copy.deepcopy(model)
        for member in group.members:  # what writes a channel writes 0, and a normalisation passes it on
            tensor = getattr(masked.get_submodule(member.module), member.tensor)
            if member.role != "consumer":
                tensor.data.index_fill_(member.dim, member.index[unit], 0)
        by_hand = (_loss(masked, batches) - before) / 12
        (total,) = rise([ablation.rises(Unit(group.name, unit))], ablation.samples)
        assert total == pytest.approx(by_hand, abs=1e-12), group.name
        costs.append(abs(by_hand))
    assert max(costs) > 1e-4


@pytest.mark.parametrize("heads", [False, True])
def test_groups_of_a_vision_transformer_are_ablated_exactly(heads: bool) -> None:
    torch.manual_seed(0)
    network = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=10
    )
    model, batches = network.double().eval(), _batches(32, 1)
    traced = trace(model, torch.randn(1, 3, 32, 32, dtype=torch.float64), heads=heads)
    assert traced.followed is not None
    kinds = {group.kind for group in traced.groups}
    assert kinds == {"channel", "head" if heads else "head_dim"}
    ablation, before = _ablation(model, traced.groups, batches), _loss(model, batches)
    for group in traced.groups:
        unit = group.units - 1
        (images, labels) = batches[0]
        masked = copy.deepcopy(model)
        total = 0.0
        for image, label in zip(images, labels, strict=True):  # the trace saw one sample
            keep = {group.name: keep_all_but(group, unit)}
            scores = run_masked(masked, traced.followed, traced.groups, keep, image[None])
            total += float(functional.cross_entropy(scores, label[None]))
        (found,) = rise([ablation.rises(Unit(group.name, unit))], ablation.samples)
        assert found == pytest.approx((total - before) / 6, abs=1e-10), group.name


def test_an_ablation_is_what_prune_removes() -> None:
    model, batches = _warm(Plain((8, 12, 16))).float(), _batches()
    batches = [(x.float(), y) for x, y in batches]
    params = StructuralParams(layer_ratio={"body.3": 1 / 12}, round_to=1, min_width=1)
    request = PruneRequest(method="l2", params=params, example_inputs=example())
    pruned = prune_structural(model, request)
    (edit,) = pruned.report.edits
    (gone,) = set(range(12)) - set(edit.keep_indices)
    ablation = _ablation(model, trace(model, example()).groups, batches)
    (found,) = rise([ablation.rises(Unit("body.3", gone))], ablation.samples)
    assert found == pytest.approx((_loss(pruned.model, batches) - _loss(model, batches)) / 12, abs=1e-6)


def test_the_network_stays_as_it_is() -> None:
    model = _warm(Residual()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    groups = trace(model, example()).groups
    ablation = _ablation(model, groups, _batches())
    first = [ablation.rises(Unit(group.name, 0)) for group in groups]
    assert first == [ablation.rises(Unit(group.name, 0)) for group in groups]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training


def test_units_are_drawn_from_all_layers_without_repeating() -> None:
    groups = trace(Plain((4, 8, 12)).eval(), example(), prune_stem=True).groups
    every = draw_units(groups, 24, seed=0)
    assert len(set(every)) == 24 and {unit.group for unit in every} == {group.name for group in groups}
    assert draw_units(groups, 10, seed=0) == every[:10] and draw_units(groups, 10, seed=1) != every[:10]
    with pytest.raises(RecipeError, match="--units 25: only 24 units of the network may be removed"):
        draw_units(groups, 25, seed=0)


def test_halves_share_no_sample_and_have_all() -> None:
    batches = [(torch.arange(5) + 10 * k, torch.arange(5) + 10 * k) for k in range(2)]
    batches += [(torch.tensor([90 + k]), torch.tensor([90 + k])) for k in range(3)]
    halves = [list(HalfOfBatches(batches, odd=odd)) for odd in (False, True)]
    for half in halves:
        assert all(torch.equal(inputs, labels) for inputs, labels in half)
    first, second = (torch.cat([inputs for inputs, _ in half]).tolist() for half in halves)
    assert first == [0, 2, 4, 10, 12, 14, 90, 92] and second == [1, 3, 11, 13, 91]
    assert sample_count(halves[0][0][0]) == 3


class _Counted:
    """Batches that count how often they are prepared."""

    def __init__(self, size: int = 4) -> None:
        self.passes, self._size = 0, size

    def __iter__(self) -> object:
        self.passes += 1
        yield from ((torch.full((self._size,), float(k)), torch.tensor([k])) for k in range(3))

    def epoch(self, number: int, first: int = 0) -> object:
        yield from range(10 * number + first, 10 * number + 3)


def test_batches_are_prepared_once_if_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted()
    kept = KeptBatches(counted)
    assert [int(labels) for _ in range(3) for _, labels in kept] == [0, 1, 2] * 3 and counted.passes == 1
    next(iter(KeptBatches(cut := _Counted())))
    assert cut.passes == 1
    monkeypatch.setattr("prunecli.studies.batches._IN_MEMORY", 30)
    kept = KeptBatches(counted := _Counted())
    assert [int(labels) for _ in range(3) for _, labels in kept] == [0, 1, 2] * 3 and counted.passes == 3


def test_a_pass_that_was_left_early_is_not_taken_for_all() -> None:
    kept = KeptBatches(_Counted())
    next(iter(kept))
    assert len(list(kept)) == 3


def test_the_seed_decides_where_a_text_begins() -> None:
    split = TextSplit(np.arange(401) % 9, 10, Vocabulary("char", (*"abcdefgh", UNKNOWN)))
    streams = StreamBatches(split, 4, whole=False)
    whole = [inputs for inputs, _ in streams]
    starts = []
    for seed in range(6):
        steps = FirstSteps(streams, 12, seed)
        found = [inputs for inputs, _ in steps]
        start = next(k for k, inputs in enumerate(whole) if inputs.equal(found[0]))
        assert len(found) == len(steps) == 12 and steps.contiguous
        assert all(inputs.equal(whole[(start + k) % 10]) for k, inputs in enumerate(found))  # in the text's own order
        assert all(a.equal(b) for (a, _), b in zip(steps.epoch(1, 5), found[5:], strict=True))
        assert all(a.equal(b) for (a, _), b in zip(FirstSteps(streams, 12, seed), found, strict=True))
        starts.append(start)
    assert len(set(starts)) > 3


def test_the_first_steps_run_over_epochs() -> None:
    steps = FirstSteps(_Counted(), 7, seed=3)
    assert len(steps) == 7 and list(steps) == [10, 11, 12, 20, 21, 22, 30]
    assert list(steps.epoch(1, 4)) == [21, 22, 30]
