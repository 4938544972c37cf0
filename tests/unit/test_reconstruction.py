"""Reconstruction: layers solved in the order in which they run, against textbook solutions and the dense network."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from prunecli.errors import MethodError
from prunecli.inputs import call, output_tensors
from prunecli.report.pruning_tables import reconstruction_tables
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.reconstruction import reconstruct as module
from prunecli.surgery.reconstruction.addends import layers_of
from prunecli.surgery.reconstruction.equations import Sums, solve
from prunecli.surgery.reconstruction.lockstep import Pass
from prunecli.surgery.reconstruction.reconstruct import Reconstructed, reconstruct
from prunecli.surgery.reconstruction.rows import by_group, groups_of, pair, set_weights, weights_of
from prunecli.surgery.removal.compensate import compensate
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace


class Residual(nn.Module):
    """Two residual blocks, the first with a layer in its shortcut that runs after the others."""

    def __init__(self, width: int = 12, inner: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.ModuleList(
            [nn.Conv2d(width, inner, 3, 2, 1, bias=False), nn.Conv2d(inner, width, 3, padding=1)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(inner), nn.BatchNorm2d(width)])
        self.short = nn.Conv2d(width, width, 1, 2)
        self.second = nn.ModuleList([nn.Conv2d(width, inner, 3, padding=1), nn.Conv2d(inner, width, 3, padding=1)])
        self.last = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.norms[1](self.first[1](self.norms[0](self.first[0](x)).relu()))
        x = (y + self.short(x)).relu()
        x = x + self.second[1](self.second[0](x).relu())
        return self.last(x.relu().mean((2, 3)))


def _trained_like(model: nn.Module) -> nn.Module:
    """Weights and statistics as different from channel to channel as in a trained network."""
    generator = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low in (
                (norm.weight, 0.5),
                (norm.running_var, 0.5),
                (norm.bias, -0.5),
                (norm.running_mean, -0.5),
            ):
                assert tensor is not None
                tensor.data = low + torch.rand(tensor.shape, generator=generator)
    return model.eval()


def _batches(*shape: int, count: int = 6, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(shape[0], shape[0], generator=generator)
    return [torch.einsum("nc...,cd->nd...", torch.randn(size, *shape, generator=generator), mix) for _ in range(count)]


def _cut(
    model: nn.Module, inputs: Any, ratio: float = 0.5, *, streams: bool = True
) -> tuple[nn.Module, tuple[ChannelGroup, ...], Keep]:
    """A copy without some units of every group, or of those with a single writer."""
    generator = torch.Generator().manual_seed(2)
    groups = trace(model, inputs).groups
    chosen = [group for group in groups if streams or len(group.modules("producer")) == 1]
    keep = {group.name: _some(group.units, ratio, generator) for group in chosen}
    pruned = copy.deepcopy(model)
    remove(pruned, groups, keep)
    return pruned, groups, keep


def _some(units: int, ratio: float, generator: torch.Generator) -> Tensor:
    return torch.randperm(units, generator=generator)[: units - round(ratio * units)].sort().values


def _error(dense: nn.Module, pruned: nn.Module, batches: list[Any]) -> float:
    with torch.no_grad():
        pairs = [
            (one, other)
            for batch in batches
            for one, other in zip(output_tensors(call(dense, batch)), output_tensors(call(pruned, batch)), strict=True)
            if one.is_floating_point()
        ]
    lost = sum(float((one - other).square().sum()) for one, other in pairs)
    return lost / sum(float((one - one.mean(0)).square().sum()) for one, _ in pairs)


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.just("valid"), st.tuples(st.integers(0, 2), st.integers(0, 2))),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
)
def test_rows_times_weights_are_what_a_convolution_gives(
    groups: int, stride: Any, kernel: Any, padding: Any, dilation: int, mode: Any
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups=groups, padding_mode=mode).double()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        output = layer(x)
        rows, outputs = pair(layer, x, output, None, 30, torch.Generator().manual_seed(0))
        found = rows @ weights_of(layer) + layer.bias.reshape(groups, 1, -1)  # type: ignore[union-attr]
    torch.testing.assert_close(found, by_group(outputs, groups))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 6), (3, 5, 4)),
        (nn.Conv1d(4, 6, 3, 2, 1, groups=2), (3, 4, 9)),
        (transformers.pytorch_utils.Conv1D(6, 4), (3, 5, 4)),
    ],
)
def test_rows_of_other_layers_and_weights_put_back(layer: Any, shape: tuple[int, ...]) -> None:
    layer, x = layer.double(), torch.randn(*shape, dtype=torch.float64)
    with torch.no_grad():
        rows, outputs = pair(layer, x, layer(x), None, 10_000, torch.Generator())
        groups = groups_of(layer)
        torch.testing.assert_close(
            rows @ weights_of(layer) + layer.bias.reshape(groups, 1, -1), by_group(outputs, groups)
        )
    before = layer.weight.detach().clone()
    set_weights(layer, weights_of(layer))
    assert torch.equal(layer.weight, before)


def test_weights_are_the_ridge_solution_drawn_towards_those_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    former = torch.randn(1, 6, 3, generator=generator, dtype=torch.float64)
    truth = former + 0.3 * torch.randn(1, 6, 3, generator=generator, dtype=torch.float64)
    halves = Sums.empty(1, 6, 3), Sums.empty(1, 6, 3)
    everything = []
    for index in range(10):
        x = torch.randn(1, 40, 6, generator=generator) + 1
        y = x @ truth.float() + 2 + 0.5 * torch.randn(1, 40, 3, generator=generator)
        halves[index % 2].add(x, y)
        everything.append((x.double(), y.double()))
    found = solve(halves, former, shifted=True)
    assert found is not None
    x, y = (torch.cat(tensors, 1)[0] for tensors in zip(*everything, strict=True))
    x, mean_x, mean_y = x - x.mean(0), x.mean(0), y.mean(0)
    ridges = [ridge * float((x.T @ x / len(x)).diagonal().mean()) for ridge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)]
    expected = [
        former[0] + torch.linalg.solve(x.T @ x / len(x) + r * torch.eye(6), x.T @ (y - mean_y - x @ former[0]) / len(x))
        for r in ridges
    ]
    assert min(float((found[0] - one).abs().max()) for one in expected) < 1e-6
    shift = (halves[0] + halves[1]).shift(found)[0]
    torch.testing.assert_close(shift, mean_y - mean_x @ found[0])


def test_weights_that_nothing_predicts_better_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    former = torch.randn(1, 30, 2, generator=generator, dtype=torch.float64)
    halves = Sums.empty(1, 30, 2), Sums.empty(1, 30, 2)
    for half in halves:
        x = torch.randn(1, 20, 30, generator=generator)
        half.add(x, x @ former.float() + torch.randn(1, 20, 2, generator=generator))
    assert solve(halves, former, shifted=False) is None


def test_copies_of_channels_that_stay_cost_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 6, 3), nn.Flatten(), nn.Linear(6 * 36, 4),
    )  # fmt: skip
    model[2].weight.data[8:] = model[2].weight.data[:8]
    _trained_like(model)
    for norm in (model[3].weight, model[3].bias, model[3].running_mean, model[3].running_var):
        norm.data[8:] = norm.data[:8]
    batches = _batches(3, 8, 8)
    groups = [group for group in trace(model, batches[0]).groups if group.name == "2"]
    keep = {"2": torch.arange(8)}
    pruned = copy.deepcopy(model)
    remove(pruned, groups, keep)
    assert _error(model, pruned, batches) > 0.1
    done = reconstruct(model, pruned, groups, keep, batches, 0)
    assert "5" in done.solved and done.samples == 96
    assert _error(model, pruned, batches) < 1e-5


@pytest.mark.parametrize("residual", [False, True], ids=["inner widths", "widths of sums as well"])
def test_a_residual_network_is_nearer_to_the_dense_one_than_with_regression(residual: bool) -> None:
    torch.manual_seed(0)
    model, batches = _trained_like(Residual()), _batches(3, 12, 12)
    x = batches[0]
    folded, groups, keep = _cut(model, x, 0.5, streams=residual)
    solved = copy.deepcopy(folded)
    compensate(model, folded, groups, keep, batches, "ls", intercept=True)
    reconstruct(model, solved, groups, keep, batches, 0)
    fresh = _batches(3, 12, 12, count=8)[6:]
    assert _error(model, solved, fresh) < 0.9 * _error(model, folded, fresh)


def test_shortcuts_are_known_where_they_are_computed_before_the_layer() -> None:
    model = _trained_like(Residual())
    convolutions = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    seen = layers_of(model, convolutions, torch.randn(2, 3, 12, 12))
    assert set(seen.addends) == {"short", "second.1"} and set(seen.statistics) == {"first.0", "first.1"}
    assert seen.statistics["first.0"][0].data_ptr() == model.norms[0].running_mean.data_ptr()  # type: ignore[index,union-attr]


def test_a_shortcut_behind_a_normalisation_is_made_up_for_exactly() -> None:
    """The block's own layer can make any output here, so the sum comes out as it was although the shortcut changed."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entry = nn.Linear(4, 6, bias=False)
            self.inner, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.entry(x)
            return y + self.norm(self.inner(y))

    torch.manual_seed(0)
    model = _trained_like(Block())
    assert isinstance(model, Block)
    model.norm.running_mean, model.norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    model.norm.weight.data = torch.tensor([2.0, -1.0, 0.5, 1.0, 3.0, -0.7])
    other, batches = copy.deepcopy(model), _batches(4, count=6, size=32)
    other.entry.weight.data *= 1.3  # what an earlier removal did to the shortcut
    positions = {"inner.weight": {1: torch.arange(6)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "kept_positions", lambda *_: positions)
        assert reconstruct(model, other, [], {}, batches, 0).solved == ("inner",)
    assert _error(model, other, batches) < 1e-6


def _networks() -> Iterator[tuple[str, nn.Module, Any]]:
    torch.manual_seed(0)
    images = _batches(3, 32, 32, size=8)
    yield "mobilenetv3", _trained_like(timm.create_model("mobilenetv3_small_050", num_classes=10)), images
    vit: Any = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    yield "vit", timm.create_model("vit_tiny_patch16_224", init_values=0.5, **vit).eval(), images
    config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    tokens = [
        {"input_ids": torch.randint(0, 40, (8, 12), generator=torch.Generator().manual_seed(i))} for i in range(6)
    ]
    yield "gpt2", transformers.GPT2LMHeadModel(config).eval(), tokens


@pytest.mark.parametrize("name", ["mobilenetv3", "vit", "gpt2"])
def test_other_networks_are_nearer_to_the_dense_one(name: str) -> None:
    model, batches = next((model, batches) for own, model, batches in _networks() if own == name)
    before = copy.deepcopy(model.state_dict())
    cut, groups, keep = _cut(model, batches[0], 0.25, streams=False)
    raw, again = copy.deepcopy(cut), copy.deepcopy(cut)
    done = reconstruct(model, cut, groups, keep, batches, 0)
    assert len(done.solved) >= 4 and not done.too_wide
    assert _error(model, cut, batches) < 0.6 * _error(model, raw, batches)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()), "dense did not change"
    reconstruct(model, again, groups, keep, batches, 0)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in cut.state_dict().items())


