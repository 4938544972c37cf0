"""Classes of transformers for images that are tried. Torch-free."""

from __future__ import annotations

from prunecli.studies.collections.transformers_class import (
    DETECTED,
    IMAGE,
    PICTURE,
    STAGES,
    VISION,
    WINDOWS,
    TransformersClass,
)

PICTURES: dict[str, TransformersClass] = {
    # Images
    "beit": TransformersClass("BeitForImageClassification", VISION, PICTURE),
    "bit": TransformersClass(
        "BitForImageClassification",
        {**STAGES, "embedding_size": 16, "num_groups": 8, "layer_type": "preactivation"},
        PICTURE,
        64,
        False,
    ),
    "convnext": TransformersClass("ConvNextForImageClassification", STAGES, PICTURE, 64, False),
    "convnextv2": TransformersClass("ConvNextV2ForImageClassification", STAGES, PICTURE, 64, False),
    "deit": TransformersClass("DeiTForImageClassification", VISION, PICTURE),
    "detr": TransformersClass("DetrForObjectDetection", DETECTED, PICTURE, 64, False),
    "dinov2": TransformersClass("Dinov2ForImageClassification", {**VISION, "mlp_ratio": 2}, PICTURE),
    "dinov3": TransformersClass("DINOv3ViTModel", VISION, PICTURE, IMAGE, False),
    "dpt": TransformersClass(
        "DPTForDepthEstimation",
        {
            **VISION,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 16, 24, 24],
            "fusion_hidden_size": 16,
            "is_hybrid": False,
        },
        PICTURE,
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
        PICTURE,
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
        PICTURE,
        64,
    ),
    "mask2former": TransformersClass(
        "Mask2FormerForUniversalSegmentation",
        {
            "backbone_config": (
                "SwinConfig",
                {
                    **WINDOWS,
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
        PICTURE,
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
        PICTURE,
        64,
    ),
    "poolformer": TransformersClass(
        "PoolFormerForImageClassification", {**STAGES, "mlp_ratio": 2.0}, PICTURE, 64, False
    ),
    "pvt-v2": TransformersClass(
        "PvtV2ForImageClassification",
        {**STAGES, "num_attention_heads": [1, 2, 4, 4], "mlp_ratios": [2, 2, 2, 2], "image_size": 64},
        PICTURE,
        64,
        False,
    ),
    "regnet": TransformersClass(
        "RegNetForImageClassification", {**STAGES, "embedding_size": 16, "groups_width": 8}, PICTURE, 64, False
    ),
    "resnet": TransformersClass("ResNetForImageClassification", {**STAGES, "embedding_size": 16}, PICTURE, 64, False),
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
        PICTURE,
        64,
        False,
    ),
    "segformer": TransformersClass(
        "SegformerForSemanticSegmentation",
        {**STAGES, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4], "decoder_hidden_size": 40},
        PICTURE,
        64,
        False,
    ),
    "swin": TransformersClass("SwinForImageClassification", WINDOWS, PICTURE),
    "swinv2": TransformersClass("Swinv2ForImageClassification", WINDOWS, PICTURE),
    "upernet": TransformersClass(
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": (
                "ConvNextConfig",
                {**STAGES, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
            ),
            "hidden_size": 24,
            "auxiliary_in_channels": 32,
            "auxiliary_channels": 16,
            "num_labels": 5,
        },
        PICTURE,
        64,
    ),
    "vit": TransformersClass("ViTForImageClassification", VISION, PICTURE),
    "yolos": TransformersClass(
        "YolosForObjectDetection", {**VISION, "image_size": [32, 32], "num_detection_tokens": 7}, PICTURE
    ),
}
