"""Which files hold the texts to train, validate and test on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from prunecli.data.splits import SPLIT_NAMES, DataSet, too_large
from prunecli.data.text_tables import SUFFIXES as TABLES
from prunecli.errors import DataError
from prunecli.measure.environment import memory_bytes

Part: TypeAlias = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = ("train", "valid", "test")
_WORDS: dict[Part, tuple[str, ...]] = {
    "train": SPLIT_NAMES["train"],
    "valid": SPLIT_NAMES["val"],
    "test": SPLIT_NAMES["test"],
}
_TRAIN_SHARE, _VALID_SHARE = 0.9, 0.05
PLAIN = ("", ".txt", ".tokens", ".raw")
_SHARD = re.compile(r"-\d+-of-\d+$")
_EXPANSION = 24
"""Bytes of memory for each byte of a text, about."""


def find_texts(path: str, root: Path) -> Path:
    """The file or folder at `path`; a relative one is looked for in the current folder, then in `root`.

    Raises:
        DataError: There is none.
    """
    relative = Path(path).expanduser()
    found = next((candidate for candidate in (relative, root / relative) if candidate.exists()), None)
    if found is None:
        raise DataError(f"text:{path}: no such file or folder; give a text, or a folder with train, valid and test")
    return found


def files_of(folder: Path, needed: tuple[Part, ...], others: tuple[str, ...] = ()) -> dict[Part, tuple[Path, ...]]:
    """The files of each part; a table in several files, `train-00000-of-00002.parquet`, counts as one.

    Args:
        folder: The folder.
        needed: The parts that have to be there.
        others: What files may end in, besides those of texts and tables.

    Raises:
        DataError: One is missing, or there are several.
    """
    texts = sorted(
        file for file in folder.iterdir() if file.is_file() and file.suffix.lower() in (*PLAIN, *TABLES, *others)
    )
    files: dict[Part, tuple[Path, ...]] = {}
    for part, words in _WORDS.items():
        fitting = [file for file in texts if not set(words).isdisjoint(re.split(r"[._-]", file.name.lower()))]
        # Penn Treebank's archive has a second version, spelled, beside the words.
        fitting = [file for file in fitting if "char" not in file.name.split(".")] or fitting
        if len(fitting) > 1 and not _one_table(fitting):
            names = " and ".join(file.name for file in fitting)
            raise DataError(f"{folder}: {names} could both be the {part} text; leave one of them in the folder")
        if fitting:
            files[part] = tuple(fitting)
        elif part in needed:
            names = ", ".join(f"{part}{end}" for end in (".jsonl", ".csv", ".parquet", *others))
            raise DataError(
                f"{folder}: has no {part} text; name one {part}.txt (or ptb.{part}.txt, wiki.{part}.tokens, {names}), "
                "or give a single file, which is divided"
            )
    return files


def _one_table(files: list[Path]) -> bool:
    """Whether files are the shards of one table."""
    stems = {_SHARD.sub("", file.stem) for file in files}
    return len(stems) == 1 and all(_SHARD.search(file.stem) and file.suffix in TABLES for file in files)


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        DataError: It is empty, is no UTF-8 text, or does not fit into memory.
    """
    try:
        if file.stat().st_size * _EXPANSION > memory_bytes():
            raise DataError(f"{file}: {too_large(file.stat().st_size * _EXPANSION)}; give a part of it")
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); give a text file") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: byte {error.start:,} is not UTF-8, so this is no text or one in another encoding; convert it, "
            "for instance with iconv -f latin1 -t utf-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{file}: holds zero bytes, so this is no UTF-8 text; give a text file")
    if not text.strip():
        raise DataError(f"{file}: is empty; give a file with text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def part_ends(count: int) -> tuple[int, int]:
    """Where the training and the validation part of a single file end: after 90 and 95 % of its characters or rows."""
    first = round(count * _TRAIN_SHARE)
    return first, first + round(count * _VALID_SHARE)


def text_data(path: str, splits: Mapping[Part, Any], **more: Any) -> DataSet:
    """A data set of texts.

    Args:
        path: What follows "text:".
        splits: Its parts.
        **more: The fields of a `DataSet` that depend on the kind of texts.
    """
    return DataSet(
        name=f"text:{path}",
        channels=0,
        image_size=None,
        mean=(),
        std=(),
        flip=False,
        train=splits.get("train"),
        validation=splits.get("valid"),
        test=splits["test"],
        samples="tokens",
        **more,
    )
