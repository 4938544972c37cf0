"""`torchvision:...`: classification, segmentation, detection, video and optical flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from prunecli.models.catalog import build as build_catalogued
from prunecli.studies.collections.network import Network, images

PACKAGE = "torchvision"

_IMAGE, _OTHER_IMAGE = 64, 96
_FIXED = {"vit_": 224, "maxvit": 224, "inception": 96}
"""Image sizes of networks that take no other, or nothing smaller, by the beginning of their names."""
_DETECTED, _CLASSES = 128, 5
_FLOW = 128
_CLIP = {"mvit": (16, 224), "s3d": (16, 224)}
"""Frames and image size of video networks that take no other, or nothing smaller."""


def names() -> list[str]:
    """Everything that the installed torchvision registers, except quantized copies."""
    kinds = (models, models.segmentation, models.detection, models.video, models.optical_flow)
    return sorted(name for kind in kinds for name in models.list_models(module=kind))


def network(name: str) -> Network:
    """One of `names()`."""
    ref = f"torchvision:{name}"
    if name in models.list_models(module=models.detection):
        return _detector(ref, name)
    if name in models.list_models(module=models.video):
        frames, size = next((clip for prefix, clip in _CLIP.items() if name.startswith(prefix)), (8, 64))
        return Network(
            ref,
            lambda: _build(name),
            lambda: images(1, 3, frames, size, size),
            lambda: images(2, 3, frames, size, size),
        )
    if name in models.list_models(module=models.optical_flow):
        return Network(
            ref,
            lambda: _build(name),
            lambda: (images(1, 3, _FLOW, _FLOW), images(1, 3, _FLOW, _FLOW)),
            lambda: (images(2, 3, _FLOW, 2 * _FLOW), images(2, 3, _FLOW, 2 * _FLOW)),
        )
    fixed = next((size for prefix, size in _FIXED.items() if name.startswith(prefix)), None)
    first, second = (fixed, fixed) if fixed else (_IMAGE, _OTHER_IMAGE)
    return Network(
        ref,
        lambda: build_catalogued(ref),
        lambda: images(1, 3, first, first),
        lambda: images(2, 3, second, second),
    )


def _build(name: str, **kwargs: Any) -> nn.Module:
    model: nn.Module = models.get_model(name, weights=None, **kwargs)
    return model


def _detector(ref: str, name: str) -> Network:
    """Images of a small size, so that proposals stay few; in training mode with one box each."""
    small = {} if name.startswith("ssd") else {"min_size": _DETECTED, "max_size": 2 * _DETECTED}

    def build() -> nn.Module:
        return _build(name, weights_backbone=None, num_classes=_CLASSES, **small)

    def training() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        box = torch.tensor([[10.0, 10.0, 90.0, 100.0]])
        target = {"boxes": box, "labels": torch.tensor([1])}
        if name.startswith("mask"):
            target["masks"] = torch.ones(1, _DETECTED, _DETECTED, dtype=torch.uint8)
        if name.startswith("keypoint"):
            target["keypoints"] = torch.tensor([[[20.0, 20.0, 1.0]] * 17])
        return _pictures(2), [target, dict(target)]

    return Network(ref, build, lambda: _pictures(1), lambda: _pictures(2), training, varying=True)


def _pictures(count: int) -> list[Tensor]:
    return [torch.rand(3, _DETECTED, _DETECTED) for _ in range(count)]
