"""What the stages of one run share: the plan, the current network, its data and where results go."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.confinement import stays_inside
from prunecli.checkpoint.manifest import Architecture, InputNormalisation, Manifest, Step, UsedData, as_json
from prunecli.data.catalog import default_root, holds_events, load_data
from prunecli.data.events import POLARITIES, Binning
from prunecli.data.images import BadImages
from prunecli.data.loader import Batches, Preprocessing, evaluation_batches
from prunecli.data.prompts import class_texts, templates
from prunecli.data.splits import ImageData, Split, hold_out
from prunecli.engine.device import pick_device, seed_everything
from prunecli.engine.resources import as_resource_error
from prunecli.engine.tasks import Classification, Segmentation, Task
from prunecli.errors import DataError, ModelError, RecipeError, ResourceError
from prunecli.inputs import call, logits
from prunecli.measure.environment import library_versions
from prunecli.models.catalog import classes_are_texts
from prunecli.models.loading import ANY_SIZE, LoadedModel, input_channels, load_file, load_reference, save
from prunecli.models.prompt_classifier import has_text_tower, prompt_classifier
from prunecli.pipeline.sink import Sink
from prunecli.recipe.schema import Recipe

DEFAULT_DATA = "digits"
_NAMED = 3
_SIZE = re.compile(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?")


def parse_size(text: str | int) -> tuple[int, int]:
    """Height and width from "256" or "360x480".

    Raises:
        RecipeError: It is neither.
    """
    match = _SIZE.fullmatch(str(text))
    if match is None:
        raise RecipeError(f"image size {str(text)!r}: write height and width as 360x480, or one number for both")
    return int(match[1]), int(match[2] or match[1])


@dataclass
class Workspace:
    """State of one run.

    Attributes:
        recipe: The resolved recipe.
        sink: Told what happens.
        command: How to run this again.
        resume_command: How to go on after an interrupt.
        resume: Go on from saved states.
        force: Replace what is there, saved states too.
        in_run: A run follows the stages, and removes their states once it has noted that they are done.
        loaded: The current network; None until it is needed.
        parent: The network that was pruned last, for distillation and paired timing.
        reports: Reports written so far, in order.
        bad: Unreadable images met so far.
    """

    recipe: Recipe
    sink: Sink
    command: str = ""
    resume_command: str = ""
    resume: bool = False
    force: bool = False
    in_run: bool = False
    loaded: LoadedModel | None = None
    parent: LoadedModel | None = None
    reports: list[Path] = field(default_factory=list)
    _data: ImageData | None = None

    def __post_init__(self) -> None:
        self.device = pick_device(self.recipe.device)
        self.bad = BadImages(self.recipe.data.skip_bad)
        self._told_bad = 0
        if self.recipe.data.image_size is not None:
            parse_size(self.recipe.data.image_size)  # a wrong one is noticed before any work
        if self.recipe.data.frame_duration is not None and self.recipe.data.frames_by == "number":
            raise RecipeError("--frame-duration and --frames-by number exclude each other; give one of them")
        if self.recipe.threads is not None:
            torch.set_num_threads(self.recipe.threads)

    @property
    def may_replace(self) -> bool:
        """Whether a file that is there may be written over: the user says so, or it is the run's own."""
        return self.force or self.resume or self.in_run

    def data_name(self) -> str | None:
        """The data set asked for, else the one the checkpoint was last used with."""
        if self.recipe.data.name is not None:
            return self.recipe.data.name
        if self.loaded is not None:
            for step in reversed(self.loaded.manifest.history):
                if step.data is not None:
                    return self._trusted(step.data.name)
        return None

    def _trusted(self, name: str) -> str:
        """A data set that a manifest names, perhaps somebody else's: no path out of this folder or the data folder."""
        path = name.partition(":")[2] or (name if name.endswith(".npz") else "")
        if path and not stays_inside(path, Path(), self._data_root()):
            raise DataError(
                f"the checkpoint was last used with {name}, outside this folder: name it with --data {name}"
            )
        return name

    def _data_root(self) -> Path:
        section = self.recipe.data
        return Path(section.root).expanduser() if section.root else default_root()

    def data(self, default: str | None = None) -> ImageData:
        """The data set with its validation split held out.

        Raises:
            DataError: No data set is named and there is no default, or it cannot be read.
        """
        if self._data is None:
            name = self.data_name() or default
            if name is None:
                raise DataError("no data set: name one with --data, for instance --data cifar10")
            section = self.recipe.data
            self._data = hold_out(load_data(name, self._data_root(), download=section.download), section.val_fraction)
        return self._data

    def model(self) -> LoadedModel:
        """The current network, loaded on first use.

        Raises:
            ModelError: It cannot be loaded.
            RecipeError: None is named.
        """
        if self.loaded is None:
            section = self.recipe.model
            seed_everything(self.recipe.seed)  # new weights are drawn here
            if section.weights is not None:
                path = Path(section.weights).expanduser()
                self.loaded = load_file(
                    path,
                    section.ref,
                    num_classes=section.num_classes,
                    data_classes=lambda: self._build_arguments().get("num_classes"),
                    kwargs=section.kwargs,
                    allow_nonfinite=section.allow_nonfinite,
                )
            elif section.ref is not None:
                self.loaded = load_reference(section.ref, pretrained=section.pretrained, **self._build_arguments())
            else:
                raise RecipeError("no model: give a weights file or a reference such as cifar:resnet20")
            for note in self.loaded.notes:
                self.sink.note(note)
        return self.loaded

    def untrained(self) -> bool:
        """Whether the current network has the random weights that it was built with."""
        section = self.recipe.model
        published = section.pretrained or "@" in (section.ref or "")
        return section.weights is None and not published and not self.model().manifest.history

    def _build_arguments(self) -> dict[str, Any]:
        section = self.recipe.model
        if section.ref is not None and classes_are_texts(section.ref):
            return dict(section.kwargs)
        arguments: dict[str, Any] = {"num_classes": section.num_classes, "in_chans": section.in_chans}
        if not section.pretrained and self.recipe.data.name is not None:
            data = self.data()
            arguments["num_classes"] = arguments["num_classes"] or data.num_classes
            arguments["in_chans"] = arguments["in_chans"] or data.channels
        if arguments["in_chans"] == 3 and section.in_chans is None:
            del arguments["in_chans"]  # three is what every architecture has, and not every one takes the argument
        return {**{key: value for key, value in arguments.items() if value is not None}, **section.kwargs}

    def use_data(self, name: str) -> None:
        """Makes `name` the data set of this run where none was named."""
        if self.recipe.data.name is None:
            self.recipe = replace(self.recipe, data=replace(self.recipe.data, name=name))

    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image, or of one frame, for the current network."""
        loaded = self.model()
        section = self.recipe.data
        if section.image_size is not None:
            size = parse_size(section.image_size)
        elif loaded.fixed_size is not None:
            size = loaded.fixed_size
        else:
            size = (self.data().image_size if self.data_name() is not None else None) or ANY_SIZE
        return (input_channels(loaded.model), *size)

    def frames(self) -> Binning | None:
        """How recordings become frames for the current network; None where the data set has images, or there is none.

        That is as the recipe says, else as the checkpoint was last used.

        Raises:
            DataError: The data set has recordings and the network takes none.
            RecipeError: Frames are asked for and the data set has images.
        """
        name, section = self.data_name(), self.recipe.data
        if name is None or not holds_events(name):
            if name is not None and (section.frames or section.frames_by or section.frame_duration):
                raise RecipeError(
                    f"--frames, --frames-by and --frame-duration are for events, and {name} has images: leave them out"
                )
            return None
        loaded = self.model()
        steps = getattr(loaded.model, "T", None)
        if not isinstance(steps, int):
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
        before = self._frames_before() or Binning(steps)
        if section.frames_by or section.frame_duration:
            return Binning(section.frames or before.frames, section.frames_by or "number", section.frame_duration)
        return replace(before, frames=section.frames or before.frames)

    def _frames_before(self) -> Binning | None:
        """How recordings became frames when the checkpoint was last used with some."""
        for step in reversed(self.model().manifest.history):
            found = step.settings.get("binning")
            if found is not None:
                try:
                    return Binning(**found)  # type: ignore[arg-type]
                except (TypeError, ValueError) as error:
                    raise ModelError(f"{self.model().name}: {error}; the file was altered") from error
        return None

    def preprocessing(self) -> Preprocessing:
        """How images, or recordings of events, are prepared for the current network."""
        manifest = self.model().manifest
        shape = self.input_shape()
        frames = self.frames()
        if frames is not None:
            return Preprocessing(shape, (0.0,) * shape[0], (1.0,) * shape[0], frames=frames)
        normalisation = manifest.normalisation
        if normalisation is None or len(normalisation.mean) != shape[0]:
            data = self.data() if self.data_name() is not None else None
            if data is not None and len(data.mean) == shape[0]:
                return Preprocessing(shape, data.mean, data.std)
            return Preprocessing(shape, (0.5,) * shape[0], (0.5,) * shape[0])
        return Preprocessing(
            shape, normalisation.mean, normalisation.std, normalisation.interpolation, normalisation.crop_pct
        )

    def example_shape(self) -> tuple[int, ...]:
        """Shape of one image (C, H, W), or of the frames of one recording (T, C, H, W)."""
        frames = self.frames()
        return self.input_shape() if frames is None else (frames.frames, *self.input_shape())

    def example(self) -> Tensor:
        """One seeded random image, shape (1, C, H, W), or as many frames as of one recording, (1, T, C, H, W)."""
        return torch.randn(1, *self.example_shape(), generator=torch.Generator().manual_seed(self.recipe.seed))

    def batches(self, split: Split) -> Batches:
        """Evaluation batches of a split."""
        section = self.recipe.data
        return evaluation_batches(split, self.preprocessing(), section.batch_size, section.workers, bad=self.bad)

    def tell_bad(self) -> None:
        """Warns about unreadable images that were left out since the last time."""
        files = list(self.bad.left_out)
        if len(files) > self._told_bad:
            more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
            kind = "recordings" if self.data_name() is not None and holds_events(self.data().name) else "images"
            self.sink.warn(f"unreadable {kind} left out: {len(files)} ({', '.join(files[:_NAMED])}{more})")
        self._told_bad = len(files)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Where the current network runs on an example: one that does not is named.

        Raises:
            ModelError: It does not run on such images.
            ResourceError: Memory does not suffice for it.
        """
        try:
            yield
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, MemoryError) as error:
            shape = "x".join(map(str, self.example_shape()))
            scarce = as_resource_error(error)
            if scarce is not None:
                raise ResourceError(f"{self.model().name}, an image of {shape}: {scarce}") from error
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{self.model().name} does not run on {shape} images: {first}; see --image-size"
            ) from error

    def check_classes(self) -> None:
        """Compares the network's outputs with the data's classes.

        Raises:
            DataError: They differ, or the network does not run on such images.
        """
        data, loaded = self.data(), self.model()
        texts = has_text_tower(loaded.model)
        if data.task == "retrieval" and not texts:
            raise DataError(f"{data.name} has captions and {loaded.name} no text tower: give an open_clip network")
        with self.running(), torch.no_grad():
            scores = logits(call(loaded.model.cpu().eval(), self.example()))
        if (scores.dim() == 4) != (data.task == "segmentation"):
            kinds = ("every pixel", "each image") if scores.dim() == 4 else ("each image", "every pixel")
            raise DataError(
                f"{loaded.name} finds a class for {kinds[0]}, {data.name} has one for {kinds[1]}; see --data"
            )
        if self.input_shape()[0] not in (1, 3) and self.frames() is None and data.channels != self.input_shape()[0]:
            raise DataError(
                f"{loaded.name} reads {self.input_shape()[0]} channels and {data.name} has images of {data.channels}; "
                "give the data set it was trained on with --data"
            )
        if data.channels != self.input_shape()[0]:
            self.sink.warn(f"{data.name} has {data.channels}-channel images; they are converted for {loaded.name}")
        if not texts and data.task != "unlabelled" and scores.shape[1] != data.num_classes:
            raise DataError(
                f"{loaded.name} has {scores.shape[1]} outputs and {data.name} has {data.num_classes} classes; "
                "give the data set it was trained on with --data"
            )

    def classifier(self, network: nn.Module | None = None, *, remember: bool = False) -> nn.Module:
        """What gives scores: its towers with prompts for classes that have names, else the network alone.

        Args:
            network: Another network of the same architecture, in place of the current one.
            remember: Whether features of prompts come from the disk, and go there if they are new.

        Raises:
            DataError: Files of class names or templates do not fit.
            RecipeError: They are given and there is no text tower.
            ModelError: The text tower's tokenizer cannot be fetched.
        """
        ref, section = self.model().manifest.architecture.ref, self.recipe.data
        network = self.model().model if network is None else network
        if not has_text_tower(network):
            if section.class_names or section.templates:
                raise RecipeError("--class-names and --templates are for networks with a text tower; leave them out")
            return network
        data = self.data()
        if data.task == "unlabelled" and section.class_names is None:
            return network
        texts, wordings = class_texts(data, section.class_names), templates(data, section.templates)
        return prompt_classifier(ref, network, texts, wordings, remember)

    def task(self) -> Task:
        """What the data set's scores are compared with.

        Raises:
            DataError: It has no classes.
        """
        data = self.data()
        if data.task in ("retrieval", "unlabelled"):
            without = f"{data.name} has images without classes: "
            raise DataError(without + "give another data set, or use it with `prune token`")
        return Segmentation(data.num_classes) if data.task == "segmentation" else Classification()

    def step(
        self, stage: str, settings: Mapping[str, Any], *, split: Split | None = None, split_name: str = "train"
    ) -> Step:
        """A history entry for the current network."""
        loaded = self.model()
        data = None
        if split is not None:
            data = UsedData(
                name=self.data().name, split=split_name, images=len(split.labels), fingerprint=split.fingerprint()
            )
        frames = self.frames() if split is not None else None
        binning = {"binning": dataclasses.asdict(frames)} if frames is not None else {}
        return Step(
            stage=stage,
            settings=as_json({**settings, **binning}),
            seed=self.recipe.seed,
            data=data,
            parent=str(loaded.path) if loaded.path else None,
            parent_sha256=loaded.sha256,
            versions=library_versions(),
            command=self.command,
        )

    def finish(self, loaded: LoadedModel, path: Path) -> Path:
        """Saves `loaded` as the run's current network.

        Returns:
            Where it was saved: beside `path` if somebody made a file of that name since the run began.
        """
        wanted, number = path, 1
        while path.exists() and not self.may_replace:
            number += 1
            path = wanted.with_stem(f"{wanted.stem}-{number}")
        if path != wanted:
            self.sink.warn(f"{wanted}: was made by another process meanwhile; saved as {path}")
        architecture: Architecture = loaded.manifest.architecture
        shape = self.input_shape()
        used = self.preprocessing()
        manifest: Manifest = loaded.manifest.model_copy(
            update={
                "architecture": architecture.model_copy(update={"input_shape": shape}),
                "normalisation": InputNormalisation(
                    mean=used.mean, std=used.std, interpolation=used.interpolation, crop_pct=used.crop_pct
                ),
            }
        )
        save(path, loaded.model.cpu(), manifest)
        # The next stage starts from what lies on the disk, so that it computes the same when it is resumed from there.
        self.loaded = load_file(path, allow_nonfinite=self.recipe.model.allow_nonfinite)
        return path
