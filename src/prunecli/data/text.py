"""`text:PATH`: texts to predict tokens of, and texts or words with classes, in plain files or in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prunecli.data import masked_tokens, passages, tagged_words
from prunecli.data.splits import DataSet
from prunecli.data.text_files import PARTS, Part, files_of, find_texts, part_ends, read_text, text_data
from prunecli.data.text_reading import TextReading, missing_part, resolved_tokenizer, unknown_notes
from prunecli.data.text_tables import Columns, is_table, read_table
from prunecli.data.token_batches import TextSplit
from prunecli.data.tokenizer import Tokenizer
from prunecli.data.vocabulary import Level, Vocabulary
from prunecli.errors import DataError

DEFAULT_LENGTHS: Mapping[Level, int] = {"word": 35, "char": 64}
"""Tokens in a sequence, by level."""
DEFAULT_BLOCK = 1024
"""Tokens in a sequence with a tokenizer, where networks can read as many."""
TASKS: Mapping[Level, str] = {"word": "word-language", "char": "character-language"}
_MOST_TOKENS = 1_000_000
_MOST_CHARACTERS = 10_000_000


def load(path: str, root: Path, download: bool, reading: TextReading | None = None) -> DataSet:
    """Reads texts; a relative PATH is looked for in the current folder, then in the data folder.

    A folder has one file for each of train, valid and test, named as in Penn Treebank (`ptb.train.txt`), WikiText
    (`wiki.train.tokens`) or plainly (`train.txt`, `train.jsonl`, `train.csv`, `train.parquet`). Of a single file, the
    first 90 % of the characters are the training text, the next 5 % the validation text and the rest the test text; of
    a table, as many rows, which are shuffled first if they have classes.

    Raises:
        DataError: A file is missing, empty, damaged, too short or no UTF-8 text.
    """
    reading = reading or TextReading()
    found = find_texts(path, root)
    if reading.tagged:
        return tagged_words.load(path, found, reading)
    if reading.columns.labelled:
        return passages.load(path, found, reading)
    files = (
        files_of(found, ("test",) if reading.encodes else PARTS) if found.is_dir() else dict.fromkeys(PARTS, (found,))
    )
    texts = (
        {part: _texts(own, reading.columns) for part, own in files.items()}
        if found.is_dir()
        else _divided(_texts((found,), reading.columns))
    )
    first = {part: own[0] for part, own in files.items()}
    if reading.masked:
        return masked_tokens.load(path, found, texts, reading)
    if reading.tokenizer is not None:
        return _in_tokens(path, found, texts, first, reading)
    return _in_words(path, found, {part: "\n".join(own) for part, own in texts.items()}, first, reading)


def _in_words(
    path: str, found: Path, texts: Mapping[Part, str], files: Mapping[Part, Path], reading: TextReading
) -> DataSet:
    """Texts in words or characters."""
    level = reading.level or (reading.vocabulary.level if reading.vocabulary else "word" if found.is_dir() else "char")
    vocabulary = reading.vocabulary or _vocabulary(texts["train"], level, files["train"])
    length = reading.length or min(DEFAULT_LENGTHS[level], reading.longest or DEFAULT_LENGTHS[level])
    noun = "words" if level == "word" else "characters"
    splits = {
        part: _checked(TextSplit(vocabulary.encode(text), length, vocabulary), noun, files[part])
        for part, text in texts.items()
    }
    return _language(path, found, splits, TASKS[level], vocabulary.tokens, reading, vocabulary=vocabulary)


def _in_tokens(
    path: str, found: Path, texts: Mapping[Part, Sequence[str]], files: Mapping[Part, Path], reading: TextReading
) -> DataSet:
    """Texts in the tokens of a tokenizer."""
    tokenizer = resolved_tokenizer(reading, texts.get("train", ()))
    length = reading.length or min(DEFAULT_BLOCK, reading.longest or DEFAULT_BLOCK)
    splits = {}
    for part, own in texts.items():
        encoded = tokenizer.encode(own, str(files[part]))
        split = TextSplit(encoded.tokens, length, tokenizer, characters=encoded.characters, bytes=encoded.bytes)
        splits[part] = _checked(split, "tokens", files[part])
    return _language(path, found, splits, "token-language", tokenizer.tokens, reading, tokenizer=tokenizer)


def _language(
    path: str,
    found: Path,
    splits: Mapping[Part, TextSplit],
    task: str,
    names: tuple[str, ...],
    reading: TextReading,
    *,
    vocabulary: Vocabulary | None = None,
    tokenizer: Tokenizer | None = None,
) -> DataSet:
    return text_data(
        path,
        splits,
        class_names=names,
        task=task,
        missing=missing_part(found, splits, ("train", "valid")),
        notes=tuple(
            note
            for part, split in splits.items()
            if reading.encodes
            for note in unknown_notes(part, split.tokens, split.encoding)
        ),
        vocabulary=vocabulary,
        tokenizer=tokenizer,
    )


def _texts(files: tuple[Path, ...], columns: Columns) -> list[str]:
    """The texts in a plain file, which is one, or in a table."""
    if not is_table(files[0]):
        return [read_text(files[0])]
    if len(columns.texts) > 1:
        raise DataError(f"{files[0]}: of two columns no tokens are predicted; name one with --text-column")
    table = read_table(files, columns)
    if table.others is not None:
        raise DataError(f"{files[0]}: has pairs of texts; name the column to predict tokens of with --text-column")
    return table.texts


def _divided(texts: list[str]) -> dict[Part, list[str]]:
    """The parts of a single file: of its characters, or where it has several texts, of these."""
    whole: Sequence[str] = texts[0] if len(texts) == 1 else texts
    first, second = part_ends(len(whole))
    parts: dict[Part, Sequence[str]] = {"train": whole[:first], "valid": whole[first:second], "test": whole[second:]}
    return {part: [own] if isinstance(own, str) else list(own) for part, own in parts.items()}


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


def _checked(split: TextSplit, noun: str, file: Path) -> TextSplit:
    """A split that is no shorter than one sequence.

    Raises:
        DataError: It is.
    """
    if len(split.tokens) <= split.length:
        raise DataError(
            f"{file}: a split of {len(split.tokens)} {noun} is shorter than one sequence of {split.length} and the "
            f"{noun[:-1]} after it; give a longer text, or a smaller --bptt"
        )
    return split
