"""`transformers:...`: classes of transformers with small random configurations and the inputs that are usual for them.

Which classes there are stands in `transformers_classes.py`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.inputs import Inputs
from prunecli.studies.collections.network import Network, images
from prunecli.studies.collections.transformers_class import FRAMES, MELS, VOCABULARY, TransformersClass
from prunecli.studies.collections.transformers_classes import CLASSES

PACKAGE = "transformers"

_LENGTH, _OTHER_LENGTH = 11, 14
_SAMPLES, _OTHER_SAMPLES = 1200, 1600
_OTHER_BATCH = 2


def names() -> list[str]:
    """Names of architectures, as transformers abbreviates them."""
    return list(CLASSES)


def network(name: str) -> Network:
    """One of `names()`; texts come with an attention mask, in the other batch with a padded sample."""
    library = import_module("transformers")
    library.logging.set_verbosity_error()
    entry = CLASSES[name]
    kind: Any = getattr(library, entry.class_name)

    def build() -> nn.Module:
        config = kind.config_class(**_settled(library, entry.config))
        model: nn.Module = kind(config)
        return model

    return Network(f"transformers:{name}", build, lambda: _inputs(entry, False), lambda: _inputs(entry, True))


def _settled(library: Any, config: dict[str, Any]) -> dict[str, Any]:
    """A configuration in which the ones named by class, such as that of a backbone, are objects."""
    settled = {}
    for key, value in config.items():
        if isinstance(value, tuple) and value and isinstance(value[0], str) and value[0].endswith("Config"):
            value = getattr(library, value[0])(**value[1])
        settled[key] = value
    return settled


def _inputs(entry: TransformersClass, other: bool) -> Inputs:
    batch = _OTHER_BATCH if other else 1
    length = entry.length or (_OTHER_LENGTH if other else _LENGTH)
    inputs: dict[str, Any] = {}
    for kind in entry.takes:
        if kind == "text":
            inputs |= _text(batch, length)
        elif kind == "decoded":
            inputs |= {"decoder_input_ids": _tokens(batch, length - 3)}
        elif kind == "image":
            size = (entry.size, entry.size if entry.square or not other else entry.size * 2)
            inputs["pixel_values"] = images(batch, 3, *size)
        elif kind == "sound":
            inputs["input_values"] = torch.randn(batch, _OTHER_SAMPLES if other else _SAMPLES)
        elif kind == "waves":
            inputs["input_values"] = torch.randn(batch, 1, _OTHER_SAMPLES if other else _SAMPLES)
        elif kind == "spectrum":
            inputs["input_features"] = torch.randn(batch, MELS, FRAMES)
        elif kind == "frames":
            inputs["input_features"] = torch.randn(batch, FRAMES + 8 * other, MELS)
        elif kind == "spectrogram":
            inputs["input_values"] = torch.randn(batch, FRAMES, MELS)
        elif kind == "boxes":
            inputs["bbox"] = torch.randint(0, 50, (batch, length, 2)).repeat(1, 1, 2).sort(dim=-1).values
    return {**inputs, **entry.extra}


def _text(batch: int, length: int) -> dict[str, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[1:, -3:] = 0
    return {"input_ids": _tokens(batch, length), "attention_mask": mask}


def _tokens(batch: int, length: int) -> Tensor:
    """Tokens that are none of the special ones, except the last, which ends the text: CLIP looks for it."""
    tokens = torch.randint(5, VOCABULARY - 1, (batch, length))
    tokens[:, -1] = VOCABULARY - 1
    return tokens
