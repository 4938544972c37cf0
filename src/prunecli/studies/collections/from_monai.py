"""`monai:...`: networks for medical images."""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

from prunecli.studies.collections.network import Network, images

PACKAGE = "monai"


class _Shape(NamedTuple):
    """A class of monai, its arguments, and image sizes: of the example, and of the other input."""

    class_name: str
    arguments: dict[str, Any]
    size: tuple[int, ...]
    other: tuple[int, ...]


_PLANE, _OTHER_PLANE = (64, 64), (64, 96)
_VOLUME, _OTHER_VOLUME = (32, 32, 32), (32, 32, 48)
_2D = {"spatial_dims": 2, "in_channels": 1, "out_channels": 3}
_3D = {"spatial_dims": 3, "in_channels": 1, "out_channels": 3}
_DYN = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
_UNET = {"channels": (16, 32, 48), "strides": (2, 2)}
_UNETR = {"feature_size": 8, "hidden_size": 48, "mlp_dim": 80, "num_heads": 4}
_SWIN = {"feature_size": 12, "depths": (1, 1, 1, 1), "num_heads": (2, 2, 4, 4)}
_STRIDES = {"downsample_parameters": ((2, 4, 1, 1),) * 2, "upsample_parameters": ((2, 4, 1, 1, 0),) * 2}
_GENERATIVE = {"channels": (16, 32), "attention_levels": (False, True), "num_res_blocks": 1, "norm_num_groups": 8}

_NETWORKS = {
    "dynunet-2d": _Shape("DynUNet", {**_2D, **_DYN}, _PLANE, _OTHER_PLANE),
    "dynunet-3d": _Shape("DynUNet", {**_3D, **_DYN, "filters": [8, 16, 24]}, _VOLUME, _OTHER_VOLUME),
    "dynunet-residual": _Shape("DynUNet", {**_2D, **_DYN, "res_block": True}, _PLANE, _OTHER_PLANE),
    "unet-2d": _Shape("UNet", {**_2D, **_UNET}, _PLANE, _OTHER_PLANE),
    "unet-residual": _Shape("UNet", {**_3D, **_UNET, "num_res_units": 2}, _VOLUME, _OTHER_VOLUME),
    "basicunet": _Shape("BasicUNet", {**_2D, "features": (16, 16, 32, 48, 64, 16)}, _PLANE, _OTHER_PLANE),
    "basicunetplusplus": _Shape(
        "BasicUNetPlusPlus", {**_2D, "features": (16, 16, 32, 48, 64, 16)}, _PLANE, _OTHER_PLANE
    ),
    "attentionunet": _Shape("AttentionUnet", {**_2D, **_UNET}, _PLANE, _OTHER_PLANE),
    "segresnet": _Shape("SegResNet", {**_2D, "init_filters": 16}, _PLANE, _OTHER_PLANE),
    "vnet": _Shape("VNet", _2D, _PLANE, _OTHER_PLANE),
    "unetr": _Shape("UNETR", {"in_channels": 1, "out_channels": 3, "img_size": _VOLUME, **_UNETR}, _VOLUME, _VOLUME),
    "swinunetr": _Shape("SwinUNETR", {"in_channels": 1, "out_channels": 3, **_SWIN}, (64, 64, 64), (64, 64, 64)),
    "swinunetr-2d": _Shape("SwinUNETR", {**_2D, **_SWIN}, _PLANE, _OTHER_PLANE),
    "highresnet": _Shape("HighResNet", _2D, _PLANE, _OTHER_PLANE),
    "densenet121": _Shape("DenseNet121", _2D, _PLANE, _OTHER_PLANE),
    "efficientnet": _Shape(
        "EfficientNetBN",
        {"model_name": "efficientnet-b0", "spatial_dims": 2, "in_channels": 1, "pretrained": False},
        _PLANE,
        _OTHER_PLANE,
    ),
    "autoencoderkl": _Shape("AutoencoderKL", {**_2D, **_GENERATIVE, "latent_channels": 3}, _PLANE, _OTHER_PLANE),
    "vqvae": _Shape(
        "VQVAE",
        {**_2D, "channels": (16, 32), "num_res_channels": 16, "num_embeddings": 32, "embedding_dim": 8, **_STRIDES},
        _PLANE,
        _OTHER_PLANE,
    ),
    "mednext": _Shape("MedNeXtS", _2D, _PLANE, _OTHER_PLANE),
}


def names() -> list[str]:
    """Classes in small sizes, in two or three dimensions."""
    return list(_NETWORKS)


def network(name: str) -> Network:
    """One of `names()`, for images of one channel."""
    nets = import_module("monai.networks.nets")
    shape = _NETWORKS[name]

    def build() -> nn.Module:
        model: nn.Module = getattr(nets, shape.class_name)(**shape.arguments)
        return model

    return Network(f"monai:{name}", build, lambda: images(1, 1, *shape.size), lambda: images(2, 1, *shape.other))
