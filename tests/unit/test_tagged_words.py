"""Words with tags: reading them, their tokens, and what a network is trained on and judged by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
import transformers
from pyarrow import parquet
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from prunecli.criteria.base import token_loss
from prunecli.data.catalog import load_data
from prunecli.data.loader import evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation
from prunecli.data.splits import DataSet, hold_out
from prunecli.data.tagged_tables import read_tagged
from prunecli.data.tagged_words import TaggedSplit
from prunecli.data.text_reading import TextReading
from prunecli.data.text_tables import Columns
from prunecli.data.tokenizer import Tokenizer
from prunecli.engine.distillation import Distillation
from prunecli.engine.evaluate import evaluate
from prunecli.engine.hooks import Batch
from prunecli.engine.tasks.index import task_of
from prunecli.engine.tasks.token_scores import IGNORED
from prunecli.errors import DataError
from tests.unit.test_engine import CPU
from tests.unit.test_text_tables import PLAIN, write
from tests.unit.test_tokenizer import TRAINED

_WORDS, _TAGS = ("the", "cat", "Ada"), ("O", "O", "B-PER")
_ROWS: list[dict[str, Any]] = [
    {"tokens": [*_WORDS[: 1 + n % 3], "sat"], "tags": [*_TAGS[: 1 + n % 3], "O"]} for n in range(40)
]
_SPECIAL = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
_FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
_VOCABULARY = (*_SPECIAL, "the", "c", "##at", "sat", "Ada", "-")
PIECES = Tokenizer.parsed(
    json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {"id": number, "content": name, "special": True, **_FLAGS} for number, name in enumerate(_SPECIAL)
            ],
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 9,
                "vocab": {name: number for number, name in enumerate(_VOCABULARY)},
            },
        }
    ),
    "pieces",
)
"""As BERT's: "cat" is two tokens."""


def _read(path: Path, columns: Columns | None = None, tokenizer: Tokenizer | int = TRAINED, **reading: Any) -> DataSet:
    own = TextReading(tokenizer=tokenizer, columns=columns or Columns(), tagged=True, **reading)
    return load_data(f"text:{path}", text=own)


def _conll(path: Path, rows: list[dict[str, Any]], separator: str = " ") -> Path:
    sentences = [
        "".join(f"{separator.join((word, 'NN', tag))}\n" for word, tag in zip(row["tokens"], row["tags"], strict=True))
        for row in rows
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("-DOCSTART- -X- O\n\n" + "\n".join(sentences))
    return path


def _bert(classes: int, vocabulary: int = 300) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=40, num_labels=classes,
    )  # fmt: skip
    return transformers.BertForTokenClassification(config).eval()


def test_every_format_has_the_same_words_and_tags(tmp_path: Path) -> None:
    first = _read(write(tmp_path / "x.jsonl", _ROWS))
    assert first.class_names == ("B-PER", "O") and first.task == "token-classification" and first.samples == "tokens"
    assert [len(s.labels) for s in (first.train, first.validation, first.test) if s is not None] == [36, 2, 2]
    renamed = [{"w": row["tokens"], "t": row["tags"]} for row in _ROWS]
    for other in (
        _read(write(tmp_path / "x.parquet", _ROWS)),
        _read(write(tmp_path / "y.jsonl", renamed), Columns(("w",), "t")),
        _read(_conll(tmp_path / "x.conll", _ROWS)),
        _read(_conll(tmp_path / "tabs.CoNLL", _ROWS, "\t")),
    ):
        for split in ("train", "validation", "test"):
            assert getattr(other, split).fingerprint() == getattr(first, split).fingerprint()
    changed = [{**row, "tags": [*row["tags"][:-1], "B-PER"]} for row in _ROWS]
    assert _read(write(tmp_path / "z.jsonl", changed)).test.fingerprint() != first.test.fingerprint()


def test_a_folder_has_parts_and_a_rare_tag_may_be_in_any(tmp_path: Path) -> None:
    _conll(tmp_path / "train.conll", _ROWS)
    _conll(tmp_path / "test.conll", [{"tokens": ["Rome"], "tags": ["B-LOC"]}])
    data = _read(tmp_path)
    assert data.class_names == ("B-LOC", "B-PER", "O") and [label.name for label in data.labels] == [
        "B-LOC",
        "B-PER",
        "O",
    ]
    assert data.labels[0].share == 0 and sum(label.share for label in data.labels) == pytest.approx(1)
    held = hold_out(data, 0.1)
    assert held.validation is not None and len(held.validation.labels) == 4 and len(held.train.labels) == 36  # type: ignore[union-attr]


