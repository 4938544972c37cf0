"""Images without labels: they can be looked at, and networks compared on them, but nothing is right or wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunecli.engine.tasks.base import Meter, Task


class Unlabelled(Task):
    """Scores that are judged by nothing."""

    name = "unlabelled"
    figures = type(None)
    labelled = trainable = False

    def meter(self, device: torch.device) -> _NoMeter:
        """Counts nothing."""
        return _NoMeter()

    def named(self, figures: Any) -> dict[str, Any]:
        """There are no figures."""
        return {}

    def check_outputs(self, outputs: int, network: str) -> None:
        """Any number of outputs will do."""


class _NoMeter(Meter):
    def measure(self, scores: Tensor, labels: Any) -> None:
        return None

    def add(self, measured: None) -> None:
        pass

    def compute(self) -> None:
        return None
