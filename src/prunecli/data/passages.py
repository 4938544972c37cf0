"""Texts with classes, or pairs of texts: every one by itself, in tokens, filled up to the longest of its batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunecli.data.splits import SPLIT_SEED, DataSet, digest
from prunecli.data.text_classes import class_numbers, class_shares, named_classes
from prunecli.data.text_files import Part, files_of, part_ends, text_data
from prunecli.data.text_reading import TextReading, missing_part, resolved_tokenizer
from prunecli.data.text_tables import Table, is_table, read_table
from prunecli.data.tokenizer import Tokenizer
from prunecli.engine.tasks.token_scores import IGNORED
from prunecli.errors import DataError

LONGEST = 512
"""Tokens in the longest passage, where nothing else is said and networks can read as many."""


@dataclass(frozen=True, eq=False)
class PassageSplit:
    """Texts with classes.

    Attributes:
        tokens: Numbers of all tokens, text after text, shape (tokens,).
        segments: For each token, which of the texts of its pair it belongs to; None: networks are not told.
        starts: Where each text begins, and where the last one ends, shape (texts + 1,).
        labels: Class indices, shape (texts,).
        padding: The token that short texts are filled up with, without attention.
        length: Tokens in the longest one that may be.
        tokenizer: What the tokens mean.
    """

    tokens: NDArray[np.int64]
    segments: NDArray[np.int64] | None
    starts: NDArray[np.int64]
    labels: NDArray[np.int64]
    padding: int
    length: int
    tokenizer: Tokenizer

    def sample(self, index: int) -> dict[str, Tensor]:
        """The text at `index`: its tokens, without padding, and ones for attention, shape (tokens,)."""
        place = slice(int(self.starts[index]), int(self.starts[index + 1]))
        tokens = torch.from_numpy(self.tokens[place].copy())
        sample = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
        if self.segments is not None:
            sample["token_type_ids"] = torch.from_numpy(self.segments[place].copy())
        return sample

    def stacked(self, samples: Sequence[Any]) -> dict[str, Tensor]:
        """Texts filled up on the right to the length of the longest, shape (texts, tokens)."""
        fill = {"input_ids": self.padding, "attention_mask": 0, "token_type_ids": 0}
        return {
            name: torch.nn.utils.rnn.pad_sequence(
                [sample[name] for sample in samples], batch_first=True, padding_value=fill[name]
            )
            for name in samples[0]
        }

    def places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which tokens the texts at `indices` have, text after text, shape (their tokens,)."""
        lengths = np.diff(self.starts)[indices]
        return np.repeat(self.starts[indices] - starts_of(lengths)[:-1], lengths) + np.arange(lengths.sum())

    def subset(self, indices: NDArray[np.int64]) -> Self:
        """The texts at `indices`."""
        starts, places = starts_of(np.diff(self.starts)[indices]), self.places(indices)
        return replace(
            self,
            tokens=self.tokens[places],
            segments=None if self.segments is None else self.segments[places],
            starts=starts,
            labels=self.labels[indices],
        )

    def fingerprint(self) -> str:
        """Hash of tokens, labels and tokenizer."""
        arrays = [self.tokens, self.starts, self.labels, *([] if self.segments is None else [self.segments])]
        return digest(self.tokenizer.signature(), *(np.ascontiguousarray(array).data for array in arrays))


@dataclass(frozen=True, eq=False)
class TokenPassages(PassageSplit):
    """Texts whose tokens have labels, of which -100 counts nowhere; their `labels` are all alike."""

    def stacked_labels(self, labels: Sequence[Tensor]) -> Tensor:
        """Labels filled up with -100, shape (texts, tokens)."""
        return torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=IGNORED)


def starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where texts of these lengths begin, and where the last one ends, shape (texts + 1,)."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def load(path: str, found: Path, reading: TextReading) -> DataSet:
    """Reads tables with a column of texts, or two, and a column of labels.

    Args:
        path: As on the command line.
        found: The file or folder.
        reading: How; its tokenizer is needed.

    Raises:
        DataError: There is no table, or it cannot be used.
    """
    if reading.tokenizer is None:
        raise DataError(
            f"text:{path}: texts with classes are read by a tokenizer, and the network has none: name one with "
            "--tokenizer, a file, a folder, or bpe:2000 to train one"
        )
    tables = _tables(path, found, reading)
    training = tables.get("train")
    known = training or tables["test"]
    names = named_classes(reading.class_names or known.class_names, known.labels or (), found, reading.outputs)
    labels = {
        part: class_numbers(table.labels or (), table.class_names, names, found) for part, table in tables.items()
    }
    tokenizer = resolved_tokenizer(reading, [] if training is None else [*training.texts, *(training.others or ())])
    splits, cut = {}, {}
    for part, table in tables.items():
        splits[part], cut[part] = _split(table, labels[part], tokenizer, reading, f"text:{path}")
    longest = max(int(np.diff(split.starts).max()) for split in splits.values())
    length = reading.length or min(longest, next(iter(splits.values())).length)
    splits = {part: replace(split, length=length) for part, split in splits.items()}
    return text_data(
        path,
        splits,
        class_names=names,
        missing=missing_part(found, splits, ("train",)),
        notes=_notes(tables, cut, length),
        labels=class_shares(names, labels.get("train", labels["test"])),
        tokenizer=tokenizer,
    )


