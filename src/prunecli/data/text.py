"""`text:PATH`: a folder with texts to train, validate and test on, or one text that is divided into the three."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunecli.data.splits import ImageData, too_large
from prunecli.data.token_batches import TextSplit
from prunecli.data.vocabulary import Level, Vocabulary
from prunecli.errors import DataError
from prunecli.measure.environment import memory_bytes

DEFAULT_LENGTHS: Mapping[Level, int] = {"word": 35, "char": 64}
"""Tokens in a sequence, by level."""
TASKS: Mapping[Level, str] = {"word": "word-language", "char": "character-language"}
_PARTS = {"train": ("train", "training"), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
_SUFFIXES = ("", ".txt", ".tokens", ".raw")
_SHARES = {"train": 0.9, "valid": 0.05, "test": 0.05}
"""Of the characters of a single file, from its beginning."""
_MOST_TOKENS = 1_000_000
_MOST_CHARACTERS = 10_000_000
_EXPANSION = 24
"""Bytes of memory for each byte of a text, about."""


@dataclass(frozen=True)
class TextReading:
    """How a text is read.

    Attributes:
        level: "word" or "char"; None: the vocabulary's, else words in a folder and characters in a single file.
        length: Tokens in a sequence; None: see `DEFAULT_LENGTHS`.
        vocabulary: That of a network that has one already; None: made from the training text.
    """

    level: Level | None = None
    length: int | None = None
    vocabulary: Vocabulary | None = None


def load(path: str, root: Path, download: bool, reading: TextReading | None = None) -> ImageData:
    """Reads texts; a relative PATH is looked for in the current folder, then in the data folder.

    A folder has one file for each of train, valid and test, named as in Penn Treebank (`ptb.train.txt`), WikiText
    (`wiki.train.tokens`) or plainly (`train.txt`). Of a single file, the first 90 % of the characters are the training
    text, the next 5 % the validation text and the rest the test text.

    Raises:
        DataError: A file is missing, empty, too short or no UTF-8 text.
    """
    reading = reading or TextReading()
    relative = Path(path).expanduser()
    found = next((candidate for candidate in (relative, root / relative) if candidate.exists()), None)
    if found is None:
        raise DataError(f"text:{path}: no such file or folder; give a text, or a folder with train, valid and test")
    if found.is_dir():
        files = _files(found, optional=reading.vocabulary is not None)
        texts = {part: _read(file) for part, file in files.items()}
    else:
        files = dict.fromkeys(_PARTS, found)
        texts = _divided(_read(found))
    level = reading.level or (reading.vocabulary.level if reading.vocabulary else "word" if found.is_dir() else "char")
    vocabulary = reading.vocabulary or _vocabulary(texts["train"], level, files["train"])
    length = reading.length or DEFAULT_LENGTHS[level]
    splits = {part: _split(vocabulary.encode(text), length, vocabulary, files[part]) for part, text in texts.items()}
    return ImageData(
        name=f"text:{path}",
        class_names=vocabulary.tokens,
        channels=0,
        image_size=None,
        mean=(),
        std=(),
        flip=False,
        train=splits.get("train"),
        validation=splits.get("valid"),
        test=splits["test"],
        task=TASKS[level],  # type: ignore[arg-type]
        samples="tokens",
        missing=_missing(found, splits),
        notes=_notes(splits, reading.vocabulary),
        vocabulary=vocabulary,
    )


def _files(folder: Path, optional: bool) -> dict[str, Path]:
    """The file of each part; with `optional`, only the test text has to be there.

    Raises:
        DataError: One is missing, or there are several.
    """
    texts = sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in _SUFFIXES)
    files: dict[str, Path] = {}
    for part, words in _PARTS.items():
        fitting = [file for file in texts if not set(words).isdisjoint(re.split(r"[._-]", file.name.lower()))]
        # Penn Treebank's archive has a second version, spelled, beside the words.
        fitting = [file for file in fitting if "char" not in file.name.split(".")] or fitting
        if len(fitting) > 1:
            names = " and ".join(file.name for file in fitting)
            raise DataError(f"{folder}: {names} could both be the {part} text; leave one of them in the folder")
        if fitting:
            files[part] = fitting[0]
        elif part == "test" or not optional:
            raise DataError(
                f"{folder}: has no {part} text; name one {part}.txt (or ptb.{part}.txt, wiki.{part}.tokens), or give "
                "a single file, which is divided"
            )
    return files


def _read(file: Path) -> str:
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


def _divided(text: str) -> dict[str, str]:
    first = round(len(text) * _SHARES["train"])
    second = first + round(len(text) * _SHARES["valid"])
    return {"train": text[:first], "valid": text[first:second], "test": text[second:]}


def _vocabulary(text: str, level: Level, file: Path) -> Vocabulary:
    """The vocabulary of a training text.

    Raises:
        DataError: It is larger than networks and checkpoints take.
    """
    vocabulary = Vocabulary.of(text, level)
    if len(vocabulary) > _MOST_TOKENS or sum(map(len, vocabulary.tokens)) > _MOST_CHARACTERS:
        raise DataError(
            f"{file}: {len(vocabulary):,} different words are too many (at most {_MOST_TOKENS:,}, of "
            f"{_MOST_CHARACTERS:,} characters together): replace rare ones by <unk>, or read it by --level char"
        )
    return vocabulary


def _split(tokens: NDArray[np.int64], length: int, vocabulary: Vocabulary, file: Path) -> TextSplit:
    """A text as a split.

    Raises:
        DataError: It is shorter than one sequence.
    """
    if len(tokens) <= length:
        noun = "words" if vocabulary.level == "word" else "characters"
        raise DataError(
            f"{file}: a split of {len(tokens)} {noun} is shorter than one sequence of {length} and the {noun[:-1]} "
            "after it; give a longer text, or a smaller --bptt"
        )
    return TextSplit(tokens, length, vocabulary)


def _missing(folder: Path, splits: Mapping[str, TextSplit]) -> str:
    absent = next((part for part in ("train", "valid") if part not in splits), None)
    return "" if absent is None else f"{folder}: has no {absent} text; name one {absent}.txt"


def _notes(splits: Mapping[str, TextSplit], known: Vocabulary | None) -> tuple[str, ...]:
    """How much of the texts is unknown to a vocabulary that was made from another."""
    if known is None:
        return ()
    shares = {part: float(np.mean(split.tokens == known.unknown)) for part, split in splits.items()}
    return tuple(f"{share:.2%} of the {part} text is {known.tokens[known.unknown]}" for part, share in shares.items()
                 if share > 0)  # fmt: skip
