"""What a data set is: named splits of images and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prunecli.data.images import image_bytes, read_image
from prunecli.data.tokenizer import Tokenizer
from prunecli.data.vocabulary import Vocabulary
from prunecli.errors import DataError
from prunecli.measure.environment import memory_bytes

SampleKind: TypeAlias = Literal["images", "recordings", "tokens"]
TaskName: TypeAlias = Literal[
    "classification",
    "segmentation",
    "detection",
    "retrieval",
    "unlabelled",
    "word-language",
    "character-language",
    "token-language",
    "masked-language",
    "token-classification",
]
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "val": ("val", "valid", "validation", "dev"),
}
"""What files, folders and entries of a split are called; of two words, as in test-dev, the first split here counts."""
SPLIT_SEED = 0
"""Seed of every split made here. It is fixed, so a validation image of one stage is never trained on by another."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of natural images, where those of a data set are not known."""
_TEST_SHARE = 0.2
_Own = TypeVar("_Own", bound="Split")


class Split(Protocol):
    """Samples with class labels: an `ImageSplit`, a `SampleSplit`, or recordings of events."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class indices, shape (samples,)."""
        ...

    def subset(self, indices: NDArray[np.int64]) -> Split:
        """The samples at `indices`."""
        ...

    def fingerprint(self) -> str:
        """Hash of the content, 16 hex digits."""
        ...


@runtime_checkable
class ImageSplit(Split, Protocol):
    """Images with class labels."""

    def image(self, index: int) -> Image.Image:
        """The image at `index`."""
        ...


@runtime_checkable
class SampleSplit(Split, Protocol):
    """Samples that are already a network's inputs, and are neither resized nor augmented."""

    def sample(self, index: int) -> Any:
        """What the network takes for the sample at `index`, without a batch dimension.

        A tensor, a tuple (positional arguments), a mapping (keyword arguments), or a list of tensors of any shapes. All
        but lists are stacked to a batch; the lists of a batch are joined to one, as detectors take images.

        Raises:
            UnreadableImage: The sample cannot be read and may be left out with --skip-bad.
            DataError: It is wrong in another way.
        """
        ...


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """Images in memory: uint8, shape (images, height, width) or (images, height, width, channels)."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def image(self, index: int) -> Image.Image:
        """The image at `index`."""
        return Image.fromarray(self.images[index])

    def subset(self, indices: NDArray[np.int64]) -> ArraySplit:
        """The images at `indices`."""
        return ArraySplit(self.images[indices], self.labels[indices])

    def fingerprint(self) -> str:
        """Hash of pixels and labels."""
        return digest(np.ascontiguousarray(self.images).data, np.ascontiguousarray(self.labels).data)


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Images in files below `root`."""

    reads_files: ClassVar[bool] = True
    root: Path
    files: tuple[str, ...]
    labels: NDArray[np.int64]

    def image(self, index: int) -> Image.Image:
        """Reads the image at `index`.

        Raises:
            UnreadableImage: The file is not a readable image.
        """
        return read_image(self.root / self.files[index], "RGB")

    def subset(self, indices: NDArray[np.int64]) -> FileSplit:
        """The images at `indices`."""
        return FileSplit(self.root, tuple(self.files[i] for i in indices), self.labels[indices])

    def fingerprint(self) -> str:
        """Hash of file names, sizes and labels; pixels are not read."""
        sizes = [image_bytes(self.root / name) for name in self.files]
        return digest("\n".join(f"{n} {s}" for n, s in zip(self.files, sizes, strict=True)).encode(), self.labels.data)


def find_folder(name: str, path: str, root: Path, expected: str) -> Path:
    """The folder at `path`; a relative one is looked for in the current folder, then in `root`.

    Args:
        name: Name of the data set, for messages.
        path: Path of the folder.
        root: The data folder.
        expected: What to give instead where there is no such folder, for messages.

    Raises:
        DataError: There is no such folder.
    """
    relative = Path(path).expanduser()
    folder = next((candidate for candidate in (relative, root / relative) if candidate.is_dir()), None)
    if folder is None:
        raise DataError(f"{name}: no such folder; give {expected}")
    return folder


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without blank ones.

    Raises:
        DataError: It is not UTF-8 text, or cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable text file ({error}); write one name on each line") from error
    return [line.strip() for line in lines if line.strip()]


def too_large(claimed: int) -> str:
    """Message for data of `claimed` bytes that do not fit into this machine's memory."""
    return f"its data would take {claimed / 2**30:,.1f} GiB, and this machine has {memory_bytes() / 2**30:,.1f} GiB"


