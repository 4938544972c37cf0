"""Which attributes change with a width, and which only look as if they did."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunecli
from prunecli.errors import ModelError
from prunecli.surgery.tracing.trace import trace

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Settings:
    width: int = 40
    layers: int = 40


class Reshaping(nn.Module):
    """Flattens 40 channels with a width that it reads from `read`."""

    def __init__(self, setup: Callable[[Any], None], read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 40, 3), nn.Conv2d(40, 20, 1)
        self.head = nn.Linear(20, 4)
        setup(self)
        self.read = [read]

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.b(F.relu(self.a(x))))
        h, w = y.shape[2:]
        flat = y.view(-1, self.read[0](self), h * w)
        return self.head(F.relu(self.c(flat.view(flat.shape[0], -1, h, w))).mean((2, 3)))


def _set(**values: Any) -> Callable[[Any], None]:
    return lambda module: [setattr(module, name, value) for name, value in values.items()] and None


FOLLOWED: dict[str, tuple[Callable[[Any], None], Callable[[Any], Any], Callable[[Any], int]]] = {
    "any name": (_set(patch_size=40), lambda m: m.patch_size, lambda m: m.patch_size),
    "private": (_set(_width=40), lambda m: m._width, lambda m: m._width),
    "namespace": (_set(cfg=SimpleNamespace(w=40)), lambda m: m.cfg.w, lambda m: m.cfg.w),
    "mapping": (_set(cfg={"w": [40]}), lambda m: m.cfg["w"][0], lambda m: m.cfg["w"][0]),
    "frozen dataclass": (_set(cfg=Settings()), lambda m: m.cfg.width, lambda m: m.cfg.width),
    "numpy": (_set(w=np.int64(40)), lambda m: m.w, lambda m: int(m.w)),
    "size": (_set(shape=torch.Size([40, 2])), lambda m: m.shape[0], lambda m: m.shape[0]),
    "multiple": (_set(half=20), lambda m: 2 * m.half, lambda m: 2 * m.half),
    "sum": (_set(w=32, rest=8), lambda m: m.w + m.rest, lambda m: m.w + m.rest),
    "quotient": (_set(w=80), lambda m: m.w // 2, lambda m: m.w // 2),
    "difference": (_set(w=48, rest=8), lambda m: m.w - m.rest, lambda m: m.w - m.rest),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_width_is_followed_wherever_it_is_kept(name: str) -> None:
    setup, read, value = FOLLOWED[name]
    model = Reshaping(setup, read).eval()
    before = value(model)
    result = prunecli.prune(model, "l1", example_inputs=X, ratio=0.5)
    width = result.model.b.out_channels
    assert width < 40 and value(result.model) == width  # type: ignore[operator]
    assert value(model) == before == 40
    assert result.model(torch.randn(2, 3, 9, 10)).shape == (2, 4)


def test_changed_attributes_are_listed_and_restored(tmp_path: Any) -> None:
    model = Reshaping(_set(cfg=SimpleNamespace(w=40), year=40), lambda m: m.cfg.w).eval()
    result = prunecli.prune(model, "l1", example_inputs=X, ratio=0.5)
    assert [(change.name, change.old) for change in result.report.attributes] == [("cfg.w", 40)]
    assert result.manifest.history[-1].figures["attributes"] == {"cfg.w": [40, result.model.cfg.w]}  # type: ignore[union-attr]
    result.save(tmp_path / "small.safetensors")
    fresh = Reshaping(_set(cfg=SimpleNamespace(w=40), year=40), lambda m: m.cfg.w).eval()
    restored = prunecli.load(tmp_path / "small.safetensors", model=fresh)
    assert torch.equal(restored(X), result.model(X))


@pytest.mark.parametrize("use", ["training", "loop", "positions", "never", "comparison with another number"])
def test_a_number_that_is_no_width_stays(use: str) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 40, 3), nn.Conv2d(40, 20, 1)
            self.head = nn.Linear(20, 4)
            self.number = self.limit = 40

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.b(F.relu(self.a(x))))
            if use == "training" and self.training:
                y = y * (1 + self.number)
            if use == "loop":
                for _ in range(self.number):
                    y = 0.9 * y
            if use == "positions":
                y = y + y.flatten(2).topk(min(self.number, 60), 2).values.mean(2)[..., None, None]
            if use == "comparison with another number" and self.number == self.limit:
                y = y * 2
            return self.head(F.relu(self.c(y)).mean((2, 3)))

    result = prunecli.prune(Counting().eval(), "l1", example_inputs=X, ratio=0.5)
    assert result.model.b.out_channels < 40 and result.model.number == result.model.limit == 40
    assert result.report.attributes == ()


def test_a_width_written_in_the_code_holds_its_layer_and_says_so() -> None:
    traced = trace(Reshaping(_set(), lambda m: 40), X)
    reasons = {frozen.name: frozen.reason for frozen in traced.frozen}
    assert {group.name for group in traced.groups} == {"c"}
    assert "uses a plain number as its width (40; written in the code" in reasons["b"]


def test_a_width_that_only_an_exporter_reads_follows() -> None:
    """Splitting by a number that only `forward_split` uses, which exporters put in the place of `forward`."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c = 16
            self.first, self.last = nn.Conv2d(8, 32, 1), nn.Conv2d(32, 12, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat(self.first(x).chunk(2, 1), 1))

        def forward_split(self, x: Tensor) -> Tensor:
            return self.last(torch.cat(self.first(x).split((self.c, self.c), 1), 1))

    model = nn.Sequential(nn.Conv2d(3, 8, 3), Halves(), nn.Conv2d(12, 4, 1)).eval()
    result = prunecli.prune(model, "l1", example_inputs=X, ratio=0.5).model
    assert result[1].first.out_channels == 2 * result[1].c < 32  # type: ignore[index]
    expected = result(X)
    result[1].forward = result[1].forward_split  # type: ignore[index]
    assert torch.equal(result(X), expected)


