"""`lm:...`: language models, which predict the next word or character of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prunecli.errors import ModelError, unknown
from prunecli.models.recurrent_language import KINDS, NONLINEARITIES, RecurrentLanguageModel

READS_TOKENS = True
_DEFAULTS: dict[str, Any] = {"num_classes": 10_000, "units": 128, "layers": 2, "tied": False, "dropout": 0.0}
"""Of all networks; the vocabulary has as many words as that of Penn Treebank."""
_NEURONS: dict[str, Any] = {
    "neuron": "lif",
    "tau": 2.0,
    "decay_input": False,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "detach_reset": True,
    "surrogate": "atan",
    "alpha": None,
}
"""Of spiking units; see `prunecli.models.spiking_neurons.NeuronConfig`."""
_OWN: dict[str, dict[str, Any]] = {
    "rnn": {"nonlinearity": NONLINEARITIES[0]},
    "spiking": _NEURONS,
    "hybrid": {"cell": "rnn", "snn_fraction": 0.5, **_NEURONS},
}


def names() -> list[str]:
    """All names of this source."""
    return [*KINDS, "spiking", "hybrid"]


def arguments_of(name: str) -> tuple[str, ...]:
    """Arguments that an architecture takes."""
    return (*_DEFAULTS, "embedding", *_OWN.get(name, ()))


def settled(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, completed with all defaults.

    Raises:
        ModelError: An argument does not exist.
    """
    for key in kwargs:
        if key not in arguments_of(name):
            raise ModelError(unknown("argument", key, arguments_of(name)) + f" (of lm:{name})")
    complete = _DEFAULTS | _OWN.get(name, {}) | dict(kwargs)
    complete.setdefault("embedding", complete["units"])
    return complete


def build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Builds one of `names()`.

    Args:
        name: The architecture.
        pretrained: Not available.
        **kwargs: num_classes (the vocabulary), units, layers, embedding, tied, dropout; nonlinearity of "rnn"; cell and
            snn_fraction of "hybrid"; of it and of "spiking" the fields of `NeuronConfig`.

    Raises:
        ModelError: An argument does not exist or has a wrong value, or published weights are asked for.
    """
    if pretrained:
        raise ModelError(f"lm:{name} has no published weights to fetch; give a weights file")
    options = settled(name, kwargs)
    if name in KINDS:
        return RecurrentLanguageModel(name, **options)
    from prunecli.models.hybrid_language import HybridLanguageModel  # spikingjelly takes seconds to import
    from prunecli.models.spiking_neurons import NeuronConfig

    neurons = NeuronConfig(**{key: options.pop(key) for key in _NEURONS})
    only_spiking: dict[str, Any] = {"cell": "rnn", "snn_fraction": 1.0}
    return HybridLanguageModel(neurons, **only_spiking | options)


def input_spec(name: str, model: nn.Module) -> tuple[None, None]:
    """Tokens have no size and no normalisation."""
    return None, None
