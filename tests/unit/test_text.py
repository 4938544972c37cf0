"""Texts: vocabularies, files, and what batches are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunecli.data.catalog import load_data, samples_of
from prunecli.data.loader import CalibrationBatches
from prunecli.data.preparation import Preprocessing
from prunecli.data.text_reading import TextReading
from prunecli.data.token_batches import StreamBatches, TextSplit, evaluation_streams
from prunecli.data.vocabulary import END, UNKNOWN, Vocabulary
from prunecli.engine.tasks.token_scores import IGNORED
from prunecli.errors import DataError

_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=60)


def _split(tokens: int, length: int) -> TextSplit:
    return TextSplit(np.arange(tokens) % 7, length, Vocabulary("char", ("a", "b", "c", "d", "e", "f", "g", UNKNOWN)))


def test_words_are_numbered_as_they_occur_and_lines_end() -> None:
    vocabulary = Vocabulary.of("the cat\n\n sat  the\nend", "word")
    assert vocabulary.tokens == ("the", "cat", END, "sat", "end", UNKNOWN)
    assert vocabulary.encode("cat dog\nthe").tolist() == [1, 5, 2, 0, 2]
    assert vocabulary.encode("cat dog\nthe\n").tolist() == [1, 5, 2, 0, 2]
    assert vocabulary.encode("\n\n").tolist() == [2, 2]  # two empty lines
    assert vocabulary.decode([1, 5, 2, 0, 2]) == "cat <unk> \nthe \n"


def test_a_text_with_unknown_words_keeps_their_number() -> None:
    """Penn Treebank and WikiText mark rare words themselves."""
    vocabulary = Vocabulary.of("a <unk> b\n", "word")
    assert vocabulary.tokens == ("a", UNKNOWN, "b", END)
    assert vocabulary.encode("z a").tolist() == [1, 0, 3]


@given(_TEXTS)
def test_characters_come_back(text: str) -> None:
    vocabulary = Vocabulary.of(text, "char")
    assert vocabulary.tokens[-1] == UNKNOWN and vocabulary.tokens[:-1] == tuple(dict.fromkeys(text))
    numbers = vocabulary.encode(text)
    assert vocabulary.decode(numbers) == text and vocabulary.unknown not in numbers


@given(_TEXTS)
def test_words_come_back(text: str) -> None:
    assume(END not in text.split())
    vocabulary = Vocabulary.of(text, "word")
    back = vocabulary.decode(vocabulary.encode(text))
    assert back.split() == text.split()


@given(_TEXTS, _TEXTS)
def test_what_training_lacked_is_unknown(training: str, other: str) -> None:
    for level in ("char", "word"):
        vocabulary = Vocabulary.of(training, level)  # type: ignore[arg-type]
        own = Vocabulary.of(other, level)  # type: ignore[arg-type]
        for number, token in zip(vocabulary.encode(other), own.encode(other), strict=True):
            name = own.tokens[token]
            assert vocabulary.tokens[number] == (name if name in vocabulary.tokens else UNKNOWN)


@settings(deadline=None)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 9), st.booleans())
def test_streams_go_on_from_batch_to_batch(tokens: int, length: int, streams: int, whole: bool) -> None:
    split = _split(tokens, length)
    if not whole and (tokens - 1) // streams == 0:
        return
    batches = StreamBatches(split, streams, whole=whole)
    pieces = list(batches)
    assert len(pieces) == len(batches)
    assert all(inputs.shape == labels.shape and len(inputs) == streams for inputs, labels in pieces)
    assert all(inputs.shape[1] == length for inputs, _ in pieces[:-1]) and 0 < pieces[-1][0].shape[1] <= length
    inputs, labels = (torch.cat(parts, dim=1) for parts in zip(*pieces, strict=True))
    counted = labels != IGNORED
    # Row after row it is the text, and every target is the token after its input.
    read, foretold = inputs[counted].numpy(), labels[counted].numpy()
    used = len(read)
    assert used == (tokens - 1 if whole else (tokens - 1) // streams * streams)
    assert np.array_equal(read, split.tokens[:used]) and np.array_equal(foretold, split.tokens[1 : used + 1])
    for first in range(len(batches)):
        for ours, theirs in zip(batches.epoch(2, first), pieces[first:], strict=True):
            assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


def test_figures_do_not_depend_on_how_a_text_is_cut() -> None:
    for length in (5, 64):
        streams = evaluation_streams(_split(1000, length))
        assert streams.batch_size == 15 and sum(int((t != IGNORED).sum()) for _, t in streams) == 999
    assert evaluation_streams(_split(60, 5)).batch_size == 1 and evaluation_streams(_split(9999, 5)).batch_size == 16


def test_sequences_of_their_own_for_calibration() -> None:
    split = _split(100, 8)
    assert len(split.labels) == 12
    batches = CalibrationBatches(split, Preprocessing((0, 0, 0), (), ()), 5, 3, seed=0)
    rows = [(x, y) for inputs, labels in batches.labelled for x, y in zip(inputs, labels, strict=True)]
    assert len(rows) == 5 and not hasattr(batches.labelled, "contiguous")
    for x, y in rows:
        assert torch.equal(x[1:], y[:-1]) and x.dtype == y.dtype == torch.int64 and len(x) == 8
    chosen = split.subset(np.array([3, 1]))
    assert chosen.sample(0).tolist() == split.sample(3).tolist()
    assert chosen.subset(np.array([1])).sample(0).tolist() == split.sample(1).tolist()


def test_fingerprints_tell_texts_and_vocabularies_apart_and_not_lengths() -> None:
    split = _split(100, 8)
    assert split.fingerprint() == _split(100, 9).fingerprint() != _split(101, 8).fingerprint()
    other = TextSplit(split.tokens, 8, Vocabulary("char", (*"hbcdefg", UNKNOWN)))
    assert other.fingerprint() != split.fingerprint() != split.subset(np.arange(12)).fingerprint()


def _folder(place: Path, **texts: str) -> Path:
    folder = place / "corpus"
    folder.mkdir()
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("ptb__train__txt", "ptb__valid__txt", "ptb__test__txt"),
        ("wiki__train__tokens", "wiki__valid__tokens", "wiki__test__tokens"),
        ("train__txt", "val__txt", "test__txt"),
        ("corpus_train", "corpus_dev", "corpus_test"),
    ],
)
def test_folders_in_the_usual_layouts(tmp_path: Path, names: tuple[str, str, str]) -> None:
    texts = ("one two three\n" * 20, "two four\n" * 20, "three\n" * 40)
    folder = _folder(tmp_path, **dict(zip(names, texts, strict=True)), README="words", ptb__char__train__txt="o n e")
    data = load_data(f"text:{folder}")
    assert data.task == "word-language" and samples_of(data.name) == "tokens"
    assert data.class_names == ("one", "two", "three", END, UNKNOWN) and data.num_classes == 5
    assert data.train is not None and data.validation is not None
    assert isinstance(data.validation, TextSplit) and data.validation.tokens[:3].tolist() == [1, 4, 3]
    assert data.validation.length == 35
    letters = load_data(f"text:{folder}", text=TextReading(level="char", length=4))
    assert letters.task == "character-language" and len(letters.test.labels) == 59


def test_one_file_is_divided(tmp_path: Path) -> None:
    text = "".join(chr(97 + index % 26) for index in range(2000))
    (tmp_path / "book.txt").write_text("\ufeff" + text.replace("z", "z\r\n"))
    data = load_data("text:book.txt", tmp_path)
    assert data.task == "character-language" and data.class_names[:3] == ("a", "b", "c")
    splits = [data.train, data.validation, data.test]
    whole = text.replace("z", "z\n")
    assert "".join(data.vocabulary.decode(split.tokens) for split in splits) == whole  # type: ignore[union-attr]
    assert [round(len(split.tokens) / len(whole), 2) for split in splits] == [0.9, 0.05, 0.05]  # type: ignore[union-attr]


def test_a_vocabulary_that_is_there_already(tmp_path: Path) -> None:
    folder = _folder(tmp_path, test__txt="a b z\n" * 20)
    known = Vocabulary("word", ("b", "a", END, UNKNOWN))
    data = load_data(f"text:{folder}", text=TextReading(length=3, vocabulary=known))
    assert data.test.tokens[:5].tolist() == [1, 0, 3, 2, 1]  # type: ignore[attr-defined]
    assert data.notes == ("25.00% of the test text is <unk>",)
    with pytest.raises(DataError, match=r"corpus: has no train text; name one train.txt"):
        data.training_split()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({}, "train.csv, train.parquet), or give a single file"),
        ({"train__txt": "a b", "test__txt": "a"}, "has no valid text; name one valid.txt"),
        ({"train__txt": "a", "wiki__train__raw": "a"}, "train.txt and wiki.train.raw could both be the train text"),
        ({"train__txt": "a b\n" * 30, "valid__txt": " \n", "test__txt": "a"}, "valid.txt: is empty; give a file with"),
        ({"train__txt": "a b\n" * 30, "valid__txt": "a b\n" * 30, "test__txt": "a b\n"},
         "test.txt: a split of 3 words is shorter than one sequence of 35 and the word after it; give a longer text, "
         "or a smaller --bptt"),
    ],
)  # fmt: skip
def test_wrong_folders_say_so_in_one_line(tmp_path: Path, texts: dict[str, str], said: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(f"text:{_folder(tmp_path, **texts)}")
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"caf\xe9 " * 100, "byte 3 is not UTF-8, so this is no text or one in another encoding; convert it"),
        (b"text\0text" * 100, "holds zero bytes, so this is no UTF-8 text"),
        (b"short", "a split of 4 characters is shorter than one sequence of 64 and the character after it"),
    ],
)
def test_wrong_files_say_so_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "book.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"book\.txt: ") as caught:
        load_data("text:book.txt", tmp_path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_text_has_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text:nowhere: no such file or folder; give a text, or a folder with train"):
        load_data("text:nowhere", tmp_path)