def digest(*parts: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `parts`."""
    hashed = hashlib.sha256()
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()[:16]


@runtime_checkable
class UnevenSplit(SampleSplit, Protocol):
    """Samples that are not all alike, and are made so when a batch is put together."""

    def stacked(self, samples: Sequence[Any]) -> Any:
        """One batch of samples."""
        ...


@runtime_checkable
class TokenSplit(UnevenSplit, Protocol):
    """Samples that have a label for each of their tokens; `labels` only say how many samples there are."""

    def pair(self, index: int, *, training: bool) -> tuple[Any, Tensor]:
        """The sample at `index` and its labels, shape (tokens,); those to train on may be drawn at random.

        Random numbers for training come from torch's global generator, which is seeded for every batch.
        """
        ...

    def stacked_labels(self, labels: Sequence[Tensor]) -> Tensor:
        """Labels of one batch, shape (samples, tokens)."""
        ...


@dataclass(frozen=True)
class ClassLabel:
    """What one value in masks, or one number of a class, means.

    Attributes:
        value: The number, or the colour as "red,green,blue".
        name: Its class; None: void.
        share: Share of the pixels of all masks that were looked at, or of the samples.
    """

    value: str
    name: str | None
    share: float


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set. Decisions are made on `validation`, which comes from the training images; `test` is for eval alone.

    Attributes:
        name: As on the command line.
        class_names: One per class; the captions of all images where the task is retrieval; the vocabulary of texts.
        channels: 1 or 3; 2 for recordings of events, one for each polarity; 0 for texts.
        image_size: Height and width if all images have the same, else None; for recordings, the camera's.
        mean: Per-channel mean of the pixels in 0..1.
        std: Per-channel standard deviation.
        flip: Whether a mirrored image is still an image of its class.
        train: Images to learn from; None if the set has only a test split, or if their files are missing.
        validation: Images held out from the training images; None before `hold_out`.
        test: Images that only evaluation uses.
        task: "classification", "segmentation" if every pixel has a class, "detection" if objects have boxes,
            "retrieval" if images have captions and the labels are the images' own numbers, "word-language",
            "character-language" or "token-language" if the next token of a text is to be predicted, "masked-language"
            if masked ones are, "token-classification" if every word has a class, or "unlabelled".
        described: Number of the image that each caption belongs to.
        samples: Whether splits have images (or a network's inputs, see `SampleSplit`), recordings of events, or tokens
            of a text.
        missing: Error message of whoever needs the training images, where their files are missing; the test images can
            be used without them.
        notes: What the user should know about how the files were read, a line each.
        labels: What values in masks, or numbers of classes of texts, mean, and how common they are.
        vocabulary: What tokens of texts mean, where these are words or characters.
        tokenizer: What they mean where these are parts of words.
        categories: Number of each class in COCO's files, which has gaps; empty elsewhere.
    """

    name: str
    class_names: tuple[str, ...]
    channels: int
    image_size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    train: Split | None
    test: Split
    validation: Split | None = None
    task: TaskName = "classification"
    described: tuple[int, ...] = ()
    samples: SampleKind = "images"
    missing: str = ""
    notes: tuple[str, ...] = ()
    labels: tuple[ClassLabel, ...] = ()
    vocabulary: Vocabulary | None = None
    tokenizer: Tokenizer | None = None
    categories: tuple[int, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def trainable(self) -> bool:
        """Whether the set has training images, be their files there or missing."""
        return self.train is not None or bool(self.missing)

    def training_split(self) -> Split:
        """The training images.

        Raises:
            DataError: The set has none, or their files are missing.
        """
        if self.train is None:
            raise DataError(
                self.missing
                or f"{self.name}: has no training images, only a test split; "
                "divide it into train/ and val/, each laid out as it is now"
            )
        return self.train


def hold_out(data: DataSet, fraction: float) -> DataSet:
    """Moves `fraction` of the training images, evenly over classes, to `validation`; always the same ones.

    Of a text, which has a label for every token, nothing is held out.

    Raises:
        DataError: There are too few training images.
    """
    if data.train is None or data.validation is not None or fraction == 0:
        return data
    labels = data.train.labels
    if labels.ndim > 1:
        return data
    # scikit-learn has this too, but importing it takes longer than most runs of this tool.
    shuffled = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    count = max(1, round(len(labels) * fraction))
    held = by_class[np.linspace(0, len(labels) - 1, count).round().astype(np.int64)]
    kept = np.setdiff1d(np.arange(len(labels)), held)
    if len(kept) == 0:
        noun = "texts" if data.samples == "tokens" else data.samples
        raise DataError(f"{data.name}: its {len(labels)} training {noun} are too few to hold {fraction:g} of them out")
    return replace(data, train=data.train.subset(kept), validation=data.train.subset(np.sort(held)))


def divided(parts: Mapping[str, _Own], folder: Path) -> tuple[_Own | None, _Own | None, _Own]:
    """Training, validation and test split of images that are laid out as `parts`, "train", "val" and "test" or "all".

    A fixed fifth of "all" is the test split; without "test", "val" is.

    Raises:
        DataError: There is nothing to evaluate on, or too little to hold some out.
    """
    train, validation, test = parts.get("train"), parts.get("val"), parts.get("test")
    if "all" in parts:
        every = parts["all"]
        order = np.random.default_rng(SPLIT_SEED).permutation(len(every.labels))
        cut = round(len(order) * _TEST_SHARE)
        if cut == 0:
            raise DataError(
                f"{folder}: {len(order)} images are too few to hold some out for evaluation; add val/ folders"
            )
        return every.subset(np.sort(order[cut:])), None, every.subset(np.sort(order[:cut]))  # type: ignore[return-value]
    if test is None:
        validation, test = None, validation
    if test is None:
        raise DataError(f"{folder}: has training images but neither val nor test; add the images to evaluate on")
    return train, validation, test


def concatenate(parts: Sequence[ArraySplit]) -> ArraySplit:
    """Joins in-memory splits."""
    return ArraySplit(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))
