"""What a pruning method is. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

Family = Literal["structural"]


@dataclass(frozen=True)
class MethodSpec:
    """One method: how it is called, where it comes from, what it can be told, and where its algorithm is.

    Attributes:
        name: The verb on the command line and the value of `method:` in a recipe.
        summary: One line of help.
        paper: Address of the paper the method follows, or empty.
        family: Decides the protocol that `load` returns; "structural" is `prunecli.criteria.base.Criterion`.
        params: A frozen dataclass with annotated fields.
        entry: "module:attribute" of the algorithm.
        needs_data: Whether it looks at calibration images.
        noise_serves: Whether, without images, it may look at random inputs instead.
    """

    name: str
    summary: str
    paper: str
    family: Family
    params: type[Any]
    entry: str
    needs_data: bool = False
    noise_serves: bool = False

    def load(self) -> Any:
        """Imports the algorithm; this is the first moment that torch is needed."""
        module, _, attribute = self.entry.partition(":")
        return getattr(import_module(module), attribute)
