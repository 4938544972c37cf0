"""timm's models keep the widths of their features for whoever replaces the classifier or reads feature maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from prunecli.surgery.axes import Term
from prunecli.surgery.tracing.equations import Held
from prunecli.surgery.tracing.labels import Followed
from prunecli.surgery.tracing.watched import Read

_FEATURES = ("num_features", "head_hidden_size", "embed_dim")


def tie(name: str, module: nn.Module, followed: Followed) -> None:
    """Widths of the features, as far as they are those that the classifier reads."""
    for term in _read_by_classifier(name, module, followed):
        for attribute in _FEATURES:
            if getattr(module, attribute, None) == term.size:
                followed.held.setdefault(Read(name, attribute), Held(term))


def _read_by_classifier(name: str, module: Any, followed: Followed) -> Iterator[Term]:
    try:
        classifier = module.get_classifier()
    except AttributeError:  # an encoder whose head was taken off
        return
    for path, layer in module.named_modules():
        heads = classifier if isinstance(classifier, (tuple, list)) else (classifier,)
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and any(layer is head for head in heads):
            label = followed.parameters.get(".".join(part for part in (name, path, "weight") if part))
            if label is not None:
                yield label.dims[1]
