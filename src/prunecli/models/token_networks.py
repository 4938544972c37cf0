"""What networks that read tokens are: which tokens, how many at once, and what they say of them.

Networks of transformers say so by their configurations and by the names of their classes, both of which pruned ones
keep; transformers is not imported for it.
"""

from __future__ import annotations

import inspect
import re
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from prunecli.inputs import call, logits
from prunecli.models.recurrent_language import LanguageModel
from prunecli.surgery.taps import is_flipped_linear

Purpose: TypeAlias = Literal["next token", "masked token", "classes", "tags", "other"]
_HEADS: tuple[tuple[Purpose, tuple[str, ...]], ...] = (
    ("next token", ("ForCausalLM", "LMHeadModel")),
    ("masked token", ("ForMaskedLM",)),
    ("classes", ("ForSequenceClassification",)),
    ("tags", ("ForTokenClassification",)),
)
_LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
_POSITIONS = "position_embeddings"
_UNNAMED = re.compile(r"LABEL_\d+")
_OF_TOKENS = 3
"""Dimensions of scores for every token."""
_AGREEMENT = 1e-5
"""Of scores in single precision; an untrained network hardly heeds what it should not."""


def purpose_of(network: nn.Module) -> Purpose:
    """What a network says of tokens."""
    return "next token" if isinstance(network, LanguageModel) else purpose_named(type(network).__name__)


def purpose_named(class_name: str) -> Purpose:
    """What networks of a class of transformers say of tokens."""
    return next((purpose for purpose, ends in _HEADS if class_name.endswith(ends)), "other")


def remembers(network: nn.Module) -> bool:
    """Whether it reads a text from end to end and carries its state; all others read sequences of their own."""
    return isinstance(network, LanguageModel)


def vocabulary_size(network: nn.Module) -> int:
    """How many different tokens it can read."""
    size = getattr(getattr(network, "config", network), "vocab_size", None)
    embeddings = (module.num_embeddings for module in network.modules() if isinstance(module, nn.Embedding))
    return size if isinstance(size, int) else next(embeddings, 1)


def longest_sequence(network: nn.Module) -> int | None:
    """How many tokens it can read at once; None: any, as far as its configuration says."""
    config = getattr(network, "config", None)
    length = next((value for name in _LENGTHS if isinstance(value := getattr(config, name, None), int)), None)
    if length is None or length < 1:
        return None
    for name, module in network.named_modules():
        # RoBERTa and its like count positions from the one behind that of padding.
        if name.endswith(_POSITIONS) and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return min(length, module.num_embeddings - module.padding_idx - 1)
    return length


def widest_input(network: nn.Module) -> int:
    """The largest number of channels that a linear layer takes in."""
    widths = [module.in_features for module in network.modules() if isinstance(module, nn.Linear)]
    widths += [len(module.get_parameter("weight")) for module in network.modules() if is_flipped_linear(module)]
    units = getattr(network, "units", None)
    return max([*widths, *([units] if isinstance(units, int) else [])], default=1)


def accepts(network: nn.Module, argument: str) -> bool:
    """Whether its `forward` takes an argument of that name."""
    return argument in inspect.signature(network.forward).parameters


def padding_token(network: nn.Module) -> int | None:
    """The token that it takes for padding; None: it does not say."""
    token = getattr(getattr(network, "config", None), "pad_token_id", None)
    return token if isinstance(token, int) and 0 <= token < vocabulary_size(network) else None


def learned_classes(network: nn.Module) -> tuple[str, ...]:
    """Names of the classes in the order of its outputs; empty where it only has numbers for them."""
    names: Any = getattr(getattr(network, "config", None), "id2label", None)
    if not isinstance(names, dict) or set(names) != set(range(len(names))):
        return ()
    ordered = tuple(str(names[number]) for number in range(len(names)))
    return () if all(_UNNAMED.fullmatch(name) for name in ordered) else ordered


def class_count(network: nn.Module) -> int | None:
    """How many classes its configuration says that it tells apart; None: it does not say, or there are no two."""
    count = getattr(getattr(network, "config", None), "num_labels", None)
    return count if isinstance(count, int) and count > 1 else None


def looks_ahead(network: nn.Module, tokens: Tensor) -> bool:
    """Whether scores change that lie before a token which changes: then they know the token that they are scores of.

    Args:
        network: Gives scores of every token, shape (1, T, tokens).
        tokens: A sequence, shape (1, T), of two tokens at least.
    """
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % vocabulary_size(network)
    return not _agree(_scores(network, tokens)[:, :-1], _scores(network, other)[:, :-1])


def heeds_padding(network: nn.Module, inputs: dict[str, Tensor], padding: int) -> bool:
    """Whether scores of a text change with padding behind it, to which no attention is paid.

    Args:
        network: Gives scores of classes, for the text or for every token of it.
        inputs: One text, shape (1, T), without padding.
        padding: The token that texts are filled up with.
    """
    fill = {"input_ids": padding}
    longer = {name: nn.functional.pad(value, (0, 2), value=fill.get(name, 0)) for name, value in inputs.items()}
    alone, filled = _scores(network, inputs), _scores(network, longer)
    return not _agree(alone, filled[:, : alone.shape[1]] if alone.dim() == _OF_TOKENS else filled)


def _scores(network: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return logits(call(network, inputs)).float()


def _agree(first: Tensor, second: Tensor) -> bool:
    scale = float(second.abs().max()) if second.numel() else 0.0
    return bool(((first - second).abs() <= _AGREEMENT * scale).all())
