"""`module:package.file:function`: data sets that a function of the user's returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prunecli.data.folder import IMAGENET_MEAN, IMAGENET_STD
from prunecli.data.splits import SPLIT_NAMES, DataSet, digest
from prunecli.errors import DataError, described
from prunecli.inputs import output_tensors
from prunecli.own_code import called, load_function, parameters_of

_FIELDS = {"train": "train", "val": "validation", "test": "test"}
_HASHED, _READ_TWICE, _TIMES = 32, 8, 3
"""Samples whose content is part of the fingerprint (labels all are), and those that are checked to stay the same."""
_EXPECTED = (
    "return a mapping of train, validation and test to data sets of torch, or one of them, whose items are pairs of an "
    "input and a class number"
)


def load(path: str, root: Path, download: bool) -> DataSet:
    """Data sets of torch by the names of their splits; their images are prepared, other inputs taken as they are.

    Args:
        path: "package.file:function".
        root: The data folder, given to functions that have an argument `root`.
        download: Not used.

    Raises:
        DataError: The function may not run, fails, or returns something else.
    """
    name = f"module:{path}"
    function = load_function(path, DataError, "--data")
    own = {"root": str(root)} if "root" in parameters_of(function) else {}
    returned = called(function, path, DataError, **own)
    if isinstance(returned, DataSet):
        return returned
    sets = dict(returned) if isinstance(returned, Mapping) else {"test": returned}
    known = {alias: _FIELDS[split] for split, aliases in SPLIT_NAMES.items() for alias in aliases}
    for key in sets:
        if key not in known:
            raise DataError(f"{name}: has a split {key!r}; {_EXPECTED}")
    splits = {known[key]: _split(data, f"{name}, {key}") for key, data in sets.items()}
    judged = ["test", "validation" if "validation" in splits else "train"]  # validation is else held out of training
    for part in judged:
        if part in splits:
            _check_steady(splits[part], f"{name}, {part}", held_out=part == "train")
    if "test" not in splits:
        if "validation" not in splits:
            raise DataError(f"{name}: has no split to test on; {_EXPECTED}")
        splits["test"] = splits["validation"]
    images = isinstance(splits["test"], OwnImages)
    if any(isinstance(split, OwnImages) != images for split in splits.values()):
        raise DataError(f"{name}: some splits give Pillow's images and some tensors; they have to be prepared alike")
    return DataSet(
        name=name,
        class_names=_class_names(name, sets, splits),
        channels=3,
        image_size=None,
        mean=IMAGENET_MEAN if images else (),
        std=IMAGENET_STD if images else (),
        flip=False,
        train=splits.get("train"),
        validation=splits.get("validation"),
        test=splits["test"],
    )


@dataclass(frozen=True, eq=False)
class OwnSamples:
    """Items of a data set of torch: pairs of an input and a class number."""

    data: Any
    where: str
    indices: NDArray[np.int64] = field(repr=False)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers: those that the data set lists as `targets`, else those of its items, which are all read."""
        listed = self._listed()
        own = (self._item(index)[1] for index in self.indices)
        given = own if listed is None else (listed[index] for index in self.indices)
        try:
            labels = np.array([_class_number(label) for label in given], dtype=np.int64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise DataError(f"{self.where}: a label is no class number ({error}); {_EXPECTED}") from error
        return labels

    def _listed(self) -> Any:
        """The labels that the data set lists; None if it lists none, or its items have others."""
        listed = getattr(self.data, "targets", None)
        if listed is None or not hasattr(listed, "__getitem__") or len(listed) != len(self.data):
            return None
        if getattr(self.data, "target_transform", None) is not None:
            return None
        some = np.linspace(0, len(listed) - 1, min(_HASHED, len(listed))).round().astype(np.int64)
        try:
            same = all(_class_number(listed[index]) == _class_number(self._item(int(index))[1]) for index in some)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            return None
        return listed if same else None

    def sample(self, index: int) -> Any:
        """The input at `index`."""
        return self._item(int(self.indices[index]))[0]

    def subset(self, indices: NDArray[np.int64]) -> OwnSamples:
        """The samples at `indices`."""
        return type(self)(self.data, self.where, self.indices[indices])

    def fingerprint(self) -> str:
        """Hash of all labels and of the content of some samples."""
        some = np.linspace(0, len(self.indices) - 1, min(_HASHED, len(self.indices))).round().astype(np.int64)
        return digest(self.labels.tobytes(), *(content for index in some for content in self.content(int(index))))

    def content(self, index: int) -> list[bytes]:
        """The values of the input at `index`."""
        return [tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in output_tensors(self.sample(index))]

    def _item(self, index: int) -> tuple[Any, Any]:
        try:
            item = self.data[index]
        except Exception as error:
            raise DataError(f"{self.where}: item {index} fails: {described(error)}") from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{self.where}: item {index} is no pair; {_EXPECTED}")
        return item[0], item[1]


@dataclass(frozen=True, eq=False)
class OwnImages:
    """Pillow's images of a data set of torch with their class numbers."""

    samples: OwnSamples

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class numbers."""
        return self.samples.labels

    def image(self, index: int) -> Image.Image:
        """The image at `index`."""
        image: Image.Image = self.samples.sample(index)
        return image

    def subset(self, indices: NDArray[np.int64]) -> OwnImages:
        """The images at `indices`."""
        return OwnImages(self.samples.subset(indices))

    def fingerprint(self) -> str:
        """Hash of all labels and of some images."""
        count = len(self.samples.indices)
        some = np.linspace(0, count - 1, min(_HASHED, count)).round().astype(np.int64)
        return digest(self.labels.tobytes(), *(content for index in some for content in self.content(int(index))))

    def content(self, index: int) -> list[bytes]:
        """The pixels of the image at `index`."""
        return [self.image(index).tobytes()]


def _check_steady(split: OwnSamples | OwnImages, where: str, *, held_out: bool) -> None:
    """Refuses samples to judge a network on that are others each time they are read.

    Raises:
        DataError: They are.
    """
    count = len(split.labels)
    for index in np.linspace(0, count - 1, min(_READ_TWICE, count)).round().astype(int):
        first = split.content(int(index))
        if any(split.content(int(index)) != first for _ in range(_TIMES)):
            remedy = "return a validation split without" if held_out else "leave random changes to the training split"
            raise DataError(f"{where}: sample {index} is another one each time it is read; {remedy}")


def _split(data: Any, where: str) -> OwnSamples | OwnImages:
    try:
        count = len(data)
    except TypeError as error:
        raise DataError(f"{where}: a {type(data).__name__} has no length; {_EXPECTED}") from error
    if count == 0:
        raise DataError(f"{where}: is empty")
    samples = OwnSamples(data, where, np.arange(count))
    first = samples.sample(0)
    if isinstance(first, Image.Image):
        return OwnImages(samples)
    if not isinstance(first, torch.Tensor) and not output_tensors(first):
        raise DataError(f"{where}: inputs are {type(first).__name__}; tensors or Pillow's images are needed")
    return samples


def _class_number(label: Any) -> int:
    """A label as a number; fractions would be cut off without a word.

    Raises:
        ValueError: It is none.
    """
    number = int(label)
    if number != label or number < 0:
        raise ValueError(f"{label!r:.40}")
    return number


def _class_names(name: str, sets: Mapping[str, Any], splits: Mapping[str, OwnSamples | OwnImages]) -> tuple[str, ...]:
    listed = (getattr(data, "classes", None) for data in sets.values())
    named = {tuple(map(str, classes)) for classes in listed if isinstance(classes, (list, tuple))}
    if len(named) > 1:
        raise DataError(f"{name}: its splits list different classes, so that one number means several; use the same")
    count = 1 + max(int(split.labels.max()) for split in splits.values())
    classes = next(iter(named), ())
    return classes if len(classes) >= count else tuple(map(str, range(count)))
