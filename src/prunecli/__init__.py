"""Prune trained neural networks, with proof that the smaller network is the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["PartReport", "PartResult", "PruneReport", "PruneResult", "__version__", "load", "prune"]

if TYPE_CHECKING:
    from prunecli.api import PartReport, PartResult, PruneReport, PruneResult, load, prune


def __getattr__(name: str) -> Any:
    """Imports the interface on first use, so that importing the package costs nothing."""
    if name in __all__ and name != "__version__":
        from prunecli import api

        return getattr(api, name)
    raise AttributeError(f"module 'prunecli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
