"""Texts with a class for every word: in tokens, the first of which carries the class of its word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunecli.data.passages import LONGEST, TokenPassages, drawn_parts, filling, starts_of
from prunecli.data.splits import DataSet, digest
from prunecli.data.tagged_tables import CONLL, TaggedTable, is_tagged, read_tagged
from prunecli.data.text_classes import class_numbers, class_shares, named_classes
from prunecli.data.text_files import Part, files_of, text_data
from prunecli.data.text_reading import TextReading, missing_part, resolved_tokenizer
from prunecli.data.tokenizer import Tokenizer
from prunecli.engine.tasks.token_scores import IGNORED
from prunecli.errors import DataError

_GIVE = "give tables with lists of words and tags (.jsonl, .parquet), or CoNLL files (.conll)"


@dataclass(frozen=True, eq=False)
class TaggedSplit(TokenPassages):
    """Texts with a class for every word; their `labels` are all alike.

    Attributes:
        tags: For each token the class of the word that begins with it, -100 for all others, shape (tokens,).
    """

    tags: NDArray[np.int64]

    def pair(self, index: int, *, training: bool) -> tuple[dict[str, Tensor], Tensor]:
        """The text at `index` and its tags, shape (tokens,)."""
        tags = self.tags[int(self.starts[index]) : int(self.starts[index + 1])]
        return self.sample(index), torch.from_numpy(tags.copy())

    def subset(self, indices: NDArray[np.int64]) -> Self:
        """The texts at `indices`."""
        return replace(super().subset(indices), tags=self.tags[self.places(indices)])

    def fingerprint(self) -> str:
        """Hash of tokens, tags and tokenizer."""
        return digest(super().fingerprint().encode(), np.ascontiguousarray(self.tags).data)


def load(path: str, found: Path, reading: TextReading) -> DataSet:
    """Reads tables with a list of words and one of tags in every row, or CoNLL files.

    Args:
        path: As on the command line.
        found: The file or folder.
        reading: How; its tokenizer is needed.

    Raises:
        DataError: There is no such table, or it cannot be used.
    """
    if reading.tokenizer is None:
        raise DataError(
            f"text:{path}: words with tags are read by a tokenizer, and the network has none: name one with "
            "--tokenizer, a file, a folder, or bpe:2000 to train one"
        )
    tables = _tables(path, found, reading)
    known = reading.class_names or tables.get("train", tables["test"]).class_names
    tables = _in_words(tables, known, found)
    # A rare one may be in any of the parts.
    names = named_classes(known, [tag for table in tables.values() for tag in table.tags], found, reading.outputs)
    classes = {part: class_numbers(table.tags, (), names, found) for part, table in tables.items()}
    training = tables.get("train")
    tokenizer = resolved_tokenizer(reading, [] if training is None else [" ".join(words) for words in training.words])
    splits, notes = {}, []
    for part, table in tables.items():
        splits[part], said = _split(table, classes[part], tokenizer, reading, f"text:{path}", part)
        notes += said
    longest = max(int(np.diff(split.starts).max()) for split in splits.values())
    length = reading.length or min(longest, next(iter(splits.values())).length)
    splits = {part: replace(split, length=length) for part, split in splits.items()}
    return text_data(
        path,
        splits,
        class_names=names,
        task="token-classification",
        missing=missing_part(found, splits, ("train",)),
        notes=tuple(notes),
        labels=class_shares(names, classes.get("train", classes["test"])),
        tokenizer=tokenizer,
    )


def _tables(path: str, found: Path, reading: TextReading) -> dict[Part, TaggedTable]:
    if not found.is_dir():
        if not is_tagged(found):
            raise DataError(f"text:{path}: has no tags, and the network finds one for every word: {_GIVE}")
        return _divided(read_tagged((found,), reading.columns), found)
    files = files_of(found, ("test",) if reading.encodes else ("train", "test"), (CONLL,))
    for own in files.values():
        if not is_tagged(own[0]):
            raise DataError(f"{own[0]}: has no tags, and the network finds one for every word: {_GIVE}")
    return {part: read_tagged(own, reading.columns) for part, own in files.items()}


def _divided(table: TaggedTable, file: Path) -> dict[Part, TaggedTable]:
    """The parts of a single file, in which sentences of one document follow one another."""
    starts = starts_of(np.array([len(words) for words in table.words]))
    parts: dict[Part, TaggedTable] = {}
    for part, rows in drawn_parts(len(table.words), file).items():
        tags: Any = [tag for row in rows for tag in table.tags[starts[row] : starts[row + 1]]]
        parts[part] = replace(table, words=[table.words[row] for row in rows], tags=tags, blank=0)
    return {**parts, "train": replace(parts["train"], blank=table.blank)}


def _in_words(tables: Mapping[Part, TaggedTable], known: tuple[str, ...], found: Path) -> dict[Part, TaggedTable]:
    """Tables whose numbers are replaced by the names that their files have for them, unless only numbers are known.

    Args:
        tables: Those of each part.
        known: Names of the classes; empty: not known yet.
        found: Where they come from, for messages.

    Raises:
        DataError: A number has no name, or stands for itself in one table where others have names.
    """
    if known and all(name.isdecimal() for name in known):
        return dict(tables)
    named = {part: _named(table, found) for part, table in tables.items()}
    if known or len({_numbered(table) for table in named.values()}) == 1:
        return named
    if all(map(_numbered, tables.values())):
        return dict(tables)
    raise DataError(f"{found}: the tags of some of its tables are numbers and those of others are names; use one kind")


def _numbered(table: TaggedTable) -> bool:
    return isinstance(table.tags[0], int)


def _named(table: TaggedTable, found: Path) -> TaggedTable:
    """A table with the names of its numbers, where it has some: equal numbers of other tags are other classes."""
    if not table.class_names or not _numbered(table):
        return table
    highest = max(map(int, table.tags))
    if highest >= len(table.class_names):
        raise DataError(
            f"{found}: label {highest} is none of the {len(table.class_names)} classes that its file lists; make the "
            "file again"
        )
    return replace(table, tags=[table.class_names[int(tag)] for tag in table.tags])


def _split(
    table: TaggedTable,
    classes: NDArray[np.int64],
    tokenizer: Tokenizer,
    reading: TextReading,
    origin: str,
    part: Part,
) -> tuple[TaggedSplit, list[str]]:
    """The texts of a table in tokens, and what the user should know about them."""
    most = reading.length or min(LONGEST, reading.longest or LONGEST)
    passages = tokenizer.word_passages(table.words, most, origin)
    firsts = [_firsts(passage.words) for passage in passages]
    untold = next((index for index, first in enumerate(firsts) if not first.any()), None)
    if untold is not None:
        raise DataError(
            f"{origin}: the tokenizer finds no token of a word in {' '.join(table.words[untold])!r:.60}; leave such "
            "texts out, or raise --bptt"
        )
    begins = starts_of(np.array([len(words) for words in table.words]))
    tags = [
        np.where(first, classes[begin + passage.words.clip(min=0)], IGNORED)
        for begin, passage, first in zip(begins[:-1], passages, firsts, strict=True)
    ]
    split = TaggedSplit(
        np.concatenate([passage.tokens for passage in passages]),
        None,
        starts_of(np.array([len(passage.tokens) for passage in passages])),
        np.zeros(len(passages), dtype=np.int64),
        filling(reading, tokenizer),
        most,
        tokenizer,
        np.concatenate(tags),
    )
    cut, silent = sum(passage.cut for passage in passages), 0
    for words, first, passage in zip(table.words, firsts, passages, strict=True):
        silent += 0 if passage.cut else len(words) - int(first.sum())
    return split, _notes(part, table, cut, silent, most)


def _firsts(words: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which tokens begin a word.

    Args:
        words: For each token, the number of its word; -1 for none, shape (tokens,).
    """
    before = np.concatenate([[-1], words[:-1]])
    begins: NDArray[np.bool_] = (words >= 0) & (words != before)
    return begins


def _notes(part: Part, table: TaggedTable, cut: int, silent: int, length: int) -> list[str]:
    notes = []
    if cut:
        notes.append(f"{cut:,} of {len(table.words):,} {part} texts are longer than {length} tokens and were cut")
    if silent:
        notes.append(f"{silent:,} {part} words have no token and count nowhere, nor do their tags")
    if table.blank:
        notes.append(f"{table.blank:,} {part} rows without words were left out")
    return notes
