"""Inputs of the current network: shapes, preprocessing, examples and batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.data.events import Binning
from prunecli.data.loader import Batches, CalibrationBatches, TrainingBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import Split
from prunecli.data.token_batches import StreamBatches
from prunecli.data.workers import workers_for
from prunecli.engine.config import FitConfig
from prunecli.engine.resources import as_resource_error
from prunecli.engine.tasks.base import Described
from prunecli.errors import DataError, ModelError, ResourceError, first_line
from prunecli.inputs import Inputs, input_channels
from prunecli.models.loading import ANY_SIZE
from prunecli.pipeline.state import RunState
from prunecli.recipe.sizes import parse_size

_ANY_CHANNELS = (1, 3)
"""Images are converted between grey and colour."""


class ModelInputs:
    """Inputs of the current network of a run.

    Attributes:
        noun: What a message calls several of them.
        size_option: The option that sets their size.

    Args:
        state: The run.
    """

    noun: ClassVar[str] = "images"
    size_option: ClassVar[str] = "image-size"

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._converting_said = False

    def shape(self) -> tuple[int, ...]:
        """What a report calls the input: channels, height and width of one image, or of one frame."""
        return self._size()

    def _size(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        loaded, section = self._state.model(), self._state.recipe.data
        if section.image_size is not None:
            size = parse_size(section.image_size)
        elif loaded.fixed_size is not None:
            size = loaded.fixed_size
        else:
            size = (self._state.data().image_size if self._state.data_name() is not None else None) or ANY_SIZE
        return (input_channels(loaded.model), *size)

    def binning(self) -> Binning | None:
        """How recordings become frames; None where the data set has images, or there is none.

        Raises:
            DataError: The data set has recordings and the network takes none.
            RecipeError: Frames are asked for and the data set has images.
        """
        name = self._state.data_name()
        return self._state.samples().binning(name, self._state.recipe.data, self._state.model())

    def preprocessing(self) -> Preprocessing:
        """How images, or recordings of events, are prepared."""
        manifest = self._state.model().manifest
        shape = self._size()
        binning = self.binning()
        if binning is not None:
            return Preprocessing(shape, (0.0,) * shape[0], (1.0,) * shape[0], frames=binning)
        normalisation = manifest.normalisation
        if normalisation is None or len(normalisation.mean) != shape[0]:
            data = self._state.data() if self._state.data_name() is not None else None
            if data is not None and len(data.mean) == shape[0]:
                return Preprocessing(shape, data.mean, data.std)
            return Preprocessing(shape, (0.5,) * shape[0], (0.5,) * shape[0])
        return Preprocessing(
            shape,
            normalisation.mean,
            normalisation.std,
            normalisation.interpolation,
            normalisation.crop_pct,
            normalisation.crop_mode,
        )

    def integers(self) -> bool:
        """Whether a network of the user's own takes whole numbers."""
        return False

    def example_shape(self) -> tuple[int, ...]:
        """Shape of one image (C, H, W), or of the frames of one recording (T, C, H, W)."""
        binning = self.binning()
        return self.shape() if binning is None else (binning.frames, *self.shape())

    def example(self) -> Inputs:
        """One seeded random image, shape (1, C, H, W), or the frames of one recording, (1, T, C, H, W)."""
        generator = torch.Generator().manual_seed(self._state.recipe.seed)
        return torch.randn(1, *self.example_shape(), generator=generator)

    def normalisation(self) -> InputNormalisation | None:
        """How a checkpoint records the preprocessing."""
        used = self.preprocessing()
        return InputNormalisation(
            mean=used.mean,
            std=used.std,
            interpolation=used.interpolation,
            crop_pct=used.crop_pct,
            crop_mode=used.crop_mode,
        )

    def check(self) -> None:
        """Checks that the data set has images, or frames, with as many channels as the network reads.

        Raises:
            DataError: It has not.
        """
        data, loaded, channels = self._state.data(), self._state.model(), self._size()[0]
        if data.samples == "tokens":
            raise DataError(
                f"{loaded.name} reads images and {data.name} is a text; give a language model such as lm:lstm"
            )
        if channels not in _ANY_CHANNELS and self.binning() is None and data.channels != channels:
            raise DataError(
                f"{loaded.name} reads {channels} channels and {data.name} has images of {data.channels}; "
                "give the data set it was trained on with --data"
            )
        if data.channels != channels and not self._converting_said:
            self._converting_said = True
            self._state.sink.warn(
                f"{data.name} has {data.channels}-channel images; they are converted for {loaded.name}"
            )

    def labels(self) -> Described:
        """What the labels that the network is given mean; those of the data set, unless overridden."""
        return self._state.data()

    def batches(self, split: Split) -> Batches | StreamBatches:
        """Evaluation batches of a split."""
        section, preprocessing = self._state.recipe.data, self.preprocessing()
        workers = workers_for(split, preprocessing, section.batch_size, section.workers)
        return evaluation_batches(split, preprocessing, section.batch_size, workers, bad=self._state.bad)

    def calibration(self, split: Split, images: int, batch_size: int | None = None) -> CalibrationBatches:
        """Batches of a seeded choice of `images` images of a split."""
        recipe = self._state.recipe
        size = recipe.data.batch_size if batch_size is None else batch_size
        return CalibrationBatches(split, self.preprocessing(), images, size, seed=recipe.seed, bad=self._state.bad)

    def training(self, split: Split, config: FitConfig | None = None) -> TrainingBatches | StreamBatches:
        """Shuffled batches of a split, augmented as `config` says; default: shifted, and mirrored if it makes sense."""
        recipe, flip = self._state.recipe, self._state.data().flip
        augmentation = Augmentation(flip)
        if config is not None:
            augmentation = Augmentation(flip, config.auto_augment, config.color_jitter, config.random_erasing)
        preprocessing = self.preprocessing()
        return training_batches(
            split,
            preprocessing,
            augmentation,
            recipe.data.batch_size,
            seed=recipe.seed,
            workers=workers_for(split, preprocessing, recipe.data.batch_size, recipe.data.workers),
            bad=self._state.bad,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context for running the current network on an example; failures become errors that name the network.

        Raises:
            ModelError: It does not run on such images.
            ResourceError: There is not enough memory for it.
        """
        try:
            yield
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, MemoryError) as error:
            name, shape = self._state.model().name, "x".join(map(str, self.example_shape()))
            scarce = as_resource_error(error)
            if scarce is not None:
                raise ResourceError(f"{name}, {self.noun} of {shape}: {scarce}") from error
            raise ModelError(
                f"{name} does not run on {shape} {self.noun}: {first_line(error)}; see --{self.size_option}"
            ) from error
