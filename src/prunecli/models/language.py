"""`lm:...`: language models, which foretell the next word or character of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunecli.errors import ModelError, unknown
from prunecli.models.recurrent_language import KINDS, RecurrentLanguageModel

READS_TOKENS = True
_NONLINEARITIES = ("tanh", "relu")
_DEFAULTS: dict[str, Any] = {"num_classes": 10_000, "units": 128, "layers": 2, "tied": False, "dropout": 0.0}
"""Of all networks; the vocabulary has as many words as that of Penn Treebank."""


def names() -> list[str]:
    """All names of this source."""
    return list(KINDS)


def arguments_of(name: str) -> tuple[str, ...]:
    """Arguments that an architecture takes."""
    own = ("nonlinearity",) if name == "rnn" else ()
    return (*_DEFAULTS, "embedding", *own)


def settled(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, completed with all defaults.

    Raises:
        ModelError: An argument does not exist.
    """
    for key in kwargs:
        if key not in arguments_of(name):
            raise ModelError(unknown("argument", key, arguments_of(name)) + f" (of lm:{name})")
    complete = _DEFAULTS | dict(kwargs)
    if name == "rnn":
        complete.setdefault("nonlinearity", "tanh")
    complete.setdefault("embedding", complete["units"])
    return complete


def build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Builds one of `names()`.

    Args:
        name: The architecture.
        pretrained: Not available.
        **kwargs: num_classes (the vocabulary), units, layers, embedding, tied, dropout, nonlinearity.

    Raises:
        ModelError: An argument does not exist or has a wrong value, or published weights are asked for.
    """
    if pretrained:
        raise ModelError(f"lm:{name} has no published weights to fetch; give a weights file")
    options = settled(name, kwargs)
    nonlinearity = options.pop("nonlinearity", "tanh")
    if nonlinearity not in _NONLINEARITIES:
        raise ModelError(unknown("nonlinearity", nonlinearity, _NONLINEARITIES))
    return RecurrentLanguageModel(name, nonlinearity=nonlinearity, **options)


def input_spec(name: str, model: nn.Module) -> tuple[None, None]:
    """Tokens have no size and no normalisation."""
    return None, None
