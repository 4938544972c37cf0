"""Pascal VOC's layout: JPEGImages/, an XML file for each image in Annotations/, and lists in ImageSets/Main/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

from prunecli.data.box_checks import BoxCounts, ImageBoxes
from prunecli.data.box_layouts import BoxLayout, check_names, images_in, read_small
from prunecli.data.boxes import Annotation, FileBoxSplit
from prunecli.data.images import image_size
from prunecli.data.splits import SPLIT_NAMES, read_lines
from prunecli.errors import DataError

_CLASSES_FILE = "classes.txt"


def read(folder: Path) -> BoxLayout | None:
    """Reads the XML files of a folder; None if it has not this layout.

    Pixels count from one, so left and top are one less than in the files. What is marked as difficult is ignored.

    Raises:
        DataError: A file is damaged, or an image has none.
    """
    images, annotations = folder / "JPEGImages", folder / "Annotations"
    if not (images.is_dir() and annotations.is_dir()):
        return None
    by_stem = {path.stem: path for path in images_in(images)}
    stems = _stems(folder, annotations) or {
        "all": [stem for stem in by_stem if (annotations / f"{stem}.xml").is_file()]
    }
    if not any(stems.values()):
        raise DataError(
            f"{annotations}: no image has an annotation, such as {next(iter(by_stem), 'image')}.xml; add them"
        )
    parsed = {stem: _parsed(annotations / f"{stem}.xml") for part in stems.values() for stem in part}
    classes = folder / _CLASSES_FILE
    said = (
        read_lines(classes)
        if classes.is_file()
        else sorted({name for tree in parsed.values() for name in _names(tree)})
    )
    names = check_names(said, classes if classes.is_file() else annotations)
    counts = BoxCounts()
    parts = {part: _split(own, by_stem, parsed, annotations, names, counts) for part, own in stems.items()}
    return BoxLayout("Pascal VOC", names, parts, counts.notes(folder.name))


def _stems(folder: Path, annotations: Path) -> dict[str, list[str]]:
    """Names of images by part, as the lists say; the official test lists name images without annotations."""
    lists = folder / "ImageSets" / "Main"
    stems: dict[str, list[str]] = {}
    for part in SPLIT_NAMES:
        path = lists / f"{part}.txt"
        listed = [line.split()[0] for line in read_lines(path)] if path.is_file() else []
        if listed and (part != "test" or (annotations / f"{listed[0]}.xml").is_file()):
            stems[part] = listed
    return stems


def _parsed(path: Path) -> ElementTree.Element:
    text = read_small(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise DataError(f"{path}: defines entities, which annotations never do; remove them")
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a readable XML file ({error}); write it again") from error


def _names(tree: ElementTree.Element) -> list[str]:
    return [(entry.findtext("name") or "").strip() for entry in tree.iter("object")]


def _split(
    stems: list[str], by_stem: Mapping[str, Path], parsed: Mapping[str, ElementTree.Element], annotations: Path,
    names: tuple[str, ...], counts: BoxCounts,
) -> FileBoxSplit:  # fmt: skip
    images, own = [], []
    for stem in stems:
        path = annotations / f"{stem}.xml"
        if stem not in by_stem:
            raise DataError(f"{path}: there is no image {stem} in JPEGImages/; add it, or take it from the list")
        tree = parsed[stem]
        size = _size(tree, by_stem[stem], path)
        boxes = ImageBoxes((size[1], size[0]), 1.0, counts)
        for number, entry in enumerate(tree.iter("object"), start=1):
            where, name = f"{path}: object {number}", (entry.findtext("name") or "").strip()
            if name not in names:
                raise DataError(f"{where}: there is no class {name!r:.60}; add it to {_CLASSES_FILE} or correct it")
            left, top, right, bottom = (
                _number(entry, f"bndbox/{side}", where) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            ignored = _number(entry, "difficult", where, default=0.0) != 0
            boxes.add((left - 1, top - 1, right, bottom), names.index(name), ignored, where)
        images.append(by_stem[stem])
        own.append(Annotation(boxes.objects(), size))
    return FileBoxSplit(tuple(images), tuple(own), names)


def _size(tree: ElementTree.Element, image: Path, path: Path) -> tuple[int, int]:
    """Height and width, from the image itself where the file does not say."""
    if tree.find("size/width") is None:
        return image_size(image)
    height, width = (int(_number(tree, f"size/{side}", str(path))) for side in ("height", "width"))
    return (height, width) if height > 0 and width > 0 else image_size(image)


def _number(entry: ElementTree.Element, name: str, where: str, default: float | None = None) -> float:
    text = (entry.findtext(name) or "").strip()
    if not text and default is not None:
        return default
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{where}: {name.rpartition('/')[2]} is {text!r:.40}; write a number") from error
