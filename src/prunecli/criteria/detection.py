"""The loss of detectors, for criteria that take gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.engine.detectors.base import Detector
from prunecli.errors import MethodError
from prunecli.inputs import fitted
from prunecli.naming import give_data

_ENTRIES = {"boxes", "labels", "ignored"}


class DetectorLoss:
    """A detector's own losses of one image, added up; normalisations and dropout are as in evaluation mode.

    Args:
        detector: How its package's networks are asked.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector

    def of(self, network: nn.Module, inputs: Any, labels: Any) -> Tensor:
        """The losses of one image.

        Args:
            network: The detector.
            inputs: A batch of one image.
            labels: A list with its `Target`.

        Raises:
            MethodError: There are no boxes to compare with.
        """
        if labels is None:
            raise MethodError(
                f"a detector's loss compares with boxes: {give_data()}, which has some, or choose a method without "
                "gradients, such as l1"
            )
        if not all(isinstance(target, Mapping) and _ENTRIES <= target.keys() for target in labels):
            raise MethodError(
                "a detector's labels are a list with a mapping for each image: boxes (left, top, right, bottom in "
                "pixels), labels (counted from 0, without the background), and ignored (booleans)"
            )
        with self._detector.settled(network):
            losses = self._detector.losses(network, fitted(inputs, network), fitted(labels, network))
        return torch.stack(list(losses.values())).sum()
