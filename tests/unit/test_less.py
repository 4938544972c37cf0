"""The proof on smaller images: when it counts, and that it finds what the proof on the whole ones finds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.copying import copied
from prunecli.errors import VerificationError
from prunecli.surgery.proof import verify as module
from prunecli.surgery.proof.less import difference_on_less
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.traced import Trace
from prunecli.surgery.tracing.trial import half_of

IMAGE = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """Convolutions (one depthwise, one of two groups), a gate over channels, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(12, 20, 1), nn.Conv2d(20, 20, 5, 2, 2, groups=20), nn.BatchNorm2d(20))
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(20, 8, 1), nn.ReLU(), nn.Conv2d(8, 20, 1))
        self.wide = nn.Conv2d(20, 16, 3, 2, 1, groups=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.stem(x)).relu()
        x = self.wide(x * self.gate(x).sigmoid()).relu()
        return self.head(self.pooled(x))

    def pooled(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Flat(Plain):
    """Its classifier takes images of one size alone."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16 * 20 * 20, 5)

    def pooled(self, x: Tensor) -> Tensor:
        return x.flatten(1)


class Repeating(Plain):
    """Pools to a fixed size, to which smaller maps are stretched."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(16 * 10 * 10, 5)

    def pooled(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 10).flatten(1)


class TwoPaths(Plain):
    """Small images take another layer, of the same kind."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(20, 16, 3, 2, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        large = x.shape[2] > 100
        x = self.deep(self.stem(x)).relu()
        x = (self.wide if large else self.other)(x * self.gate(x).sigmoid()).relu()
        return self.head(self.pooled(x))


class Shrinking(Plain):
    """Of small images one position is left."""

    def pooled(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(x, 8).mean((2, 3))


class Text(nn.Module):
    """Reads tokens, with an embedding for each place."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(50, 16), nn.Parameter(torch.randn(1, 100, 16))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.inner, self.outer, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.placed(ids.shape[1])
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head((x + self.outer(nn.functional.gelu(self.inner(x)))).mean(1))

    def placed(self, length: int) -> Tensor:
        return self.positions[:, :length]


class FixedText(Text):
    """Takes texts of one length alone."""

    def placed(self, length: int) -> Tensor:
        return self.positions[:, :64]


def _ready(kind: type[nn.Module], inputs: Tensor = IMAGE) -> tuple[nn.Module, Trace]:
    torch.manual_seed(0)
    model = kind()
    return model, trace(model, inputs, prune_stem=True)


def _on_less(model: nn.Module, traced: Trace, inputs: Tensor = IMAGE) -> float | None:
    keep = half_of(traced.groups)
    pruned = copied(model)
    remove(pruned, traced.groups, keep)
    pair = module._probes(model, pruned, traced, keep)
    return difference_on_less(*pair, traced, keep, inputs.double() if inputs.is_floating_point() else inputs)


@pytest.mark.parametrize(("kind", "shorter"), [(Text, True), (FixedText, False)])
def test_texts_are_shortened_where_the_network_takes_them(kind: type[nn.Module], shorter: bool) -> None:
    ids = torch.randint(0, 50, (1, 64), generator=torch.Generator().manual_seed(0))
    model, traced = _ready(kind, ids)
    assert len(traced.groups) >= 2
    found = _on_less(model, traced, ids)
    assert (found is not None) == shorter
    assert found is None or found < 1e-12
    assert prunecli.prune(model, ratio=0.5, example_inputs=ids).report.verify_error < 1e-12


def test_most_networks_are_compared_on_smaller_images(monkeypatch: pytest.MonkeyPatch) -> None:
    model, traced = _ready(Plain)
    found = _on_less(model, traced)
    assert found is not None
    assert found < 1e-12

    def never(*args: Any) -> float:
        raise AssertionError("the images as they are cost more")

    monkeypatch.setattr(module, "_difference", never)
    assert prunecli.prune(model, ratio=0.5, example_inputs=IMAGE).report.verify_error < 1e-12


@pytest.mark.parametrize("kind", [Flat, Repeating, TwoPaths, Shrinking])
def test_where_these_prove_less_the_images_stay_as_they_are(kind: type[nn.Module]) -> None:
    model, traced = _ready(kind)
    assert _on_less(model, traced) is None
    assert prunecli.prune(model, ratio=0.5, example_inputs=IMAGE).report.verify_error < 1e-12


def _with_fault(traced: Trace, group: int, member: int, kept: Tensor) -> Trace:
    """One dimension of one tensor keeps another channel in the place of one that stays."""
    groups = list(traced.groups)
    members = list(groups[group].members)
    index = members[member].index.clone()
    gone = next(unit for unit in range(groups[group].units) if unit not in kept.tolist())
    index[[int(kept[0]), gone]] = index[[gone, int(kept[0])]]
    members[member] = replace(members[member], index=index)
    groups[group] = replace(groups[group], members=tuple(members))
    return replace(traced, groups=tuple(groups))


def test_one_wrong_channel_in_one_tensor_is_found() -> None:
    """What the whole images show, the smaller ones show too; the fault is in the proof's own slices as well."""
    model, traced = _ready(Plain)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.1)  # a bias that is lost in a normalisation hides nothing then
    keep = half_of(traced.groups)
    faults = [(g, m) for g, group in enumerate(traced.groups) for m in range(len(group.members))]
    assert len(faults) > 10
    for group, member in faults:
        wrong = _with_fault(traced, group, member, keep[traced.groups[group].name])
        pruned = copied(model)
        remove(pruned, wrong.groups, keep)
        pair = module._probes(model, pruned, wrong, keep)
        found = difference_on_less(*pair, wrong, keep, IMAGE.double())
        assert found is None or found > 1e-6, traced.groups[group].members[member].name
        with pytest.raises(VerificationError):
            module.verify(model, pruned, wrong, keep, IMAGE)
