"""`open_clip:NAME` and `open_clip:NAME@TAG`: image and text towers of open_clip, and a `tiny` one for the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.errors import ModelError, first_line, unknown

_TINY = "tiny"
CLASSES_ARE_TEXTS = True
_CONTEXT, _VOCABULARY = 16, 49408
_ARGUMENTS = ("image_size", "patch_size", "dim", "depth", "num_heads")
_OWN = {"image_size": 32, "patch_size": 4, "dim": 128, "depth": 6, "num_heads": 4}
_CROPS: dict[str, Any] = {"shortest": "center", "squash": "squash"}
_CIFAR = InputNormalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))


@cache
def names() -> list[str]:
    """Architectures of the installed open_clip, their published weights as NAME@TAG, and `tiny`."""
    tagged = [f"{name}@{tag}" for name, tag in open_clip.list_pretrained()]
    return [_TINY, *open_clip.list_models(), *tagged]


def build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Builds a model with both towers.

    Args:
        name: One of `names()`.
        pretrained: Whether to fetch the weights named by the tag.
        **kwargs: image_size; for `tiny` also patch_size, dim, depth and num_heads of the image tower.

    Raises:
        ModelError: An argument does not exist, or weights are asked for without a tag.
    """
    known = _ARGUMENTS if name == _TINY else ("image_size",)
    for key in kwargs:
        if key not in known:
            raise ModelError(unknown("argument", key, known) + f" (of open_clip:{name})")
    if name == _TINY:
        return _tiny(**{**_OWN, **kwargs})
    architecture, _, tag = name.partition("@")
    if pretrained and not tag:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:3]) or "none"
        raise ModelError(f"open_clip:{name} has weights by tags ({tags}); write it as open_clip:{name}@TAG")
    with _without_warnings():  # about random weights, which may be intended
        model: nn.Module = open_clip.create_model(
            architecture,
            pretrained=tag if pretrained else None,
            load_weights=pretrained,
            device=torch.get_default_device(),
            force_quick_gelu=bool(_published(name).get("quick_gelu")),
            force_image_size=kwargs.get("image_size"),
            pretrained_text=False,
        )
    return model


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation]:
    """Size and statistics of the image tower; CIFAR-10's statistics for `tiny`."""
    visual: Any = model.visual
    size = visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if name == _TINY:
        return (height, width), _CIFAR
    config = _published(name)
    normalisation = InputNormalisation(
        mean=tuple(config.get("mean") or open_clip.constants.OPENAI_DATASET_MEAN),
        std=tuple(config.get("std") or open_clip.constants.OPENAI_DATASET_STD),
        interpolation=config.get("interpolation", "bicubic"),
        crop_mode=_crop_mode(name, config.get("resize_mode", "shortest")),
    )
    return (height, width), normalisation


def _crop_mode(name: str, mode: str) -> Any:
    if mode not in _CROPS:  # "longest" fills up with black, which nothing else does
        raise ModelError(
            f"open_clip:{name}: prepares images by resize_mode {mode!r}; of {', '.join(_CROPS)} none is it"
        )
    return _CROPS[mode]


def tokenizer(name: str, model: nn.Module) -> Callable[[list[str]], Tensor]:
    """The tokenizer of the text tower; it turns N texts into tokens (N, context length).

    Raises:
        ModelError: Its vocabulary cannot be fetched.
    """
    if name == _TINY:
        own: Callable[[list[str]], Tensor] = open_clip.SimpleTokenizer(context_length=_CONTEXT)
        return own
    architecture = name.partition("@")[0]
    try:
        tokens_of: Callable[[list[str]], Tensor] = open_clip.get_tokenizer(architecture)
    except Exception as error:  # transformers raises many types when it cannot reach its hub
        raise ModelError(f"open_clip:{name}: its tokenizer cannot be fetched: {first_line(error)}") from error
    return tokens_of


def _published(name: str) -> dict[str, Any]:
    """open_clip's configuration of the weights named by the tag."""
    architecture, _, tag = name.partition("@")
    return open_clip.get_pretrained_cfg(architecture, tag) if tag else {}


@contextmanager
def _without_warnings() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # what cannot be fetched also raises
    try:
        yield
    finally:
        logging.disable(before)


def _tiny(image_size: int, patch_size: int, dim: int, depth: int, num_heads: int) -> nn.Module:
    if dim % num_heads or image_size % patch_size:
        raise ModelError(
            f"open_clip:tiny with dim {dim}, num_heads {num_heads}, image_size {image_size} and patch_size "
            f"{patch_size}: heads have to divide the width, patches the image"
        )
    vision = {
        "image_size": image_size,
        "patch_size": patch_size,
        "width": dim,
        "layers": depth,
        "head_width": dim // num_heads,
    }
    text = {"context_length": _CONTEXT, "vocab_size": _VOCABULARY, "width": 64, "heads": 2, "layers": 2}
    model: nn.Module = CLIP(dim, vision, text)
    return model
