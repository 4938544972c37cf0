"""`ultralytics:...`: YOLO v5, v8, v10, 11 and 12, which detect, segment, classify and find poses."""

from __future__ import annotations

import logging
from importlib import import_module

from torch import nn

from prunecli.studies.collections.network import Network, images

PACKAGE = "ultralytics"

_CLASSES = 5
_TASKS = {"": "DetectionModel", "seg": "SegmentationModel", "cls": "ClassificationModel", "pose": "PoseModel"}
_NAMES = (
    "yolov5n",
    "yolov8n",
    "yolov8n-seg",
    "yolov8n-cls",
    "yolov8n-pose",
    "yolov10n",
    "yolo11n",
    "yolo11n-seg",
    "yolo11n-cls",
    "yolo11n-pose",
    "yolo12n",
    "yolo12n-seg",
)


def names() -> list[str]:
    """The smallest size of each version and task."""
    return list(_NAMES)


def network(name: str) -> Network:
    """One of `names()`, with images of 64x64 pixels, and of 64x96 as the other ones."""
    tasks = import_module("ultralytics.nn.tasks")
    task = name.partition("-")[2]

    def build() -> nn.Module:
        before = logging.root.manager.disable
        logging.disable(logging.INFO)  # it reports every network, and every number of classes that is not the file's
        try:
            model: nn.Module = getattr(tasks, _TASKS[task])(f"{name}.yaml", ch=3, nc=_CLASSES, verbose=False)
        finally:
            logging.disable(before)
        return model

    return Network(f"ultralytics:{name}", build, lambda: images(1, 3, 64, 64), lambda: images(2, 3, 64, 96))
