"""Texts in tables: JSON lines, CSV, TSV and Parquet, with a column of texts and perhaps one of labels."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from prunecli.data.splits import too_large
from prunecli.errors import DataError, first_line
from prunecli.measure.environment import memory_bytes

SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
_TEXTS = ("text", "sentence", "content")
_PAIRS = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text1", "text2"))
_LABELS = ("label", "labels", "class", "target")
_EXPANSION = 12
"""Bytes of memory for each byte of a table, about."""
_LONGEST_CELL = 1 << 27
_NAMED = 12
_NEGATIVE = re.compile(r"-\d+")


@dataclass(frozen=True)
class Columns:
    """Which columns are read.

    Attributes:
        texts: Names of the column of texts, or of the two columns of a pair; empty: those with usual names.
        label: Name of the column of labels; None: the one with a usual name.
        labelled: Whether labels are needed.
    """

    texts: tuple[str, ...] = ()
    label: str | None = None
    labelled: bool = False


@dataclass(frozen=True)
class Table:
    """The rows of one file, or of several that belong together.

    Attributes:
        texts: One for each row.
        others: The second text of each row; None: there is one text in a row.
        labels: One for each row: numbers, or names; None: they were not asked for.
        class_names: Names of the numbers, where the file says so.
        blank: Rows without text, which were left out.
    """

    texts: list[str]
    others: list[str] | None = None
    labels: list[int] | list[str] | None = None
    class_names: tuple[str, ...] = ()
    blank: int = 0


def is_table(path: Path) -> bool:
    """Whether a file is a table, by its name."""
    return kind_of(path) in SUFFIXES


def read_table(files: Sequence[Path], columns: Columns) -> Table:
    """Reads tables one after the other; rows whose texts are all blank are left out.

    Raises:
        DataError: A column is missing, a cell holds something else, or a file is damaged or too large.
    """
    tables = [_read(file, columns) for file in files]
    first = tables[0]
    if any((table.others is None) != (first.others is None) for table in tables):
        raise DataError(
            f"{files[0].parent}: some of its files have pairs of texts and some have not; name --text-column"
        )
    labels = [label for table in tables for label in table.labels or ()]
    whole = Table(
        [text for table in tables for text in table.texts],
        None if first.others is None else [text for table in tables for text in table.others or ()],
        of_one_kind(labels, files[0]) if columns.labelled else None,
        first.class_names,
        sum(table.blank for table in tables),
    )
    if not whole.texts:
        raise DataError(f"{files[0]}: has no rows with text; give a file with texts")
    return whole


def _read(file: Path, columns: Columns) -> Table:
    names = column_names(file)
    chosen = _text_columns(file, names, columns.texts)
    label = None
    if columns.labelled:
        label = column_called(file, names, columns.label, _LABELS, "the classes", "--label-column")
    texts: list[list[str]] = [[] for _ in chosen]
    labels: list[Any] = []
    blank = 0
    for place, row in table_rows(file, [*chosen, *([label] if label is not None else [])]):
        cells = [_text(row.get(name), name, file, place) for name in chosen]
        if not any(cell.strip() for cell in cells):
            blank += 1
            continue
        if label is not None:
            labels.append(checked_label(row.get(label), label, file, place))
        for column, cell in zip(texts, cells, strict=True):
            column.append(cell)
    names_of_classes = recorded_classes(file, label) if label is not None else ()
    return Table(texts[0], texts[1] if len(texts) > 1 else None, labels, names_of_classes, blank)


def _text_columns(file: Path, names: Sequence[str], asked: tuple[str, ...]) -> tuple[str, ...]:
    for name in asked:
        if name not in names:
            raise DataError(f"{file}: has no column {name!r}; it has {listed(names)}: name one with --text-column")
    if asked:
        return asked
    alone = next(((name,) for name in _TEXTS if name in names), None)
    pair = next((pair for pair in _PAIRS if set(pair) <= set(names)), None)
    found = alone or pair
    if found is None:
        raise DataError(
            f"{file}: none of its columns is called {', '.join(_TEXTS)}; it has {listed(names)}: name the one with "
            "the texts with --text-column"
        )
    return found


def column_called(
    file: Path, names: Sequence[str], asked: str | None, usual: Sequence[str], content: str, option: str
) -> str:
    """The column that the user names, else the first with a usual name.

    Args:
        file: The table.
        names: Its columns.
        asked: What the user names; None: nothing.
        usual: Usual names.
        content: What it holds, for messages.
        option: The option that names it, for messages.

    Raises:
        DataError: There is none.
    """
    found = asked if asked is not None else next((name for name in usual if name in names), None)
    if found is None or found not in names:
        missing = f"no column {asked!r}" if asked is not None else f"no column called {', '.join(usual)}"
        raise DataError(f"{file}: has {missing}; it has {listed(names)}: name the one with {content} with {option}")
    return found


def listed(names: Sequence[str]) -> str:
    """Names of columns for a message."""
    shown = ", ".join(repr(name)[:60] for name in names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown or "no columns"


def _text(value: Any, name: str, file: Path, place: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise DataError(
        f"{file}, {place}: {name!r} is {type(value).__name__}, no text; name the column with the texts with "
        "--text-column"
    )


def checked_label(value: Any, name: str, file: Path, place: str) -> int | str:
    """A label as a number or a name.

    Raises:
        DataError: It is neither.
    """
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.strip() and not _NEGATIVE.fullmatch(value.strip()):
        return value.strip()
    if isinstance(value, int) and value >= 0:
        return value
    raise DataError(
        f"{file}, {place}: {name!r} is {value!r:.40}, no class; give a file in which every row has a name or a number "
        "from 0 on (a test set without labels cannot be used)"
    )


def of_one_kind(labels: list[Any], file: Path) -> list[int] | list[str]:
    """Labels as numbers if all are numbers, also where a text file holds them as texts, else as names."""
    if all(isinstance(label, int) or label.isdecimal() for label in labels):
        return [int(label) for label in labels]
    if any(isinstance(label, int) for label in labels):
        raise DataError(f"{file}: some of its labels are numbers and some are names; use one kind")
    return labels


def column_names(file: Path) -> list[str]:
    """Names of columns; of JSON lines, the keys of the first."""
    if kind_of(file) == ".parquet":
        return list(_parquet(file).schema_arrow.names)
    with opened(file) as stream:
        if kind_of(file) == ".jsonl":
            return list(next((row for _, row in _json_rows(file, stream)), {}))
        return next(iter(_csv_cells(file, stream)), (1, []))[1]


def table_rows(file: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a table, each with its place in the file, for messages.

    Args:
        file: The table.
        wanted: The columns to read, where others can be skipped.

    Raises:
        DataError: The file is damaged or too large.
    """
    if kind_of(file) == ".parquet":
        yield from _parquet_rows(file, wanted)
        return
    with opened(file) as stream:
        yield from _json_rows(file, stream) if kind_of(file) == ".jsonl" else _csv_rows(file, stream)