def test_queries_keep_the_temperature_that_fewer_head_dimensions_need() -> None:
    torch.manual_seed(0)
    shape: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    model: Any = timm.create_model("vit_tiny_patch16_224", num_classes=4, **shape).eval()
    qkv, hidden = model.blocks[1].attn.qkv, model.blocks[0].mlp
    with torch.no_grad():
        qkv.weight[:32] *= 5
        qkv.weight.view(3, 2, 8, 16)[:, :, 4:] = 0  # the last four dimensions of both heads count for nothing
        qkv.bias.view(3, 2, 8)[:, :, 4:] = 0
        hidden.fc2.weight[:, 32:] = 0  # nor do these hidden units; all layers behind them are solved
    batches = _batches(3, 16, 16)
    groups = trace(model, batches[0]).groups
    heads = next(g for g in groups if g.kind == "head_dim" and g.scales and g.name.startswith("blocks.1"))
    keep = {heads.name: torch.arange(4), "blocks.0.mlp.fc1": torch.arange(32)}
    pruned = copy.deepcopy(model)
    remove(pruned, groups, keep)
    assert _error(model, pruned, batches) < 1e-9
    assert "blocks.1.attn.proj" in reconstruct(model, pruned, groups, keep, batches, 0).unchanged
    assert _error(model, pruned, batches) < 1e-5


