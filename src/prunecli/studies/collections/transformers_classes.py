"""Which classes of transformers are tried, in which small size: a table. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 99
FRAMES, MELS = 40, 16
"""Length and height of a spectrogram."""
_IMAGE = 32


@dataclass(frozen=True)
class TransformersClass:
    """One class.

    Attributes:
        class_name: As transformers exports it.
        config: Arguments of its configuration; ("SomeConfig", arguments) is a nested one.
        takes: Kinds of inputs, for instance "text" and "image".
        size: Height and width of an image.
        square: Whether images can only have this size.
        length: Tokens of a text; 0 for any.
        extra: Further keyword arguments of the network.
    """

    class_name: str
    config: dict[str, Any]
    takes: tuple[str, ...] = ("text",)
    size: int = _IMAGE
    square: bool = True
    length: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 12, "use_cache": False, "tie_word_embeddings": False}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_TRANSLATED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 80,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
}
_VISION: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": _IMAGE,
    "patch_size": 8,
    "num_labels": 5,
}
_STAGES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "num_labels": 5}
_WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": 5,
}
_SOUND: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "conv_dim": (16, 16, 24),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
    "num_labels": 5,
}
_RESNET = ("ResNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1],
                            "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]})  # fmt: skip
_DETECTED: dict[str, Any] = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": _RESNET,
    "d_model": 48,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 80,
    "decoder_ffn_dim": 80,
    "num_queries": 7,
    "num_labels": 5,
}
_BOTH = {
    "text_config": {**_TEXT, "eos_token_id": VOCABULARY - 1, "projection_dim": 40},
    "vision_config": {**_VISION, "projection_dim": 40},
    "projection_dim": 40,
}
_SEQ2SEQ, _PICTURE, _PAIR = ("text", "decoded"), ("image",), ("text", "image")

CLASSES: dict[str, TransformersClass] = {
    # Encoders of texts
    "albert": TransformersClass("AlbertForSequenceClassification", {**_TEXT, "embedding_size": 16}),
    "bert": TransformersClass("BertForSequenceClassification", _TEXT),
    "bert-tokens": TransformersClass("BertForTokenClassification", _TEXT),
    "bert-masked": TransformersClass("BertForMaskedLM", _TEXT),
    "convbert": TransformersClass("ConvBertModel", {**_TEXT, "embedding_size": 48}),
    "deberta": TransformersClass(
        "DebertaModel",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    ),
    "deberta-v2": TransformersClass(
        "DebertaV2Model",
        {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_relative_positions": 16},
    ),
    "distilbert": TransformersClass(
        "DistilBertForSequenceClassification",
        {"vocab_size": VOCABULARY, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80},
    ),
    "electra": TransformersClass("ElectraForPreTraining", {**_TEXT, "embedding_size": 16}),
    "esm": TransformersClass("EsmForTokenClassification", {**_TEXT, "position_embedding_type": "rotary"}),
    "fnet": TransformersClass("FNetModel", _TEXT, extra={"attention_mask": None}),
    "funnel": TransformersClass(
        "FunnelModel",
        {
            "vocab_size": VOCABULARY,
            "d_model": 48,
            "n_head": 4,
            "d_head": 12,
            "d_inner": 80,
            "block_sizes": [1, 1],
            "num_decoder_layers": 1,
        },
        length=12,
    ),
    "modernbert": TransformersClass(
        "ModernBertModel", {**_TEXT, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
    ),
    "mpnet": TransformersClass("MPNetForSequenceClassification", _TEXT),
    "roberta": TransformersClass("RobertaForSequenceClassification", _TEXT),
    "roformer": TransformersClass("RoFormerModel", {**_TEXT, "embedding_size": 48}),
    "squeezebert": TransformersClass("SqueezeBertModel", {**_TEXT, "embedding_size": 48}),
    "xlnet": TransformersClass(
        "XLNetModel", {"vocab_size": VOCABULARY, "d_model": 48, "n_layer": 2, "n_head": 4, "d_inner": 80}
    ),
    # Decoders of texts
    "bloom": TransformersClass(
        "BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 4, "use_cache": False}
    ),
    "falcon": TransformersClass("FalconForCausalLM", {**_TEXT, "use_cache": False, "new_decoder_architecture": True}),
    "deepseek-v3": TransformersClass(
        "DeepseekV3ForCausalLM",
        {
            **{key: value for key, value in _GROUPED.items() if key not in ("num_key_value_heads", "head_dim")},
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 40,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 24,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
        },
    ),
    "gemma": TransformersClass("GemmaForCausalLM", _GROUPED),
    "gemma2": TransformersClass("Gemma2ForCausalLM", _GROUPED),
    "gemma3": TransformersClass(
        "Gemma3ForCausalLM", {**_GROUPED, "layer_types": ["sliding_attention", "full_attention"]}
    ),
    "gpt2": TransformersClass(
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False},
    ),
    "gpt-neo": TransformersClass(
        "GPTNeoForCausalLM",
        {**_TEXT, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "use_cache": False},
    ),
    "gpt-neox": TransformersClass("GPTNeoXForCausalLM", {**_TEXT, "use_cache": False}),
    "llama": TransformersClass("LlamaForCausalLM", _GROUPED),
    "mamba": TransformersClass(
        "MambaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 8, "use_cache": False},
    ),
    "mistral": TransformersClass("MistralForCausalLM", _GROUPED),
    "mixtral": TransformersClass("MixtralForCausalLM", {**_GROUPED, **_EXPERTS}),
    "olmoe": TransformersClass("OlmoeForCausalLM", {**_GROUPED, **_EXPERTS}),
    "opt": TransformersClass("OPTForCausalLM", {**_TEXT, "ffn_dim": 80, "word_embed_proj_dim": 48, "use_cache": False}),
    "phi": TransformersClass("PhiForCausalLM", {**_TEXT, "use_cache": False}),
    "phi3": TransformersClass("Phi3ForCausalLM", {key: value for key, value in _GROUPED.items() if key != "head_dim"}),
    "qwen2": TransformersClass("Qwen2ForCausalLM", _GROUPED),
    "qwen3": TransformersClass("Qwen3ForCausalLM", _GROUPED),
    "qwen3-moe": TransformersClass("Qwen3MoeForCausalLM", {**_GROUPED, **_EXPERTS}),
    # Encoders with decoders
    "bart": TransformersClass("BartForConditionalGeneration", _TRANSLATED, _SEQ2SEQ),
    "m2m100": TransformersClass("M2M100ForConditionalGeneration", _TRANSLATED, _SEQ2SEQ),
    "marian": TransformersClass("MarianMTModel", _TRANSLATED, _SEQ2SEQ),
    "pegasus": TransformersClass("PegasusForConditionalGeneration", _TRANSLATED, _SEQ2SEQ),
    "t5": TransformersClass("T5ForConditionalGeneration", _T5, _SEQ2SEQ),
    "t5-encoder": TransformersClass("T5EncoderModel", _T5),
    # Images
    "beit": TransformersClass("BeitForImageClassification", _VISION, _PICTURE),
    "bit": TransformersClass(
        "BitForImageClassification",
        {**_STAGES, "embedding_size": 16, "num_groups": 8, "layer_type": "preactivation"},
        _PICTURE,
        64,
        False,
    ),
    "convnext": TransformersClass("ConvNextForImageClassification", _STAGES, _PICTURE, 64, False),
    "convnextv2": TransformersClass("ConvNextV2ForImageClassification", _STAGES, _PICTURE, 64, False),
    "deit": TransformersClass("DeiTForImageClassification", _VISION, _PICTURE),
    "detr": TransformersClass("DetrForObjectDetection", _DETECTED, _PICTURE, 64, False),
    "dinov2": TransformersClass("Dinov2ForImageClassification", {**_VISION, "mlp_ratio": 2}, _PICTURE),
    "dinov3": TransformersClass("DINOv3ViTModel", _VISION, _PICTURE, _IMAGE, False),
    "dpt": TransformersClass(
        "DPTForDepthEstimation",
        {
            **_VISION,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 16, 24, 24],
            "fusion_hidden_size": 16,
            "is_hybrid": False,
        },
        _PICTURE,
    ),
    "focalnet": TransformersClass(
        "FocalNetForImageClassification",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "num_labels": 5,
        },
        _PICTURE,
    ),
    "levit": TransformersClass(
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "attention_ratio": [2, 2, 2],
            "mlp_ratio": [2, 2, 2],
            "num_labels": 5,
        },
        _PICTURE,
        64,
    ),
    "mask2former": TransformersClass(
        "Mask2FormerForUniversalSegmentation",
        {
            "backbone_config": (
                "SwinConfig",
                {
                    **_WINDOWS,
                    "depths": [1, 1, 1, 1],
                    "num_heads": [1, 2, 2, 4],
                    "out_features": ["stage1", "stage2", "stage3", "stage4"],
                },
            ),
            "hidden_dim": 32,
            "feature_size": 32,
            "mask_feature_size": 32,
            "encoder_feedforward_dim": 48,
            "dim_feedforward": 48,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 4,
            "num_queries": 7,
            "num_labels": 5,
        },
        _PICTURE,
        64,
    ),
    "mobilevit": TransformersClass(
        "MobileViTForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
            "num_labels": 5,
        },
        _PICTURE,
        64,
    ),
    "poolformer": TransformersClass(
        "PoolFormerForImageClassification", {**_STAGES, "mlp_ratio": 2.0}, _PICTURE, 64, False
    ),
    "pvt-v2": TransformersClass(
        "PvtV2ForImageClassification",
        {**_STAGES, "num_attention_heads": [1, 2, 4, 4], "mlp_ratios": [2, 2, 2, 2], "image_size": 64},
        _PICTURE,
        64,
        False,
    ),
    "regnet": TransformersClass(
        "RegNetForImageClassification", {**_STAGES, "embedding_size": 16, "groups_width": 8}, _PICTURE, 64, False
    ),
    "resnet": TransformersClass("ResNetForImageClassification", {**_STAGES, "embedding_size": 16}, _PICTURE, 64, False),
    "rt-detr": TransformersClass(
        "RTDetrForObjectDetection",
        {
            "backbone_config": (
                "RTDetrResNetConfig",
                {
                    "embedding_size": 16,
                    "hidden_sizes": [16, 24, 32, 48],
                    "depths": [1, 1, 1, 1],
                    "layer_type": "basic",
                    "out_features": ["stage2", "stage3", "stage4"],
                },
            ),
            "encoder_hidden_dim": 32,
            "encoder_in_channels": [24, 32, 48],
            "encoder_ffn_dim": 48,
            "encoder_layers": 1,
            "encoder_attention_heads": 4,
            "d_model": 32,
            "num_queries": 7,
            "decoder_in_channels": [32, 32, 32],
            "decoder_ffn_dim": 48,
            "decoder_layers": 1,
            "decoder_attention_heads": 4,
            "num_denoising": 0,
            "num_labels": 5,
        },
        _PICTURE,
        64,
        False,
    ),
    "segformer": TransformersClass(
        "SegformerForSemanticSegmentation",
        {**_STAGES, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 40},
        _PICTURE,
        64,
        False,
    ),
    "swin": TransformersClass("SwinForImageClassification", _WINDOWS, _PICTURE),
    "swinv2": TransformersClass("Swinv2ForImageClassification", _WINDOWS, _PICTURE),
    "upernet": TransformersClass(
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": (
                "ConvNextConfig",
                {**_STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
            ),
            "hidden_size": 24,
            "auxiliary_in_channels": 32,
            "auxiliary_channels": 16,
            "num_labels": 5,
        },
        _PICTURE,
        64,
    ),
    "vit": TransformersClass("ViTForImageClassification", _VISION, _PICTURE),
    "yolos": TransformersClass(
        "YolosForObjectDetection", {**_VISION, "image_size": [32, 32], "num_detection_tokens": 7}, _PICTURE
    ),
    # Sound
    "ast": TransformersClass(
        "ASTForAudioClassification",
        {**_VISION, "max_length": FRAMES, "num_mel_bins": MELS, "frequency_stride": 8, "time_stride": 8},
        ("spectrogram",),
    ),
    "encodec": TransformersClass(
        "EncodecModel",
        {
            "num_filters": 8,
            "hidden_size": 16,
            "upsampling_ratios": [4, 2],
            "codebook_size": 32,
            "codebook_dim": 16,
            "num_lstm_layers": 1,
        },
        ("waves",),
    ),
    "hubert": TransformersClass("HubertForSequenceClassification", _SOUND, ("sound",)),
    "sew": TransformersClass("SEWForCTC", {**_SOUND, "squeeze_factor": 2}, ("sound",)),
    "wav2vec2": TransformersClass("Wav2Vec2ForCTC", _SOUND, ("sound",)),
    "wavlm": TransformersClass("WavLMForCTC", {**_SOUND, "num_buckets": 16, "max_bucket_distance": 20}, ("sound",)),
    "whisper": TransformersClass(
        "WhisperForConditionalGeneration",
        {**_TRANSLATED, "num_mel_bins": MELS, "max_source_positions": FRAMES // 2, "max_target_positions": FRAMES // 2},
        ("spectrum", "decoded"),
    ),
    "speech2text": TransformersClass(
        "Speech2TextForConditionalGeneration",
        {
            **_TRANSLATED,
            "input_feat_per_channel": MELS,
            "conv_channels": 24,
            "max_source_positions": 100,
            "max_target_positions": 64,
        },
        ("frames", "decoded"),
    ),
    # Several at once
    "blip": TransformersClass("BlipModel", _BOTH, _PAIR),
    "clip": TransformersClass("CLIPModel", _BOTH, _PAIR),
    "clip-text": TransformersClass("CLIPTextModel", {**_TEXT, "eos_token_id": VOCABULARY - 1}),
    "layoutlm": TransformersClass("LayoutLMForTokenClassification", _TEXT, ("text", "boxes")),
    "siglip": TransformersClass("SiglipModel", _BOTH, _PAIR),
    "vilt": TransformersClass("ViltModel", {**_TEXT, "image_size": 32, "patch_size": 8, "max_image_length": -1}, _PAIR),
}
