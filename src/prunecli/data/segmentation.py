"""`segmentation:PATH`: images with masks in the layouts of CamVid, ADE20K and Pascal VOC, or in plain folders."""

from __future__ import annotations

from pathlib import Path

from prunecli.data.images import UnreadableImage
from prunecli.data.label_map import LabelMap
from prunecli.data.mask_labels import MaskReading, label_map
from prunecli.data.mask_layouts import Layout, find_layout
from prunecli.data.mask_survey import survey
from prunecli.data.masks import MaskSplit
from prunecli.data.splits import IMAGENET_MEAN, IMAGENET_STD, DataSet, divided, find_folder


def load(path: str, root: Path, download: bool, masks: MaskReading | None = None) -> DataSet:
    """Reads a folder of images and masks in one of these layouts.

    - CamVid: `train/` and `trainannot/`, likewise `val` and `test`.
    - ADE20K: `images/training/` and `annotations/training/`, likewise `validation`.
    - Pascal VOC: `JPEGImages/`, `SegmentationClass/` and the lists in `ImageSets/Segmentation/`.
    - Plain: `images/` and `masks/`, with `train/`, `val/` and `test/` inside or around them. Without those, a fixed
      fifth of the images is the test split.

    What the numbers or colours in the masks mean is decided in `prunecli.data.mask_labels`. A relative PATH is looked
    for in the current folder, then in the data folder.

    Raises:
        DataError: The folder does not exist, has no such layout, an image has no mask or several, or it is not clear
            what the masks mean.
    """
    folder = find_folder(f"segmentation:{path}", path, root, "one with images/ and masks/ in it")
    layout = find_layout(folder)
    reading = masks or MaskReading()
    labels = label_map(folder, layout.convention, reading, lambda colored: survey(_masks(layout), colored=colored))
    splits = {part: MaskSplit(images, files, labels) for part, (images, files) in layout.parts.items()}
    return _image_data(path, folder, labels, splits)


def _masks(layout: Layout) -> list[Path]:
    return [mask for _, masks in layout.parts.values() for mask in masks]


def _image_data(path: str, folder: Path, labels: LabelMap, splits: dict[str, MaskSplit]) -> DataSet:
    train, validation, test = divided(splits, folder)
    return DataSet(
        name=f"segmentation:{path}",
        class_names=labels.class_names,
        channels=3,
        image_size=_size(test),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        flip=True,
        train=train,
        test=test,
        validation=validation,
        task="segmentation",
        notes=labels.notes,
        labels=labels.rows,
    )


def _size(split: MaskSplit) -> tuple[int, int]:
    """Height and width of the first readable image."""
    failed: UnreadableImage | None = None
    for index in range(len(split.images)):
        try:
            first = split.image(index)
        except UnreadableImage as error:
            failed = failed or error
        else:
            return first.height, first.width
    assert failed is not None, "a split has images"
    raise failed
