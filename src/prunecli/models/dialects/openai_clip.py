"""CLIP's weights as OpenAI published them, taken out of its TorchScript archives: three numbers lie among them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from prunecli.models.dialects.dialect import ForeignRequest, Translation

NUMBERS = ("input_resolution", "context_length", "vocab_size")


class _OpenAI:
    def translate(self, tensors: Mapping[str, Tensor], request: ForeignRequest) -> Translation | None:
        """Leaves the numbers out; the names of the weights are open_clip's."""
        if NUMBERS[0] not in tensors or "visual.proj" not in tensors:
            return None
        return Translation({name: tensor for name, tensor in tensors.items() if name not in NUMBERS})


OPENAI = _OpenAI()
