"""Attention heads in the basis in which the dimensions that are removed matter least."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from prunecli.inputs import logits, output_tensors
from prunecli.models.catalog import build
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.removal.head_basis import concentrated, kept_first
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace


def _randomised(model: nn.Module) -> nn.Module:
    """New weights are so small that attention hardly matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                scale = parameter[0].numel() ** -0.5 * 2
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            else:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _images(count: int = 6, size: int = 16) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def _tokens(count: int = 6) -> Tensor:
    return torch.randint(0, 50, (count, 9), generator=torch.Generator().manual_seed(1))


def _vit(**settings: Any) -> nn.Module:
    common = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return _randomised(VisionTransformer(**{**common, **settings}))


def _bert() -> nn.Module:
    config = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=50)
    return _randomised(BertModel(config))


def _llama() -> nn.Module:
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4, intermediate_size=48,
        vocab_size=50,
    )  # fmt: skip
    return _randomised(LlamaModel(config))


def _segformer() -> nn.Module:
    return _randomised(build("segformer:b0"))


class HeadByHead(nn.Module):
    """Query, key and value of one head after the other in one layer, as in GPT-NeoX."""

    def __init__(self, heads: int = 3, width: int = 8) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width
        self.stem, self.qkv = nn.Linear(3, 24), nn.Linear(24, heads * 3 * width)
        self.proj, self.head = nn.Linear(heads * width, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2).mT)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], self.heads, 3 * self.head_dim).transpose(1, 2).chunk(3, -1)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.proj(mixed)).mean(1))


def _heads(model: nn.Module, example: Any) -> tuple[list[ChannelGroup], dict[str, Tensor]]:
    groups = [group for group in trace(model, example).groups if group.kind == "head_dim"]
    assert groups
    return groups, {group.name: torch.arange(1, group.units, 2) for group in groups}


