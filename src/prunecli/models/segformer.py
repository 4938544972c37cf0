"""`segformer:b0` ... `segformer:b5`: SegFormer (Xie et al., 2021, arXiv 2105.15203) as transformers builds it.

The modules and their names are those of `SegformerForSemanticSegmentation`; only the forward pass is replaced, so that
the network takes images and returns a tensor. transformers is imported when a network is built, not before.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.errors import ModelError, first_line

_IMAGE_SIZE = (512, 512)
"""Height and width that the published networks were trained on; others work too."""
_ADE20K_CLASSES = 150


@dataclass(frozen=True)
class Size:
    """How b0 to b5 differ: blocks and channels of the four stages, and the decoder's width."""

    depths: tuple[int, int, int, int]
    hidden_sizes: tuple[int, int, int, int]
    decoder_hidden_size: int


_WIDE = (64, 128, 320, 512)
SIZES: dict[str, Size] = {
    "b0": Size((2, 2, 2, 2), (32, 64, 160, 256), 256),
    "b1": Size((2, 2, 2, 2), _WIDE, 256),
    "b2": Size((3, 4, 6, 3), _WIDE, 768),
    "b3": Size((3, 4, 18, 3), _WIDE, 768),
    "b4": Size((3, 8, 27, 3), _WIDE, 768),
    "b5": Size((3, 6, 40, 3), _WIDE, 768),
}


def names() -> list[str]:
    """All names of this source."""
    return list(SIZES)


def build(name: str, pretrained: bool, *, num_classes: int = _ADE20K_CLASSES, in_chans: int = 3) -> nn.Module:
    """Builds one of `names()` with new weights.

    Raises:
        ModelError: transformers is missing or too old, or published weights are asked for.
    """
    if pretrained:
        raise ModelError(
            "nothing is downloaded for SegFormer; give a weights file (NVIDIA's or Hugging Face's) instead"
        )
    return SegFormer(SIZES[name], num_classes, in_chans)


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation]:
    """512x512 pixels with ImageNet's statistics, as for all published weights."""
    statistics = InputNormalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    return _IMAGE_SIZE, statistics


class SegFormer(nn.Module):
    """Encoder `segformer` and `decode_head` of transformers, called with images only.

    Args:
        size: Depths and widths.
        num_classes: Number of classes.
        in_chans: Channels of an image.
    """

    def __init__(self, size: Size, num_classes: int, in_chans: int) -> None:
        super().__init__()
        library = _transformers()
        config = library.SegformerConfig(
            num_channels=in_chans,
            num_labels=num_classes,
            depths=list(size.depths),
            hidden_sizes=list(size.hidden_sizes),
            decoder_hidden_size=size.decoder_hidden_size,
        )
        whole = library.SegformerForSemanticSegmentation(config)
        if not hasattr(whole.segformer, "stages"):
            raise ModelError(
                "this version of transformers names SegFormer's layers differently; pip install -U 'transformers>=5.23'"
            )
        self.num_classes = num_classes
        self.segformer = whole.segformer
        self.decode_head = whole.decode_head

    @property
    def backbone(self) -> nn.Module:
        """The encoder, which `freeze_backbone_epochs` freezes."""
        encoder: nn.Module = self.segformer
        return encoder

    def forward(self, images: Tensor) -> Tensor:
        """(N, in_chans, H, W) to class scores of shape (N, num_classes, H / 4, W / 4), as in transformers."""
        features = []
        for stage in self.segformer.stages:
            images = stage(images)
            features.append(images)
        scores: Tensor = self.decode_head(features)
        return scores


def _transformers() -> Any:
    """transformers' module of SegFormer.

    Raises:
        ModelError: transformers is not installed, or cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("transformers.models.segformer.modeling_segformer")
    except Exception as error:  # of many types: transformers imports whatever else is installed
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "transformers":
            raise ModelError(
                "SegFormer needs the library transformers; pip install 'prunecli[segmentation]'"
            ) from error
        raise ModelError(
            f"SegFormer needs the library transformers, which cannot be imported ({first_line(error)}); "
            "`prune doctor` shows what does not match"
        ) from error
