"""Mixup and CutMix: images of a batch mixed in pairs, and their labels with them."""

from __future__ import annotations

from typing import Any

from timm.data import Mixup

from prunecli.engine.config import FitConfig


class Mixing:
    """timm's Mixup as settings ask for it; of several processes each mixes its own share of a batch.

    Args:
        config: Settings.
        num_classes: Number of classes.
    """

    def __init__(self, config: FitConfig, num_classes: int) -> None:
        self._mixup = None
        if config.mixup or config.cutmix:
            self._mixup = Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=num_classes,
            )

    def __call__(self, inputs: Any, labels: Any) -> tuple[Any, Any]:
        """The batch, mixed if that was asked for; of an odd number of images the last one is left out."""
        if self._mixup is None or len(labels) < 2:
            return inputs, labels
        even = len(labels) // 2 * 2
        mixed, soft = self._mixup(inputs[:even], labels[:even])
        return mixed, soft
