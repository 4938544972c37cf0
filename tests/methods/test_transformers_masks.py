"""Masks of single weights in layers that only transformers has: weights with inputs first, and stacked experts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from prunecli.methods.registry import get_method
from prunecli.methods.sparse import SparseRequest, WeightPruning, mask_weights
from prunecli.methods.sparse_params import SparseParams

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, 90, (4, 12), generator=torch.Generator().manual_seed(0))


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(config).eval()  # type: ignore[no-any-return]


class AsLinear(nn.Linear):
    """The same layer with outputs first."""

    def __init__(self, layer: Any) -> None:
        super().__init__(*layer.weight.shape)
        with torch.no_grad():
            self.weight.copy_(layer.weight.T)
            self.bias.copy_(layer.bias)


def linear(model: nn.Module) -> nn.Module:
    """A copy in which all such layers have outputs first."""
    changed = copy.deepcopy(model)
    for name, module in list(changed.named_modules()):
        if type(module).__name__ == "Conv1D":
            parent, _, leaf = name.rpartition(".")
            setattr(changed.get_submodule(parent), leaf, AsLinear(module))
    return changed


def masked(model: nn.Module, method: str, **params: Any) -> WeightPruning:
    batches = [({"input_ids": IDS}, IDS)] if get_method(method).needs_data else None
    request = SparseRequest(
        method=method, params=SparseParams(**params), example_inputs={"input_ids": IDS}, calibration=batches
    )
    return mask_weights(model, request)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("magnitude", {"pattern": "2:4"}),
        ("magnitude", {"scope": "layer"}),
        ("wanda-weights", {}),
        ("snip", {}),
        ("sparsegpt", {}),
        ("sparsegpt", {"pattern": "2:4"}),
    ],
)
def test_weights_with_inputs_first_are_masked_like_others(method: str, params: dict[str, Any]) -> None:
    model = gpt2()
    other = linear(model)
    first, second = masked(model, method, **params), masked(other, method, **params)
    assert [weight.name for weight in first.weights] == [weight.name for weight in second.weights]
    assert len(first.weights) == 8 and first.sparsity == pytest.approx(0.5, abs=1e-3)
    for weight in first.weights:
        own, its = weight.parameter.detach(), other.get_parameter(weight.name).detach().T
        assert torch.equal(own == 0, its == 0), weight.name
        assert torch.allclose(own, its, rtol=1e-4, atol=1e-6), weight.name


@pytest.mark.parametrize("name", ["Mixtral", "GptOss"])
def test_experts_are_masked_along_their_inputs(name: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    dense = copy.deepcopy(model)
    done = masked(model, "magnitude", pattern="2:4")
    names = [weight.name for weight in done.weights if ".experts." in weight.name]
    assert len(names) == 4
    for full in names:
        weight, before = model.get_parameter(full).detach(), dense.get_parameter(full).detach()
        if name == "GptOss":  # inputs before outputs
            weight, before = weight.transpose(1, 2), before.transpose(1, 2)
        runs, whole = weight.unflatten(-1, (-1, 4)), before.unflatten(-1, (-1, 4)).abs()
        assert bool(((runs == 0).sum(-1) == 2).all())
        assert bool(((runs != 0) == (whole >= whole.sort(-1).values[..., 2:3])).all())
    if name == "Mixtral":
        wanda = masked(copy.deepcopy(dense), "wanda-weights")
        assert wanda.reasons["model.layers.0.mlp.experts"] == "its inputs cannot be watched"


def test_zeros_of_experts_are_held_and_counted() -> None:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    model = transformers.MixtralForCausalLM(config).eval()
    done = masked(model, "magnitude", sparsity=0.8, scope="layer")
    assert "model.layers.0.mlp.experts.gate_up_proj" in done.masks().weights
    share = float((model.model.layers[0].mlp.experts.gate_up_proj == 0).double().mean())
    assert share == pytest.approx(0.8, abs=1e-3)
