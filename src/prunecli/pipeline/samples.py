"""Kinds of samples, images and recordings of events, and how each is prepared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Protocol

from torch import nn

from prunecli.checkpoint.manifest import Manifest
from prunecli.data.catalog import samples_of
from prunecli.data.events import POLARITIES, Binning
from prunecli.engine.config import FitConfig
from prunecli.errors import DataError, ModelError, RecipeError
from prunecli.inputs import input_channels
from prunecli.models.loading import LoadedModel
from prunecli.recipe.schema import DataSection


class Samples(Protocol):
    """One kind of samples.

    Attributes:
        noun: Plural noun for messages.
    """

    noun: ClassVar[str]

    def binning(self, name: str | None, section: DataSection, loaded: LoadedModel) -> Binning | None:
        """How recordings become frames for a network; None for images.

        Raises:
            DataError: The network cannot take them.
            RecipeError: Settings do not fit the samples.
        """
        ...

    def check_augmentation(self, name: str, config: FitConfig) -> None:
        """Refuses augmentations that the samples do not allow.

        Raises:
            RecipeError: One was asked for.
        """
        ...


class Images:
    """Images, or no data set at all."""

    noun: ClassVar[str] = "images"

    def binning(self, name: str | None, section: DataSection, loaded: LoadedModel) -> None:
        """Images have no frames."""
        if name is not None and (section.frames or section.frames_by or section.frame_duration):
            raise RecipeError(
                f"--frames, --frames-by and --frame-duration are for events, and {name} has images: leave them out"
            )

    def check_augmentation(self, name: str, config: FitConfig) -> None:
        """Every augmentation works."""


class Recordings:
    """Recordings of events."""

    noun: ClassVar[str] = "recordings"

    def binning(self, name: str | None, section: DataSection, loaded: LoadedModel) -> Binning:
        """As the recipe says, else as the checkpoint was last used, else one frame for each time step."""
        steps = _time_steps(loaded.model)
        if steps is None:
            raise DataError(
                f"{loaded.name} takes images and {name} has recordings of events: use a spiking network, such as "
                "spiking:vgg9"
            )
        channels = input_channels(loaded.model)
        if channels != POLARITIES:
            raise DataError(
                f"{loaded.name} reads {channels} channel{'s' if channels > 1 else ''} and the events of {name} have "
                f"{POLARITIES}, off and on: train one on events, or build it with --model-kwargs in_chans={POLARITIES}"
            )
        before = next(_earlier_binnings(loaded.name, loaded.manifest), None) or Binning(steps)
        if section.frames_by or section.frame_duration:
            return Binning(section.frames or before.frames, section.frames_by or "number", section.frame_duration)
        return dataclasses.replace(before, frames=section.frames or before.frames)

    def check_augmentation(self, name: str, config: FitConfig) -> None:
        """CutMix does not know frames."""
        if config.cutmix:
            raise RecipeError(f"--cutmix cuts images, and {name} has frames of events: leave it out")


class Tokens:
    """Tokens of a text."""

    noun: ClassVar[str] = "sequences"

    def binning(self, name: str | None, section: DataSection, loaded: LoadedModel) -> None:
        """Sequences have no frames."""
        if section.frames or section.frames_by or section.frame_duration:
            raise RecipeError(f"--frames, --frames-by and --frame-duration are for events, and {name} is a text")
        if section.image_size is not None:
            raise RecipeError(f"--image-size is for images, and {name} is a text: --bptt is the length of a sequence")

    def check_augmentation(self, name: str, config: FitConfig) -> None:
        """Nothing that changes images makes sense."""
        for setting in ("mixup", "cutmix", "auto_augment", "color_jitter", "random_erasing"):
            if getattr(config, setting):
                raise RecipeError(f"--{setting.replace('_', '-')} changes images, and {name} is a text: leave it out")


def samples_in(name: str | None) -> Samples:
    """The samples of the data set called `name`; nothing is read."""
    return _KINDS[samples_of(name)] if name is not None else _KINDS["images"]


_KINDS: dict[str, Samples] = {"images": Images(), "recordings": Recordings(), "tokens": Tokens()}


def _time_steps(model: nn.Module) -> int | None:
    steps = getattr(model, "T", None)
    return steps if isinstance(steps, int) else None


def _earlier_binnings(name: str, manifest: Manifest) -> Iterator[Binning]:
    """The binnings that the checkpoint was used with, latest first."""
    for step in reversed(manifest.history):
        recorded = step.settings.get("binning")
        if recorded is not None:
            try:
                yield Binning(**recorded)  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                raise ModelError(f"{name}: {error}; the file was altered") from error
