"""Which of a network's outputs have to keep their width."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from prunecli.errors import ModelError, unknown
from prunecli.inputs import named_tensors

_HIDDEN = frozenset(
    "last_hidden_state hidden_states attentions pooler_output past_key_values cross_attentions encoder_hidden_states "
    "decoder_hidden_states encoder_attentions decoder_attentions encoder_last_hidden_state intermediate_hidden_states "
    "text_model_output vision_model_output audio_model_output qformer_outputs language_model_outputs vision_outputs "
    "intermediate_logits encoder_outputs extract_features auxiliary_outputs transformer_decoder_hidden_states "
    "encoder_last_hidden_states pixel_decoder_last_hidden_state transformer_decoder_last_hidden_state".split()
)
"""Fields of transformers' outputs that hold what the network computes inside. They count if there is nothing else."""
_OF_BASE_MODELS = frozenset(("last_hidden_state", "pooler_output", "hidden_states"))
"""Those that a base model, which has no head, is run for."""


def _covers(name: str, chosen: str) -> bool:
    return name == chosen or name.startswith(f"{chosen}.")


def default_outputs(output: Any) -> tuple[str, ...] | None:
    """Names of the outputs that callers use: scores, boxes and the like, or the last state of a base model.

    None stands for all: where nothing says what an output is, and where there are no others.
    """
    if not isinstance(output, Mapping) and not dataclasses.is_dataclass(output):
        return None
    top = list(dict.fromkeys(name.partition(".")[0] for name, _ in named_tensors(output)))
    kept = tuple(name for name in top if name not in _HIDDEN)
    kept = kept or tuple(name for name in top if name in _OF_BASE_MODELS)
    return kept if kept and len(kept) < len(top) else None


def chosen_outputs(output: Any, names: Sequence[str] | None) -> list[Tensor]:
    """The tensors of an output that `names` cover, in order; all of them for None or if it has none of the names."""
    every = named_tensors(output)
    if names is None:
        return [tensor for _, tensor in every]
    chosen = [tensor for name, tensor in every if any(_covers(name, wanted) for wanted in names)]
    return chosen or [tensor for _, tensor in every]


def check_names(output: Any, names: Sequence[str]) -> None:
    """Refuses names that an output does not have.

    Raises:
        ModelError: With the nearest name.
    """
    every = [name for name, _ in named_tensors(output)]
    if names and every == [""]:
        raise ModelError(f"outputs {', '.join(names)}: the network returns one tensor, which has no name; leave it out")
    prefixes = dict.fromkeys(".".join(name.split(".")[:end]) for name in every for end in range(1, name.count(".") + 2))
    for wanted in names:
        if not any(_covers(name, wanted) for name in every):
            raise ModelError(unknown("output", wanted, [name for name in prefixes if name]))
