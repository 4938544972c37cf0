"""What a pruning method is. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

Family = Literal["structural", "runtime"]


@dataclass(frozen=True)
class MethodSpec:
    """One method: how it is called, where it comes from, what it can be told, and where its algorithm is.

    Attributes:
        name: The verb on the command line and the value of `method:` in a recipe.
        summary: One line of help.
        paper: Address of the paper the method follows, or empty.
        family: Decides the protocol that `load` returns: "structural" is `prunecli.criteria.base.Criterion`, "runtime",
            which changes how a network runs and no weight, is `prunecli.methods.token.plan_selection`.
        params: A frozen dataclass with annotated fields.
        entry: "module:attribute" of the algorithm.
        needs_data: Whether it looks at calibration images.
        without_data: Parameters that let it do without images, for where there are none.
    """

    name: str
    summary: str
    paper: str
    family: Family
    params: type[Any]
    entry: str
    needs_data: bool = False
    without_data: Mapping[str, Any] | None = None

    def load(self) -> Any:
        """Imports the algorithm; this is the first moment that torch is needed."""
        module, _, attribute = self.entry.partition(":")
        return getattr(import_module(module), attribute)
