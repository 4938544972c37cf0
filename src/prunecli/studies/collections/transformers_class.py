"""What is said of a class of transformers that is tried, and small configurations that several share. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 99
FRAMES, MELS = 40, 16
"""Length and height of a spectrogram."""
IMAGE = 32


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
    size: int = IMAGE
    square: bool = True
    length: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)


TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": 12, "use_cache": False, "tie_word_embeddings": False}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
TRANSLATED: dict[str, Any] = {
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
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 48,
    "d_kv": 12,
    "d_ff": 80,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "image_size": IMAGE,
    "patch_size": 8,
    "num_labels": 5,
}
STAGES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 2, 1], "num_labels": 5}
WINDOWS = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": 5,
}
SOUND: dict[str, Any] = {
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
RESNET = ("ResNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 24, 32, 48], "depths": [1, 1, 1, 1],
                            "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"]})  # fmt: skip
DETECTED: dict[str, Any] = {
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
    "backbone_config": RESNET,
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
BOTH = {
    "text_config": {**TEXT, "eos_token_id": VOCABULARY - 1, "projection_dim": 40},
    "vision_config": {**VISION, "projection_dim": 40},
    "projection_dim": 40,
}
SEQ2SEQ, PICTURE, PAIR = ("text", "decoded"), ("image",), ("text", "image")
