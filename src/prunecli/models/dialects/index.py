"""All weight dialects. A new one is a file with a `Dialect` and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunecli.models.dialects import openai_clip, openmmlab, segformer, spikformer, word_language_model
from prunecli.models.dialects.dialect import Dialect, ForeignRequest, Translation

DIALECTS: tuple[Dialect, ...] = (
    spikformer.ORIGINAL,
    spikformer.SPIKINGJELLY,
    segformer.NVIDIA,
    segformer.HUB,
    segformer.TRANSFORMERS,
    openmmlab.SEGFORMER,
    openmmlab.VIT,
    openmmlab.RESNET,
    openai_clip.OPENAI,
    word_language_model.EXAMPLE,
)


def translate(tensors: Mapping[str, Tensor], request: ForeignRequest) -> Translation:
    """Foreign weights under the catalogue's names; unchanged where no dialect knows them.

    Raises:
        ModelError: They have a dialect's names, and tensors are missing or have other shapes.
    """
    for dialect in DIALECTS:
        translation = dialect.translate(tensors, request)
        if translation is not None:
            return translation
    return Translation(dict(tensors))
