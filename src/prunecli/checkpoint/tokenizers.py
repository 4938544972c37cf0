"""The tokenizer in a checkpoint: its definition is a tensor of bytes, so that the file needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from prunecli.checkpoint.manifest import Manifest, UsedTokenizer
from prunecli.errors import ModelError

TENSOR = "tokenizer.json"
"""Name of the tensor in the file."""


def with_tokenizer(tensors: Mapping[str, Tensor], tokenizer: UsedTokenizer | None) -> dict[str, Tensor]:
    """Tensors for the file: the definition of a tokenizer is added.

    Raises:
        ModelError: The network has a tensor of that name itself.
    """
    stored = dict(tensors)
    if tokenizer is None:
        return stored
    if TENSOR in stored:
        raise ModelError(f"the network has a tensor called {TENSOR}, which is where its tokenizer belongs; rename it")
    content = np.frombuffer(tokenizer.definition.encode(), dtype=np.uint8)
    stored[TENSOR] = torch.from_numpy(content.copy())
    return stored


def without_tokenizer(stored: Mapping[str, Tensor], manifest: Manifest) -> tuple[dict[str, Tensor], Manifest]:
    """The tensors of the network alone, and the manifest with the tokenizer's definition.

    Raises:
        ModelError: It is missing, has another size, or is no text.
    """
    tensors = dict(stored)
    if manifest.tokenizer is None:
        return tensors, manifest
    content = tensors.pop(TENSOR, None)
    if content is None or content.dtype != torch.uint8 or content.shape != (manifest.tokenizer.size,):
        raise ModelError("its tokenizer is missing or has another size than the manifest says; the file was altered")
    try:
        definition = content.numpy().tobytes().decode()
    except UnicodeDecodeError as error:
        raise ModelError("its tokenizer is no text; the file was altered") from error
    return tensors, manifest.model_copy(update={"tokenizer": manifest.tokenizer.with_definition(definition)})
