"""Words with a tag each: tables with a list of both in every row, and CoNLL files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.data.text_tables import (
    Columns,
    checked_label,
    column_called,
    column_names,
    kind_of,
    of_one_kind,
    opened,
    recorded_classes,
    table_rows,
)
from prunecli.errors import DataError

CONLL = ".conll"
SUFFIXES = (".jsonl", ".parquet", CONLL)
_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels")
_DOCUMENT = "-DOCSTART-"
_COMMENT = "# "


@dataclass(frozen=True)
class TaggedTable:
    """Texts of separate words.

    Attributes:
        words: Those of each text; no text is empty.
        tags: One for each word, text after text: numbers, or names.
        class_names: Names of the numbers, where the file says so.
        blank: Rows without words, which were left out.
    """

    words: list[list[str]]
    tags: list[int] | list[str]
    class_names: tuple[str, ...] = ()
    blank: int = 0


def is_tagged(path: Path) -> bool:
    """Whether a file can have words with tags, by its name."""
    return kind_of(path) in SUFFIXES


def read_tagged(files: Sequence[Path], columns: Columns) -> TaggedTable:
    """Reads files one after the other; rows without words are left out.

    Args:
        files: At least one.
        columns: What the user says about columns.

    Raises:
        DataError: A column is missing, a row has not as many tags as words or something else in it, or a file is
            damaged or too large.
    """
    if len(columns.texts) > 1:
        raise DataError(f"{files[0]}: words are read from one column; name one with --text-column")
    words: list[list[str]] = []
    tags: list[Any] = []
    names: tuple[str, ...] = ()
    blank = 0
    for file in files:
        if kind_of(file) == CONLL:
            rows: Iterator[_Row] = _conll_rows(file, columns)
        else:
            word_column, tag_column = _columns(file, columns)
            names = names or recorded_classes(file, tag_column)
            rows = _rows(file, word_column, tag_column)
        for own_words, own_tags in rows:
            blank += not own_words
            words += [own_words] if own_words else []
            tags += own_tags
    if not words:
        raise DataError(f"{files[0]}: has no rows with words; give a file with words and tags")
    return TaggedTable(words, of_one_kind(tags, files[0]), names, blank)


_Row = tuple[list[str], list[int | str]]


def _columns(file: Path, columns: Columns) -> tuple[str, str]:
    if kind_of(file) not in SUFFIXES:
        raise DataError(
            f"{file}: its cells are no lists of words and tags; give a table with these (.jsonl, .parquet), or a CoNLL "
            "file (.conll)"
        )
    names, asked = column_names(file), next(iter(columns.texts), None)
    return (
        column_called(file, names, asked, _WORDS, "the words", "--text-column"),
        column_called(file, names, columns.label, _TAGS, "the tags", "--label-column"),
    )


def _rows(file: Path, word_column: str, tag_column: str) -> Iterator[_Row]:
    for place, row in table_rows(file, [word_column, tag_column]):
        words = _entries(row.get(word_column), word_column, file, place, "words", "--text-column")
        tags = _entries(row.get(tag_column), tag_column, file, place, "tags", "--label-column")
        if words and not tags:
            raise DataError(f"{file}, {place}: has words and no tags in {tag_column!r}; give every word a tag")
        if len(words) != len(tags):
            raise DataError(
                f"{file}, {place}: has {len(words)} words in {word_column!r} and {len(tags)} tags in {tag_column!r}; "
                "give every word a tag"
            )
        for word in words:
            if not isinstance(word, str):
                raise DataError(
                    f"{file}, {place}: {word_column!r} has {word!r:.40} in its list, no word; name the column with the "
                    "words with --text-column"
                )
        yield words, [checked_label(tag, tag_column, file, place) for tag in tags]


def _entries(value: Any, name: str, file: Path, place: str, content: str, option: str) -> list[Any]:
    if value is None:
        return []
    if isinstance(value, list):
        return value
    raise DataError(
        f"{file}, {place}: {name!r} is {type(value).__name__}, no list of {content}; name the column with them with "
        f"{option}"
    )


def _conll_rows(file: Path, columns: Columns) -> Iterator[_Row]:
    """The sentences of a CoNLL file: a word, perhaps other columns, and a tag on each line, and blank lines between.

    Comments stand before a sentence; within one, "#" is a word.
    """
    if columns.texts or columns.label is not None:
        raise DataError(
            f"{file}: columns of a CoNLL file have no names, the word is the first and the tag the last: leave "
            "--text-column and --label-column out"
        )
    words: list[str] = []
    tags: list[int | str] = []
    with opened(file) as stream:
        for number, line in enumerate(stream, start=1):
            # Words may contain spaces where tabs separate the columns.
            cells = [cell.strip() for cell in line.rstrip("\r\n").split("\t")] if "\t" in line else line.split()
            if not any(cells) or cells[0] == _DOCUMENT:
                if words:
                    yield words, tags
                words, tags = [], []
            elif words or not line.startswith(_COMMENT):
                if len(cells) < 2 or not cells[0] or not cells[-1]:
                    raise DataError(
                        f"{file}, line {number}: {line.strip()!r:.60} is no word with a tag; write the word first and "
                        "the tag last on each line, and blank lines between sentences"
                    )
                words.append(cells[0])
                tags.append(checked_label(cells[-1], "the last column", file, f"line {number}"))
    if words:
        yield words, tags
