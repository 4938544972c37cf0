"""Inputs of the current network where it is a detector: images with boxes."""

from __future__ import annotations

import dataclasses

import torch

from prunecli.data.boxes import BoxPreparation
from prunecli.data.preparation import Preprocessing
from prunecli.engine.detectors.base import Detector
from prunecli.engine.detectors.index import detector_of
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

    def preprocessing(self) -> Preprocessing:
        """Images keep their aspect; they are in a list, or filled up to one size."""
        listed = self._detector.lists_images
        own_sizes = listed and self._state.recipe.data.image_size is None
        return dataclasses.replace(super().preprocessing(), boxes=BoxPreparation(listed, own_sizes))

    def example(self) -> Inputs:
        """One seeded random image, as the network takes it."""
        generator = torch.Generator().manual_seed(self._state.recipe.seed)
        return self._detector.example(self.example_shape(), generator)
