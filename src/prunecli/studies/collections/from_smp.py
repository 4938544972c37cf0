"""`smp:...`: segmentation_models_pytorch, one network for each decoder, and encoders of several kinds for U-Net."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from prunecli.studies.collections.network import Network, images

PACKAGE = "segmentation_models_pytorch"

_ENCODER = "resnet18"
_NETWORKS = {
    "unet": ("Unet", _ENCODER),
    "unetplusplus": ("UnetPlusPlus", _ENCODER),
    "manet": ("MAnet", _ENCODER),
    "linknet": ("Linknet", _ENCODER),
    "fpn": ("FPN", _ENCODER),
    "pspnet": ("PSPNet", _ENCODER),
    "pan": ("PAN", _ENCODER),
    "deeplabv3": ("DeepLabV3", _ENCODER),
    "deeplabv3plus": ("DeepLabV3Plus", _ENCODER),
    "upernet": ("UPerNet", _ENCODER),
    "segformer": ("Segformer", "mit_b0"),
    "unet-mobilenet_v2": ("Unet", "mobilenet_v2"),
    "unet-efficientnet": ("Unet", "efficientnet-b0"),
    "unet-densenet": ("Unet", "densenet121"),
    "fpn-mit": ("FPN", "mit_b0"),
}


def names() -> list[str]:
    """Decoders, followed by the encoder where it is not a ResNet-18."""
    return list(_NETWORKS)


def network(name: str) -> Network:
    """One of `names()`, with two classes."""
    library = import_module("segmentation_models_pytorch")
    decoder, encoder = _NETWORKS[name]

    first, second = ((128, 128), (128, 128)) if decoder == "PAN" else ((64, 64), (96, 64))  # it pools to 1/32 twice

    def build() -> nn.Module:
        model: nn.Module = getattr(library, decoder)(encoder_name=encoder, encoder_weights=None, classes=2)
        return model

    return Network(f"smp:{name}", build, lambda: images(1, 3, *first), lambda: images(2, 3, *second))