def kind_of(file: Path) -> str:
    """The format of a table, by its name."""
    return file.suffix.lower()


@contextmanager
def opened(file: Path) -> Iterator[TextIO]:
    """A table that is a text, to be read.

    Raises:
        DataError: It cannot be read, is not UTF-8, or does not fit into memory.
    """
    try:
        size = file.stat().st_size
        if size * _EXPANSION > memory_bytes():
            raise DataError(f"{file}: {too_large(size * _EXPANSION)}; give a part of it")
        with file.open(encoding="utf-8-sig", newline="") as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file}: is not UTF-8, so no table or one in another encoding; convert it, for instance with iconv -f "
            "latin1 -t utf-8"
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error}); give a table of texts") from error


def _json_rows(file: Path, stream: TextIO) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            cause = "nested too deep" if isinstance(error, RecursionError) else str(error)[:100]
            raise DataError(f"{file}, line {number}: no JSON ({cause}); write one object on each line") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: no object with names and values; write one on each line")
        yield f"line {number}", row


def _csv_rows(file: Path, stream: TextIO) -> Iterator[tuple[str, Mapping[str, Any]]]:
    lines = _csv_cells(file, stream)
    _, names = next(lines, (1, []))
    for number, cells in lines:
        if len(cells) != len(names):
            raise DataError(
                f"{file}, line {number}: has {len(cells)} cells where the first line names {len(names)} columns; put "
                "texts with commas or line breaks in quotes"
            )
        yield f"line {number}", dict(zip(names, cells, strict=True))


def _csv_cells(file: Path, stream: TextIO) -> Iterator[tuple[int, list[str]]]:
    """The cells of every line that has some, with the line's number."""
    before = csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader(stream, delimiter="\t" if kind_of(file) == ".tsv" else ",", strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        kind = kind_of(file)[1:].upper()
        raise DataError(f"{file}, line {reader.line_num}: no {kind} ({error}); repair the file") from error
    finally:
        csv.field_size_limit(before)


def _parquet(file: Path) -> Any:
    """An open Parquet file.

    Raises:
        DataError: pyarrow is missing, or the file is damaged.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{file}: reading it needs pyarrow; install prunecli[transformers]") from error
    try:
        return parquet.ParquetFile(file)
    except Exception as error:  # its own types, OSError and others
        raise DataError(
            f"{file}: no readable Parquet file ({first_line(error, 160)}); fetch or make it again"
        ) from error


def _parquet_rows(file: Path, wanted: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    opened = _parquet(file)
    metadata = opened.metadata
    size = sum(metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups))
    if size * _EXPANSION > memory_bytes():
        raise DataError(f"{file}: {too_large(size * _EXPANSION)}; give a part of it")
    number = 0
    try:
        for batch in opened.iter_batches(columns=list(wanted)):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"{file}: damaged after row {number} ({first_line(error, 160)}); fetch or make it again"
        ) from error


def recorded_classes(file: Path, label: str) -> tuple[str, ...]:
    """Names of classes as the `datasets` library of Hugging Face writes them into Parquet files; empty without them.

    Args:
        file: The table.
        label: Its column of classes, or of lists of them.
    """
    if kind_of(file) != ".parquet":
        return ()
    metadata = _parquet(file).schema_arrow.metadata or {}
    try:
        said = json.loads(metadata[b"huggingface"])["info"]["features"][label]
        names = said.get("feature", said)["names"]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