@pytest.mark.parametrize("tokenizer", [TRAINED, PIECES], ids=["bytes", "pieces"])
def test_the_first_token_of_a_word_carries_its_tag_as_in_the_examples_of_transformers(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    wrapper: Any = PreTrainedTokenizerFast
    theirs = wrapper(tokenizer_object=tokenizer._library)
    write(tmp_path / "test.jsonl", _ROWS)
    data = _read(tmp_path, tokenizer=tokenizer, class_names=("O", "B-PER"))
    assert isinstance(data.test, TaggedSplit)
    space = " " if tokenizer is TRAINED else ""
    for index, row in enumerate(_ROWS):
        encoded = theirs([space + word for word in row["tokens"]], is_split_into_words=True)
        expected, before = [], None
        for word in encoded.word_ids():
            expected.append(IGNORED if word is None or word == before else int(row["tags"][word] == "B-PER"))
            before = word
        sample, tags = data.test.pair(index, training=False)
        assert sample["input_ids"].tolist() == encoded["input_ids"] and tags.tolist() == expected
        assert (tags != IGNORED).sum() == len(row["tokens"])
    if tokenizer is PIECES:
        assert data.test.pair(1, training=False)[1].tolist() == [IGNORED, 0, 0, IGNORED, 0, IGNORED]


def test_words_have_the_tokens_that_they_have_within_a_text() -> None:
    for tokenizer in (TRAINED, PIECES):
        running = tokenizer.passages(["x the cat sat the"], None, 99, "here")[0].tokens
        alone = tokenizer.word_passages([["x", "the", "cat", "sat", "the"]], 99, "here")[0]
        behind = int((alone.words > 0).sum()) + 1  # the first word has no space before it in a text
        assert alone.tokens[-behind:].tolist() == running[-behind:].tolist() and behind > 4
    blank = PIECES.word_passages([["the", " ", "", "sat"]], 99, "x")[0]
    assert blank.words.tolist() == [-1, 0, 3, -1] and not blank.cut


def test_batches_are_filled_up_and_subsets_have_what_they_are_asked_for(tmp_path: Path) -> None:
    data = _read(write(tmp_path / "x.jsonl", _ROWS))
    assert isinstance(data.train, TaggedSplit)
    (inputs, labels), *_ = evaluation_batches(data.train, PLAIN, 36)
    assert labels.shape == inputs["input_ids"].shape == inputs["attention_mask"].shape and labels.dtype == torch.int64
    assert bool((labels[inputs["attention_mask"] == 0] == IGNORED).all()) and (inputs["attention_mask"] == 0).any()
    chosen = data.train.subset(np.array([5, 2]))
    for index, other in ((0, 5), (1, 2)):
        own, whole = chosen.pair(index, training=False), data.train.pair(other, training=True)
        assert torch.equal(own[1], whole[1]) and torch.equal(own[0]["input_ids"], whole[0]["input_ids"])
    batches = training_batches(data.train, PLAIN, Augmentation(False), 8, seed=0, workers=1)
    for inputs, labels in batches:
        assert labels.shape == inputs["input_ids"].shape


def test_long_texts_are_cut_and_what_has_no_token_is_counted(tmp_path: Path) -> None:
    rows = [*_ROWS, {"tokens": [], "tags": []}, {"tokens": ["the", " ", "sat"], "tags": ["O", "O", "O"]}]
    write(tmp_path / "test.jsonl", rows)
    data = _read(tmp_path, tokenizer=PIECES, class_names=("O", "B-PER"), length=5)
    long = sum(len(row["tokens"]) + ("cat" in row["tokens"]) > 3 for row in rows)
    assert data.notes == (
        f"{long} of 41 test texts are longer than 5 tokens and were cut",
        "1 test words have no token and count nowhere, nor do their tags",
        "1 test rows without words were left out",
    )
    assert np.diff(data.test.starts).max() == 5 == data.test.length  # type: ignore[attr-defined]


def _recorded(path: Path, rows: list[dict[str, Any]], names: list[str]) -> Path:
    """A file of the `datasets` library, which says what its numbers mean."""
    path.parent.mkdir(parents=True, exist_ok=True)
    feature = {"feature": {"names": names, "_type": "ClassLabel"}, "_type": "Sequence"}
    metadata = {b"huggingface": json.dumps({"info": {"features": {"tags": feature}}}).encode()}
    parquet.write_table(pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata), path)
    return path


