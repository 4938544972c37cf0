"""Inputs of the current network where it reads texts: sequences of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.data.loader import Batches, CalibrationBatches, TrainingBatches, evaluation_batches
from prunecli.data.masked_tokens import MaskedSplit
from prunecli.data.passages import PassageSplit
from prunecli.data.preparation import Preprocessing
from prunecli.data.splits import Split
from prunecli.data.text import DEFAULT_LENGTHS
from prunecli.data.token_batches import StreamBatches, TextSplit, evaluation_streams
from prunecli.engine.config import FitConfig
from prunecli.errors import DataError
from prunecli.models.token_networks import (
    Purpose,
    accepts,
    heeds_padding,
    longest_sequence,
    looks_ahead,
    padding_token,
    purpose_of,
    remembers,
    vocabulary_size,
    widest_input,
)
from prunecli.pipeline.model_inputs import ModelInputs

_PREPROCESSING = Preprocessing((0, 0, 0), (), ())
"""Tokens are taken as they are."""
_LENGTH = 128
"""Tokens of an example where nothing says how many the network usually reads."""
_MOST_SCORES = 1 << 28
"""Scores of one batch, a gibibyte of them; those of large vocabularies soon need more memory than the network."""
_BY_THEMSELVES: tuple[Purpose, ...] = ("classes", "tags", "masked token")
"""What networks are for that read texts of different lengths, filled up to the longest of a batch."""
_TRIED = 12
"""Tokens of the sequences on which is tried what a network pays attention to."""


class TokenInputs(ModelInputs):
    """Inputs of a network that reads tokens.

    Args:
        state: The run.
    """

    noun = "sequences"
    size_option = "bptt"

    def shape(self) -> tuple[int, ...]:
        """Tokens in a sequence: those of the data set, else as the checkpoint was last used."""
        state = self._state
        name = state.data_name()
        if name is not None and isinstance(test := state.data().test, (TextSplit, PassageSplit)):
            return (test.length,)
        loaded = state.model()
        recorded = loaded.manifest.architecture.input_shape
        usual = DEFAULT_LENGTHS["word"] if remembers(loaded.model) else _LENGTH
        return (state.recipe.data.bptt or (recorded[0] if recorded else min(usual, _longest(loaded.model, usual))),)

    def example_shape(self) -> tuple[int, ...]:
        """Shape of one sequence."""
        return self.shape()

    def example(self) -> Any:
        """One seeded random sequence, shape (1, T); with attention and padding for all but causal language models."""
        generator = torch.Generator().manual_seed(self._state.recipe.seed)
        return random_tokens(self._state.model().model, self.shape(), generator)

    def preprocessing(self) -> Preprocessing:
        """Nothing is done to tokens."""
        return _PREPROCESSING

    def normalisation(self) -> InputNormalisation | None:
        """Tokens have none."""
        return None

    def check(self) -> None:
        """Checks that the data set is a text, and that the network can read all of its tokens and is right about them.

        Raises:
            DataError: It is not, or a token or a sequence is too large, or the network looks ahead, or pays attention
                to padding.
        """
        data, loaded = self._state.data(), self._state.model()
        if data.samples != "tokens":
            raise DataError(
                f"{loaded.name} reads texts and {data.name} has {data.samples}: name a text with --data text:PATH"
            )
        longest, length = longest_sequence(loaded.model), self.shape()[0]
        if longest is not None and length > longest:
            raise DataError(f"{loaded.name} reads at most {longest:,} tokens at once, not {length:,}: lower --bptt")
        known = vocabulary_size(loaded.model)
        for split in (data.train, data.validation, data.test):
            self._check_tokens(split, known)
        if isinstance(data.test, MaskedSplit):
            self._check_masks(data.test, known)
        if isinstance(data.test, PassageSplit):
            self._check_padding(data.test)
        else:
            self._check_order()

    def _check_tokens(self, split: Split | None, known: int) -> None:
        if not isinstance(split, (TextSplit, PassageSplit)) or len(split.tokens) == 0:
            return
        lowest, highest = int(split.tokens.min()), int(split.tokens.max())
        if lowest < 0 or highest >= known:
            wrong = highest if highest >= known else lowest
            raise DataError(
                f"{self._state.data().name}: has token {wrong:,}, and {self._state.model().name} knows {known:,} "
                "tokens, counted from 0: give the tokenizer, or the text, that it was trained with"
            )

    def _check_masks(self, split: MaskedSplit, known: int) -> None:
        """Checks that the network knows what masked tokens are replaced by, which may be any token."""
        if len(split.tokenizer) > known:
            raise DataError(
                f"{self._state.data().name}: its tokenizer has {len(split.tokenizer):,} tokens, and "
                f"{self._state.model().name} knows {known:,}: give the tokenizer that it was trained with"
            )

    def _check_order(self) -> None:
        """Checks that what is said of the next token does not depend on it."""
        network, name = self._state.model().model, self._state.model().name
        tokens = random_tokens(network, (min(self.shape()[0], _TRIED),), torch.Generator().manual_seed(0))
        if isinstance(tokens, Tensor) and tokens.shape[1] > 1 and not remembers(network):
            with self.running():
                ahead = looks_ahead(network.cpu().eval(), tokens)
            if ahead:
                raise DataError(
                    f"{name} reads texts in both directions, so it sees the tokens that it is to predict: give a "
                    "network that reads from left to right (a causal language model)"
                )

    def _check_padding(self, split: PassageSplit) -> None:
        """Checks that what is said of a text does not depend on how long the others in its batch are."""
        network, name = self._state.model().model, self._state.model().name
        most = min(split.length, _TRIED) - 2
        sample = {key: value[:most][None] for key, value in split.sample(0).items()}
        if most < 1 or not accepts(network, "attention_mask"):
            return
        with self.running():
            heeds = heeds_padding(network.cpu().eval(), sample, split.padding)
        if heeds:
            said = padding_token(network)
            shown = "names none" if said is None else f"says {said}"
            raise DataError(
                f"{name} pays attention to padding, so what it says of a text depends on the others in its batch: "
                f"texts are filled up with token {split.padding}, and its configuration {shown} (pad_token_id)"
            )

    def batches(self, split: Split) -> Batches | StreamBatches:
        """Texts with classes; a text in streams, or in sequences, each for itself, or a choice of these."""
        section = self._state.recipe.data
        if isinstance(split, TextSplit) and split.chosen is None:
            if remembers(self._state.model().model):
                return evaluation_streams(split)
            split = split.completed()
        return evaluation_batches(split, _PREPROCESSING, self._at_once(split), section.workers or 0)

    def calibration(self, split: Split, images: int, batch_size: int | None = None) -> CalibrationBatches:
        """Batches of a seeded choice of `images` sequences of a text, each for itself.

        Raises:
            DataError: They have fewer tokens than the widest layer has units.
        """
        chosen = min(images, len(split.labels))
        tokens = _tokens(split, chosen)
        widest = self._widest()
        if tokens < widest:
            raise DataError(
                f"{chosen} sequences have {tokens:,} tokens, fewer than the {widest:,} units of a layer, so nothing "
                "can be measured on them: raise --calibration-images, or give a longer text"
            )
        size = self._state.recipe.data.batch_size if batch_size is None else batch_size
        return super().calibration(split, images, min(size, self._at_once(split)))

    def training(self, split: Split, config: FitConfig | None = None) -> TrainingBatches | StreamBatches:
        """Shuffled sequences; for networks that remember, a text in as many streams as a batch has sequences.

        Raises:
            DataError: The text is too short for them.
        """
        if not isinstance(split, TextSplit):
            return super().training(split, config)
        streams = self._state.recipe.data.batch_size
        if len(split.tokens) - 1 < streams * split.length:
            raise DataError(
                f"{self._state.data().name}: {len(split.tokens):,} tokens to train on are fewer than one batch of "
                f"{streams} sequences of {split.length}: lower --batch-size or --bptt"
            )
        if not remembers(self._state.model().model):
            return super().training(split, config)
        return StreamBatches(split, streams, whole=False)

    def _at_once(self, split: Split) -> int:
        """Samples in a batch that nothing is learned from: fewer than asked for where scores would fill the memory."""
        asked, network = self._state.recipe.data.batch_size, self._state.model().model
        if not isinstance(split, (TextSplit, MaskedSplit)) or remembers(network):
            return asked
        return max(1, min(asked, _MOST_SCORES // (split.length * vocabulary_size(network))))

    def _widest(self) -> int:
        """Units of the widest layer between encoder and decoder."""
        loaded = self._state.model()
        units = loaded.manifest.architecture.kwargs.get("units")
        return units if isinstance(units, int) else widest_input(loaded.model)


def random_tokens(network: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> Any:
    """A sequence that a network can read, shape (1, T).

    Networks that find classes, or masked tokens, get their arguments by name, and padding behind the text where they
    are told of it: it is followed and proven as they will be used.
    """
    tokens = torch.randint(vocabulary_size(network), (1, *shape), generator=generator)
    if purpose_of(network) not in _BY_THEMSELVES or not accepts(network, "attention_mask"):
        return tokens
    padding = padding_token(network)
    attention = torch.ones_like(tokens)
    if padding is not None and tokens.shape[1] > 1:
        tokens[tokens == padding] = (padding + 1) % vocabulary_size(network)
        filled = max(1, tokens.shape[1] // 8)
        attention[:, -filled:] = 0
        tokens[:, -filled:] = padding
    return {"input_ids": tokens, "attention_mask": attention}


def _longest(network: nn.Module, otherwise: int) -> int:
    longest = longest_sequence(network)
    return otherwise if longest is None else longest


def _tokens(split: Split, chosen: int) -> int:
    """How many tokens `chosen` samples have, padding left out; of texts with classes, on average."""
    if isinstance(split, TextSplit):
        return chosen * split.length
    assert isinstance(split, PassageSplit), "checked before"
    return int(chosen * np.diff(split.starts).mean())
