"""`ultralytics:...`: YOLO v3 to 26, which find boxes, masks, poses and turned boxes, classify, and estimate depth."""

from __future__ import annotations

from prunecli.models.yolo.source import build
from prunecli.studies.collections.network import Network, images

PACKAGE = "ultralytics"

_CLASSES = 5
_NAMES = (
    "yolov3-tiny",
    "yolov5n",
    "yolov5n-p6",
    "yolov6n",
    "yolov8n",
    "yolov8n-ghost",
    "yolov8n-p2",
    "yolov8n-seg",
    "yolov8n-cls",
    "yolov8n-pose",
    "yolov8n-obb",
    "yolov9t",
    "yolov9c-seg",
    "yolov10n",
    "yolo11n",
    "yolo11n-seg",
    "yolo11n-cls",
    "yolo11n-pose",
    "yolo11n-obb",
    "yolo12n",
    "yolo12n-seg",
    "yolo12n-cls",
    "yolo26n",
    "yolo26n-seg",
    "yolo26n-cls",
    "yolo26n-pose",
    "yolo26n-obb",
    "yolo26n-sem",
    "yolo26n-depth",
)


def names() -> list[str]:
    """The smallest size of each version and task."""
    return list(_NAMES)


def network(name: str) -> Network:
    """One of `names()`, with images of 64x64 pixels, and of 64x96 as the other ones."""
    side = 128 if name.endswith("-p6") else 64  # the coarsest of its maps has one position for 64x64 pixels
    return Network(
        f"{PACKAGE}:{name}",
        lambda: build(name, False, num_classes=_CLASSES),
        lambda: images(1, 3, side, side),
        lambda: images(2, 3, side, 2 * side if side > 64 else 96),
    )
