"""The same small images with boxes, written in the layouts of COCO, YOLO and Pascal VOC."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("disc", "square")
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Scene:
    """An image of bright rectangles on black, with their boxes (left, top, right, bottom) and classes."""

    name: str
    size: tuple[int, int]
    boxes: tuple[tuple[Box, int], ...]

    def draw(self) -> Image.Image:
        """Class 0 is red and class 1 green."""
        height, width = self.size
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        for (left, top, right, bottom), label in self.boxes:
            pixels[top:bottom, left:right, label] = 255
        return Image.fromarray(pixels)


def scenes(count: int, seed: int = 0, side: int = 48) -> list[Scene]:
    """Images of `side` pixels with up to three rectangles that do not overlap; the first one has none."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        boxes: list[tuple[Box, int]] = []
        for _ in range(3 if number else 0):
            width, height = (int(v) for v in generator.integers(side // 6, side // 3, 2))
            left, top = int(generator.integers(0, side - width)), int(generator.integers(0, side - height))
            box = (left, top, left + width, top + height)
            if not any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o, _ in boxes):
                boxes.append((box, int(generator.integers(len(CLASSES)))))
        made.append(Scene(f"i{seed}{number:03d}", (side, side), tuple(boxes)))
    return made


def write_coco(folder: Path, parts: dict[str, list[Scene]]) -> None:
    """`PART/`, and `annotations/instances_PART.json` with categories 3 and 7."""
    numbers = (3, 7)
    (folder / "annotations").mkdir(parents=True)
    for part, own in parts.items():
        (folder / part).mkdir()
        images, annotations = [], []
        for number, scene in enumerate(own):
            scene.draw().save(folder / part / f"{scene.name}.png")
            height, width = scene.size
            images.append({"id": number, "file_name": f"{scene.name}.png", "height": height, "width": width})
            for (left, top, right, bottom), label in scene.boxes:
                box = [left, top, right - left, bottom - top]
                annotations.append(
                    {
                        "id": len(annotations),
                        "image_id": number,
                        "category_id": numbers[label],
                        "bbox": box,
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": n, "name": name} for n, name in zip(numbers, CLASSES, strict=True)]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(document))


def write_yolo(folder: Path, parts: dict[str, list[Scene]]) -> None:
    """`images/PART/`, `labels/PART/` and `data.yaml`."""
    for part, own in parts.items():
        (folder / "images" / part).mkdir(parents=True)
        (folder / "labels" / part).mkdir(parents=True)
        for scene in own:
            scene.draw().save(folder / "images" / part / f"{scene.name}.png")
            height, width = scene.size
            rows = [
                f"{label} {(b[0] + b[2]) / 2 / width} {(b[1] + b[3]) / 2 / height} {(b[2] - b[0]) / width} "
                f"{(b[3] - b[1]) / height}"
                for b, label in scene.boxes
            ]
            (folder / "labels" / part / f"{scene.name}.txt").write_text("\n".join(rows))
    (folder / "data.yaml").write_text(f"path: ../elsewhere\ntrain: images/train\nnames: {list(CLASSES)}\nnc: 2\n")


def write_voc(folder: Path, parts: dict[str, list[Scene]]) -> None:
    """`JPEGImages/`, `Annotations/` and `ImageSets/Main/`."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for part, own in parts.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("\n".join(scene.name for scene in own))
        for scene in own:
            scene.draw().save(folder / "JPEGImages" / f"{scene.name}.png")
            height, width = scene.size
            objects = "".join(
                f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox><xmin>{b[0] + 1}</xmin>"
                f"<ymin>{b[1] + 1}</ymin><xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
                for b, label in scene.boxes
            )
            size = f"<size><width>{width}</width><height>{height}</height></size>"
            (folder / "Annotations" / f"{scene.name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


WRITERS: dict[str, Callable[[Path, dict[str, list[Scene]]], None]] = {
    "COCO": write_coco,
    "YOLO": write_yolo,
    "Pascal VOC": write_voc,
}
