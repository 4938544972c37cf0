"""YOLO's layout: images/ and labels/, a text file for each image, and data.yaml or a list of classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunecli.data.box_checks import BoxCounts, ImageBoxes
from prunecli.data.box_layouts import BoxLayout, check_names, images_in, inside, read_small
from prunecli.data.boxes import Annotation, FileBoxSplit, Objects
from prunecli.data.splits import SPLIT_NAMES, read_lines
from prunecli.errors import DataError

_LISTS = ("classes.txt", "obj.names", "labels/classes.txt")
_CENTRED, _CORNERS = 5, 7
"""Numbers in a line with a box, and the fewest in one with an outline."""
_PIXEL = 1e-3
"""About a pixel, as a share of an image."""


def read(folder: Path) -> BoxLayout | None:
    """Reads the label files of a folder; None if there are none.

    Raises:
        DataError: One is wrong, or the classes have no names.
    """
    settings = _settings(folder)
    places = dict(_places(folder, settings))
    if not places:
        return None
    names = _class_names(folder, settings)
    counts, notes = BoxCounts(), []
    parts: dict[str, FileBoxSplit] = {}
    for part, (images, labels) in places.items():
        parts[part], without = _split(images, labels, names, counts)
        if without:
            notes.append(f"{images}: images without a label file, taken as without objects: {without:,}")
    return BoxLayout("YOLO", names, parts, (*notes, *counts.notes(folder.name)))


def _settings(folder: Path) -> dict[str, Any]:
    """What data.yaml, or the only other file of its kind, says."""
    import yaml

    files = [folder / "data.yaml"] if (folder / "data.yaml").is_file() else sorted(folder.glob("*.yaml"))
    if len(files) != 1:
        return {}
    try:
        read: Any = yaml.safe_load(read_small(files[0]))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{files[0]}: not a readable YAML file ({' '.join(str(error).split())[:120]})") from error
    return {**read, "file": files[0]} if isinstance(read, dict) else {}


def _places(folder: Path, settings: dict[str, Any]) -> Iterator[tuple[str, tuple[Path, Path]]]:
    """By part, where images and labels are: as data.yaml says, as is usual, or without parts."""
    found = False
    for part, spellings in SPLIT_NAMES.items():
        said = settings.get(part) if isinstance(settings.get(part), str) else None
        candidates = [_without_dots(said)] if said else []
        candidates += [f"images/{spelling}" for spelling in spellings] + [
            f"{spelling}/images" for spelling in spellings
        ]
        for name in candidates:
            images = inside(folder, name or "images", f"{settings.get('file', folder)}: {part}")
            labels = _labels_of(images, folder)
            if images.is_dir() and labels is not None and labels.is_dir():
                found = True
                yield part, (images, labels)
                break
    if not found and (folder / "images").is_dir() and any((folder / "labels").glob("*.txt")):
        yield "all", (folder / "images", folder / "labels")


def _without_dots(name: str) -> str:
    """Roboflow writes ../train/images, as seen from another folder."""
    return "/".join(piece for piece in name.replace("\\", "/").split("/") if piece not in ("", ".", ".."))


def _labels_of(images: Path, folder: Path) -> Path | None:
    """The folder with labels: the last `images` in the path is `labels`."""
    pieces = list(images.relative_to(folder).parts)
    if "images" not in pieces:
        return None
    last = len(pieces) - 1 - pieces[::-1].index("images")
    return folder.joinpath(*pieces[:last], "labels", *pieces[last + 1 :])


def _class_names(folder: Path, settings: dict[str, Any]) -> tuple[str, ...]:
    named = settings.get("names")
    if named is not None:
        file: Path = settings["file"]
        if isinstance(named, dict):
            if sorted(named, key=str) != sorted(range(len(named)), key=str):
                raise DataError(f"{file}: names are numbered {list(named)[:4]} ...; number them from 0")
            named = [named[number] for number in range(len(named))]
        if not isinstance(named, list):
            raise DataError(f"{file}: names is {named!r:.60}; write a list")
        names = check_names([str(name) if isinstance(name, int) else name for name in named], file)
        if isinstance(settings.get("nc"), int) and settings["nc"] != len(names):
            raise DataError(f"{file}: nc is {settings['nc']} and there are {len(names)} names; correct one of them")
        return names
    path = next((folder / name for name in _LISTS if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder}: nothing names the classes; add data.yaml with names, or classes.txt")
    return check_names(read_lines(path), path)


def _split(images: Path, labels: Path, names: tuple[str, ...], counts: BoxCounts) -> tuple[FileBoxSplit, int]:
    """The images of a folder with their boxes, and how many have no label file."""
    files = images_in(images)
    if not files:
        raise DataError(f"{images}: no images; put them there, with labels in {labels}")
    known = {path.stem for path in labels.glob("*.txt")}
    without = sum(file.stem not in known for file in files)
    if without == len(files):
        raise DataError(f"{labels}: no image has a label file, such as {files[0].stem}.txt; put them there")
    annotations = []
    for file in files:
        path = labels / f"{file.stem}.txt"
        objects = _objects(path, names, counts) if file.stem in known else ImageBoxes((1, 1), _PIXEL, counts).objects()
        annotations.append(Annotation(objects, shares=True))
    return FileBoxSplit(tuple(files), tuple(annotations), names), without


def _objects(path: Path, names: tuple[str, ...], counts: BoxCounts) -> Objects:
    """The lines of a label file: class, and centre, width and height, or the corners of an outline."""
    boxes = ImageBoxes((1.0, 1.0), _PIXEL, counts)
    for number, line in enumerate(read_small(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        where = f"{path}:{number}"
        try:
            label, values = float(words[0]), [float(word) for word in words[1:]]
        except ValueError as error:
            raise DataError(f"{where}: {line.strip()!r:.60} is not made of numbers; correct it") from error
        outline = len(words) >= _CORNERS and len(words) % 2 == 1
        if len(words) != _CENTRED and not outline:
            raise DataError(f"{where}: {len(words)} numbers; write class, centre x, centre y, width and height")
        if not label.is_integer() or not 0 <= label < len(names):
            raise DataError(f"{where}: there is no class {words[0]}, only 0 to {len(names) - 1}; correct it")
        if any(not math.isfinite(value) or abs(value) > 2 for value in values):
            raise DataError(f"{where}: {line.strip()!r:.60} is in pixels; write shares of the image's width and height")
        boxes.add(_corners(values, outline), int(label), False, where)
    return boxes.objects()


def _corners(values: list[float], outline: bool) -> tuple[float, float, float, float]:
    if outline:
        return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    x, y, width, height = values
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2
