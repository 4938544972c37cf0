"""Whole blocks of transformers' models, timm's and torchvision's: what is left, its attributes, its cache, its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.errors import MethodError
from prunecli.inputs import output_tensors
from prunecli.methods import depth
from prunecli.models.catalog import build

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
Built = tuple[nn.Module, dict[str, Tensor]]


def llama() -> Built:
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS}


def gpt2(**how: Any) -> Built:
    config = transformers.GPT2Config(
        vocab_size=100, n_embd=32, n_layer=4, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2, **how
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": IDS}


def bert() -> Built:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL)), {"input_ids": IDS}


def gemma3() -> Built:
    kinds = ["sliding_attention", "full_attention"] * 2
    config = transformers.Gemma3TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, sliding_window=4, layer_types=kinds
    )
    return transformers.Gemma3ForCausalLM(config), {"input_ids": IDS}


def qwen3_moe() -> Built:
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "mlp_only_layers": [1, 3]}
    config = transformers.Qwen3MoeConfig(**SMALL, num_key_value_heads=2, head_dim=8, **experts)
    return transformers.Qwen3MoeForCausalLM(config), {"input_ids": IDS}


def t5() -> Built:
    config = transformers.T5Config(
        vocab_size=100, d_model=32, d_ff=64, num_layers=4, num_heads=4, d_kv=8, decoder_start_token_id=0
    )
    return transformers.T5ForConditionalGeneration(config), {"input_ids": IDS, "decoder_input_ids": IDS}


def swin() -> Built:
    config = transformers.SwinConfig(
        embed_dim=16, depths=[2, 4], num_heads=[2, 2], image_size=64, patch_size=4, window_size=4, drop_path_rate=0.2
    )
    return transformers.SwinForImageClassification(config), {"pixel_values": torch.randn(1, 3, 64, 64)}


def vit() -> Built:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        output_hidden_states=True,
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": torch.randn(1, 3, 32, 32)}


def built(make: Callable[[], Built]) -> Built:
    torch.manual_seed(0)
    model, inputs = make()
    return model.eval(), inputs


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return output_tensors(model(**inputs))


def generated(model: Any, cached: bool) -> Tensor:
    options = {"do_sample": False, "min_new_tokens": 10, "max_new_tokens": 10, "output_logits": True}
    with torch.no_grad():
        made = model.generate(input_ids=IDS, use_cache=cached, return_dict_in_generate=True, **options)
    return torch.stack(made.logits)


@pytest.mark.parametrize(
    ("make", "drop", "config"),
    [
        (llama, ["model.layers.0", "model.layers.2"], {"num_hidden_layers": 2}),
        (gpt2, ["transformer.h.1"], {"n_layer": 3}),
        (bert, ["bert.encoder.layer.[12]"], {"num_hidden_layers": 2}),
        (gemma3, ["model.layers.0"], {"num_hidden_layers": 3, "layer_types": ["full", "sliding", "full"]}),
        (qwen3_moe, ["model.layers.[12]"], {"num_hidden_layers": 2, "mlp_only_layers": [1]}),
        (t5, ["decoder.block.2", "decoder.block.3", "encoder.block.1"], {"num_layers": 3, "num_decoder_layers": 2}),
        (swin, ["swin.encoder.layers.0.blocks.*"], {"depths": [0, 4]}),
        (vit, ["vit.layers.1"], {"num_hidden_layers": 3}),
    ],
)
def test_a_smaller_network_says_so_and_comes_back(
    make: Callable[[], Built], drop: list[str], config: dict[str, Any], tmp_path: Path
) -> None:
    model, inputs = built(make)
    result = prunecli.prune(model, "depth", example_inputs=inputs, drop=drop)
    small: Any = result.model
    assert result.report.verify_error == 0.0 and {block.left for block in result.manifest.blocks} == {"nothing"}
    for name, value in config.items():
        shortened = [str(kind).removesuffix("_attention") for kind in value] if name == "layer_types" else value
        found = getattr(small.config, name)
        found = [str(kind).removesuffix("_attention") for kind in found] if name == "layer_types" else found
        assert found == shortened, name
        assert getattr(model.config, name) != getattr(small.config, name)  # type: ignore[union-attr]
    result.save(tmp_path / "small.safetensors")
    restored = prunecli.load(tmp_path / "small.safetensors", model)
    first, second = outputs(small, inputs), outputs(restored, inputs)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    if make is vit:  # logits, and a hidden state before, between and behind three layers
        assert len(first) == 1 + 4
    # what the library itself builds from the configuration, and its file
    small.save_pretrained(tmp_path / "library")
    again = type(model).from_pretrained(tmp_path / "library").eval()  # type: ignore[attr-defined]
    assert all(torch.equal(one, other) for one, other in zip(first, outputs(again, inputs), strict=True))


@pytest.mark.parametrize("make", [llama, gpt2, gemma3, qwen3_moe, t5])
def test_generating_from_a_cache_is_generating_without(make: Callable[[], Built], tmp_path: Path) -> None:
    model, inputs = built(make)
    result = prunecli.prune(model, "depth", example_inputs=inputs, ratio=0.4, score="random")
    result.save(tmp_path / "small.safetensors")
    for network in (result.model, prunecli.load(tmp_path / "small.safetensors", model)):
        assert torch.allclose(generated(network, True), generated(network, False), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_first_block_of_t5_holds_what_the_others_need() -> None:
    model, inputs = built(t5)
    with pytest.raises(MethodError, match=r"decoder.block.0 cannot be removed: .*differs from the original"):
        prunecli.prune(model, "depth", example_inputs=inputs, drop="decoder.block.0")


@pytest.mark.slow
def test_what_no_configuration_describes_is_left_to_the_checkpoint() -> None:
    for make, drop in (
        (t5, "encoder.block.2"),  # transformers sizes the cache of the decoder by the layers of the encoder
        (lambda: gpt2(scale_attn_by_inverse_layer_idx=True), "transformer.h.1"),  # the scale would be another one
    ):
        model, inputs = built(make)
        result = prunecli.prune(model, "depth", example_inputs=inputs, drop=drop)
        assert result.model.config.num_hidden_layers == 4  # type: ignore[union-attr]
        assert "no configuration of transformers" in result.report.notes[0]
        assert torch.allclose(generated(result.model, True), generated(result.model, False), rtol=0, atol=1e-5)


def test_layers_that_keep_their_number_keep_their_place_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = built(llama)
    monkeypatch.setattr(depth, "rebuilt_with_fewer_layers", lambda model, removed: None)
    result = prunecli.prune(model, "depth", example_inputs=inputs, drop="model.layers.2")
    assert result.model.config.num_hidden_layers == 4  # type: ignore[union-attr]
    assert torch.allclose(generated(result.model, True), generated(result.model, False), rtol=0, atol=1e-5)
    # the length of what is cached is that of the first layer
    with pytest.raises(MethodError, match=r"model.layers.0 cannot be removed: .*cached keys and values"):
        prunecli.prune(model, "depth", example_inputs=inputs, drop="model.layers.0")


def test_a_shifted_window_stays_shifted() -> None:
    model, inputs = built(swin)
    result = prunecli.prune(model, "depth", example_inputs=inputs, drop="swin.encoder.layers.1.blocks.0")
    small: Any = result.model
    shifts = [block.shift_size for block in small.swin.encoder.layers[1].blocks]
    assert shifts == [block.shift_size for block in model.swin.encoder.layers[1].blocks][1:]  # type: ignore[union-attr]
    assert small.config.depths == [2, 4] and len(result.report.notes) == 1  # it cannot say which windows are shifted


def test_width_and_depth_of_a_language_model(tmp_path: Path) -> None:
    model, inputs = built(llama)
    wide = prunecli.prune(model, "l1", example_inputs=inputs, ratio=0.3)
    both = prunecli.prune(wide.model, "depth", example_inputs=inputs, blocks=2)
    both.save(tmp_path / "both.safetensors")
    restored = prunecli.load(tmp_path / "both.safetensors", model)
    assert torch.equal(outputs(restored, inputs)[0], outputs(both.model, inputs)[0])
    assert torch.allclose(generated(restored, True), generated(restored, False), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("ref", "size", "drop"),
    [
        ("timm:vit_tiny_patch16_224", 224, ["blocks.1", "blocks.5"]),
        pytest.param("timm:convnext_atto", 64, ["stages.2.blocks.[13]"], marks=pytest.mark.slow),
        ("torchvision:resnet18", 64, ["layer1.0", "layer4.1"]),
        pytest.param("timm:regnety_002", 64, ["s4.b3"], marks=pytest.mark.slow),
        ("segformer:b0", 64, ["segformer.stages.0.blocks.1"]),
    ],
)
def test_networks_of_the_catalogue_need_nothing_beside_their_file(
    ref: str, size: int, drop: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, image = build(ref, pretrained=False).eval(), torch.randn(1, 3, size, size)
    result = prunecli.prune(model, "depth", example_inputs=image, drop=drop)
    result.save(tmp_path / "small.safetensors")
    restored: Any = prunecli.load(tmp_path / "small.safetensors")
    assert result.report.verify_error == 0.0
    with torch.no_grad():
        assert torch.equal(restored(image), result.model(image))
    if ref.startswith("timm:vit"):
        assert [entry["module"] for entry in restored.feature_info] == [f"blocks.{index}" for index in range(10)]
        with torch.no_grad():
            assert len(restored.forward_intermediates(image, intermediates_only=True)) == 10


def test_blocks_of_a_spiking_network(tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly")
    torch.manual_seed(0)
    model, image = build("spiking:sew_resnet18", pretrained=False).eval(), torch.randn(1, 3, 32, 32)
    result = prunecli.prune(model, "depth", example_inputs=image, drop="layer2.1")
    result.save(tmp_path / "small.safetensors")
    with torch.no_grad():
        assert torch.equal(prunecli.load(tmp_path / "small.safetensors")(image), result.model(image))
