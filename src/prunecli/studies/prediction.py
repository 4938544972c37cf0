"""What a network says about people's own pictures, alone or beside another one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.data.images import BadImages
from prunecli.data.loader import picture_batches
from prunecli.data.pictures import Picture, PictureDataset, find_pictures, read_picture
from prunecli.data.preparation import Preprocessing, picture_transform
from prunecli.data.workers import spare_workers
from prunecli.engine.detectors.index import detector_of
from prunecli.engine.device import channels_last, move_batch
from prunecli.engine.resources import resource_errors
from prunecli.errors import DataError, ModelError, RecipeError
from prunecli.inputs import call, logits
from prunecli.models.index import is_reference
from prunecli.models.loading import LoadedModel, load_companion
from prunecli.models.prompt_classifier import has_text_tower
from prunecli.pipeline.other_inputs import OtherInputs
from prunecli.pipeline.token_inputs import TokenInputs
from prunecli.pipeline.workspace import Workspace
from prunecli.report.table import Table
from prunecli.studies.prediction_answers import Answer, Classes, Frame, Kind, Likeness, Masks, Objects
from prunecli.studies.prediction_classes import ClassNames, class_names, wordings
from prunecli.studies.prediction_pictures import picture_paths, write_picture

PARENT = "parent"
"""Stands for the network that a checkpoint was pruned from."""
TOP, SCORE = 5, 0.5
_OWN_SIZES_AT_ONCE = 4
"""Images in a batch of those that keep their own sizes, which may be large."""
_IMAGE_CHANNELS = (1, 3)
_CLASSES, _MASKS = 2, 4
"""Dimensions of scores for each image, and for each pixel."""


@dataclass(frozen=True)
class PredictionRequest:
    """What to predict, and how to show it.

    Attributes:
        images: Files and folders.
        top: How many of the likeliest classes to show; None: `TOP`.
        score: Least score of a box; None: `SCORE`.
        classes: File with the names of classes; None: what is known.
        out: Folder for pictures; None: none are drawn.
        beside: Another network: a file, a reference or `PARENT`; None: none.
    """

    images: Sequence[Path]
    top: int | None = None
    score: float | None = None
    classes: str | None = None
    out: Path | None = None
    beside: str | None = None


@dataclass(frozen=True)
class _Predictor:
    """A network, ready to be asked."""

    name: str
    network: nn.Module
    kind: Kind
    names: ClassNames
    preprocessing: Preprocessing


@dataclass(frozen=True)
class _Row:
    """What was said about one picture."""

    document: dict[str, Any]
    cells: tuple[str, ...]
    likeness: Likeness | None


@dataclass
class PredictionOutcome:
    """What networks said.

    Attributes:
        names: What the networks are called.
        kind: What they find.
        class_names: What classes are called, and where that is known from.
        preprocessing: How pictures reach the first network.
        rows: One for each picture that could be read.
        skipped: Files that could not be read, with reasons.
        notes: What there is to know about the pictures.
    """

    names: tuple[str, ...]
    kind: Kind
    class_names: ClassNames
    preprocessing: Preprocessing
    rows: list[_Row] = field(default_factory=list)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def table(self) -> Table:
        """One line for each picture."""
        kind = self.kind
        columns, numeric = ("image", *kind.columns), tuple(1 + index for index in kind.numeric)
        if len(self.names) > 1:
            last = "same pixels %" if kind.task == "segmentation" else "same"
            beside = tuple(f"{column} (beside)" for column in kind.short)
            columns = ("image", *kind.short, *beside, last)
            numeric = tuple(
                1 + index + shift for shift in (0, len(kind.short)) for index in kind.numeric if index < len(kind.short)
            )
        return Table(columns, [row.cells for row in self.rows], numeric=numeric)

    def agreement(self) -> str | None:
        """How many pictures two networks agree about, in words."""
        alike = [row.likeness for row in self.rows if row.likeness is not None]
        if not alike:
            return None
        agreeing = sum(likeness.agree for likeness in alike)
        text = f"{agreeing} of {len(alike)} images have {self.kind.agreeing} in both networks"
        shares = [likeness.share for likeness in alike if likeness.share is not None]
        if not shares:
            return text
        return f"{100 * sum(shares) / len(shares):.1f}% of the pixels of an image have the same class in both networks"

    def document(self) -> dict[str, Any]:
        """Plain data."""
        alike = [row.likeness for row in self.rows if row.likeness is not None]
        shares = [likeness.share for likeness in alike if likeness.share is not None]
        both: dict[str, Any] = (
            {"model": self.names[1], "images_that_agree": sum(x.agree for x in alike)} if alike else {}
        )
        if shares:
            both["same_pixels"] = sum(shares) / len(shares)
        return {
            "model": self.names[0],
            "task": self.kind.task,
            "class_names": self.class_names.origin or None,
            "preprocessing": self._preprocessing(),
            **({"beside": both} if both else {}),
            "images": [row.document for row in self.rows],
            "skipped": [{"image": path, "reason": reason} for path, reason in self.skipped.items()],
        }

    def _preprocessing(self) -> dict[str, Any]:
        own = self.preprocessing
        size = None if own.boxes is not None and own.boxes.own_sizes else list(own.size[1:])
        cut = {"crop_pct": own.crop_pct, "crop_mode": own.crop_mode} if self.kind.task == "classification" else {}
        return {"size": size, "mean": list(own.mean), "std": list(own.std), "interpolation": own.interpolation, **cut}


def predict(space: Workspace, request: PredictionRequest) -> PredictionOutcome:
    """Asks the current network, and perhaps another one, about pictures.

    Raises:
        DataError: There are no pictures, none can be read, or names of classes do not fit.
        ModelError: The network is not one that says something about pictures, or the other one cannot be had.
        RecipeError: A picture may not be written.
    """
    pictures = find_pictures(request.images, request.out)
    paths = picture_paths(pictures, request.out, replace=space.force) if request.out is not None else None
    predictors = [_predictor(space, request)]
    if request.beside is not None:
        other = _predictor(_companion(space, request.beside), request)
        _check_alike(predictors[0], other)
        predictors.append(other)
    first = predictors[0]
    outcome = PredictionOutcome(tuple(own.name for own in predictors), first.kind, first.names, first.preprocessing)
    bad = BadImages(len(pictures))
    turned = transparent = 0
    with space.sink.progress(f"predict {len(pictures)} images", len(pictures)) as advance:
        for labels, answers in _asked(space, predictors, pictures, bad):
            for label, said in zip(labels, zip(*answers, strict=True), strict=True):
                index = int(label["index"])
                path = paths[index] if paths is not None else None
                outcome.rows.append(_row(pictures[index], label, said, first, path))
                if path is not None:
                    image = read_picture(pictures[index].path).image
                    write_picture(path, image, said, outcome.names, first.names.names)
                turned, transparent = turned + int(label["turned"]), transparent + int(label["transparent"])
            advance(len(outcome.rows), f"{len(outcome.rows)} images")
    outcome.skipped = bad.left_out
    if not outcome.rows:
        file, reason = next(iter(bad.left_out.items()))
        raise DataError(f"no image can be read: {file} ({reason}){f' and {len(bad) - 1} more' if len(bad) > 1 else ''}")
    outcome.notes = _notes(first.names, turned, transparent)
    return outcome


def _notes(names: ClassNames, turned: int, transparent: int) -> list[str]:
    unknown = "classes are numbers, because nothing says what they are called; see --classes and --data"
    notes = [f"class names: {names.origin}" if names.origin else unknown]
    if turned:
        notes.append(f"turned the right way up, as their EXIF data say, unlike in `prune eval`: {turned} images")
    if transparent:
        notes.append(f"laid on white where they are transparent, unlike in `prune eval`: {transparent} images")
    return notes


def _row(
    picture: Picture, label: Mapping[str, Any], said: Sequence[Answer], first: _Predictor, path: Path | None
) -> _Row:
    names, (height, width) = first.names.names, label["size"].tolist()
    document: dict[str, Any] = {
        "image": str(picture.path),
        "size": [width, height],
        **said[0].document(names),
        **({"picture": str(path)} if path is not None else {}),
    }
    if len(said) == 1:
        return _Row(document, (str(picture.path), *said[0].cells(names)), None)
    likeness = said[0].likeness(said[1])
    document["beside"] = said[1].document(names)
    document["agree"] = likeness.agree
    if likeness.share is not None:
        document["same_pixels"] = likeness.share
    verdict = ("yes" if likeness.agree else "no") if likeness.share is None else f"{100 * likeness.share:.1f}"
    return _Row(document, (str(picture.path), *said[0].short(names), *said[1].short(names), verdict), likeness)


def _asked(
    space: Workspace, predictors: Sequence[_Predictor], pictures: Sequence[Picture], bad: BadImages
) -> Iterator[tuple[list[Mapping[str, Any]], list[list[Answer]]]]:
    """For each batch its labels, and the answers of every network."""
    data, device = space.recipe.data, space.device
    dataset = PictureDataset(pictures, [picture_transform(own.preprocessing, own.kind.task) for own in predictors])
    own_sizes = any(own.preprocessing.boxes is not None and own.preprocessing.boxes.own_sizes for own in predictors)
    size = min(data.batch_size, _OWN_SIZES_AT_ONCE) if own_sizes else data.batch_size
    sizes = sum(math.prod(own.preprocessing.size) for own in predictors)
    workers = spare_workers(len(pictures), 4 * size * sizes) if data.workers is None else data.workers
    with ExitStack() as stack:
        stack.enter_context(resource_errors(size))
        layouts = [stack.enter_context(channels_last(own.network.to(device).eval())) for own in predictors]
        stack.enter_context(torch.no_grad())
        for inputs, labels in picture_batches(dataset, size, workers, bad):
            answers = []
            for index, (own, layout) in enumerate(zip(predictors, layouts, strict=True)):
                frames = [Frame(tuple(x["size"].tolist()), tuple(x["inner"][index].tolist())) for x in labels]
                answers.append(own.kind.answers(own.network, move_batch(inputs[index], device, layout), frames))
            yield labels, answers


def _predictor(space: Workspace, request: PredictionRequest) -> _Predictor:
    """The current network of a workspace, with what has to be known to ask it.

    Raises:
        ModelError: It says nothing about pictures.
    """
    loaded = space.model()
    inputs = space.inputs
    if isinstance(inputs, TokenInputs):
        raise ModelError(f"{loaded.name} reads texts, and `prune predict` shows pictures to a network")
    if isinstance(inputs, OtherInputs):
        raise ModelError(f"{loaded.name} takes more than one image, or something else; see --example-shape")
    preprocessing = inputs.preprocessing()
    if preprocessing.frames is not None or preprocessing.size[0] not in _IMAGE_CHANNELS:
        raise ModelError(
            f"{loaded.name} reads images of {preprocessing.size[0]} channels or recordings of events, not pictures"
        )
    _note_guesses(space, preprocessing)
    if loaded.new or loaded.new_classes:
        space.sink.warn(f"{loaded.name} has random weights, so what it says means nothing; give a weights file")
    if has_text_tower(loaded.model):
        texts, names = wordings(space, request.classes)
        ref = loaded.manifest.architecture.ref
        network = space.judging.scoring.classifier(ref, loaded.model, lambda: texts, remember=True)
        chosen = Classes(len(names.names), TOP if request.top is None else request.top)
        _check_asked(loaded.name, chosen, request)
        return _Predictor(loaded.name, network, chosen, names, preprocessing)
    if space.recipe.data.templates is not None:
        space.judging.scoring.refuse_wordings()
    kind = _kind(space, request)
    _check_asked(loaded.name, kind, request)
    return _Predictor(loaded.name, loaded.model, kind, class_names(space, kind.classes, request.classes), preprocessing)


def _note_guesses(space: Workspace, preprocessing: Preprocessing) -> None:
    """Says so where nothing says what images the network takes."""
    loaded, (_, height, width) = space.model(), preprocessing.size
    if space.data_name() is not None:
        return  # it has images of the right kind
    if loaded.fixed_size is None and space.recipe.data.image_size is None and preprocessing.boxes is None:
        space.sink.note(
            f"images are resized to {height}x{width}, because {loaded.name} takes any size and nothing says which it "
            "has learned; see --image-size"
        )
    if loaded.manifest.normalisation is None or len(loaded.manifest.normalisation.mean) != preprocessing.size[0]:
        space.sink.note(
            f"pixels are scaled to -1..1, because nothing says how {loaded.name} wants them; give the data set that it "
            "has learned with --data"
        )


def _check_asked(name: str, kind: Kind, request: PredictionRequest) -> None:
    """Refuses options that are for answers of another kind.

    Raises:
        RecipeError: One was given.
    """
    if request.top is not None and not isinstance(kind, Classes):
        raise RecipeError(f"--top is for networks that find a class for each image, and {name} does {kind.task}")
    if request.score is not None and not isinstance(kind, Objects):
        raise RecipeError(f"--score is for boxes, and {name} does {kind.task}")


def _kind(space: Workspace, request: PredictionRequest) -> Kind:
    """What a network without a text tower finds, by what it gives for an example."""
    loaded = space.model()
    detector = detector_of(loaded.model)
    if detector is not None:
        return Objects(detector.num_classes(loaded.model), detector, SCORE if request.score is None else request.score)
    with space.inputs.running(), torch.no_grad():
        scores = logits(call(loaded.model.cpu().eval(), space.inputs.example()))
    if getattr(loaded.model, "num_classes", None) == 0:
        raise ModelError(f"{loaded.name} has no classifier, only features: give a network that has one")
    if scores.dim() == _MASKS and scores.shape[1] > 1:
        return Masks(scores.shape[1])
    if scores.dim() == _CLASSES and scores.shape[1] > 1:
        return Classes(scores.shape[1], TOP if request.top is None else request.top)
    shape = "x".join(map(str, scores.shape))
    raise ModelError(
        f"{loaded.name} gives {shape} numbers for an image, which are neither classes of the image, nor of its pixels, "
        "nor boxes"
    )


def _companion(space: Workspace, name: str) -> Workspace:
    """A workspace with the network to show beside the current one."""
    loaded, section = space.model(), space.recipe.model
    if is_reference(Path(name)):
        other = Workspace(replace(space.recipe, model=replace(section, ref=name, weights=None)), space.sink)
        return _prepared_alike(other, loaded)
    if name == PARENT:
        first = next((step for step in loaded.manifest.history if step.stage == "prune"), None)
        path = space.lineage.parent_file(first, "--beside")
    else:
        path = Path(name).expanduser()
    ref = loaded.manifest.architecture.ref
    other = Workspace(replace(space.recipe, model=replace(section, weights=str(path), ref=None)), space.sink)
    other.loaded = load_companion(path, ref, allow_nonfinite=section.allow_nonfinite)
    return _prepared_alike(other, loaded)


def _prepared_alike(other: Workspace, first: LoadedModel) -> Workspace:
    """Takes the size of images and their scale from the first network where nothing says them of the other one.

    Weights of another program say neither, and what their architecture is usually given need not be what they have
    learned; a network that was pruned from them does.
    """
    loaded = other.model()
    alike = not loaded.manifest.history and loaded.manifest.architecture.ref == first.manifest.architecture.ref
    own_size, own = loaded.fixed_size, loaded.manifest.normalisation
    loaded.fixed_size = (first.fixed_size or own_size) if alike else (own_size or first.fixed_size)
    loaded.manifest.normalisation = (first.manifest.normalisation or own) if alike else own
    return other


def _check_alike(first: _Predictor, other: _Predictor) -> None:
    """Checks that two networks answer the same question.

    Raises:
        ModelError: They do not.
    """
    if first.kind.task != other.kind.task:
        raise ModelError(
            f"{first.name} does {first.kind.task} and {other.name} {other.kind.task}: --beside compares alike"
        )
    if first.kind.classes != other.kind.classes:
        raise ModelError(
            f"{first.name} has {first.kind.classes} classes and {other.name} has {other.kind.classes}, so their "
            "answers cannot be compared: give --beside a network for the same classes"
        )
