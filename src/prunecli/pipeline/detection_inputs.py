"""Inputs of the current network where it is a detector: images with boxes."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from numpy.typing import NDArray

from prunecli.data.boxes import BoxPreparation, BoxSplit, RenumberedSplit
from prunecli.data.loader import Batches, CalibrationBatches, TrainingBatches
from prunecli.data.preparation import Preprocessing
from prunecli.data.splits import Split
from prunecli.data.token_batches import StreamBatches
from prunecli.engine.config import FitConfig
from prunecli.engine.detectors.base import Detector
from prunecli.engine.detectors.index import detector_of
from prunecli.engine.tasks.base import Described, Labels
from prunecli.errors import RecipeError
from prunecli.inputs import Inputs, input_channels
from prunecli.pipeline.model_inputs import ModelInputs
from prunecli.recipe.sizes import parse_size


class DetectionInputs(ModelInputs):
    """Inputs of a detector.

    One that takes a list of images resizes them itself, so it is given every image in its own size, unless an image
    size is asked for. Every other one is given images of one size.

    Args:
        state: The run.
    """

    @property
    def _detector(self) -> Detector:
        detector = detector_of(self._state.model().model)
        assert detector is not None, "chosen for a detector"
        return detector

    def _size(self) -> tuple[int, int, int]:
        """Channels, height and width: as asked, as the images have, as the network was used or as it resizes them."""
        loaded, asked = self._state.model(), self._state.recipe.data.image_size
        images = self._state.data().image_size if self._state.data_name() is not None else None
        own = self._detector.own_size(loaded.model)
        if asked is not None:
            size: tuple[int, int] | None = parse_size(asked)
        elif self._detector.lists_images:
            size = images or loaded.fixed_size or own
        else:
            size = loaded.fixed_size or own or images
        if size is None:
            raise RecipeError(f"{loaded.name} takes images of one size, and these differ: say which with --image-size")
        return (input_channels(loaded.model), *size)

    def labels(self) -> Described:
        """Classes by the numbers that the network has for them."""
        data, numbers = self._state.data(), self._numbers()
        if numbers is None:
            return data
        names = dict(zip(numbers.tolist(), data.class_names, strict=True))
        count = self._detector.num_classes(self._state.model().model)
        return Labels(data.name, data.task, tuple(names.get(number, f"class {number}") for number in range(count)))

    def _numbers(self) -> NDArray[np.int64] | None:
        """The network's number of each class where it keeps COCO's, with gaps; None where both count alike."""
        data, detector = self._state.data(), self._detector
        count = detector.num_classes(self._state.model().model)
        if detector.first_category is None or count == data.num_classes or not data.categories:
            return None
        numbers = np.array(data.categories, dtype=np.int64) - detector.first_category
        return numbers if numbers.min() >= 0 and numbers.max() < count else None

    def _renumbered(self, split: Split) -> Split:
        numbers = self._numbers()
        return RenumberedSplit(split, numbers) if numbers is not None and isinstance(split, BoxSplit) else split

    def batches(self, split: Split) -> Batches | StreamBatches:
        """Evaluation batches of a split."""
        return super().batches(self._renumbered(split))

    def calibration(self, split: Split, images: int, batch_size: int | None = None) -> CalibrationBatches:
        """Batches of a seeded choice of `images` images of a split."""
        return super().calibration(self._renumbered(split), images, batch_size)

    def training(self, split: Split, config: FitConfig | None = None) -> TrainingBatches | StreamBatches:
        """Shuffled batches of a split."""
        return super().training(self._renumbered(split), config)

    def preprocessing(self) -> Preprocessing:
        """Images keep their aspect; they are in a list, or filled up to one size."""
        listed = self._detector.lists_images
        own_sizes = listed and self._state.recipe.data.image_size is None
        return dataclasses.replace(super().preprocessing(), boxes=BoxPreparation(listed, own_sizes))

    def example(self) -> Inputs:
        """One seeded random image, as the network takes it."""
        generator = torch.Generator().manual_seed(self._state.recipe.seed)
        return self._detector.example(self.example_shape(), generator)