def test_parts_of_different_kinds_have_the_same_classes(tmp_path: Path) -> None:
    _conll(tmp_path / "a" / "train.conll", [*_ROWS, {"tokens": ["Rome"], "tags": ["B-LOC"]}])
    rows = [{"tokens": ["the", "Ada", "Rome"], "tags": [0, 2, 1]}] * 3
    _recorded(tmp_path / "a" / "test.parquet", rows, ["O", "B-LOC", "B-PER", "never"])
    data = _read(tmp_path / "a")
    assert data.class_names == ("B-LOC", "B-PER", "O") and isinstance(data.test, TaggedSplit)
    tags = data.test.pair(0, training=False)[1]
    assert tags[tags != IGNORED].tolist() == [2, 1, 0]
    # Numbers without names mean what they say only where all parts have numbers.
    write(tmp_path / "a" / "valid.jsonl", rows)
    with pytest.raises(DataError, match="the tags of some of its tables are numbers and those of others are names"):
        _read(tmp_path / "a")
    write(tmp_path / "b" / "train.jsonl", rows)
    _recorded(tmp_path / "b" / "test.parquet", rows, ["O", "B-LOC", "B-PER"])
    assert _read(tmp_path / "b").class_names == ("0", "1", "2")
    _recorded(tmp_path / "b" / "test.parquet", rows, ["O", "B-LOC"])
    _conll(tmp_path / "b" / "train.conll", _ROWS)
    (tmp_path / "b" / "train.jsonl").unlink()
    with pytest.raises(DataError, match="label 2 is none of the 2 classes that its file lists"):
        _read(tmp_path / "b")


def test_classes_that_were_learned_without_names_are_numbers(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"labels are names, and the network has none for the 3 .* \(id2label\)"
    ) as said:
        _read(_conll(tmp_path / "x.conll", _ROWS), outputs=3)
    assert "\n" not in str(said.value)
    numbered = [{**row, "tags": [int(tag == "B-PER") for tag in row["tags"]]} for row in _ROWS]
    assert _read(write(tmp_path / "x.jsonl", numbered), outputs=5).class_names == tuple("01234")
    numbered[0]["tags"][0] = 5
    with pytest.raises(DataError, match=r"label 5 is none of the 5 classes \(0, 1, 2, 3, 4\)"):
        _read(write(tmp_path / "x.jsonl", numbered), outputs=5)
    texts = [{"text": f"the cat {n}", "label": n % 2} for n in range(40)]
    own = TextReading(tokenizer=TRAINED, columns=Columns(labelled=True), outputs=3)
    assert load_data(f"text:{write(tmp_path / 't.csv', texts)}", text=own).class_names == ("0", "1", "2")
    write(tmp_path / "t.csv", [{**row, "label": "ab"[int(row["label"])]} for row in texts])
    with pytest.raises(DataError, match="its labels are names, and the network has none"):
        load_data(f"text:{tmp_path / 't.csv'}", text=own)