def test_a_constant_is_made_up_for_by_the_statistics_of_a_normalisation() -> None:
    torch.manual_seed(0)
    model = _trained_like(
        nn.Sequential(
            nn.Conv2d(3, 6, 1),
            nn.ReLU(),
            nn.Conv2d(6, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 36, 4),
        )
    )
    first: Any = model[0]
    with torch.no_grad():
        first.weight[4:], first.bias[4:] = 0, 2  # always on, whatever the image
    batches = _batches(3, 6, 6)
    groups, keep = (
        [group for group in trace(model, batches[0], prune_stem=True).groups if group.name == "0"],
        {"0": torch.arange(4)},
    )
    pruned = copy.deepcopy(model)
    remove(pruned, groups, keep)
    assert _error(model, pruned, batches) > 0.01
    reconstruct(model, pruned, groups, keep, batches, 0)
    assert _error(model, pruned, batches) < 1e-6


def test_statistics_are_those_of_what_a_layer_gives_now() -> None:
    torch.manual_seed(0)
    model, batches = _trained_like(Residual()), _batches(3, 12, 12)
    cut, groups, keep = _cut(model, batches[0])
    reconstruct(model, cut, groups, keep, batches, 0, statistics=True)
    seen: list[Tensor] = []
    assert isinstance(cut, Residual)
    hook = cut.first[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        for batch in batches:
            cut(batch)
    hook.remove()
    outputs, norm = torch.cat(seen).movedim(1, -1).flatten(0, -2), cut.norms[1]
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None
    torch.testing.assert_close(norm.running_mean, outputs.mean(0), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, outputs.var(0, correction=0), rtol=1e-2, atol=1e-3)


class Tied(nn.Module):
    """Two layers with the same weight, or one that runs twice."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.first, self.one, self.other, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.other.weight = self.one.weight
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x).relu()).relu()
        return self.last((self.one(x) if self.twice else self.other(x)).relu())


@pytest.mark.parametrize("twice", [True, False])
def test_layers_that_run_twice_or_share_a_weight_are_left_alone(twice: bool) -> None:
    torch.manual_seed(0)
    model, batches = Tied(twice).eval(), _batches(8)
    positions = {"one.weight": {1: torch.arange(8)}}
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.first.weight[:4] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "kept_positions", lambda *_: {**positions, "last.weight": {1: torch.arange(8)}})
        done = reconstruct(model, other, [], {}, batches, 0)
    assert done.solved == ("last",) and not done.unchanged


def test_a_pass_stops_at_every_layer_and_its_errors_arrive() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x))
            if bool(x.isnan().any()):
                raise RuntimeError("not a number")
            return x

    model, before = Breaks().train(), threading.active_count()
    inputs = (torch.zeros(2, 4), torch.full((2, 4), torch.nan), torch.zeros(2, 4))
    good, bad, left = (Pass(model, x, ("first", "second"), before=True) for x in inputs)
    for one in (good, bad):
        assert [getattr(one.advance(), "layer", None) for _ in range(2)] == ["first", "second"]
    assert good.advance() is None
    with pytest.raises(MethodError, match="not a number"):
        bad.advance()
    left.advance()
    for one in (good, bad, left):
        one.close()
    assert model.training and threading.active_count() == before


class Remembers(nn.Module):
    """Adds what it was given before within a pass, as neurons add up potentials."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.potential: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.potential = 0.0
        for layer in (self.first, self.second, self.third):
            self.potential = self.potential + layer(x)
            x = self.potential
        return x


def test_what_modules_remember_is_each_passes_own() -> None:
    torch.manual_seed(0)
    model = Remembers().eval()
    inputs = [torch.randn(3, 4), torch.randn(5, 4)]
    expected = []
    for x in inputs:
        hook = model.third.register_forward_pre_hook(lambda module, args: expected.append(args[0]))
        model(x)
        hook.remove()
    passes = [Pass(model, x, ("first", "second", "third"), before=True) for x in inputs]
    arrivals = [[one.advance() for one in passes] for _ in range(3)][2]
    ends = [one.advance() for one in passes]
    assert ends == [None, None]
    for arrival, values in zip(arrivals, expected, strict=True):
        assert arrival is not None and torch.equal(arrival.values, values)
    assert all(one._network.third.weight is model.third.weight for one in passes)  # type: ignore[union-attr]
    for one in passes:
        one.close()


def test_one_batch_is_halved_and_one_sample_is_too_few() -> None:
    torch.manual_seed(0)
    model, batches = _trained_like(Residual()), _batches(3, 12, 12, count=1)
    cut, groups, keep = _cut(model, batches[0])
    assert reconstruct(model, copy.deepcopy(cut), groups, keep, batches, 0).samples == 16
    assert reconstruct(model, cut, groups, keep, [batches[0][:1]], 0) == Reconstructed()
    assert reconstruct(model, cut, groups, keep, [], 0) == Reconstructed()


def test_texts_are_solved_without_their_padding() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    model, generator = transformers.BertForSequenceClassification(config).eval(), torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        ids = torch.randint(1, 30, (8, 10), generator=generator)
        mask = (torch.arange(10) < torch.randint(4, 11, (8, 1), generator=generator)).long()
        batches.append({"input_ids": ids, "attention_mask": mask})
    cut, groups, keep = _cut(model, batches[0], 0.25)
    other = copy.deepcopy(cut)
    reconstruct(model, cut, groups, keep, batches, 0)
    swapped = [
        {**batch, "input_ids": torch.where(batch["attention_mask"] > 0, batch["input_ids"], 7)} for batch in batches
    ]
    reconstruct(model, other, groups, keep, swapped, 0)
    for key, tensor in cut.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[key], rtol=1e-3, atol=1e-4)


