"""Class names and prompts for zero-shot classification: built in for common sets, or from files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunecli.data.splits import DataSet, read_lines
from prunecli.data.webdataset import TarSplit, templates_file
from prunecli.errors import DataError

_PLACEHOLDERS = ("{c}", "{}")
_OF_SMALL_PHOTOS = (
    "a photo of a {}.",
    "a blurry photo of a {}.",
    "a small photo of a {}.",
    "a low resolution photo of a {}.",
    "a photo of the {}.",
)
_OF_DIGITS = ('a photo of the number: "{}".', "the handwritten digit {}.", "a {}.")
_DEFAULT = ("a photo of a {}.", "{}")
_FIRST_OF_IMAGENET = "n01440764"
"""WordNet id of ImageNet's first class."""
_DIGITS = ("mnist", "digits", "cluttered-mnist")


def class_texts(data: DataSet, file: str | None = None) -> tuple[str, ...]:
    """What each class of a data set is called in a prompt.

    Args:
        data: The set; ImageNet's 1,000 classes have open_clip's names, others their own without underscores.
        file: A text file with one name per line, or a JSON list.

    Raises:
        DataError: The file cannot be read, has the wrong number of names, or the set has captions.
    """
    if data.task == "retrieval":
        if file is not None:
            raise DataError(f"{data.name}: has captions in place of classes; leave out --class-names")
        return data.class_names
    if file is not None:
        names = read_names(Path(file).expanduser(), "class names")
        if data.task != "unlabelled" and len(names) != data.num_classes:
            raise DataError(f"{file}: has {len(names)} class names and {data.name} has {data.num_classes} classes")
        return names
    if data.class_names[:1] == (_FIRST_OF_IMAGENET,):
        from open_clip import IMAGENET_CLASSNAMES

        return tuple(IMAGENET_CLASSNAMES)
    spoken = [name.replace("_", " ") for name in data.class_names]
    return tuple(name.partition(" - ")[0] if data.name in _DIGITS else name for name in spoken)


def templates(data: DataSet, file: str | None = None) -> tuple[str, ...]:
    """Prompts with `{}` where the class, or the caption, goes.

    Args:
        data: The set.
        file: A text file with one template per line, or a JSON list; `{c}` or `{}` stands for the class. Without it,
            the file of a set `wds:PATH`, if there is one.

    Raises:
        DataError: The file cannot be read, or a template has no placeholder for the class.
    """
    if data.task == "retrieval":
        if file is not None:
            raise DataError(f"{data.name}: has captions in place of classes; leave out --templates")
        return ("{}",)
    if file is None and isinstance(data.test, TarSplit):
        own = templates_file(data.test.root)
        file = None if own is None else str(own)
    if file is not None:
        return read_templates(file)
    if data.class_names[:1] == (_FIRST_OF_IMAGENET,):
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if data.name in _DIGITS:
        return _OF_DIGITS
    return _OF_SMALL_PHOTOS if data.name in ("cifar10", "cifar100") else _DEFAULT


def read_templates(file: str | None) -> tuple[str, ...]:
    """The prompts in a file, as `templates` has them; without a file, those for any classes.

    Raises:
        DataError: The file cannot be read, or a template has no placeholder for the class.
    """
    if file is None:
        return _DEFAULT
    lines = read_names(Path(file).expanduser(), "templates")
    for template in lines:
        if not any(placeholder in template for placeholder in _PLACEHOLDERS):
            raise DataError(f"{file}: template {template!r:.80} has no {{c}} or {{}} for the class")
    return tuple(template.replace("{c}", "{}") for template in lines)


def prompts(texts: Sequence[str], template: str) -> list[str]:
    """The template, filled in for every text."""
    return [template.replace("{}", text) for text in texts]


def read_names(path: Path, what: str) -> tuple[str, ...]:
    """A list of strings from a text file, one on each line, or a JSON file, which may wrap it in a mapping.

    Args:
        path: The file.
        what: What they are, for messages.

    Raises:
        DataError: It holds no such list.
    """
    if path.suffix != ".json":
        entries: Any = read_lines(path)
    else:
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{path}: not a readable JSON file ({error}); write a list of {what}") from error
        if isinstance(entries, dict) and len(entries) == 1:
            entries = next(iter(entries.values()))
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) and entry for entry in entries):
        raise DataError(f"{path}: does not hold a list of {what}; write one on each line, or a JSON list of strings")
    return tuple(entries)
