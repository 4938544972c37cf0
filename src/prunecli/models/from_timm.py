"""`timm:...`: every model of the installed timm."""

from __future__ import annotations

from typing import Any

import timm
from timm.data import resolve_model_data_config
from torch import nn

from prunecli.checkpoint.manifest import InputNormalisation


def names() -> list[str]:
    """All names of this source."""
    return list(timm.list_models())


def build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Builds a model; keyword arguments go to timm.create_model. `pretrained` may download weights."""
    model: nn.Module = timm.create_model(name, pretrained=pretrained, **kwargs)
    return model


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation]:
    """From the model's pretrained configuration."""
    config = resolve_model_data_config(model)
    normalisation = InputNormalisation(
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
    )
    size: Any = getattr(getattr(model, "patch_embed", None), "img_size", None)  # the size it was built for
    height, width = size if size is not None else config["input_size"][1:]
    return (int(height), int(width)), normalisation