def test_a_constant_temperature_stays_and_an_attribute_of_the_fused_branch_follows() -> None:
    class Attention(nn.Module):
        def __init__(self, constant: bool) -> None:
            super().__init__()
            self.constant, self.heads, self.fused_attn, self.scale = constant, 2, True, 16**-0.5
            self.qkv, self.out = nn.Linear(24, 96), nn.Linear(32, 24)

        def forward(self, x: Tensor) -> Tensor:
            n, t, _ = x.shape
            q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            if self.constant:
                y = (q @ k.transpose(-2, -1) / 4.0).softmax(-1) @ v
            elif self.fused_attn:
                y = F.scaled_dot_product_attention(q, k, v)
            else:
                y = (q * self.scale @ k.transpose(-2, -1)).softmax(-1) @ v
            return self.out(y.transpose(1, 2).flatten(2))

    x = torch.randn(1, 5, 6)
    for constant in (True, False):
        model = nn.Sequential(nn.Linear(6, 24), Attention(constant), nn.Linear(24, 3)).eval()
        pruned = prunecli.prune(model, "l1", example_inputs=x, ratio=0.5).model[1]  # type: ignore[index]
        assert pruned.qkv.out_features == 48
        y = torch.randn(1, 5, pruned.qkv.in_features)
        fused = pruned(y)
        pruned.fused_attn = False
        assert torch.allclose(pruned(y), fused, atol=1e-6)
        assert pruned.scale == (16**-0.5 if constant else 8**-0.5)


@pytest.mark.parametrize("hidden", [False, True])
def test_a_closure_over_the_original_is_refused_by_name(hidden: bool) -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
            self.steps = [lambda x: self.b(x)] if hidden else []
            self.step = None if hidden else lambda x: self.b(x)

        def forward(self, x: Tensor) -> Tensor:
            return (self.step or self.steps[0])(F.relu(self.a(x)))

    wrong = (
        r"uses b\.weight through a function or closure" if hidden else "step is a function that holds the model itself"
    )
    with pytest.raises(ModelError, match=wrong):
        prunecli.prune(Holding().eval(), "l1", example_inputs=X)


def test_a_parameter_of_no_module_is_refused() -> None:
    hidden = [nn.Parameter(torch.ones(8, 1, 1))]

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x) * hidden[0])

    with pytest.raises(ModelError, match="belongs to no module of the network; register it"):
        prunecli.prune(Scaled().eval(), "l1", example_inputs=X)


