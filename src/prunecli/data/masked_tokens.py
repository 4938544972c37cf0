"""Texts in blocks of tokens, some of which are masked and to be found, as in BERT (Devlin et al., 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunecli.data.passages import LONGEST, TokenPassages, filling, starts_of
from prunecli.data.splits import SPLIT_SEED, DataSet
from prunecli.data.text_files import Part, text_data
from prunecli.data.text_reading import TextReading, missing_part, resolved_tokenizer, unknown_notes
from prunecli.data.tokenizer import Tokenizer
from prunecli.engine.tasks.token_scores import IGNORED
from prunecli.errors import DataError, first_line

_SHARE = 0.15
"""Of the tokens are to be found. Of these 80 % are masked, 10 % replaced at random and 10 % left as they are."""


@dataclass(frozen=True, eq=False)
class MaskedSplit(TokenPassages):
    """Blocks of a text, special tokens included; their `labels` are all alike.

    Attributes:
        numbers: Which block of the whole text each is, shape (blocks,).
        special: Tokens that are never masked, such as the one for what the tokenizer does not know.
    """

    numbers: NDArray[np.int64]
    special: tuple[int, ...]

    def pair(self, index: int, *, training: bool) -> tuple[dict[str, Tensor], Tensor]:
        """The block at `index` with masks, and the tokens that are to be found, -100 elsewhere, shape (tokens,).

        In training masks are drawn at random, in evaluation every block always has the same.
        """
        sample = self.sample(index)
        if training:
            tokens, labels = self._drawn(sample["input_ids"], int(torch.randint(2**62, ())))
        else:
            tokens, labels = self._drawn(sample["input_ids"], self._seed(index))
            if index == self._unlucky:
                tokens, labels = self._one(sample["input_ids"], self._seed(index))
        return {**sample, "input_ids": tokens}, labels

    def subset(self, indices: NDArray[np.int64]) -> Self:
        """The blocks at `indices`."""
        return replace(super().subset(indices), numbers=self.numbers[indices])

    def _seed(self, index: int) -> int:
        """Of the masks that the block at `index` always has in evaluation."""
        sequence = np.random.SeedSequence(SPLIT_SEED, spawn_key=(int(self.numbers[index]),))
        return int(sequence.generate_state(1, np.uint64)[0]) % 2**62

    def _drawn(self, tokens: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """A block with masks, and its labels, shape (tokens,)."""
        collator = self._collator
        collator.generator = torch.Generator().manual_seed(seed)
        never = ~self._maskable(tokens)
        masked, labels = collator.torch_mask_tokens(tokens[None].clone(), special_tokens_mask=never[None])
        return masked[0], labels[0]

    def _one(self, tokens: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """A block with a single mask, and its labels, shape (tokens,)."""
        places = self._maskable(tokens).nonzero().flatten()
        place = places[torch.randint(len(places), (), generator=torch.Generator().manual_seed(seed))]
        masked, labels = tokens.clone(), torch.full_like(tokens, IGNORED)
        assert self.tokenizer.mask is not None, "checked before"
        masked[place], labels[place] = self.tokenizer.mask, tokens[place]
        return masked, labels

    def _maskable(self, tokens: Tensor) -> Tensor:
        return ~torch.isin(tokens, torch.tensor(self.special))

    @cached_property
    def _unlucky(self) -> int | None:
        """The block in which one token is masked in evaluation where by chance none is in the whole split."""
        for index in range(len(self.labels)):
            _, labels = self._drawn(self.sample(index)["input_ids"], self._seed(index))
            if (labels != IGNORED).any():
                return None
        maskable = (index for index in range(len(self.labels)) if self._maskable(self.sample(index)["input_ids"]).any())
        return next(maskable, None)

    @cached_property
    def _collator(self) -> Any:
        """What masks tokens: that of transformers, whose networks learn from it."""
        return _collator_of(self.tokenizer)


def _collator_of(tokenizer: Tokenizer) -> Any:
    try:
        from tokenizers import Tokenizer as Library
        from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast
    except ImportError as error:
        raise DataError(
            f"masking tokens needs transformers, which cannot be imported ({first_line(error)}); install "
            "prunecli[transformers]"
        ) from error
    assert tokenizer.mask is not None, "checked before"
    wrapper: Any = PreTrainedTokenizerFast
    library, mask = Library.from_str(tokenizer.definition), tokenizer.tokens[tokenizer.mask]
    wrapped = wrapper(tokenizer_object=library, mask_token=mask)
    return DataCollatorForLanguageModeling(wrapped, mlm_probability=_SHARE)


def load(path: str, found: Path, texts: Mapping[Part, Sequence[str]], reading: TextReading) -> DataSet:
    """Divides texts into blocks as long as the network reads, each with the special tokens of a text around it.

    Args:
        path: As on the command line.
        found: The file or folder.
        texts: Those of each part, one after the other.
        reading: How; its tokenizer is needed.

    Raises:
        DataError: There is no tokenizer, it has no token for masks, or blocks are too short for one.
    """
    if reading.tokenizer is None:
        raise DataError(
            f"text:{path}: masked tokens are those of a tokenizer, and the network has none: name one with "
            "--tokenizer, a file, a folder, or bpe:2000 to train one"
        )
    tokenizer = resolved_tokenizer(reading, texts.get("train", ()))
    if tokenizer.mask is None:
        raise DataError(
            f"text:{path}: the network finds masked tokens, and its tokenizer has no token for masks ([MASK], <mask>): "
            "give the tokenizer that the network was trained with, by --tokenizer, or a causal language model"
        )
    length = reading.length or min(LONGEST, reading.longest or LONGEST)
    splits = {part: _split(own, tokenizer, length, reading, f"text:{path}, {part}") for part, own in texts.items()}
    return text_data(
        path,
        splits,
        class_names=tokenizer.tokens,
        task="masked-language",
        missing=missing_part(found, splits, ("train", "valid")),
        notes=tuple(note for part, split in splits.items() for note in unknown_notes(part, split.tokens, tokenizer)),
        tokenizer=tokenizer,
    )


def _split(texts: Sequence[str], tokenizer: Tokenizer, length: int, reading: TextReading, origin: str) -> MaskedSplit:
    before, behind = tokenizer.frame
    own = length - len(before) - len(behind)
    if own < 1:
        raise DataError(
            f"{origin}: a sequence of {length} tokens has no place beside the {len(before) + len(behind)} special ones "
            "of the tokenizer; raise --bptt"
        )
    end = tokenizer.end if tokenizer.end is not None else next(iter(behind), None)
    tokens = replace(tokenizer, end=end).encode(texts, origin).tokens
    if len(tokens) == 0:
        raise DataError(f"{origin}: the tokenizer finds no token in the text; give a text in its language")
    blocks = [np.concatenate([before, piece, behind]) for piece in np.split(tokens, range(own, len(tokens), own))]
    special = {*before, *behind, end, tokenizer.padding, tokenizer.mask, tokenizer.unknown} - {None}
    numbers = tuple(sorted(number for number in special if number is not None))
    if np.isin(tokens, numbers).all():
        raise DataError(
            f"{origin}: all of its tokens are special ones, or unknown to the tokenizer, and none of these is masked; "
            "give a text in its language"
        )
    return MaskedSplit(
        np.concatenate(blocks).astype(np.int64),
        None,
        starts_of(np.array([len(block) for block in blocks])),
        np.zeros(len(blocks), dtype=np.int64),
        filling(reading, tokenizer),
        length,
        tokenizer,
        np.arange(len(blocks)),
        numbers,
    )