def test_a_convolution_of_spikes_takes_all_steps_at_once() -> None:
    layer_of = pytest.importorskip("spikingjelly.activation_based.layer")
    layer: Any = layer_of.Conv2d(3, 4, 3, step_mode="m")
    x = torch.randn(5, 2, 3, 6, 6)
    with torch.no_grad():
        rows, outputs = pair(layer, x, layer(x), None, 10_000, torch.Generator())
    expected = functional.conv2d(x.flatten(0, 1), layer.weight, layer.bias).permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(outputs, expected)
    torch.testing.assert_close(
        (rows[0] @ weights_of(layer)[0].float() + layer.bias).detach(), expected, rtol=1e-4, atol=1e-5
    )


def test_values_that_are_not_finite_change_nothing() -> None:
    torch.manual_seed(0)
    model, batches = _trained_like(Residual()), _batches(3, 12, 12)
    batches[3][0] = torch.nan
    cut, groups, keep = _cut(model, batches[0])
    before = copy.deepcopy(cut.state_dict())
    assert reconstruct(model, cut, groups, keep, batches, 0).solved == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in cut.state_dict().items())


class PadsItself(nn.Conv2d):
    """What it reads is shifted against what it gives."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 0, 1, 0)))


class Standardised(nn.Conv2d):
    """Computes with another weight than the one it holds."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding)


