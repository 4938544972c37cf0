"""Objects in an image, each with a box and a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from prunecli.engine.carrying import Carrier
from prunecli.engine.detectors.base import Detector, Found, Target
from prunecli.engine.detectors.index import detector_of
from prunecli.engine.tasks.base import Meter, Task
from prunecli.errors import DataError, RecipeError

_Entries: TypeAlias = list[dict[str, Tensor]]
"""Boxes of each image, as torchmetrics takes them."""


@dataclass(frozen=True)
class Precisions:
    """Mean average precisions in percent, over `images` images with `objects` objects.

    Attributes:
        map50_95: Averaged over classes and over the overlaps 0.5, 0.55, ..., 0.95 from which a box is right, as COCO
            does (Lin et al., ECCV 2014), of at most 100 boxes of an image.
        map50: Where half an overlap is enough, as in Pascal VOC.
        class_ap: The first one of every class; None for one without objects.
        images: Images that were read.
        objects: Objects that count.
    """

    map50_95: float
    map50: float
    class_ap: tuple[float | None, ...]
    images: int
    objects: int
    score_name: ClassVar[str] = "map50_95"
    score_label: ClassVar[str] = "mAP@50:95"

    @property
    def score(self) -> float:
        """mAP@50:95."""
        return self.map50_95

    @property
    def logged(self) -> dict[str, float]:
        """Both precisions."""
        return {"map50_95": self.map50_95, "map50": self.map50}


class Detection(Task):
    """Networks are detectors; labels are a list of `Target`, one for each image."""

    name = "detection"
    figures = Precisions
    finds_boxes = True
    distillable = False
    refused_settings = ("mixup", "cutmix", "auto_augment", "random_erasing", "label_smoothing")
    own_augmentation = "boxes: leave it out (images are zoomed, cropped and mirrored with them; --color-jitter works)"

    def outputs(self, carrier: Carrier, network: nn.Module, inputs: Any, labels: Any) -> dict[str, Tensor]:
        """The network's own losses by name."""
        return self._detector(network).losses(network, inputs, labels)

    def predictions(self, carrier: Carrier, network: nn.Module, inputs: Any) -> list[Found]:
        """What it finds in each image."""
        return self._detector(network).found(network, inputs)

    def loss(self, outputs: dict[str, Tensor], labels: Any, label_smoothing: float) -> Tensor:
        """The sum of its losses."""
        return torch.stack([loss.float() for loss in outputs.values()]).sum()

    def terms(self, outputs: dict[str, Tensor], labels: Any) -> int:
        """Images. Some detectors average parts of their losses over objects instead, and do not say so."""
        return len(labels)

    def meter(self, device: torch.device) -> _BoxMeter:
        """Compares boxes as COCO does.

        Raises:
            RecipeError: torchmetrics or pycocotools is not installed.
        """
        return _BoxMeter(len(self.class_names))

    def named(self, figures: Precisions) -> dict[str, Any]:
        """Both precisions, and that of each class by name. Intervals would need every image many times over."""
        by_name = zip(self.class_names, figures.class_ap, strict=True)
        return {
            "map50_95": figures.map50_95,
            "map50": figures.map50,
            "class_ap": {name: precision for name, precision in by_name if precision is not None},
            "objects": figures.objects,
            "images": figures.images,
        }

    def better(self, score: float, best: float) -> bool:
        """A later epoch is better than one that found nothing, even if it has found nothing yet."""
        return super().better(score, best) or score == best == 0

    def _detector(self, network: nn.Module) -> Detector:
        detector = detector_of(network)
        if detector is None:
            raise DataError(f"{self.data_name} has boxes, and a {type(network).__name__} is no detector; see --data")
        return detector


class _BoxMeter(Meter):
    def __init__(self, num_classes: int) -> None:
        try:
            from torchmetrics.detection import MeanAveragePrecision

            self._precision: Any = MeanAveragePrecision(class_metrics=True)
        except (ImportError, ModuleNotFoundError) as error:
            raise RecipeError("mAP needs torchmetrics and pycocotools; pip install 'prunecli[detection]'") from error
        self._precision.warn_on_many_detections = False  # more than 100 boxes of one image do not count
        self._num_classes, self._images, self._objects = num_classes, 0, 0

    def measure(self, predictions: list[Found], labels: list[Target]) -> tuple[_Entries, _Entries]:
        own = [_without_margin(found, target) for found, target in zip(predictions, labels, strict=True)]
        truth = [
            {"boxes": target["boxes"], "labels": target["labels"], "iscrowd": target["ignored"].long()}
            for target in labels
        ]
        return _on_cpu(own), _on_cpu(truth)

    def add(self, measured: tuple[_Entries, _Entries]) -> None:
        own, truth = measured
        self._precision.update(own, truth)
        self._images += len(truth)
        self._objects += sum(int((target["iscrowd"] == 0).sum()) for target in truth)

    def compute(self) -> Precisions:
        figures = self._precision.compute()
        by_class = zip(figures["classes"].flatten().tolist(), figures["map_per_class"].flatten().tolist(), strict=True)
        known = {int(number): 100 * share for number, share in by_class if share >= 0}
        return Precisions(
            map50_95=_percentage(figures["map"]),
            map50=_percentage(figures["map_50"]),
            class_ap=tuple(known.get(number) for number in range(self._num_classes)),
            images=self._images,
            objects=self._objects,
        )


def _without_margin(found: Found, target: Target) -> dict[str, Tensor]:
    """Boxes cut to the image: a network may find something in what was added to fill it up."""
    height, width = target["size"].tolist()
    boxes = found["boxes"].float()
    limits = boxes.new_tensor([width, height, width, height])
    return {"boxes": boxes.clamp(min=0).minimum(limits), "labels": found["labels"], "scores": found["scores"].float()}


def _on_cpu(entries: _Entries) -> _Entries:
    return [{name: tensor.detach().cpu() for name, tensor in entry.items()} for entry in entries]


def _percentage(share: Tensor) -> float:
    """Of one; -1, where there is no object at all, is 0."""
    return 100 * max(float(share), 0.0)