def test_too_few_texts_are_called_texts(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", _ROWS[:1])
    write(tmp_path / "test.jsonl", _ROWS)
    with pytest.raises(DataError, match=r"its 1 training texts are too few to hold 0\.1 of them out"):
        hold_out(_read(tmp_path), 0.1)


def test_numbers_of_tags_are_those_of_the_network_of_the_file_or_as_they_are(tmp_path: Path) -> None:
    numbered = [{**row, "tags": [2 * (tag == "B-PER") for tag in row["tags"]]} for row in _ROWS]
    assert _read(write(tmp_path / "x.jsonl", numbered)).class_names == ("0", "1", "2")
    recorded = _read(_recorded(tmp_path / "test.parquet", numbered, ["O", "B-LOC", "B-PER"]))
    assert recorded.class_names == ("O", "B-LOC", "B-PER")
    learned = ("B-PER", "B-LOC", "O")
    assert _read(tmp_path / "test.parquet", class_names=learned).labels[0].share == recorded.labels[2].share > 0
    with pytest.raises(DataError, match="label 'B-PER' is none of the 4 classes"):
        # The numbers would be classes of the network, but they mean others.
        _read(tmp_path / "test.parquet", class_names=("O", "x", "y", "z"))


def test_conll_files_have_comments_and_documents(tmp_path: Path) -> None:
    text = "# id 1\tdomain=en\n# text = a b\nthe _ O\n# _ O\n-DOCSTART- -X- O\nAda _ B-PER\n\n# id 2\nsat _ O\n"
    (tmp_path / "test.conll").write_text(text)
    table = read_tagged((tmp_path / "test.conll",), Columns())
    assert table.words == [["the", "#"], ["Ada"], ["sat"]] and table.tags == ["O", "O", "B-PER", "O"]


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("test.jsonl", {"tokens": ["a", "b"], "tags": ["O"]}, r"line 1: has 2 words in 'tokens' and 1 tags in 'tags'"),
        ("test.jsonl", {"tokens": ["a"], "tags": ["O", "O"]}, r"line 1: has 1 words in 'tokens' and 2 tags"),
        ("test.jsonl", {"tokens": ["a"], "tags": None}, r"line 1: has words and no tags in 'tags'; give every word"),
        ("test.jsonl", {"tokens": [], "tags": []}, r"has no rows with words; give a file with words and tags"),
        ("test.jsonl", {"tokens": "a b", "tags": ["O"]}, r"'tokens' is str, no list of words; name .* --text"),
        ("test.jsonl", {"tokens": ["a"], "tags": "O"}, r"'tags' is str, no list of tags; name .* --label"),
        ("test.jsonl", {"tokens": ["a", 3], "tags": ["O", "O"]}, r"'tokens' has 3 in its list, no word"),
        ("test.jsonl", {"tokens": ["a"], "tags": [-100]}, r"line 1: 'tags' is -100, no class"),
        ("test.jsonl", {"tokens": ["a"], "tags": ["C"]}, r"label 'C' is none of the 2 classes \(O, B-PER\)"),
        ("test.jsonl", {"tokens": ["a"], "tags": [2]}, r"label 2 is none of the 2 classes \(O, B-PER\)"),
        ("test.jsonl", {"tokens": [" "], "tags": ["O"]}, r"finds no token of a word in ' '; leave such texts out"),
        ("test.jsonl", {"tokens": ["a"]}, r"no column called ner_tags, tags, labels; it has 'tokens'"),
        ("test.parquet", {"tokens": ["a", "b"], "tags": ["O"]}, r"row 1: has 2 words in 'tokens' and 1 tags"),
        ("test.csv", {"tokens": "a", "tags": "O"}, r"has no tags, and the network finds one for every word: give"),
        ("test.conll", "a O\nb\n", r"line 2: 'b' is no word with a tag; write the word first"),
        ("test.conll", "a\tO\nb\t\n", r"line 2: 'b' is no word with a tag; write the word first"),
        ("test.conll", "\n-DOCSTART- -X- O\n\n", r"has no rows with words"),
    ],
)  # fmt: skip
def test_wrong_tables_say_so_in_one_line(tmp_path: Path, name: str, row: Any, said: str) -> None:
    if isinstance(row, str):
        (tmp_path / name).write_text(row)
    else:
        write(tmp_path / name, [row])
    with pytest.raises(DataError, match=said) as raised:
        _read(tmp_path, class_names=("O", "B-PER"))
    assert "\n" not in str(raised.value)


def test_columns_of_conll_files_have_no_names_and_words_are_one_column(tmp_path: Path) -> None:
    _conll(tmp_path / "test.conll", _ROWS)
    with pytest.raises(DataError, match="leave --text-column and --label-column out"):
        _read(tmp_path, Columns(("a",)), class_names=("O", "B-PER"))
    with pytest.raises(DataError, match="words are read from one column; name one with --text-column"):
        _read(tmp_path, Columns(("a", "b")), class_names=("O", "B-PER"))
    with pytest.raises(DataError, match="words with tags are read by a tokenizer, and the network has none"):
        load_data(f"text:{tmp_path}", text=TextReading(tagged=True))


