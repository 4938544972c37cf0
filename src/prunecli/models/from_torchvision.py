"""`torchvision:...`: the classification and semantic segmentation models of the installed torchvision."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from prunecli.checkpoint.manifest import InputNormalisation


def names() -> list[str]:
    """All names of this source."""
    return [*models.list_models(module=models), *_segmentation()]


def _segmentation() -> list[str]:
    return list(models.list_models(module=models.segmentation))


def build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Builds a model; keyword arguments go to torchvision. `pretrained` may download weights."""
    if name in _segmentation() and not pretrained:
        kwargs = {"weights_backbone": None, **kwargs}  # else torchvision downloads an ImageNet backbone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about initial values that the weights replace
        model: nn.Module = models.get_model(name, weights="DEFAULT" if pretrained else None, **kwargs)
    return model


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation]:
    """From the transforms of the model's default weights."""
    transforms = models.get_model_weights(name)["DEFAULT"].transforms()
    if name in _segmentation():
        size = transforms.resize_size[0]
        return (size, size), InputNormalisation(mean=tuple(transforms.mean), std=tuple(transforms.std))
    crop, resize = transforms.crop_size[0], transforms.resize_size[0]
    normalisation = InputNormalisation(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation="bicubic" if transforms.interpolation == InterpolationMode.BICUBIC else "bilinear",
        crop_pct=crop / resize,
    )
    return (crop, crop), normalisation
