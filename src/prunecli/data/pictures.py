"""People's own pictures: finding them, and reading them as a viewer shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from prunecli.data.folder import image_files
from prunecli.data.images import UnreadableImage, converted, decoding_error, read_image
from prunecli.errors import DataError

_WHITE, _OPAQUE = (255, 255, 255, 255), 255
_MORE = (".gif", ".jfif", ".heic", ".heif", ".avif", ".jxl")
"""Suffixes of images in people's folders that data sets lack; those that cannot be read are named, not overlooked."""
_TURNED = range(2, 9)
"""Orientations in EXIF data of images that are stored on their side, upside down or mirrored."""


@dataclass(frozen=True)
class Picture:
    """One image file.

    Attributes:
        path: Where it is.
        name: What to call pictures of it: its path inside the folder that was asked for, else the file's own name.
    """

    path: Path
    name: Path


def find_pictures(asked: Iterable[Path], left_out: Path | None = None) -> list[Picture]:
    """Files, and image files in folders and their sub-folders, sorted within a folder; each counts once.

    Args:
        asked: Files and folders.
        left_out: A folder whose files do not count: pictures made of earlier ones.

    Raises:
        DataError: There is no such file or folder, or no image in all of them.
    """
    found: dict[Path, Picture] = {}
    asked = list(asked)
    for path in asked:
        for picture in _pictures_at(path):
            resolved = picture.path.resolve()
            if left_out is None or path.is_file() or left_out.resolve() not in resolved.parents:
                found.setdefault(resolved, picture)
    if not found:
        raise DataError(f"{', '.join(map(str, asked))}: no images in it or in its sub-folders")
    return list(found.values())


def _pictures_at(path: Path) -> Iterator[Picture]:
    if not path.exists():
        raise DataError(f"{path}: no such file or folder; give images, or folders of them")
    if not path.is_dir():
        yield Picture(path, Path(path.name))
        return
    for name in image_files(path, "**/*", *_MORE):
        if not any(part.startswith(".") for part in name.parts):
            yield Picture(path / name, name)


@dataclass(frozen=True)
class ReadPicture:
    """An image as a viewer shows it.

    Attributes:
        image: RGB, or L of a grey one.
        turned: Whether it was stored on its side or mirrored, as its EXIF data says.
        transparent: Whether there were transparent pixels, which white shines through.
    """

    image: Image.Image
    turned: bool
    transparent: bool


def read_picture(path: Path) -> ReadPicture:
    """Reads a picture the right way up, with white behind what is transparent; of an animation, its first frame.

    Raises:
        UnreadableImage: The file is not a readable image.
        ResourceError: The process may not open any more files.
    """
    stored = read_image(path)
    upright, turned = _upright(stored)
    transparent = False
    if upright.has_transparency_data:
        layered = upright.convert("RGBA")
        transparent = layered.getchannel("A").getextrema()[0] < _OPAQUE  # type: ignore[operator]
        upright = Image.alpha_composite(Image.new("RGBA", layered.size, _WHITE), layered)
    grey = upright.mode in ("1", "L") or upright.mode.startswith("I")
    try:
        image = converted(upright, "L" if grey else "RGB")
    except ValueError as error:
        raise UnreadableImage(path, decoding_error(error)) from error
    return ReadPicture(image, turned, transparent)


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """An image the right way up, and whether it was not; EXIF data that cannot be read say nothing."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        return ImageOps.exif_transpose(image), orientation in _TURNED
    except MemoryError:
        raise
    except Exception:  # the many errors of decoders
        return image, False


class PictureDataset(Dataset[Any]):
    """Pictures as one or more networks take them; labels say which picture it was, and how it was changed.

    A label has `index`, `size` (height and width of the picture), `inner` (for each network, those of what is the
    picture in its inputs), `turned` and `transparent`.

    Args:
        pictures: The files.
        transforms: For each network, from `picture_transform`.
    """

    def __init__(
        self, pictures: Sequence[Picture], transforms: Sequence[Callable[[Image.Image], tuple[Any, tuple[int, int]]]]
    ) -> None:
        self._pictures, self._transforms = pictures, transforms

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> tuple[list[Any], dict[str, Tensor]]:
        read = read_picture(self._pictures[index].path)
        inputs, inner = zip(*(transform(read.image) for transform in self._transforms), strict=True)
        label = {
            "index": torch.tensor(index),
            "size": torch.tensor([read.image.height, read.image.width]),
            "inner": torch.tensor(inner),
            "turned": torch.tensor(read.turned),
            "transparent": torch.tensor(read.transparent),
        }
        return list(inputs), label

    @staticmethod
    def stacked(samples: Sequence[list[Any]]) -> tuple[Any, ...]:
        """One batch for each network: a tensor, or a list where a network takes images in a list."""
        return tuple(
            [image for sample in own for image in sample] if isinstance(own[0], list) else default_collate(list(own))
            for own in zip(*samples, strict=True)
        )
