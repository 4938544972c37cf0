"""The current network and data set of a run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prunecli.checkpoint.confinement import stays_inside
from prunecli.checkpoint.manifest import UsedTokenizer, UsedVocabulary
from prunecli.data.catalog import default_root, load_data, samples_of
from prunecli.data.images import BadImages
from prunecli.data.mask_labels import MaskReading, parse_void
from prunecli.data.splits import ClassLabel, DataSet, Split, hold_out
from prunecli.data.text_reading import TextReading
from prunecli.data.tokenizer import Tokenizer
from prunecli.engine.device import pick_device, seed_everything
from prunecli.errors import DataError, RecipeError
from prunecli.methods.registry import get_method
from prunecli.models.catalog import classes_are_texts, opens, reads_tokens
from prunecli.models.loading import LoadedModel, load_file, load_reference, widen
from prunecli.models.offloading import is_offloaded, put_in_memory
from prunecli.models.source import DataTokens
from prunecli.pipeline.samples import Samples, samples_in
from prunecli.pipeline.sink import Sink
from prunecli.pipeline.text_settings import text_reading
from prunecli.recipe.schema import PruneStage, Recipe
from prunecli.recipe.sizes import parse_shape, parse_size
from prunecli.stored import Scratch

DEFAULT_DATA = "digits"
_NAMED = 3
_IMAGES, _COLOURS = 4, (1, 3)
"""Dimensions of a batch of images, and numbers of their channels."""


@dataclass
class RunState:
    """State of one run.

    Attributes:
        recipe: The resolved recipe.
        sink: Receives notes and progress.
        command: How to run this again.
        resume_command: How to resume after an interrupt.
        resume: Resume from saved states.
        force: Replace existing files, saved states too.
        in_run: Whether the stages belong to a run, which removes their states once it has recorded them as done.
        loaded: The current network; None until it is needed.
        parent: The network that was pruned last, for distillation and paired timing.
        as_stored: Whether the present stage takes a large network in the precision of its file.
        scores: A folder of scores that runs which rank the same network share; None: there are no others.
        scratch: Where the present stage keeps what it computes of weights, if they stay on the disk; else None.
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
    as_stored: bool = False
    scores: Path | None = None
    scratch: Scratch | None = None
    reports: list[Path] = field(default_factory=list)
    _data: DataSet | None = None
    _building: bool = False
    _made_tokenizer: Tokenizer | None = None

    def __post_init__(self) -> None:
        self.device = pick_device(self.recipe.device)
        self.bad = BadImages(self.recipe.data.skip_bad)
        self._reported_bad = 0
        if self.recipe.data.image_size is not None:
            parse_size(self.recipe.data.image_size)  # so that a wrong size is reported before any work
        if self.recipe.data.frame_duration is not None and self.recipe.data.frames_by == "number":
            raise RecipeError("--frame-duration and --frames-by number exclude each other; give one of them")
        if self.recipe.threads is not None:
            torch.set_num_threads(self.recipe.threads)

    @property
    def may_replace(self) -> bool:
        """Whether existing files may be overwritten: the user allowed it, or they are the run's own."""
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

    def samples(self) -> Samples:
        """The kind of samples of the data set."""
        return samples_in(self.data_name())

    @property
    def batch(self) -> tuple[int, str]:
        """How many samples networks are trained on at once, and what these are called."""
        return self.recipe.data.batch_size, self.samples().noun

    def data(self) -> DataSet:
        """The data set with its validation split held out.

        Raises:
            DataError: No data set is named, or it cannot be read.
        """
        if self._data is None:
            name = self.data_name()
            if name is None:
                raise DataError("no data set: name one with --data, for instance --data cifar10")
            section = self.recipe.data
            reading = self._text_reading() if samples_of(name) == "tokens" else None
            masks = self._mask_reading(name)
            with self.sink.phase("load data"):
                data = load_data(name, self._data_root(), download=section.download, masks=masks, text=reading)
            self._warn_of_other_classes(data)
            self._data = hold_out(data, section.val_fraction)
            for note in () if self._building else self._data.notes:
                self.sink.note(note)
        return self._data

    def vocabulary(self) -> UsedVocabulary | None:
        """What tokens mean to the current network: what it has learned, else what the data set says."""
        learned = self.model().manifest.vocabulary
        if learned is not None or self.data_name() is None:
            return learned
        own = self.data().vocabulary
        return UsedVocabulary(level=own.level, tokens=own.tokens) if own is not None else None

    def tokenizer(self) -> UsedTokenizer | None:
        """The tokenizer of the current network: the one that it has learned with, else the data set's."""
        learned = self.model().manifest.tokenizer
        if learned is not None or self.data_name() is None:
            return learned
        own = self.data().tokenizer
        return own.record() if own is not None else None

    def split(self, name: str) -> Split:
        """The test or the validation split of the data set.

        Raises:
            DataError: The training files, which hold it, are missing.
            RecipeError: No image is held out for validation.
        """
        data = self.data()
        split = data.test if name == "test" else data.validation
        if split is None:
            if data.missing:
                data.training_split()  # which the validation images are some of
            raise RecipeError(f"{data.name} has no validation split; use --split test or a --val-fraction over 0")
        return split

    def use_data(self, name: str) -> None:
        """Makes `name` the data set of this run where none was named."""
        if self.recipe.data.name is None:
            self.recipe = replace(self.recipe, data=replace(self.recipe.data, name=name))

    def model(self) -> LoadedModel:
        """The current network, loaded on first use; in single precision unless a stage leaves it `as_stored`.

        Raises:
            ModelError: It cannot be loaded.
            RecipeError: None is named.
        """
        loaded = self.stored_model()
        if self.scratch is None and is_offloaded(loaded.model):
            put_in_memory(loaded.model)  # for what comes after the stage that left them on the disk
        return loaded if self.as_stored else widen(loaded)

    def stored_model(self) -> LoadedModel:
        """The current network, loaded on first use; a large one may be in half precision."""
        if self.loaded is None:
            self._building = True
            try:
                with self.sink.phase("load network"):
                    self.loaded = self._built()
            finally:
                self._building = False
            if self._data is not None and self._data.samples == "tokens":
                # It was read for the sizes of a new network, and is read again for what that network can read.
                asked = self.recipe.data.tokenizer
                self._made_tokenizer = self._data.tokenizer if asked is not None else None
                self._data = None
            for note in self.loaded.notes:
                self.sink.note(note)
        return self.loaded

    def _built(self) -> LoadedModel:
        """Loads the network that the recipe names, or builds it."""
        section = self.recipe.model
        seed_everything(self.recipe.seed)  # new weights are drawn here
        if section.weights is not None:
            loaded = load_file(
                Path(section.weights).expanduser(),
                section.ref,
                num_classes=section.num_classes,
                data_classes=lambda: self._build_arguments().get("num_classes"),
                kwargs=section.kwargs,
                weights_key=section.weights_key,
                strip_prefix=section.strip_prefix,
                prefer=self._source_of_methods(),
                allow_nonfinite=section.allow_nonfinite,
                scratch=self.scratch,
            )
        elif section.ref is not None:
            loaded = load_reference(
                section.ref,
                pretrained=section.pretrained,
                data_classes=self._data_classes,
                data_tokens=self._data_tokens,
                allow_nonfinite=section.allow_nonfinite,
                scratch=self.scratch,
                **self._build_arguments(),
            )
        else:
            raise RecipeError("no model: give a weights file or a reference such as cifar:resnet20")
        shape = parse_shape(section.example_shape).lengths if section.example_shape is not None else ()
        if len(shape) == _IMAGES and shape[1] in _COLOURS:
            loaded.fixed_size = (shape[2], shape[3])
        return loaded

    def _source_of_methods(self) -> str | None:
        """The source of architectures that a pruning method of this run is for."""
        methods = [stage.method for stage in self.recipe.stages if isinstance(stage, PruneStage)]
        return next((source for name in methods if (source := get_method(name).source) is not None), None)

    def untrained(self) -> bool:
        """Whether the current network has the random weights that it was built with."""
        return self.model().new

    def report_bad(self) -> None:
        """Warns about unreadable images that were left out since the last time."""
        files = list(self.bad.left_out)
        if len(files) > self._reported_bad:
            more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
            noun = self.samples().noun
            self.sink.warn(f"unreadable {noun} left out: {len(files)} ({', '.join(files[:_NAMED])}{more})")
        self._reported_bad = len(files)

    def _trusted(self, name: str) -> str:
        """A data set that a manifest names, perhaps somebody else's: no path out of this folder or the data folder."""
        path = name.partition(":")[2] or (name if name.endswith(".npz") else "")
        if path and not stays_inside(path, Path(), self._data_root()):
            raise DataError(
                f"the checkpoint was last used with {name}, outside this folder: name it with --data {name}"
            )
        return name

    def _mask_reading(self, name: str) -> MaskReading:
        """What the user says about masks, else what they meant when the current network was trained on them."""
        section = self.recipe.data
        said = MaskReading(section.classes, parse_void(section.void), section.reduce_zero_label)
        if said.classes is not None or said.reduce_zero_label or self.loaded is None:
            return said
        used = (step.data for step in reversed(self.loaded.manifest.history) if step.data is not None)
        labels = next((data.labels for data in used if self._folder_of(data.name) == self._folder_of(name)), ())
        return MaskReading(void=said.void, recorded=tuple(ClassLabel(row.value, row.name, row.share) for row in labels))

    def _text_reading(self) -> TextReading:
        """How texts are read: by what the current network has learned, what it is, and what the user says.

        Raises:
            RecipeError: These do not go together.
        """
        section = self.recipe.model
        if self.loaded is None and not self._building and (section.weights is not None or section.ref is not None):
            self.model()
        return text_reading(self.recipe.data, section, self.loaded, self._made_tokenizer)

    def _folder_of(self, name: str) -> Path:
        """Where masks lie: one folder may be written in several ways."""
        argument = name.partition(":")[2]
        path = Path(argument).expanduser()
        return (path if argument and path.is_dir() else self._data_root() / path).resolve()

    def _warn_of_other_classes(self, data: DataSet) -> None:
        """Says so where masks have other classes, or another order of them, than those that were learned."""
        if self.loaded is None or not data.labels:
            return
        used = (step.data.labels for step in reversed(self.loaded.manifest.history) if step.data is not None)
        learned = tuple(dict.fromkeys(row.name for row in next(used, ()) if row.name is not None))
        if learned and learned != data.class_names and len(learned) == len(data.class_names):
            self.sink.warn(
                f"{self.loaded.name} has learned the classes {', '.join(learned[:_NAMED])} ... and {data.name} has "
                f"{', '.join(data.class_names[:_NAMED])} ...: they are compared by number"
            )

    def _data_root(self) -> Path:
        section = self.recipe.data
        return Path(section.root).expanduser() if section.root else default_root()

    def _data_classes(self) -> int | None:
        return self.data().num_classes if self.recipe.data.name is not None else None

    def _data_tokens(self) -> DataTokens | None:
        """The tokens of the texts that a network is built for."""
        if self.recipe.data.name is None or samples_of(self.recipe.data.name) != "tokens":
            return None
        data = self.data()
        if data.tokenizer is not None:
            return DataTokens(len(data.tokenizer), data.tokenizer.padding, data.tokenizer.end)
        return DataTokens(data.num_classes)

    def _build_arguments(self) -> dict[str, Any]:
        section = self.recipe.model
        if section.ref is not None and classes_are_texts(section.ref):
            return dict(section.kwargs)
        if section.ref is not None and opens(section.ref):  # its classes are those of its files, unless it is new
            asked = {"num_classes": section.num_classes, "in_chans": section.in_chans}
            return {**{key: value for key, value in asked.items() if value is not None}, **section.kwargs}
        arguments: dict[str, Any] = {"num_classes": section.num_classes, "in_chans": section.in_chans}
        if not section.pretrained and self.recipe.data.name is not None:
            data = self.data()
            arguments["num_classes"] = arguments["num_classes"] or data.num_classes
            if section.ref is None or not reads_tokens(section.ref):
                arguments["in_chans"] = arguments["in_chans"] or data.channels
        if arguments["in_chans"] in (0, 3) and section.in_chans is None:
            del arguments["in_chans"]  # every architecture has three by default, and not all of them take the argument
        return {**{key: value for key, value in arguments.items() if value is not None}, **section.kwargs}
