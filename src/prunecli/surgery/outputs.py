"""Which of a network's outputs have to keep their width."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from prunecli.errors import ModelError, unknown
from prunecli.inputs import named_tensors
from prunecli.naming import option
from prunecli.patterns import matches

_HIDDEN = frozenset(
    "last_hidden_state hidden_states attentions pooler_output past_key_values cross_attentions encoder_hidden_states "
    "decoder_hidden_states encoder_attentions decoder_attentions encoder_last_hidden_state intermediate_hidden_states "
    "text_model_output vision_model_output audio_model_output qformer_outputs language_model_outputs vision_outputs "
    "intermediate_logits encoder_outputs extract_features auxiliary_outputs transformer_decoder_hidden_states "
    "encoder_last_hidden_states pixel_decoder_last_hidden_state transformer_decoder_last_hidden_state".split()
)
"""Fields of transformers' outputs that hold what the network computes inside. They count if there is nothing else."""
_BESIDE = {"feats": frozenset(("boxes", "scores"))}
"""Fields that hold what the network computes inside if these others are in the same mapping: ultralytics' detectors
return the feature maps that their heads read, whose heights and widths their losses need."""
_OF_BASE_MODELS = frozenset(("last_hidden_state", "pooler_output", "hidden_states"))
"""Those that a base model, which has no head, is run for."""


def default_outputs(output: Any) -> tuple[str, ...] | None:
    """Names of the outputs that callers use: scores, boxes and the like, or the last state of a base model.

    None stands for all: where nothing says what an output is, and where there are no others.
    """
    names = [name for name, _ in named_tensors(output)]
    seen = [name for name in names if not _is_beside(name, names)]
    if len(seen) < len(names):
        return tuple(seen)
    if not isinstance(output, Mapping) and not dataclasses.is_dataclass(output):
        return None
    top = list(dict.fromkeys(name.partition(".")[0] for name in names))
    kept = tuple(name for name in top if name not in _HIDDEN)
    kept = kept or tuple(name for name in top if name in _OF_BASE_MODELS)
    return kept if kept and len(kept) < len(top) else None


def _is_beside(name: str, names: Sequence[str]) -> bool:
    """Whether an output is a feature map that is returned in one mapping with predictions."""
    path = name.split(".")
    return any(
        {".".join((*path[:at], other)) for other in _BESIDE[key]} <= set(names)
        for at, key in enumerate(path)
        if key in _BESIDE
    )


def chosen_outputs(output: Any, names: Sequence[str] | None) -> list[Tensor]:
    """The tensors of an output that `names` cover, in order.

    For None, and where it has none of the names, since networks may return something else in training, they are those
    that `default_outputs` chooses of this output; no names at all stand for all of them.
    """
    every = named_tensors(output)
    covered = {name for name, _ in every if any(matches(name, wanted) for wanted in names or ())}
    if not covered and names != ():
        default = default_outputs(output)
        covered = {name for name, _ in every if default is None or any(matches(name, wanted) for wanted in default)}
    return [tensor for name, tensor in every if name in covered] if covered else [tensor for _, tensor in every]


def free_outputs(output: Any, names: Sequence[str] | None) -> tuple[str, ...]:
    """Names of the outputs that `chosen_outputs` leaves, as short as they can be without covering a chosen one."""
    kept = {id(tensor) for tensor in chosen_outputs(output, names)}
    every = named_tensors(output)
    chosen = [name for name, tensor in every if id(tensor) in kept]
    free: dict[str, None] = {}
    for name, tensor in every:
        if id(tensor) not in kept:
            path = name.split(".")
            prefixes = (".".join(path[: end + 1]) for end in range(len(path)))
            free[next((one for one in prefixes if not any(matches(other, one) for other in chosen)), name)] = None
    return tuple(free)


def check_names(output: Any, names: Sequence[str]) -> None:
    """Refuses names that an output does not have.

    Raises:
        ModelError: With the nearest name.
    """
    every = [name for name, _ in named_tensors(output)]
    if names and every == [""]:
        asked = option("outputs", ",".join(names))
        raise ModelError(f"{asked}: the network returns one tensor, which has no name; leave it out")
    prefixes = dict.fromkeys(".".join(name.split(".")[:end]) for name in every for end in range(1, name.count(".") + 2))
    for wanted in names:
        if not any(matches(name, wanted) for name in every):
            wrong = unknown("output", wanted, [name for name in prefixes if name])
            raise ModelError(f"{option('outputs', wanted)}: {wrong}")
