"""What a model source is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import nn

from prunecli.checkpoint.manifest import InputNormalisation


@runtime_checkable
class ModelSource(Protocol):
    """Brings the networks of "SOURCE:NAME": a module, or an object, with these functions.

    A source whose networks compare images with texts, so that no number of classes belongs to them, also has
    `CLASSES_ARE_TEXTS = True`; one of language models has `READS_TOKENS = True`. One whose arguments have defaults that
    weights do not show is a `SettlingSource`.
    """

    def names(self) -> Sequence[str]:
        """All names of this source."""
        ...

    def build(self, name: str, pretrained: bool, /, **kwargs: Any) -> nn.Module:
        """Builds a dense network; under `torch.device("meta")` without memory for its weights, where it can.

        Args:
            name: One of `names()`.
            pretrained: Whether to fetch published weights.
            **kwargs: num_classes, in_chans and whatever else the source takes.

        Raises:
            ModelError: An argument does not exist or makes no sense. Any other exception is reported as one.
        """
        ...

    def input_spec(self, name: str, model: nn.Module, /) -> tuple[tuple[int, int] | None, InputNormalisation | None]:
        """What a network takes.

        Args:
            name: One of `names()`.
            model: The network that `build` made of it.

        Returns:
            Image height and width, None where any will do, and the normalisation of pixels, None for tokens.
        """
        ...


@runtime_checkable
class SettlingSource(ModelSource, Protocol):
    """A source that also says which defaults have to be recorded with a network."""

    def settled(self, name: str, kwargs: Mapping[str, Any], /) -> Mapping[str, Any]:
        """The arguments, completed with the defaults that decide how the network runs.

        Args:
            name: One of `names()`.
            kwargs: What the network was built with.

        Raises:
            ModelError: An argument does not exist.
        """
        ...
