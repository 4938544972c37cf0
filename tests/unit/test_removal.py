"""What a removal leaves behind: shared modules, derived tensors, and attributes that hold widths."""

from __future__ import annotations

import copy
from collections import OrderedDict, UserDict
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import prunecli
from prunecli.errors import ModelError
from prunecli.surgery.groups import ChannelGroup, Member, Size, Width
from prunecli.surgery.removal.entries import with_entry
from prunecli.surgery.removal.known_layers import own_widths
from prunecli.surgery.removal.rebuild import apply_attributes, attribute_differences
from prunecli.surgery.removal.slice import AttributeChange, remove
from prunecli.surgery.tracing import trial
from prunecli.surgery.tracing.trace import trace


def _pruned(model: nn.Module, x: torch.Tensor, **settings: Any) -> prunecli.PruneResult:
    options = {"ratio": 0.5, "scope": "local", "prune_stem": True, "round_to": 1, "min_width": 1} | settings
    return prunecli.prune(model, example_inputs=x, **options)


def _restored(result: prunecli.PruneResult, fresh: nn.Module, folder: Path) -> nn.Module:
    result.save(folder / "p.safetensors")
    return prunecli.load(folder / "p.safetensors", fresh)


class Repeated(nn.Module):
    """One block under five names, and one weight in two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 16, 1))
        self.layers = nn.ModuleList([self.block] * 3)
        self.again = nn.ModuleDict({"block": self.block})
        self.first, self.second = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.second.weight = self.first.weight
        self.tied = [self.first.weight]
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        for layer in self.layers:
            x = x + layer(x)
        x = F.conv2d(F.relu(self.second(F.relu(self.first(x)))), self.tied[0])
        return self.head(x)


def test_a_module_under_several_names_is_sliced_once(tmp_path: Path) -> None:
    model, x = Repeated().eval(), torch.randn(1, 3, 8, 8)
    result = _pruned(model, x)
    pruned = result.model
    assert pruned.block[0].weight.shape == (12, 8, 1, 1)
    assert pruned.layers[2] is pruned.again["block"] is pruned.block
    assert pruned.first.weight is pruned.second.weight is pruned.tied[0]
    assert torch.equal(_restored(result, Repeated(), tmp_path)(x), pruned(x))


def test_an_error_of_the_removal_is_not_blamed_on_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise IndexError("index out of range")

    model, x = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)), torch.randn(1, 3, 4, 4)
    monkeypatch.setattr(trial, "remove", failing)
    reasons = {entry.reason for entry in trace(model, x, prune_stem=True).frozen}
    assert any(
        "prune fails to remove its channels (IndexError: index out of range); please report" in r for r in reasons
    )


@pytest.mark.parametrize("shared", ["parameters", "buffer", "attribute", "list"])
def test_weights_shared_through_views_are_refused_by_name(shared: str) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 3))
    if shared == "parameters":
        model[2].weight = nn.Parameter(model[0].weight.data.t())
    elif shared == "buffer":
        model.register_buffer("kept", model[0].weight.detach()[:3])
    else:
        view = model[0].weight.t()
        model[2].kept = view if shared == "attribute" else [view]
    with pytest.raises(ModelError, match=r"views? of (one storage|0\.weight), which a pruned copy would separate"):
        _pruned(model, torch.randn(2, 8))


def test_views_side_by_side_and_views_made_in_forward_are_not_refused() -> None:
    class Viewing(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.view = self[0].weight.t()
            return super().forward(x)

    model = Viewing(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    flat = torch.randn(256)
    model[0].weight, model[2].weight = nn.Parameter(flat[:128].view(16, 8)), nn.Parameter(flat[128:].view(8, 16))
    model(torch.randn(2, 8))
    assert _pruned(model, torch.randn(2, 8)).model[0].out_features == 8


def _normalised(kind: str) -> nn.Module:
    torch.manual_seed(0)
    wrap = {
        "old weight": nn.utils.weight_norm,
        "old spectral": nn.utils.spectral_norm,
        "weight": parametrizations.weight_norm,
    }[kind]
    layers = (nn.Conv2d(3, 16, 3), nn.ConvTranspose2d(16, 24, 3, bias=False), nn.Conv2d(24, 20, 3))
    return nn.Sequential(
        *(wrap(layer) for layer in layers), nn.Flatten(), wrap(nn.Linear(20 * 36, 12)), nn.Linear(12, 3)
    )


@pytest.mark.parametrize("kind", ["old weight", "old spectral", "weight"])
@pytest.mark.filterwarnings("ignore")
def test_derived_weights_and_widths_agree_before_the_first_pass(kind: str, tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    model = _normalised(kind).train()
    result = _pruned(model, x)
    for network in (result.model, _restored(result, _normalised(kind), tmp_path)):
        shapes = [tuple(layer.weight.shape) for layer in network if hasattr(layer, "weight")]
        assert shapes == [(8, 3, 3, 3), (8, 12, 3, 3), (10, 12, 3, 3), (6, 360), (3, 6)]
        assert [(layer.in_channels, layer.out_channels) for layer in network[:3]] == [(3, 8), (8, 12), (12, 10)]
        assert (network[4].in_features, network[4].out_features) == (360, 6)
        weights = [layer.weight.detach().clone() for layer in network[:3]]
        network.eval()(x)
        assert all(torch.allclose(layer.weight, old) for layer, old in zip(network[:3], weights, strict=True))


class Pair(NamedTuple):
    """Widths in a named tuple."""

    low: int
    high: int


@dataclass
class Loose:
    """Widths in an object that can change."""

    width: int = 32
    depth: int = 2


@dataclass(frozen=True)
class Strict:
    """Widths in an object that cannot, with one that is no argument."""

    width: int = 32
    twice: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "twice", 2 * self.width)


@dataclass(slots=True)
class Slotted:
    """Widths in an object without a dictionary."""

    width: int = 32


class Number(IntEnum):
    """Shared by everything in the process."""

    WIDTH = 32


@pytest.mark.parametrize(
    "value, path, expected",
    [
        (32, (), 16),
        (np.int32(32), (), np.int32(16)),
        (torch.tensor(32), (), torch.tensor(16)),
        ([32, 5], (0,), [16, 5]),
        ((5, [32]), (1, 0), (5, [16])),
        (Pair(32, 5), (0,), Pair(16, 5)),
        (torch.Size([4, 32]), (1,), torch.Size([4, 16])),
        ({"a": {"b": 32}, "c": 1}, ("a", "b"), {"a": {"b": 16}, "c": 1}),
        (OrderedDict(a=32), ("a",), OrderedDict(a=16)),
        (UserDict({"a": 32}), ("a",), UserDict({"a": 16})),
        (SimpleNamespace(a=SimpleNamespace(b=(32,))), ("a", "b", 0), SimpleNamespace(a=SimpleNamespace(b=(16,)))),
        (Loose(), ("width",), Loose(16)),
        (Strict(), ("width",), Strict(16)),
        ([Strict()], (0, "width"), [Strict(16)]),
        (Slotted(), ("width",), Slotted(16)),
        (np.array([5, 32]), (1,), np.array([5, 16])),
        (torch.tensor([32, 5]), (0,), torch.tensor([16, 5])),
    ],
)
def test_an_entry_is_set_in_whatever_holds_it_and_recorded(
    value: Any, path: tuple[int | str, ...], expected: Any
) -> None:
    fresh, changed = nn.Linear(3, 4), nn.Linear(3, 4)
    fresh._held, changed._held = copy.deepcopy(value), with_entry(copy.deepcopy(value), path, 16)
    recorded = attribute_differences(fresh, changed)
    apply_attributes(fresh, recorded)
    for held in (changed._held, fresh._held):
        assert type(held) is type(value)
        same = held == expected
        assert same if isinstance(same, bool) else bool(np.asarray(same).all())
        assert getattr(held, "dtype", None) == getattr(value, "dtype", None)


def test_classes_and_enumerations_are_not_changed() -> None:
    class Sizes:
        width = 32

    for value, path in ((Sizes, ("width",)), (Number.WIDTH, ("value",)), (frozenset((32,)), (0,))):
        with pytest.raises((TypeError, AttributeError)):
            with_entry(value, path, 16)
    assert Sizes.width == Number.WIDTH == 32


class Configured(nn.Module):
    """Modules that share one configuration, and a default that belongs to the class."""

    sizes = [5, 32]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        config = SimpleNamespace(width=32, name="x", activation=F.relu)
        self.first, self.second, self.head = nn.Linear(4, 32), nn.Identity(), nn.Linear(32, 2)
        self.config = self.second.config = config
        self.register_buffer("count", torch.tensor(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.config.activation(self.first(x)))


def _group(*widths: Width) -> ChannelGroup:
    index = torch.arange(32)[:, None]
    members = (
        Member("first", "weight", 0, index, "producer"),
        Member("first", "bias", 0, index, "producer"),
        Member("head", "weight", 1, index, "consumer"),
    )
    return ChannelGroup("first", 32, 32, members, widths=widths)


def test_shared_objects_change_once_and_every_change_is_listed() -> None:
    size = Size("group", 32, "first")
    entries = (("", "config", ("width",)), ("second", "config", ("width",)), ("", "sizes", (1,)), ("", "count", ()))
    group = _group(*(Width(*entry, size) for entry in entries))
    fresh, model = Configured(), Configured()
    changes = remove(model, [group], {"first": torch.arange(10)})
    assert model.config is model.second.config
    assert (model.config.width, model.sizes, Configured.sizes, int(model.count)) == (10, [5, 10], [5, 32], 10)
    assert "count" in model._buffers
    assert AttributeChange("", "config", ("width",), 32, 10) in changes
    assert AttributeChange("first", "out_features", (), 32, 10, repeats=True) in changes
    assert AttributeChange("", "count", (), 32, 10) in changes
    recorded = attribute_differences(fresh, model)
    assert recorded[""]["config"] == {"width": 10}
    assert "second" not in recorded
    apply_attributes(fresh, recorded)
    assert fresh.second.config.width == 10


@pytest.mark.parametrize(
    "recorded", [{"width": "10"}, {"depth": 10}, {"activation": 3}, 10, {"width": {"a": 1}}, {"__class__": 1}, [1]]
)
def test_a_manifest_replaces_only_what_exists_by_its_own_type(recorded: Any) -> None:
    model = Configured()
    with pytest.raises(ModelError, match="the manifest sets"):
        apply_attributes(model, {"": {"config": recorded}})
    assert vars(model.config) == {"width": 32, "name": "x", "activation": F.relu}


def test_a_number_of_numpy_that_does_not_fit_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.width = np.int8(3)
    with pytest.raises(ModelError, match="cannot have"):
        apply_attributes(model, {"": {"width": 300}})


def test_known_layers_repeat_their_tensors_widths() -> None:
    attention = nn.MultiheadAttention(12, 3, kdim=5, vdim=7)
    expected: list[tuple[nn.Module, dict[str, Any]]] = [
        (nn.Conv2d(4, 6, 3, groups=2), {"in_channels": 4, "out_channels": 6}),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), {"in_channels": 4, "out_channels": 6}),
        (nn.Bilinear(3, 4, 5), {"in1_features": 3, "in2_features": 4, "out_features": 5}),
        (nn.Embedding(9, 4), {"num_embeddings": 9, "embedding_dim": 4}),
        (nn.EmbeddingBag(9, 4), {"num_embeddings": 9, "embedding_dim": 4}),
        (nn.InstanceNorm2d(4, affine=True), {"num_features": 4}),
        (nn.GroupNorm(2, 4), {"num_channels": 4}),
        (nn.LayerNorm((2, 3)), {"normalized_shape": (2, 3)}),
        (nn.RMSNorm(5), {"normalized_shape": (5,)}),
        (nn.PReLU(5), {"num_parameters": 5}),
        (attention, {"embed_dim": 12, "head_dim": 4, "kdim": 5, "vdim": 7}),
        (nn.LSTM(3, 8, proj_size=2), {"input_size": 3, "hidden_size": 8, "proj_size": 2}),
        (nn.GRU(3, 8), {"input_size": 3, "hidden_size": 8, "proj_size": 0}),
        (nn.LSTMCell(3, 8), {"input_size": 3, "hidden_size": 8}),
    ]
    for layer, widths in expected:
        found = own_widths(layer)
        assert found == widths
        assert all(type(getattr(layer, name)) is type(value) for name, value in found.items())
        assert {name: getattr(layer, name) for name in widths} == widths
    norms = (nn.GroupNorm(2, 4, affine=False), nn.LayerNorm(3, elementwise_affine=False))
    for bare in (*norms, nn.BatchNorm1d(3, affine=False, track_running_stats=False), nn.ReLU()):
        assert own_widths(bare) == {}


def test_layers_of_other_packages_are_known_by_name() -> None:
    vision, text = pytest.importorskip("torchvision.ops"), pytest.importorskip("transformers.pytorch_utils")
    assert own_widths(vision.DeformConv2d(4, 6, 3, groups=2)) == {"in_channels": 4, "out_channels": 6}
    assert own_widths(text.Conv1D(6, 4)) == {"nx": 4, "nf": 6}


@pytest.mark.parametrize("kind", [tuple, list, int])
def test_a_normalised_shape_keeps_its_type(kind: Any) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(16))
            self.normalized_shape = 16 if kind is int else kind((16,))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shape = [self.normalized_shape] if kind is int else list(self.normalized_shape)
            return F.layer_norm(x, shape, self.weight)

    model = nn.Sequential(nn.Linear(4, 16), Own(), nn.Linear(16, 2))
    assert _pruned(model, torch.randn(2, 4)).model[1].normalized_shape == (8 if kind is int else kind((8,)))
