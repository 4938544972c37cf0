"""The networks that coverage can try: the catalogue's and those of collections."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from prunecli.checkpoint.manifest import Architecture, Manifest
from prunecli.errors import ModelError, unknown
from prunecli.inputs import input_channels
from prunecli.measure.counts import parameter_count
from prunecli.models.catalog import added_references, build, input_spec, reads_tokens, rebuild_dense
from prunecli.models.index import known_references, matching_references
from prunecli.models.loading import load_reference, widen
from prunecli.models.recognition import recognise
from prunecli.studies.collections.index import COLLECTIONS
from prunecli.studies.collections.network import Network, images

_ANY_SIZE = (64, 64)
_LENGTH = 8
"""Tokens in a sequence."""


@dataclass(frozen=True)
class Candidate:
    """A network that was built, what is known about it, and where it and its inputs come from."""

    network: Network
    model: nn.Module
    manifest: Manifest


def matching(pattern: str) -> list[str]:
    """The references that a pattern means; see `prunecli.models.index.matching_references`.

    Raises:
        ModelError: Nothing matches, or the collection's package is not installed.
    """
    source = pattern.partition(":")[0]
    known = collected(source) if source in COLLECTIONS.names else [*known_references(), *added_references()]
    return matching_references(pattern, known)


def collected(collection: str) -> list[str]:
    """References of all networks of a collection.

    Raises:
        ModelError: Its package is not installed, or there is no such collection.
    """
    package = COLLECTIONS.load(collection).PACKAGE
    if find_spec(package.replace("-", "_")) is None:
        raise ModelError(f"the networks of {collection}:* need the package {package}; pip install {package}")
    return [f"{collection}:{name}" for name in COLLECTIONS.load(collection).names()]


def candidate(ref: str, seed: int = 0) -> Candidate:
    """Builds a network with new weights.

    Args:
        ref: "source:name" of the catalogue or "collection:name".
        seed: Of its weights.

    Raises:
        ModelError: There is no such network. Whatever else other packages raise is passed on.
    """
    source, _, name = ref.partition(":")
    torch.manual_seed(seed)
    if source in COLLECTIONS.names:
        network = _collected_network(source, name)
        model = network.build().eval()
        return Candidate(network, model, Manifest(architecture=recognise(model)))
    loaded = widen(load_reference(ref))
    if reads_tokens(ref):
        return Candidate(_language_model(ref, loaded.manifest.architecture), loaded.model, loaded.manifest)
    height, width = input_spec(ref, loaded.model)[0] or loaded.fixed_size or _ANY_SIZE
    channels = input_channels(loaded.model)
    network = Network(
        ref,
        lambda: build(ref),
        lambda: images(1, channels, height, width),
        lambda: images(2, channels, height, width),
    )
    return Candidate(network, loaded.model, loaded.manifest)


def _language_model(ref: str, architecture: Architecture) -> Network:
    vocabulary = architecture.kwargs["num_classes"]
    assert isinstance(vocabulary, int)
    return Network(
        ref,
        lambda: build(ref),
        lambda: torch.randint(vocabulary, (1, _LENGTH)),
        lambda: torch.randint(vocabulary, (2, _LENGTH + 3)),
    )


def parameters_of(ref: str) -> int:
    """Number of parameters, counted without memory for them where the network allows it."""
    source, _, name = ref.partition(":")
    if source not in COLLECTIONS.names:
        return parameter_count(rebuild_dense(Architecture(ref=ref)))
    network = _collected_network(source, name)
    try:
        with torch.device("meta"):
            return parameter_count(network.build())
    except Exception:  # code that reads values while it builds fails in many ways
        return parameter_count(network.build())


def _collected_network(collection: str, name: str) -> Network:
    if f"{collection}:{name}" not in collected(collection):
        raise ModelError(unknown("architecture", f"{collection}:{name}", collected(collection)))
    return COLLECTIONS.load(collection).network(name)