def _first(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return output_tensors(model(inputs))[0]


@pytest.mark.parametrize(
    ("make", "inputs", "changed"),
    [
        (_vit, _images(), {"qkv.weight", "qkv.bias", "proj.weight"}),
        (lambda: _vit(qkv_bias=False), _images(), {"qkv.weight", "proj.weight"}),
        (lambda: _vit(qk_norm=True), _images(), {"qkv.weight", "qkv.bias", "proj.weight"}),
        (_bert, _tokens(), {f"{name}.{kind}" for name in ("query", "key", "value") for kind in ("weight", "bias")}),
        (
            lambda: _randomised(build("segformer:b0")),
            _images(4, 64),
            {"q_proj.weight", "k_proj.weight", "o_proj.weight"},
        ),
        (_llama, _tokens(), {"v_proj.weight", "o_proj.weight"}),
        (lambda: _randomised(HeadByHead()), _images(), {"qkv.weight", "qkv.bias", "proj.weight"}),
    ],
    ids="vit vit-without-bias vit-with-normed-queries bert segformer llama head-by-head".split(),
)
def test_the_network_computes_the_same(make: Any, inputs: Tensor, changed: set[str]) -> None:
    model = make()
    groups, keep = _heads(model, inputs[:1])
    before = copy.deepcopy(model.state_dict())
    mixed, names = concentrated(model, groups, kept_first(groups, keep), [inputs])
    wanted = _first(model, inputs)
    assert float((_first(mixed, inputs) - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())
    assert changed <= {".".join(name.split(".")[-2:]) for name in names}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    moved = {name for name, tensor in mixed.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == names


@pytest.mark.parametrize("make", [lambda: _vit(qk_norm=True), _llama], ids=["normed", "rotary"])
def test_queries_that_are_turned_or_normed_stay(make: Any) -> None:
    model, inputs = make(), _images() if make is not _llama else _tokens()
    groups, keep = _heads(model, inputs[:1])
    mixed, names = concentrated(model, groups, kept_first(groups, keep), [inputs])
    assert not any(word in name for name in names for word in ("q_proj", "k_proj", "q_norm"))
    if make is not _llama:
        rows = slice(0, 64)
        for block in (0, 1):
            name = f"blocks.{block}.attn.qkv.weight"
            assert torch.equal(mixed.state_dict()[name][rows], model.state_dict()[name][rows])
            assert not torch.equal(mixed.state_dict()[name][64:], model.state_dict()[name][64:])


def test_heads_of_half_the_rank_lose_nothing_with_half_of_their_dimensions() -> None:
    model, inputs = _vit(depth=1), _images(32)
    qkv: Any = model.blocks[0].attn.qkv  # type: ignore[index,union-attr]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for part in range(3):
            for head in range(4):
                rows = slice(part * 32 + head * 8, part * 32 + head * 8 + 8)
                basis = torch.randn(8, 4, generator=generator) / 2
                qkv.weight[rows] = basis @ torch.randn(4, 32, generator=generator) / 5
                qkv.bias[rows] = basis @ torch.randn(4, generator=generator) / 5
    groups, keep = _heads(model, inputs[:1])
    wanted = _first(model, inputs)

    def lost(network: nn.Module) -> float:
        pruned = copy.deepcopy(network)
        remove(pruned, groups, keep)
        return float((_first(pruned, inputs) - wanted).abs().max() / wanted.abs().max())

    mixed, _ = concentrated(model, groups, kept_first(groups, keep), inputs.split(8))
    assert lost(mixed) < 1e-3 < 0.05 < lost(model)


def test_as_many_dimensions_keep_the_most_of_the_scores_and_of_what_is_read() -> None:
    model, inputs = _vit(depth=1), _images(64)
    groups, keep = _heads(model, inputs[:1])
    mixed, _ = concentrated(model, groups, kept_first(groups, keep), inputs.split(16))
    seen: dict[str, Tensor] = {}
    for name, network in (("dense", model), ("mixed", mixed)):
        block: Any = network.blocks[0]  # type: ignore[index,union-attr]
        hook = block.attn.qkv.register_forward_hook(lambda _m, _a, out, name=name: seen.__setitem__(name, out))
        _first(network, inputs)
        hook.remove()
    rows = {name: out.reshape(-1, 3, 4, 8).double() for name, out in seen.items()}
    for head in range(4):
        query, key = (rows["dense"][:, part, head] for part in (0, 1))
        centred = key - key.mean(0)
        moments = (query.T @ query / len(query)) @ (centred.T @ centred / len(key))
        squares = torch.linalg.eigvals(moments).real.sort().values  # of the singular values
        gone = torch.arange(0, 8, 2)
        less_q, less_k = (rows["mixed"][:, part, head][:, gone] for part in (0, 1))
        less_k = less_k - less_k.mean(0)
        lost = torch.trace((less_q.T @ less_q / len(query)) @ (less_k.T @ less_k / len(key)))
        assert float(lost) == pytest.approx(float(squares[:4].sum()), rel=1e-3)


def test_repairs_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import prunecli
    from prunecli.methods import repair_trials

    model, inputs = _vit(), _images(64)
    wanted = _first(model, inputs)

    def error() -> float:
        done = prunecli.prune(
            model, "l1", layer_ratio={"blocks.*.attn.qkv": 0.5}, example_inputs=inputs[:1], data=inputs.split(16),
            round_to=1, compensate="ls", min_width=1,
        )  # fmt: skip
        return float((_first(done.model, inputs) - wanted).square().mean())

    with_it = error()
    monkeypatch.setattr(repair_trials, "concentrated", lambda network, *_: (network, frozenset()))
    assert with_it < 0.9 * error()


def test_without_samples_nothing_changes() -> None:
    model = _vit()
    groups, keep = _heads(model, _images(1))
    assert concentrated(model, groups, kept_first(groups, keep), []) == (model, frozenset())
    assert logits(model(_images(2))).shape == (2, 5)


def _queries_and_keys(network: nn.Module) -> list[Tensor]:
    return [network.state_dict()[f"blocks.{block}.attn.qkv.weight"][:64] for block in (0, 1)]


@pytest.mark.parametrize("case", ["silent head", "small layer scales", "one large constant output"])
def test_whether_heads_meet_is_seen_where_they_are_read(case: str) -> None:
    """The network's own outputs may hardly depend on what a block gives, or be compared with something large."""
    model = _vit(qk_norm=True, init_values=1e-5 if case == "small layer scales" else None)
    with torch.no_grad():
        head: Any = model.head
        if case == "silent head":
            head.weight.zero_()
        if case == "one large constant output":
            head.bias[0] = 3000
            model.blocks[0].attn.proj.bias[0] = 3000  # type: ignore[index,union-attr]
        if case == "small layer scales":
            for block in model.blocks:  # type: ignore[union-attr]
                block.ls1.gamma.fill_(1e-5)  # type: ignore[union-attr]
    groups, keep = _heads(model, _images(1))
    mixed, names = concentrated(model, groups, kept_first(groups, keep), [_images()])
    assert names and all(map(torch.equal, _queries_and_keys(model), _queries_and_keys(mixed)))


def test_a_first_batch_without_samples_tells_nothing() -> None:
    model, inputs = _vit(qk_norm=True), _images()
    groups, keep = _heads(model, inputs[:1])
    mixed, names = concentrated(model, groups, kept_first(groups, keep), [inputs[:0], inputs])
    assert names
    assert all(map(torch.equal, _queries_and_keys(model), _queries_and_keys(mixed)))


def test_layers_may_be_declared_in_any_order() -> None:
    """CLIP's keys and values come before its queries."""
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    model, inputs = _randomised(CLIPVisionModel(config)), _images()
    groups, keep = _heads(model, inputs[:1])
    mixed, names = concentrated(model, groups, kept_first(groups, keep), [inputs])
    layers = {".".join(name.split(".")[-2:]) for name in names}
    assert {f"{name}.weight" for name in ("q_proj", "k_proj", "v_proj", "out_proj")} <= layers
    wanted = _first(model, inputs)
    assert float((_first(mixed, inputs) - wanted).abs().max()) < 1e-4 * float(wanted.abs().max())


def test_a_head_that_does_nothing_keeps_its_weights() -> None:
    model, inputs = _vit(depth=1), _images()
    qkv: Any = model.blocks[0].attn.qkv  # type: ignore[index,union-attr]
    with torch.no_grad():
        qkv.weight[:8], qkv.bias[:8] = 0, 0  # the queries of the first head
    groups, keep = _heads(model, inputs[:1])
    mixed, names = concentrated(model, groups, kept_first(groups, keep), [inputs])
    weight = mixed.state_dict()["blocks.0.attn.qkv.weight"]
    assert names and float(weight[32:40].norm()) == pytest.approx(float(qkv.weight[32:40].norm()))
    assert not torch.equal(weight[40:48], qkv.weight[40:48])


def test_images_that_are_not_finite_change_nothing() -> None:
    model, inputs = _vit(), _images()
    groups, keep = _heads(model, inputs[:1])
    inputs[3, 0, 0, 0] = float("nan")
    assert concentrated(model, groups, kept_first(groups, keep), [inputs]) == (model, frozenset())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, inputs = _vit(), _images(32)
    groups, keep = _heads(model, inputs[:1])
    wide = concentrated(model, groups, kept_first(groups, keep), [inputs])[1]
    model = model.to(dtype)
    mixed, names = concentrated(model, groups, kept_first(groups, keep), [inputs.to(dtype)])
    assert names == wide
    wanted = _first(model, inputs.to(dtype)).float()
    assert float((_first(mixed, inputs.to(dtype)).float() - wanted).abs().max()) < 0.1 * float(wanted.abs().max())
    normed = _vit(qk_norm=True).to(dtype)
    mixed, _ = concentrated(normed, groups, kept_first(groups, keep), [inputs.to(dtype)])
    assert all(map(torch.equal, _queries_and_keys(normed), _queries_and_keys(mixed)))
