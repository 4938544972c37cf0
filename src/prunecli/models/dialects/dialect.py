"""What a weight dialect is: somebody else's names for the layers of a network that the catalogue builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


def _nothing(model: nn.Module) -> None:
    pass


@dataclass(frozen=True)
class ForeignRequest:
    """What is known about foreign weights, apart from the weights.

    Attributes:
        path: Their file, for messages.
        arch: "source:name" where the user named an architecture.
        num_classes: Number of classes that the user wants; None: as many as the weights have.
        data_classes: Gives the number of classes in the data, for weights without a classifier; None: unknown.
        prefer: The source of architectures to prefer where several fit.
    """

    path: Path
    arch: str | None = None
    num_classes: int | None = None
    data_classes: Callable[[], int | None] = lambda: None
    prefer: str | None = None


@dataclass(frozen=True)
class Translation:
    """Foreign weights under the catalogue's names.

    Attributes:
        tensors: The state dict.
        ref: The architecture; None leaves it to keys and shapes.
        kwargs: Arguments to build it with.
        notes: What the user should know.
        adapt: Sets what weights do not hold, such as the epsilon of a normalisation, on the network that was built.
    """

    tensors: dict[str, Tensor]
    ref: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    adapt: Callable[[nn.Module], None] = _nothing


class Dialect(Protocol):
    """One way to name a network's layers."""

    def translate(self, tensors: Mapping[str, Tensor], request: ForeignRequest) -> Translation | None:
        """Recognises weights of this dialect and renames them.

        Args:
            tensors: A state dict.
            request: What else is known.

        Returns:
            None for weights of anything else.

        Raises:
            ModelError: They have this dialect's names, and tensors are missing or have other shapes.
        """
        ...
