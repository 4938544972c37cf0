"""Inputs of the current network where it is a language model: sequences of tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.data.loader import Batches, CalibrationBatches, evaluation_batches
from prunecli.data.preparation import Preprocessing
from prunecli.data.splits import Split
from prunecli.data.text import DEFAULT_LENGTHS
from prunecli.data.token_batches import StreamBatches, TextSplit, evaluation_streams
from prunecli.engine.config import FitConfig
from prunecli.errors import DataError
from prunecli.pipeline.model_inputs import ModelInputs

_PREPROCESSING = Preprocessing((0, 0, 0), (), ())
"""Tokens are taken as they are."""


class TokenInputs(ModelInputs):
    """Inputs of a language model.

    Args:
        state: The run.
    """

    noun = "sequences"
    size_option = "bptt"

    def shape(self) -> tuple[int, ...]:
        """Tokens in a sequence: those of the data set, else as the checkpoint was last used."""
        state = self._state
        name = state.data_name()
        if name is not None and isinstance(test := state.data().test, TextSplit):
            return (test.length,)
        recorded = state.model().manifest.architecture.input_shape
        return (state.recipe.data.bptt or (recorded[0] if recorded else DEFAULT_LENGTHS["word"]),)

    def example_shape(self) -> tuple[int, ...]:
        """Shape of one sequence."""
        return self.shape()

    def example(self) -> Tensor:
        """One seeded random sequence, shape (1, T)."""
        generator = torch.Generator().manual_seed(self._state.recipe.seed)
        return random_tokens(self._state.model().model, self.shape(), generator)

    def preprocessing(self) -> Preprocessing:
        """Nothing is done to tokens."""
        return _PREPROCESSING

    def normalisation(self) -> InputNormalisation | None:
        """Tokens have none."""
        return None

    def check(self) -> None:
        """Checks that the data set is a text.

        Raises:
            DataError: It is not.
        """
        data = self._state.data()
        if data.samples != "tokens":
            raise DataError(
                f"{self._state.model().name} reads texts and {data.name} has {data.samples}: name a text with "
                "--data text:PATH"
            )

    def batches(self, split: Split) -> Batches | StreamBatches:
        """A text in streams, or a choice of its sequences, each for itself."""
        assert isinstance(split, TextSplit), "checked before"
        if split.chosen is None:
            return evaluation_streams(split)
        section = self._state.recipe.data
        return evaluation_batches(split, _PREPROCESSING, section.batch_size, section.workers)

    def calibration(self, split: Split, images: int, batch_size: int | None = None) -> CalibrationBatches:
        """Batches of a seeded choice of `images` sequences of a text, each for itself.

        Raises:
            DataError: They have fewer tokens than the widest layer has units.
        """
        assert isinstance(split, TextSplit), "checked before"
        chosen = min(images, len(split.labels))
        widest = self._widest()
        if chosen * split.length < widest:
            raise DataError(
                f"{chosen} sequences of {split.length} are {chosen * split.length:,} tokens, fewer than the {widest:,} "
                "units of a layer, so nothing can be measured on them: raise --calibration-images, or give a longer "
                "text"
            )
        return super().calibration(split, images, batch_size)

    def training(self, split: Split, config: FitConfig | None = None) -> StreamBatches:
        """A text in as many streams as a batch has sequences; the same in every epoch.

        Raises:
            DataError: It is too short for them.
        """
        assert isinstance(split, TextSplit), "checked before"
        streams = self._state.recipe.data.batch_size
        if len(split.tokens) - 1 < streams * split.length:
            raise DataError(
                f"{self._state.data().name}: {len(split.tokens):,} tokens to train on are fewer than one batch of "
                f"{streams} sequences of {split.length}: lower --batch-size or --bptt"
            )
        return StreamBatches(split, streams, whole=False)

    def _widest(self) -> int:
        """Units of the widest layer between encoder and decoder."""
        loaded = self._state.model()
        widths = (loaded.manifest.architecture.kwargs.get("units"), *_widths(loaded.model))
        return max((width for width in widths if isinstance(width, int)), default=1)


def _widths(network: nn.Module) -> tuple[Any, ...]:
    """Widths that the configuration of a network of transformers names."""
    config = getattr(network, "config", None)
    return tuple(getattr(config, name, None) for name in ("hidden_size", "intermediate_size"))


def random_tokens(network: nn.Module, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A sequence that a language model can read, shape (1, T)."""
    return torch.randint(vocabulary_size(network), (1, *shape), generator=generator)


def vocabulary_size(network: nn.Module) -> int:
    """How many different tokens a language model can read."""
    size = getattr(getattr(network, "config", network), "vocab_size", None)
    embeddings = (module.num_embeddings for module in network.modules() if isinstance(module, nn.Embedding))
    return size if isinstance(size, int) else next(embeddings, 1)
