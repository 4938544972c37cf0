"""COCO's layout: images in folders, and a JSON file of boxes for each part."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunecli.data.box_checks import BoxCounts, ImageBoxes
from prunecli.data.box_layouts import BoxLayout, inside, part_named
from prunecli.data.boxes import Annotation, FileBoxSplit
from prunecli.data.images import image_size
from prunecli.data.splits import SPLIT_NAMES
from prunecli.errors import DataError

_OTHERS = ("captions", "person_keypoints", "panoptic", "stuff", "image_info")
"""Beginnings of the names of COCO's files about other things than boxes."""
_TABLES = ("images", "annotations", "categories")


def read(folder: Path) -> BoxLayout | None:
    """Reads the JSON files of a folder; None if it has none about boxes.

    Raises:
        DataError: One is damaged, names images that are not there, or boxes that cannot be.
    """
    documents = _documents(folder)
    if not documents:
        return None
    counts, by_part = BoxCounts(), dict[str, tuple[Path, dict[str, Any]]]()
    for path, document in documents.items():
        part = part_named((path.stem, *([path.parent.name] if path.parent != folder else []))) or "all"
        if part in by_part:
            raise DataError(f"{by_part[part][0]} and {path}: two files for {part}; remove one")
        by_part[part] = path, document
    if "all" in by_part and len(by_part) > 1:
        raise DataError(f"{by_part['all'][0]}: it is not clear whether these are train, val or test; name it after one")
    classes = _classes(documents)
    names = tuple(classes[number] for number in sorted(classes))
    numbers = {number: index for index, number in enumerate(sorted(classes))}
    parts = {
        part: _split(folder, part, path, document, numbers, names, counts) for part, (path, document) in by_part.items()
    }
    return BoxLayout("COCO", names, parts, counts.notes(folder.name), tuple(numbers))


def _documents(folder: Path) -> dict[Path, dict[str, Any]]:
    """The JSON files about boxes: those in `annotations/`, else beside the folders of images, else within them."""
    around = [folder / "annotations", folder]
    within = [folder / spelling for spellings in SPLIT_NAMES.values() for spelling in spellings]
    for places in ([around[0]], [around[1]], within):
        files = [path for place in places if place.is_dir() for path in sorted(place.glob("*.json"))]
        read = {path: document for path in files if not path.name.startswith(_OTHERS) if (document := _document(path))}
        if read:
            return read
    return {}


def _document(path: Path) -> dict[str, Any] | None:
    """A JSON file of COCO's form; None if it is about something else."""
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        cause = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not a readable JSON file ({cause}); write it again") from error
    if not isinstance(document, dict) or not {"images", "annotations"} <= document.keys():
        return None
    for table in _TABLES:
        entries = document.get(table)
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(f"{path}: has no list of {table}; COCO's form has images, annotations and categories")
    return document


def _classes(documents: Mapping[Path, dict[str, Any]]) -> dict[int, str]:
    """Name by number of the category, the same in every file."""
    known: dict[int, str] = {}
    first: Path | None = None
    for path, document in documents.items():
        own: dict[int, str] = {}
        for index, category in enumerate(document["categories"]):
            number, name = category.get("id"), category.get("name")
            if not isinstance(number, int) or not isinstance(name, str) or number in own or name in own.values():
                raise DataError(f"{path}: categories[{index}] has no id and name of its own; give each category both")
            own[number] = name
        if not own:
            raise DataError(f"{path}: names no categories; add them")
        if first is not None and own != known:
            raise DataError(f"{first} and {path}: have other categories; write the same into both")
        known, first = own, path
    return known


def _split(
    folder: Path, part: str, path: Path, document: dict[str, Any], numbers: Mapping[int, int], names: tuple[str, ...],
    counts: BoxCounts,
) -> FileBoxSplit:  # fmt: skip
    """The images of one file with their boxes."""
    by_image: dict[Any, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for index, annotation in enumerate(document["annotations"]):
        by_image[_hashable(annotation.get("image_id"))].append((index, annotation))
    root = _image_folder(folder, part, path, document)
    images: list[Path] = []
    annotations: list[Annotation] = []
    seen: set[Any] = set()
    for index, entry in enumerate(document["images"]):
        where, number = f"{path}: images[{index}]", _hashable(entry.get("id"))
        if number is None or number in seen:
            raise DataError(f"{where}: its id is {entry.get('id')!r:.40}; give every image one of its own")
        seen.add(number)
        file = inside(root, entry.get("file_name"), where)
        size = _size(entry, file, where)
        boxes = ImageBoxes((size[1], size[0]), 1.0, counts)
        for place, annotation in by_image.pop(number, ()):
            _add(boxes, annotation, numbers, f"{path}: annotations[{place}]")
        images.append(file)
        annotations.append(Annotation(boxes.objects(), size))
    if by_image:
        place, annotation = next(iter(by_image.values()))[0]
        raise DataError(
            f"{path}: annotations[{place}]: there is no image {annotation.get('image_id')!r:.40}; remove it"
        )
    if not images:
        raise DataError(f"{path}: names no images; add them")
    return FileBoxSplit(tuple(images), tuple(annotations), names)


def _add(boxes: ImageBoxes, annotation: dict[str, Any], numbers: Mapping[int, int], where: str) -> None:
    box, category = annotation.get("bbox"), annotation.get("category_id")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(number) for number in box):
        raise DataError(f"{where}: bbox is {box!r:.60}; write left, top, width and height")
    if not isinstance(category, int) or category not in numbers:
        raise DataError(f"{where}: there is no category {category!r:.40}; add it or correct category_id")
    left, top, width, height = map(float, box)
    ignored = bool(annotation.get("iscrowd", 0))
    boxes.add((left, top, left + width, top + height), numbers[category], ignored, where)


def _image_folder(folder: Path, part: str, path: Path, document: dict[str, Any]) -> Path:
    """Where the images of a file lie: the first folder that has its first image."""
    if not document["images"]:
        return folder
    word = path.stem.rpartition("_")[2]  # train2017
    spellings = dict.fromkeys((word, part, *SPLIT_NAMES.get(part, ())))
    within = [folder / parent / spelling for spelling in spellings for parent in ("", "images")]
    places = [*within, folder / "images", path.parent, folder]
    name = document["images"][0].get("file_name")
    found = next((place for place in places if inside(place, name, f"{path}: images[0]").is_file()), None)
    if found is None:
        tried = ", ".join(f"{place.relative_to(folder)}/" for place in dict.fromkeys((*within[:2], folder / "images")))
        raise DataError(f"{path}: {name} is not in {tried} or beside the file; put the images there")
    return found


def _size(entry: dict[str, Any], file: Path, where: str) -> tuple[int, int]:
    """Height and width, from the image itself where the file does not say."""
    size = entry.get("height"), entry.get("width")
    if size == (None, None):
        return image_size(file)
    height, width = size
    if not isinstance(height, int) or not isinstance(width, int) or height < 1 or width < 1:
        raise DataError(f"{where}: height is {height!r:.20} and width {width!r:.20}; write the image's")
    return height, width


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
