"""`detection:PATH`: images with boxes in the layouts of COCO, YOLO and Pascal VOC."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunecli.data import coco_boxes, voc_boxes, yolo_boxes
from prunecli.data.box_layouts import BoxLayout
from prunecli.data.boxes import FileBoxSplit
from prunecli.data.images import UnreadableImage, image_size
from prunecli.data.splits import IMAGENET_MEAN, IMAGENET_STD, DataSet, divided, find_folder
from prunecli.errors import DataError

_LOOKED_AT = 64
"""Images whose sizes are compared where annotations do not have them."""


def load(path: str, root: Path, download: bool) -> DataSet:
    """Reads a folder of images and boxes in one of these layouts.

    - COCO: JSON files in `annotations/`, or beside or within the folders of images.
    - YOLO: `images/` and `labels/`, with `train/`, `val/` and `test/` inside or around them, and `data.yaml` or
      `classes.txt`.
    - Pascal VOC: `JPEGImages/`, `Annotations/` and the lists in `ImageSets/Main/`.

    Where nothing divides the images, a fixed fifth of them is the test split. A relative PATH is looked for in the
    current folder, then in the data folder.

    Raises:
        DataError: The folder does not exist, has no such layout, or something in it is wrong.
    """
    name = f"detection:{path}"
    folder = find_folder(name, path, root, "one with images and boxes in it")
    layout = voc_boxes.read(folder) or coco_boxes.read(folder) or yolo_boxes.read(folder)
    if layout is None:
        raise DataError(
            f"{folder}: no images with boxes; expected the layout of COCO (annotations/*.json), YOLO (images/, "
            "labels/) or Pascal VOC (JPEGImages/, Annotations/)"
        )
    train, validation, test = divided(layout.parts, folder)
    return DataSet(
        name=name,
        class_names=layout.class_names,
        channels=3,
        image_size=_common_size(layout),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        flip=True,
        train=train,
        test=test,
        validation=validation,
        task="detection",
        notes=(_described(name, layout), *layout.notes),
        categories=layout.categories,
    )


def _described(name: str, layout: BoxLayout) -> str:
    images = ", ".join(f"{len(split.images):,} {part}" for part, split in layout.parts.items())
    count = sum(len(a.objects.labels) for split in layout.parts.values() for a in split.annotations)
    return f"{name} is read as {layout.kind}: images {images}; {count:,} boxes of {len(layout.class_names)} classes"


def _common_size(layout: BoxLayout) -> tuple[int, int] | None:
    """Height and width that all images have, as far as is known without reading every one."""
    sizes = {annotation.size for split in layout.parts.values() for annotation in split.annotations}
    if None in sizes:
        sizes = {size for split in layout.parts.values() for size in _sizes(split)}
    return sizes.pop() if len(sizes) == 1 else None


def _sizes(split: FileBoxSplit) -> set[tuple[int, int] | None]:
    sizes: set[tuple[int, int] | None] = set()
    for index in np.unique(np.linspace(0, len(split.images) - 1, _LOOKED_AT).astype(int)):
        try:
            sizes.add(image_size(split.images[index]))
        except UnreadableImage:
            continue  # reported when it is read
    return sizes