def _changed_later() -> nn.Conv2d:
    layer = nn.Conv2d(8, 8, 3, stride=2, padding=1)
    layer.padding = (0, 0)  # torch keeps what it was made with elsewhere
    return layer


@pytest.mark.parametrize(
    ("layer", "solved"),
    [
        (nn.Conv2d(8, 8, 3, stride=2, padding=1), True),
        (nn.Conv2d(8, 8, 3, padding="same"), True),
        (nn.Conv2d(8, 8, 3, padding=(1, 0), padding_mode="reflect"), True),
        (_changed_later(), True),
        (PadsItself(8, 8, 3, stride=2), False),
        (Standardised(8, 8, 3, padding=1), False),
    ],
)
def test_only_layers_that_compute_what_their_class_says_are_solved(layer: nn.Conv2d, solved: bool) -> None:
    torch.manual_seed(0)
    layer.reset_parameters()
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    batches = [torch.randn(16, 3, 12, 12) for _ in range(4)]
    groups = trace(model, batches[0], prune_stem=True).groups
    keep = {"0": torch.arange(5)}
    pruned = copy.deepcopy(model)
    remove(pruned, groups, keep)
    cut = copy.deepcopy(pruned)
    done = reconstruct(model, pruned, groups, keep, batches, 0)
    assert ("2" in done.solved) is solved and "4" in (*done.solved, *done.unchanged)
    fresh = torch.randn(64, 3, 12, 12)
    wanted, before, after = (network[:3](fresh).detach() for network in (model, cut, pruned))
    lost, left = (float((given - wanted).square().mean()) for given in (before, after))
    assert left < lost if solved else left == lost


def test_layers_that_want_more_samples_are_named_and_stay_near_what_they_were() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4)).eval()
    groups = trace(model, torch.zeros(1, 8), prune_stem=True).groups
    keep = {"0": torch.arange(30)}
    cut = copy.deepcopy(model)
    remove(cut, groups, keep)
    few, many = ([torch.randn(size, 8) for _ in range(2)] for size in (6, 400))
    fresh = torch.randn(2000, 8)

    def lost(batches: list[Tensor]) -> tuple[float, Reconstructed]:
        pruned = copy.deepcopy(cut)
        done = reconstruct(model, pruned, groups, keep, batches, 0)
        return float((pruned(fresh) - model(fresh)).detach().square().mean()), done

    before = float((cut(fresh) - model(fresh)).detach().square().mean())
    (with_few, scarce), (with_many, enough) = lost(few), lost(many)
    assert dict(scarce.wanted) == {"2": 60, "4": 80} and not enough.wanted  # 30 and 40 columns from 6 rows of 12
    assert with_many < 0.5 * before and with_many < with_few < 1.5 * before
    (table,) = reconstruction_tables(scarce.figures())
    assert table.rows[0][0] == "more weights than samples determine"
    assert "4 and 1 more; 12 samples were used, 80 would do" in table.rows[0][1]
    assert reconstruction_tables(enough.figures()) == [] == reconstruction_tables({})
    (table,) = reconstruction_tables(Reconstructed(too_wide=("a", "b")).figures())
    assert table.rows == [("too wide to solve, repaired by regression", "a, b")]
