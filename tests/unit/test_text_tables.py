"""Texts in tables, and texts with classes."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from prunecli.data.catalog import load_data
from prunecli.data.loader import evaluation_batches, training_batches
from prunecli.data.passages import PassageSplit
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import DataSet, hold_out
from prunecli.data.text_reading import TextReading
from prunecli.data.text_tables import Columns
from prunecli.data.token_batches import TextSplit
from prunecli.engine.tasks.token_scores import IGNORED
from prunecli.errors import DataError
from tests.unit.test_tokenizer import TRAINED

PLAIN = Preprocessing((0, 0, 0), (), ())
LABELLED = Columns(labelled=True)
ROWS = [{"text": f"the {'cat' if n % 3 else 'dog'} sat, {n} times", "label": int(n % 3 > 0)} for n in range(40)]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes a table in the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def read(path: Path, columns: Columns = LABELLED, **reading: Any) -> DataSet:
    return load_data(f"text:{path}", text=TextReading(tokenizer=TRAINED, columns=columns, **reading))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_format_has_the_same_texts_and_classes(tmp_path: Path, suffix: str) -> None:
    first = read(write(tmp_path / "a" / "x.jsonl", ROWS))
    data = read(write(tmp_path / f"x{suffix}", ROWS))
    assert data.class_names == ("0", "1") and data.task == "classification" and data.samples == "tokens"
    for split in ("train", "validation", "test"):
        assert getattr(data, split).fingerprint() == getattr(first, split).fingerprint()
    assert [len(s.labels) for s in (data.train, data.validation, data.test) if s is not None] == [36, 2, 2]
    share = np.mean(data.train.labels)  # type: ignore[union-attr]
    assert [label.name for label in data.labels] == ["0", "1"] and data.labels[1].share == pytest.approx(share)


def test_a_single_table_is_shuffled_if_it_has_classes_and_not_if_it_is_a_text(tmp_path: Path) -> None:
    rows = [{"text": "the cat", "label": 0}] * 50 + [{"text": "a dog", "label": 1}] * 50
    path = write(tmp_path / "x.csv", rows)
    labelled = read(path)
    assert 0 < labelled.train.labels.mean() < 1 and set(read(path).test.labels) == set(labelled.test.labels)  # type: ignore[union-attr]
    text = read(path, Columns(), length=4)
    assert isinstance(text.train, TextSplit) and isinstance(text.test, TextSplit)
    assert TRAINED.decode(text.test.tokens) == "</s>".join(["a dog"] * 5)
    assert TRAINED.decode(text.train.tokens).startswith("the cat</s>the cat")
    words = load_data(f"text:{path}", text=TextReading(level="word", length=2))
    assert words.task == "word-language" and "cat" in words.class_names


def test_a_folder_has_a_table_for_each_part_also_in_shards(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", ROWS[:20])
    write(tmp_path / "train-00001-of-00002.parquet", ROWS[20:])
    write(tmp_path / "test-00000-of-00001.parquet", ROWS[:3])
    data = read(tmp_path)
    assert len(data.train.labels) == 40 and len(data.test.labels) == 3 and data.validation is None  # type: ignore[union-attr]
    held = hold_out(data, 0.1)
    assert held.validation is not None and len(held.validation.labels) == 4
    only = tmp_path / "only"
    write(only / "test.csv", ROWS[:3])
    assert read(only).train is None and "has no train text" in read(only).missing


def test_names_of_classes_are_those_of_the_network_of_the_file_or_sorted(tmp_path: Path) -> None:
    rows = [{"text": row["text"], "label": ("Tolstoy", "Shakespeare")[row["label"]]} for row in ROWS]
    path = write(tmp_path / "x.csv", rows)
    assert read(path).class_names == ("Shakespeare", "Tolstoy")
    learned = read(path, class_names=("tolstoy", "shakespeare", "other"))
    assert learned.class_names == ("tolstoy", "shakespeare", "other")
    assert learned.train.labels.tolist() == read(write(tmp_path / "y.csv", ROWS)).train.labels.tolist()  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"label 'Shakespeare' is none of the 2 classes .tolstoy, dickens.*"):
        read(path, class_names=("tolstoy", "dickens"))
    table = pyarrow.Table.from_pylist(ROWS)
    features = {"info": {"features": {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}}}}
    table = table.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    parquet.write_table(table, tmp_path / "z.parquet")
    assert read(tmp_path / "z.parquet").class_names == ("neg", "pos")
    other = read(tmp_path / "z.parquet", class_names=("Pos", "Neg"))
    assert other.class_names == ("Pos", "Neg")
    assert np.array_equal(other.test.labels, 1 - read(tmp_path / "z.parquet").test.labels)


def test_batches_are_filled_up_to_their_longest_text(tmp_path: Path) -> None:
    rows = [{"text": "cat " * (1 + n % 4), "label": n % 2} for n in range(40)]
    split = read(write(tmp_path / "x.jsonl", rows), padding=3).train
    assert isinstance(split, PassageSplit)
    order = []
    for inputs, labels in evaluation_batches(split, PLAIN, 6):
        lengths = inputs["attention_mask"].sum(dim=1)
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (len(labels), int(lengths.max()))
        assert bool((inputs["input_ids"][inputs["attention_mask"] == 0] == 3).all())
        for row, length, label in zip(inputs["input_ids"], lengths, labels, strict=True):
            order.append((tuple(row[:length].tolist()), int(label)))
    expected = [(tuple(split.sample(n)["input_ids"].tolist()), int(split.labels[n])) for n in range(len(split.labels))]
    assert order == expected
    shuffled = training_batches(split, PLAIN, Augmentation(False), 6, seed=0, workers=1)
    seen = [
        (tuple(row[row != 3].tolist()), int(label))
        for inputs, labels in shuffled
        for row, label in zip(inputs["input_ids"], labels, strict=True)
    ]
    assert sorted(seen) == sorted(expected) and seen != expected


def test_a_subset_has_the_texts_it_is_asked_for(tmp_path: Path) -> None:
    rows = [{"sentence1": "cat " * (1 + n % 4), "sentence2": "dog", "label": n % 2} for n in range(40)]
    split = read(write(tmp_path / "x.jsonl", rows), segments=True).train
    assert isinstance(split, PassageSplit)
    chosen = split.subset(np.array([7, 2, 30]))
    for place, index in enumerate((7, 2, 30)):
        assert {k: v.tolist() for k, v in chosen.sample(place).items()} == {
            k: v.tolist() for k, v in split.sample(index).items()
        }
    assert set(chosen.sample(0)) == {"input_ids", "attention_mask", "token_type_ids"}
    assert chosen.sample(0)["token_type_ids"].tolist()[-2:] == [1, 1]  # "dog", and what ends it
    assert chosen.fingerprint() != split.fingerprint() and torch.equal(
        torch.from_numpy(chosen.labels), torch.from_numpy(split.labels[[7, 2, 30]])
    )


def test_long_texts_are_cut_and_counted_and_blank_rows_left_out(tmp_path: Path) -> None:
    rows = [{"text": "cat " * 30, "label": 0}, {"text": " ", "label": 1}, {"text": "a dog", "label": 1}] * 20
    data = read(write(tmp_path / "x.csv", rows), length=9)
    assert isinstance(data.test, PassageSplit) and data.test.length == 9
    assert "20 train rows without text were left out" in data.notes
    assert "18 of 36 train texts are longer than 9 tokens and were cut" in data.notes or any(
        "cut" in n for n in data.notes
    )
    free = read(tmp_path / "x.csv")
    assert isinstance(free.test, PassageSplit) and 30 < free.test.length < 200  # no longer than the longest
    assert not any("cut" in note for note in free.notes)
    assert isinstance(read(tmp_path / "x.csv", longest=11).test, PassageSplit)
    assert read(tmp_path / "x.csv", longest=11).test.length == 11  # type: ignore[attr-defined]


def test_every_token_of_a_text_but_the_first_is_scored_once() -> None:
    split = TextSplit(np.arange(1, 24), 5, TRAINED).completed()
    assert split.labels.shape == (5, 5)
    targets = split.labels[split.labels != IGNORED]
    assert targets.tolist() == list(range(2, 24))
    inputs = torch.stack([split.sample(n) for n in range(5)])
    assert torch.equal(inputs[torch.from_numpy(split.labels != IGNORED)] + 1, torch.from_numpy(targets))
    assert TextSplit(np.arange(1, 24), 5, TRAINED).labels.shape == (4, 5)
    assert split.fingerprint() == TextSplit(np.arange(1, 24), 7, TRAINED).fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "columns", "said"),
    [
        ("x.csv", "a,b\n1,2\n", LABELLED, "none of its columns is called text, sentence, content; it has 'a', 'b'"),
        ("x.csv", "", LABELLED, "it has no columns"),
        ("x.csv", "text,label\n", LABELLED, "has no rows with text"),
        ("x.csv", "text,label\nx,\n", LABELLED, "line 2: 'label' is '', no class"),
        ("x.csv", "text,label\nx,-1\n", LABELLED, "line 2: 'label' is '-1', no class"),
        ("x.csv", "text,label\nx,1,2\n", LABELLED, "line 2: has 3 cells where the first line names 2 columns"),
        ("x.csv", 'text,label\n"x,1\n', LABELLED, "no CSV"),
        ("x.csv", "text\nx\n", LABELLED, "has no column called label, labels, class, target; it has 'text'"),
        ("x.csv", "text,label\nx,1\n", Columns(label="y", labelled=True), "has no column 'y'"),
        ("x.csv", "text,label\nx,1\n", Columns(("y",)), "has no column 'y'; it has 'text', 'label'"),
        ("x.csv", "text,label\nx,1\ny,2\n", LABELLED, "too few to be divided"),
        ("x.csv", "text,label\n" + "x,1000000000000\n" * 40, LABELLED, "more classes than 10,000"),
        ("x.csv", "text,label\n" + "x,a\n" * 40, LABELLED, "fewer than two classes"),
        ("x.jsonl", '{"text": "x", "label": -1}\n', LABELLED, "line 1: 'label' is -1, no class"),
        ("x.jsonl", '{"text": 5, "label": 1}\n', LABELLED, "line 1: 'text' is int, no text"),
        ("x.jsonl", '{"text": "a", "label": 1}\n[1]\n', LABELLED, "line 2: no object"),
        ("x.jsonl", "{\n", LABELLED, "line 1: no JSON"),
        ("x.jsonl", "[" * 100_000 + "\n", LABELLED, "nested too deep"),
        ("x.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n', LABELLED, "some are names"),
        ("x.jsonl", "\xff\n", LABELLED, "is not UTF-8"),
        ("x.parquet", "PAR1", LABELLED, "no readable Parquet file"),
        ("x.txt", "some words", LABELLED, "is a plain text, and the network finds classes"),
        ("x.jsonl", '{"sentence1": "a", "sentence2": "b"}\n', Columns(), "has pairs of texts"),
        ("x.csv", "a,b\nx,y\n", Columns(("a", "b")), "of two columns no tokens are predicted"),
    ],
)  # fmt: skip
def test_wrong_tables_say_so_in_one_line(tmp_path: Path, name: str, content: str, columns: Columns, said: str) -> None:
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        read(tmp_path / name, columns)
    assert said in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)


def test_a_damaged_parquet_file_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "x.parquet", ROWS * 50)
    content = bytearray(path.read_bytes())
    content[40:200] = bytes(160)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"damaged after row 0|no readable Parquet"):
        read(path)


def test_texts_with_classes_need_a_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", ROWS)
    with pytest.raises(DataError, match="name one with --tokenizer"):
        load_data(f"text:{path}", text=TextReading(columns=LABELLED))
    assert len(load_data(f"text:{path}", text=TextReading(columns=LABELLED, tokenizer=280)).tokenizer) > 260  # type: ignore[arg-type]
