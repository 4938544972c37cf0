"""Inputs for networks of transformers, made from what their configuration says."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import ModelError
from prunecli.models.hugging_face.folder import size_in

_TOKENS, _DECODED = 16, 8
_ANY_SIZE = (64, 64)
_SAMPLES = 4000
_FRAMES = 128
_MOST_TOKENS = 32_000


def example_inputs(model: nn.Module, seed: int) -> dict[str, Any]:
    """Seeded inputs as keyword arguments: tokens, images, sound and what a decoder has written so far.

    Args:
        model: A network of transformers.
        seed: Seed of the values.

    Raises:
        ModelError: It takes something else.
    """
    generator = torch.Generator().manual_seed(seed)
    accepted = set(inspect.signature(model.forward).parameters)
    config: Any = model.config
    main = getattr(model, "main_input_name", "input_ids")
    inputs: dict[str, Any] = {}
    if main == "pixel_values" or "pixel_values" in accepted:
        inputs["pixel_values"] = _image(config, generator)
    if main == "input_features":
        inputs["input_features"] = torch.randn(1, *_spectrogram(config), generator=generator)
    if main == "input_values":
        inputs["input_values"] = torch.randn(1, *_sound(config), generator=generator)
    if main == "input_ids" or "input_ids" in accepted:
        inputs["input_ids"] = tokens(config, _TOKENS, generator)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if "bbox" in accepted:
        inputs["bbox"] = torch.randint(0, 500, (1, _TOKENS, 2), generator=generator).repeat(1, 1, 2).sort(-1).values
    if "decoder_input_ids" in accepted and getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = tokens(config, _DECODED, generator)
    if not inputs or main not in inputs:
        raise ModelError(
            f"{type(model).__name__} takes {main}, of which nothing is known: give its inputs with --example FILE.npz"
        )
    return {name: value for name, value in inputs.items() if name in accepted or name == main}


def tokens(config: Any, length: int, generator: torch.Generator) -> Tensor:
    """Random tokens, shape (1, length), of which the last one ends the text: networks like CLIP look for it."""
    text = getattr(config, "text_config", config)
    size = int(getattr(text, "vocab_size", None) or getattr(config, "vocab_size", None) or 2)
    special = {getattr(text, name, None) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    drawn = torch.randint(0, min(size, _MOST_TOKENS), (1, length), generator=generator)
    usable = torch.tensor([token for token in range(min(size, 8)) if token not in special] or [0])
    for token in special:
        if isinstance(token, int):
            drawn[drawn == token] = usable[0]
    end = getattr(text, "eos_token_id", None)
    end = end[0] if isinstance(end, list) and end else end
    if isinstance(end, int) and 0 <= end < size:
        drawn[:, -1] = end
    return drawn


def _image(config: Any, generator: torch.Generator) -> Tensor:
    part = getattr(config, "vision_config", config)
    channels = getattr(part, "num_channels", 3)
    return torch.randn(
        1, channels if isinstance(channels, int) else 3, *(size_in(config) or _ANY_SIZE), generator=generator
    )


def _spectrogram(config: Any) -> tuple[int, int]:
    mels = int(getattr(config, "num_mel_bins", 80))
    positions = getattr(config, "max_source_positions", None)
    if isinstance(positions, int) and getattr(config, "model_type", "") == "whisper":
        return mels, 2 * positions  # two frames become one position, and all have to be there
    return _FRAMES, mels


def _sound(config: Any) -> tuple[int, ...]:
    mels = getattr(config, "num_mel_bins", None)
    if isinstance(mels, int) and isinstance(getattr(config, "max_length", None), int):
        return config.max_length, mels
    return (_SAMPLES,)
