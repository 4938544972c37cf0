"""`nnunet:...`: the networks of nnU-Net: plain and residual encoders, with and without deep supervision."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch import nn

from prunecli.studies.collections.network import Network, images

PACKAGE = "dynamic_network_architectures"

_NETWORKS: dict[str, tuple[str, int, bool]] = {
    "plain-2d": ("PlainConvUNet", 2, False),
    "plain-3d": ("PlainConvUNet", 3, False),
    "plain-3d-supervised": ("PlainConvUNet", 3, True),
    "residual-2d": ("ResidualEncoderUNet", 2, False),
    "residual-3d": ("ResidualEncoderUNet", 3, False),
    "residual-3d-supervised": ("ResidualEncoderUNet", 3, True),
}
_SIZES = {2: ((64, 64), (64, 96)), 3: ((16, 32, 32), (16, 32, 48))}
"""Image sizes by number of dimensions: of the example, and of the other input."""


def names() -> list[str]:
    """Encoder, dimensions, and whether every stage of the decoder is supervised."""
    return list(_NETWORKS)


def network(name: str) -> Network:
    """One of `names()`, with three stages and four classes."""
    unets = import_module("dynamic_network_architectures.architectures.unet")
    encoder, dimensions, supervised = _NETWORKS[name]
    blocks = "n_blocks_per_stage" if encoder.startswith("Residual") else "n_conv_per_stage"
    convolution = (nn.Conv2d, nn.Conv3d)[dimensions - 2]
    norm = (nn.InstanceNorm2d, nn.InstanceNorm3d)[dimensions - 2]

    def build() -> nn.Module:
        options: dict[str, Any] = {blocks: (2, 2, 2)}
        model: nn.Module = getattr(unets, encoder)(
            input_channels=1,
            n_stages=3,
            features_per_stage=(16, 32, 48),
            conv_op=convolution,
            kernel_sizes=3,
            strides=(1, 2, 2),
            num_classes=4,
            n_conv_per_stage_decoder=(2, 2),
            conv_bias=True,
            norm_op=norm,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=supervised,
            **options,
        )
        return model

    first, second = _SIZES[dimensions]
    return Network(f"nnunet:{name}", build, lambda: images(1, 1, *first), lambda: images(2, 1, *second))