def test_the_model_keeps_plain_numbers() -> None:
    model = Reshaping(_set(cfg=SimpleNamespace(w=40)), lambda m: m.cfg.w).eval()
    result = prunecli.prune(model, "l1", example_inputs=X, ratio=0.5)
    for module in (model, result.model):
        assert type(module.cfg.w) is int and type(module.a.stride[0]) is int
    assert copy.deepcopy(result.model)(X).shape == (1, 4)


class Headed(nn.Module):
    HEADS = 4

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.out, self.head = (
            nn.Linear(6, 32),
            nn.Linear(32, 96),
            nn.Linear(32, 32),
            nn.Linear(32, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        n, t, _ = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.HEADS, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(y))


def test_a_width_of_the_class_is_changed_on_the_instance_and_saved(tmp_path: Any) -> None:
    x = torch.randn(2, 5, 6)
    result = prunecli.prune(Headed().eval(), "l1", example_inputs=x, ratio=0.5, heads=True, scope="local", min_width=1)
    assert Headed.HEADS == 4 and result.model.HEADS == 2
    result.save(tmp_path / "small.safetensors")
    restored = prunecli.load(tmp_path / "small.safetensors", model=Headed().eval())
    assert restored.HEADS == 2 and torch.equal(restored(x), result.model(x))


def test_a_constant_divisor_is_known_from_the_code_not_from_the_inputs() -> None:
    """With one token every softmax is over equal scores, so that no comparison could tell."""

    class Constant(Headed):
        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            n, t, _ = x.shape
            q, k, v = self.qkv(x).view(n, t, 3, 4, -1).permute(2, 0, 3, 1, 4)
            y = ((q @ k.transpose(-2, -1)) / 8**0.5).softmax(-1) @ v
            return self.head(x + self.out(y.transpose(1, 2).flatten(2)))

    traced = trace(Constant().eval(), torch.randn(1, 1, 6))
    assert any(group.kind == "head_dim" for group in traced.groups)
    assert not any(group.scales for group in traced.groups)
    assert any(group.scales for group in trace(Headed().eval(), torch.randn(1, 1, 6)).groups)


def test_a_hook_that_holds_a_container_of_the_network_is_refused() -> None:
    model = Reshaping(_set(kept=[]), lambda m: 40).eval()
    kept = model.kept
    model.a.register_forward_hook(lambda module, args, output: kept.append(output))  # type: ignore[operator]
    with pytest.raises(ModelError, match="a hook of a is a function that holds kept"):
        prunecli.prune(model, "l1", example_inputs=X)


def test_whatever_a_network_raises_freezes_its_channels() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.b(F.relu(self.a(x)))
            return self.c(F.relu(y * {16: 0.5}[y.shape[1]]))

    reasons = {entry.name: entry.reason for entry in trace(Table().eval(), X, prune_stem=True).frozen}
    assert "KeyError" in reasons["b"]


def test_a_derived_layer_may_have_widths_of_its_own() -> None:
    class Projection(nn.Linear):
        def __init__(self) -> None:
            super().__init__(32, 96)
            self.heads, self.size = 4, 8

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).view(*x.shape[:-1], 3, self.heads, self.size)

    class Net(Headed):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = Projection()

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            q, k, v = self.qkv(x).permute(2, 0, 3, 1, 4)
            return self.head(x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)))

    result = prunecli.prune(Net().eval(), "l1", example_inputs=torch.randn(2, 5, 6), ratio=0.5)
    assert result.model.qkv.size < 8 and result.model.qkv.out_features == 12 * result.model.qkv.size


def test_an_encoder_without_its_head_is_pruned() -> None:
    import timm

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = timm.create_model("test_vit")
            del self.encoder.head  # as packages do that use the body alone

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder.forward_features(x).mean(1)

    model = Body().eval()
    with pytest.raises(AttributeError):
        model.encoder.get_classifier()
    traced = trace(model, torch.randn(1, 3, 160, 160))
    assert {group.name for group in traced.groups} >= {"encoder.blocks.0.mlp.fc1"}
