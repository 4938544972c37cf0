"""Masked tokens: which there are, when they are drawn again, and what a network that finds them is judged by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from prunecli.data.catalog import load_data
from prunecli.data.loader import evaluation_batches, training_batches
from prunecli.data.masked_tokens import MaskedSplit
from prunecli.data.preparation import Augmentation
from prunecli.data.splits import DataSet
from prunecli.data.text_reading import TextReading
from prunecli.data.tokenizer import Tokenizer
from prunecli.engine.evaluate import evaluate
from prunecli.engine.tasks.index import task_of
from prunecli.engine.tasks.token_scores import IGNORED
from prunecli.errors import DataError
from tests.unit.test_engine import CPU
from tests.unit.test_tagged_words import PIECES
from tests.unit.test_text_tables import PLAIN, write
from tests.unit.test_tokenizer import TEXT, TRAINED

_LENGTH = 12


def _read(
    path: Path, tokenizer: Tokenizer | int | None = TRAINED, length: int | None = _LENGTH, **more: Any
) -> DataSet:
    return load_data(f"text:{path}", text=TextReading(tokenizer=tokenizer, length=length, masked=True, **more))


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    (tmp_path / "x.txt").write_text(TEXT * 20)
    return _read(tmp_path / "x.txt")


def _train(data: DataSet) -> MaskedSplit:
    assert isinstance(data.train, MaskedSplit)
    return data.train


def _all(batches: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and labels of every block, without padding."""
    inputs, labels = [], []
    for batch, own in batches:
        for tokens, mask, label in zip(batch["input_ids"], batch["attention_mask"], own, strict=True):
            inputs.append(tokens[mask.bool()])
            labels.append(label[mask.bool()])
            assert bool((label[~mask.bool()] == IGNORED).all())
    return inputs, labels


def _equal(first: Any, second: Any) -> bool:
    return all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )


def test_blocks_hold_the_whole_text_each_in_special_tokens(data: DataSet) -> None:
    split = _train(data)
    text = (TEXT * 20)[: round(0.9 * len(TEXT * 20))]
    blocks = [split.sample(index)["input_ids"].tolist() for index in range(len(split.labels))]
    assert (
        data.task == "masked-language"
        and {len(block) for block in blocks[:-1]} == {_LENGTH}
        and split.length == _LENGTH
    )
    assert all(block[0] == 1 and block[-1] == 2 for block in blocks)
    inner = [token for block in blocks for token in block[1:-1]]
    assert inner == TRAINED.encode([text], "here").tokens.tolist()


def test_masks_are_those_of_bert_and_leave_special_tokens_alone(data: DataSet) -> None:
    split = _train(data)
    original = [split.sample(index)["input_ids"] for index in range(len(split.labels))]
    inputs, labels = _all(training_batches(split, PLAIN, Augmentation(False), len(original), seed=0))
    # Blocks are shuffled: the originals are told by what stays and what is to be found.
    restored = [torch.where(label == IGNORED, tokens, label) for tokens, label in zip(inputs, labels, strict=True)]
    assert sorted(block.tolist() for block in restored) == sorted(block.tolist() for block in original)
    tokens, label, whole = (torch.cat(parts) for parts in (inputs, labels, restored))
    special = torch.isin(whole, torch.tensor([0, 1, 2, 3]))
    assert bool((label[special] == IGNORED).all())
    found = label != IGNORED
    count = int((~special).sum())
    assert count > 5000 and int(found.sum()) / count == pytest.approx(0.15, abs=0.02)
    kinds = tokens == 3, (tokens != 3) & (tokens != label), tokens == label
    shares = [int((found & kind).sum()) / int(found.sum()) for kind in kinds]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.04)
    assert torch.equal(tokens[~found], whole[~found])


def test_evaluation_always_has_the_same_masks(data: DataSet) -> None:
    split = _train(data)
    whole = _all(evaluation_batches(split, PLAIN, 64))
    torch.manual_seed(5)
    assert _equal(whole, _all(evaluation_batches(split, PLAIN, 7, workers=1)))
    chosen = np.array([9, 3, 30])
    some = _all(evaluation_batches(split.subset(chosen), PLAIN, 2))
    assert _equal(some, [[part[index] for index in chosen] for part in whole])
    assert len({tuple((label != IGNORED).tolist()) for label in whole[1]}) > 100
    assert split.subset(chosen).fingerprint() != split.fingerprint()


def test_training_draws_anew_each_epoch_from_the_seed_and_can_be_entered_anywhere(data: DataSet) -> None:
    def batches(seed: int = 1, workers: int = 0) -> Any:
        return training_batches(_train(data), PLAIN, Augmentation(False), 8, seed=seed, workers=workers)

    def masks(epoch: Any) -> set[tuple[int, ...]]:
        inputs, _ = _all(epoch)
        return {tuple(block.tolist()) for block in inputs}

    second = list(batches().epoch(2))
    torch.manual_seed(99)  # whatever else draws numbers
    assert _equal(_all(second), _all(batches(workers=2).epoch(2)))
    assert _equal(_all(second[3:]), _all(batches().epoch(2, 3)))
    state = torch.get_rng_state()
    first = masks(batches().epoch(1))
    assert torch.equal(torch.get_rng_state(), state)
    for other in (batches().epoch(2), batches(seed=2).epoch(1)):
        assert len(first & masks(other)) < len(first) / 2