def test_loss_and_accuracy_are_those_of_transformers_whatever_the_batches(tmp_path: Path) -> None:
    data, network = _read(write(tmp_path / "x.jsonl", _ROWS)), _bert(2)
    task = task_of(data)
    total = torch.zeros((), dtype=torch.float64)
    hits = tokens = 0
    assert data.train is not None
    for inputs, labels in evaluation_batches(data.train, PLAIN, 5):
        with torch.no_grad():
            theirs = network(**inputs, labels=labels)
        own = task.loss(theirs.logits, labels, 0.0)
        assert own == pytest.approx(float(theirs.loss), rel=1e-6)
        count = int((labels != IGNORED).sum())
        total += theirs.loss.double() * count
        hits, tokens = hits + int((theirs.logits.argmax(-1) == labels).sum()), tokens + count
    for size in (3, 36):
        figures = evaluate(network, evaluation_batches(data.train, PLAIN, size), CPU, task=task)
        assert figures.tokens == tokens and figures.loss == pytest.approx(float(total) / tokens, rel=1e-5)
        assert figures.score == figures.token_accuracy == pytest.approx(100 * hits / tokens, rel=1e-6)
        assert task.named(figures)["tokens"] == tokens


def test_macro_f1_counts_classes_alike() -> None:
    task = task_of(DataSet("x", ("a", "b", "c"), 0, None, (), (), False, None, None, task="token-classification"))  # type: ignore[arg-type]
    labels = torch.tensor([[0, 0, 0, 1, IGNORED]])
    scores = nn.functional.one_hot(torch.tensor([[0, 0, 1, 1, 2]]), 3).float()
    meter = task.meter(CPU)
    meter.update(scores, labels)
    # Class 0: precision 1, recall 2/3; class 1: precision 1/2, recall 1; class 2 does not occur.
    assert meter.compute().macro_f1 == pytest.approx(100 * (0.8 + 2 / 3) / 2, rel=1e-6)
    empty = task.meter(CPU)
    empty.update(scores, torch.full_like(labels, IGNORED))
    assert np.isnan(empty.compute().loss)
    assert empty.compute().token_accuracy == 0 and float(task.loss(scores, torch.full_like(labels, IGNORED), 0.0)) == 0


def test_a_teacher_says_nothing_of_tokens_without_a_tag() -> None:
    class Fixed(nn.Module):
        def __init__(self, scores: Tensor) -> None:
            super().__init__()
            self.scores = scores

        def forward(self, inputs: Tensor) -> Tensor:
            return self.scores

    task = task_of(DataSet("x", ("a", "b"), 0, None, (), (), False, None, None, task="token-classification"))  # type: ignore[arg-type]
    student, teacher = torch.randn(2, 4, 2), torch.randn(2, 4, 2)
    labels = torch.tensor([[0, 1, IGNORED, IGNORED], [1, IGNORED, IGNORED, IGNORED]])
    found = []
    for changed in (teacher, torch.where((labels == IGNORED)[..., None], torch.randn(2, 4, 2), teacher)):
        hook = Distillation(Fixed(changed), task, weight=1.0, temperature=2.0)
        found.append(hook.loss(torch.zeros(()), Batch(torch.zeros(2, 4), labels, student)))
    p, q = (torch.log_softmax(scores[labels != IGNORED] / 2, dim=-1) for scores in (teacher, student))
    assert float(found[0]) == float(found[1]) == pytest.approx(float(4 * (p.exp() * (p - q)).sum() / 3), rel=1e-5)


def test_the_loss_of_a_text_does_not_depend_on_its_padding() -> None:
    scores, labels = torch.randn(2, 3, 5), torch.tensor([[0, 4, IGNORED], [1, IGNORED, IGNORED]])
    filled = nn.functional.pad(scores, (0, 0, 0, 4)), nn.functional.pad(labels, (0, 4), value=IGNORED)
    assert token_loss(*filled) == pytest.approx(float(token_loss(scores, labels)), rel=1e-6)
    alone = sum(float(nn.functional.cross_entropy(own, label)) for own, label in zip(scores, labels, strict=True))
    assert float(token_loss(scores, labels)) == pytest.approx(alone, rel=1e-6)
