"""Experts of transformers' mixtures: what is left, its configuration, its cache and its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.errors import MethodError, VerificationError
from prunecli.inputs import output_tensors

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LATENT = {
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_shared_experts": 1,
    "topk_group": 1,
}
EIGHT = {"num_local_experts": 8, "num_experts_per_tok": 2}
MANY = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
NETWORKS: dict[str, dict[str, Any]] = {
    "Mixtral": EIGHT,
    "Qwen2Moe": {**MANY, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": {**MANY, "head_dim": 8, "mlp_only_layers": []},
    "Olmoe": {"num_experts": 8, "num_experts_per_tok": 2},
    "DeepseekV2": {**LATENT, "n_group": 2, "topk_method": "group_limited_greedy"},
    "DeepseekV3": {**LATENT, "n_group": 2},
    "GptOss": {**EIGHT, "head_dim": 8},
    "GraniteMoe": EIGHT,
    "Ernie4_5_Moe": {"moe_num_experts": 8, "moe_k": 2, "moe_intermediate_size": 16, "moe_layer_start_index": 0},
}
IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))


def language_model(name: str, **how: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **NETWORKS.get(name, {}), **how})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def outputs(model: nn.Module, **inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return output_tensors(model(**inputs))


@pytest.mark.parametrize("name", NETWORKS)
def test_fewer_experts_in_a_configuration_that_says_so(name: str, tmp_path: Path) -> None:
    model = language_model(name)
    result = prunecli.prune(model, "experts", example_inputs={"input_ids": IDS}, data=[{"input_ids": IDS}], ratio=0.3)
    small: Any = result.model
    # Some routers compute in float32 whatever the precision of the network.
    assert result.report.verify_error < 1e-6 and not result.report.notes
    mixtures = {edit.group: edit for edit in result.report.edits}
    assert all((edit.width_before, edit.width_after) == (8, 6) for edit in mixtures.values())
    result.save(tmp_path / "small.safetensors")
    first = outputs(small, input_ids=IDS)
    restored = outputs(prunecli.load(tmp_path / "small.safetensors", model), input_ids=IDS)
    assert all(torch.equal(one, other) for one, other in zip(first, restored, strict=True))
    small.save_pretrained(tmp_path / "library")
    again = type(model).from_pretrained(tmp_path / "library").eval()
    found = outputs(again, input_ids=IDS)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(first, found, strict=True))
    options = {"do_sample": False, "min_new_tokens": 5, "max_new_tokens": 5, "output_logits": True}
    logits = [
        torch.stack(small.generate(IDS, use_cache=cached, return_dict_in_generate=True, **options).logits)
        for cached in (True, False)
    ]
    assert torch.allclose(*logits, rtol=0, atol=1e-5)


def test_experts_under_names_in_a_mapping(tmp_path: Path) -> None:
    config = transformers.SwitchTransformersConfig(
        vocab_size=100,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=6,
        expert_capacity=64,
    )
    torch.manual_seed(0)
    model = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS}
    result = prunecli.prune(model, "experts", example_inputs=inputs, experts=2, score="random")
    result.save(tmp_path / "small.safetensors")
    restored: Any = prunecli.load(tmp_path / "small.safetensors", model)
    assert all(map(torch.equal, outputs(result.model, **inputs), outputs(restored, **inputs)))
    assert list(restored.encoder.block[1].layer[1].mlp.experts) == [f"expert_{index}" for index in range(4)]


def test_tokens_are_never_sent_to_more_experts_than_there_are() -> None:
    with pytest.raises(MethodError, match=r"1 of its 8 experts would be left, and every token is sent to 2"):
        prunecli.prune(language_model("Mixtral"), "experts", example_inputs={"input_ids": IDS}, experts=7)


def test_a_mixture_that_does_not_do_what_its_router_says_is_refused() -> None:
    """In transformers 5.23 NLLB-MoE runs the experts whose numbers are entries of a mask of zeros and ones."""
    config = transformers.NllbMoeConfig(
        vocab_size=100,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_experts=6,
        encoder_sparse_step=2,
        decoder_sparse_step=2,
        expert_capacity=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    model = transformers.NllbMoeForConditionalGeneration(config).eval()
    inputs = {"input_ids": IDS, "decoder_input_ids": IDS}
    with pytest.raises(VerificationError, match="differs from the original that does not choose them"):
        prunecli.prune(model, "experts", example_inputs=inputs, experts=2)


def test_experts_then_width_then_depth(tmp_path: Path) -> None:
    model, inputs = language_model("Mixtral"), {"input_ids": IDS}
    fewer = prunecli.prune(model, "experts", example_inputs=inputs, ratio=0.3)
    shallow = prunecli.prune(fewer.model, "depth", example_inputs=inputs, blocks=1)
    shallow.save(tmp_path / "small.safetensors")
    restored: Any = prunecli.load(tmp_path / "small.safetensors", model)
    assert all(map(torch.equal, outputs(restored, **inputs), outputs(shallow.model, **inputs)))
    assert (restored.config.num_local_experts, restored.config.num_hidden_layers) == (6, 1)