def test_texts_of_tables_are_divided_by_the_token_behind_a_text(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        write(tmp_path / f"{part}.jsonl", [{"text": "the cat"}, {"text": "the mat"}])
    split = _train(_read(tmp_path))
    tokens = split.sample(0)["input_ids"]
    assert TRAINED.decode(tokens) == "<s>the cat</s>the mat</s>" and tokens.tolist().count(2) == 2
    assert 2 in split.special


def test_every_split_has_a_masked_token_where_one_may_be_masked(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text(TEXT)
    for text in ("the", "cat", "mat", "log", "dog", "hat"):
        (tmp_path / "test.txt").write_text(text)
        data = _read(tmp_path)
        assert isinstance(data.test, MaskedSplit)
        (sample, labels), (_, again) = (data.test.pair(0, training=False) for _ in range(2))
        assert (labels != IGNORED).any() and torch.equal(labels, again)
        restored = torch.where(labels == IGNORED, sample["input_ids"], labels)
        assert TRAINED.decode(restored.tolist()) == f"<s>{text}</s>"
    # Of blocks without a mask, chosen from a text with many, the first gets one.
    train = _train(data)
    bare = np.array([n for n in range(len(train.labels)) if not (train.pair(n, training=False)[1] != IGNORED).any()])
    chosen = train.subset(bare)
    assert len(bare) > 2
    assert [int((chosen.pair(n, training=False)[1] != IGNORED).sum()) for n in range(3)] == [1, 0, 0]
    meter = task_of(data).meter(CPU)
    with pytest.raises(DataError, match="no token is masked in what was evaluated"):
        meter.compute()


def test_unknown_tokens_are_not_masked_and_nothing_else_is_an_error(tmp_path: Path) -> None:
    definition = json.loads(PIECES.definition)
    definition["added_tokens"][0]["content"] = "[MASK]"
    definition["model"]["vocab"]["[MASK]"] = definition["model"]["vocab"].pop("[PAD]")
    pieces = Tokenizer.parsed(json.dumps(definition), "here")
    for part in ("train", "valid", "test"):
        (tmp_path / f"{part}.txt").write_text("the xyz sat " * 200)
    split = _train(_read(tmp_path, pieces))
    _, labels = _all(training_batches(split, PLAIN, Augmentation(False), 8, seed=0))
    found = torch.cat(labels)
    assert pieces.unknown in split.special and set(found.tolist()) == {IGNORED, *pieces.encode(["the sat"], "x").tokens}
    (tmp_path / "test.txt").write_text("xyz xyz")
    said = r"test: all of its tokens are special ones, or unknown to the tokenizer.*; give a text in its language"
    with pytest.raises(DataError, match=said):
        _read(tmp_path, pieces)


def _renamed(mask: str) -> Tokenizer:
    """The same tokenizer, with another name for its token for masks."""
    definition = json.loads(TRAINED.definition)
    definition["model"]["vocab"][mask] = definition["model"]["vocab"].pop("<mask>")
    for token in definition["added_tokens"]:
        token["content"] = mask if token["content"] == "<mask>" else token["content"]
    return Tokenizer.parsed(json.dumps(definition), "here")


def test_what_cannot_be_masked_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(TEXT)
    assert _renamed("[MASK]").mask == 3 and _renamed("<hole>").mask is None
    for tokenizer, length, said in (
        (_renamed("<hole>"), 12, r"its tokenizer has no token for masks \(\[MASK\], <mask>\): give the tokenizer"),
        (None, 12, "masked tokens are those of a tokenizer, and the network has none: name one with --tokenizer"),
        (TRAINED, 2, "train: a sequence of 2 tokens has no place beside the 2 special ones .* raise --bptt"),
    ):
        with pytest.raises(DataError, match=said) as raised:
            _read(tmp_path / "x.txt", tokenizer, length)
        assert "\n" not in str(raised.value)


def test_loss_and_accuracy_are_those_of_transformers_whatever_the_batches(data: DataSet) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=_LENGTH,
    )  # fmt: skip
    network: nn.Module = transformers.BertForMaskedLM(config).eval()
    task, split = task_of(data), _train(data).subset(np.arange(40))
    total = torch.zeros((), dtype=torch.float64)
    hits = tokens = 0
    for inputs, labels in evaluation_batches(split, PLAIN, 5):
        with torch.no_grad():
            theirs = network(**inputs, labels=labels)
        count = int((labels != IGNORED).sum())
        assert task.loss(theirs.logits, labels, 0.0) == pytest.approx(float(theirs.loss), rel=1e-6)
        total += theirs.loss.double() * count
        hits, tokens = hits + int((theirs.logits.argmax(-1) == labels).sum()), tokens + count
    for size in (3, 40):
        figures = evaluate(network, evaluation_batches(split, PLAIN, size), CPU, task=task)
        named = task.named(figures)
        assert named["tokens"] == tokens and figures.loss == pytest.approx(float(total) / tokens, rel=1e-5)
        assert named["pseudo_perplexity"] == figures.score == pytest.approx(np.exp(float(total) / tokens), rel=1e-5)
        assert named["masked_accuracy"] == pytest.approx(100 * hits / tokens, rel=1e-6) and "perplexity" not in named
    assert task.better(2.0, 3.0) and task.named_of(figures, split) == {}
    assert task.rounded_up and task.taught(torch.zeros(1, 2, 5), torch.tensor([[IGNORED, 1]])).shape == (1, 5)
