"""Detectors of torchvision: a list of images in, a dictionary of losses or a list of dictionaries out.

They normalise and resize images themselves, and give boxes in pixels of the images that they were given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from prunecli.engine.detectors.base import Detector, Found, Target, without_ignored
from prunecli.errors import DataError

_MORE = {"mask_roi_pool": "masks", "keypoint_roi_pool": "keypoints"}
"""What networks with a further head learn from besides boxes."""


class TorchvisionDetector(Detector):
    """Faster R-CNN, RetinaNet, FCOS, SSD and SSDlite. Class 0 is the background, so objects are counted from 1."""

    package = "torchvision"
    lists_images = True
    loss_needs_training_mode = True
    first_category = 1

    def num_classes(self, network: nn.Module) -> int:
        """Those of its classification head, without the background."""
        head = getattr(network, "roi_heads", None)
        if head is not None:
            return int(head.box_predictor.cls_score.out_features) - 1
        scores: Any = network.get_submodule("head.classification_head")
        columns = getattr(scores, "num_columns", None)
        return int(columns if columns is not None else scores.num_classes) - 1

    def own_size(self, network: nn.Module) -> tuple[int, int]:
        """As its first step has it."""
        transform: Any = network.get_submodule("transform")
        fixed = transform.fixed_size
        return (int(fixed[1]), int(fixed[0])) if fixed is not None else (int(transform.min_size[-1]),) * 2

    def losses(self, network: nn.Module, inputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Of classes and boxes, and of proposals where there are any."""
        heads = getattr(network, "roi_heads", None)
        for head, needed in _MORE.items():
            if getattr(heads, head, None) is not None:
                raise DataError(f"{type(network).__name__} learns from {needed}, and the data set has boxes alone")
        own = [without_ignored(target) for target in targets]
        losses: dict[str, Tensor] = network(
            inputs, [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in own]
        )
        return losses

    def found(self, network: nn.Module, inputs: Any) -> list[Found]:
        """Everything above the network's own threshold that is not the background."""
        found: list[Found] = []
        for entry in network(inputs):
            objects = entry["labels"] > 0
            found.append({"boxes": entry["boxes"][objects], "labels": entry["labels"][objects] - 1,
                          "scores": entry["scores"][objects]})  # fmt: skip
        return found
