"""`torchvision:...`: the classification, semantic segmentation and detection models of the installed torchvision."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torchvision import models
from torchvision.transforms import InterpolationMode

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.errors import ModelError

_AS_IT_IS = InputNormalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""Detectors normalise images themselves."""
_ANY_SIZE = "ssdlite320"
"""Beginning of the name of the detectors of one fixed size whose boxes are shares of the image, so that any will do."""


def names() -> list[str]:
    """All names of this source."""
    return [*models.list_models(module=models), *_segmentation(), *_detection()]


def _segmentation() -> list[str]:
    return list(models.list_models(module=models.segmentation))


def _detection() -> list[str]:
    return list(models.list_models(module=models.detection))


def build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Builds a model; keyword arguments go to torchvision. `pretrained` may download weights.

    `num_classes` of a detector is the number of kinds of objects, to which torchvision adds the background. Images are
    resized inside: to `min_size` and at most `max_size` as torchvision has it, SSDlite's to squares of `image_size`.
    """
    if name in _detection():
        return _detector(name, pretrained, **kwargs)
    if name in _segmentation() and not pretrained:
        kwargs = {"weights_backbone": None, **kwargs}  # else torchvision downloads an ImageNet backbone
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about initial values that the weights replace
        model: nn.Module = models.get_model(name, weights="DEFAULT" if pretrained else None, **kwargs)
    return model


def _detector(
    name: str, pretrained: bool, num_classes: int | None = None, image_size: int | None = None, **kwargs: Any
) -> nn.Module:
    if num_classes is not None:
        kwargs["num_classes"] = num_classes + 1
    if image_size is not None and not name.startswith(_ANY_SIZE):
        raise ModelError(f"torchvision:{name} takes no image_size; give min_size and max_size, or leave it out")
    published = models.get_model(name, weights="DEFAULT", **kwargs) if pretrained else None
    kwargs |= {"weights_backbone": None} | ({"num_classes": _published_classes(name)} if pretrained else {})
    model: nn.Module = models.get_model(name, weights=None, **kwargs)
    if published is not None:
        _take_over(model, published)
    if image_size is not None:
        transform: Any = model.get_submodule("transform")
        transform.fixed_size = (image_size, image_size)
    return model


def _published_classes(name: str) -> int:
    return len(models.get_model_weights(name)["DEFAULT"].meta["categories"])


def _take_over(model: nn.Module, published: nn.Module) -> None:
    """Gives a detector published weights.

    Torchvision builds those with normalisations that never train, and with another epsilon. A checkpoint is restored
    without them, so the same numbers go into the layers that it has.
    """
    modules = dict(model.named_modules())
    for name, theirs in published.named_modules():
        if hasattr(theirs, "eps"):
            modules[name].eps = theirs.eps
    model.load_state_dict(published.state_dict())


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation]:
    """From the transforms of the model's default weights; detectors take any size and resize images themselves."""
    if name in _detection():
        return None, _AS_IT_IS
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