def _tables(path: str, found: Path, reading: TextReading) -> dict[Part, Table]:
    if not found.is_dir():
        if not is_table(found):
            raise DataError(
                f"text:{path}: is a plain text, and the network finds classes: give a table with texts and classes "
                "(.jsonl, .csv, .tsv, .parquet), or a folder with them"
            )
        return _divided(read_table((found,), reading.columns), found)
    files = files_of(found, ("test",) if reading.encodes else ("train", "test"))
    for own in files.values():
        if not is_table(own[0]):
            raise DataError(
                f"{own[0]}: is a plain text, and the network finds classes: give tables with texts and classes "
                "(.jsonl, .csv, .tsv, .parquet)"
            )
    return {part: read_table(own, reading.columns) for part, own in files.items()}


def _divided(table: Table, file: Path) -> dict[Part, Table]:
    """The parts of a single table, whose rows may be sorted by class."""
    return {part: _rows(table, places) for part, places in drawn_parts(len(table.texts), file).items()}


def drawn_parts(count: int, file: Path) -> dict[Part, NDArray[np.int64]]:
    """Which rows of a single table belong to which part: always the same ones, drawn at random.

    Raises:
        DataError: They are too few.
    """
    first, second = part_ends(count)
    if not 0 < first < second < count:
        raise DataError(f"{file}: {count} rows are too few to be divided into train, valid and test; give more")
    order = np.random.default_rng(SPLIT_SEED).permutation(count)
    return {
        "train": np.sort(order[:first]),
        "valid": np.sort(order[first:second]),
        "test": np.sort(order[second:]),
    }


def _rows(table: Table, places: NDArray[np.int64]) -> Table:
    def chosen(column: Sequence[Any]) -> Any:
        return [column[place] for place in places]

    assert table.labels is not None
    others = None if table.others is None else chosen(table.others)
    return replace(table, texts=chosen(table.texts), others=others, labels=chosen(table.labels))


def _split(
    table: Table, labels: NDArray[np.int64], tokenizer: Tokenizer, reading: TextReading, origin: str
) -> tuple[PassageSplit, int]:
    """The texts of a table in tokens, and how many were too long."""
    most = reading.length or min(LONGEST, reading.longest or LONGEST)
    passages = tokenizer.passages(table.texts, table.others, most, origin)
    empty = next((index for index, passage in enumerate(passages) if len(passage.tokens) == 0), None)
    if empty is not None:
        raise DataError(f"{origin}: the tokenizer finds no token in {table.texts[empty]!r:.60}; leave such texts out")
    lengths = np.array([len(passage.tokens) for passage in passages], dtype=np.int64)
    told = reading.segments and table.others is not None
    split = PassageSplit(
        np.concatenate([passage.tokens for passage in passages]),
        np.concatenate([passage.segments for passage in passages]) if told else None,
        starts_of(lengths),
        labels,
        filling(reading, tokenizer),
        most,
        tokenizer,
    )
    return split, sum(passage.cut for passage in passages)


def filling(reading: TextReading, tokenizer: Tokenizer) -> int:
    """The token that short texts are filled up with: the network's, else the tokenizer's, else any."""
    padding = reading.padding if reading.padding is not None else tokenizer.padding
    return 0 if padding is None else padding


def _notes(tables: Mapping[Part, Table], cut: Mapping[Part, int], length: int) -> tuple[str, ...]:
    notes = []
    for part, table in tables.items():
        if cut[part]:
            notes.append(
                f"{cut[part]:,} of {len(table.texts):,} {part} texts are longer than {length} tokens and were cut"
            )
        if table.blank:
            notes.append(f"{table.blank:,} {part} rows without text were left out")
    return tuple(notes)
