"""`wds:PATH`: images with classes or captions in tar files, in CLIP_benchmark's layout; nothing is unpacked."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunecli.data.images import OUT_OF_FILES, UnreadableImage, decode, decoding_error, irregularity
from prunecli.data.splits import DataSet, digest, find_folder, read_lines
from prunecli.errors import DataError, ResourceError

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_LABEL, _TEXT = ".cls", ".txt"
_MOST_MEMBERS = 10_000_000
"""Maximal number of members in one split."""
_MOST_BYTES = 2**30
"""Maximal size of one image; Pillow's maximum number of pixels takes less, even uncompressed."""
_MOST_TEXT = 2**20
"""Maximal size of the captions of one image."""
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, eq=False)
class TarSplit:
    """Images in tar files below `root`.

    Attributes:
        root: The folder of the set.
        tars: The files, relative to `root`.
        names: Names of the images in them, as messages show them.
        spans: Index of the tar file, first byte in it and size in bytes, shape (images, 3).
        labels: Class indices, or the images' own numbers if they have captions, shape (images,).
    """

    reads_files: ClassVar[bool] = True
    root: Path
    tars: tuple[str, ...]
    names: tuple[str, ...]
    spans: NDArray[np.int64]
    labels: NDArray[np.int64]

    def image(self, index: int) -> Image.Image:
        """Reads the image at `index`.

        Raises:
            UnreadableImage: It is not a readable image; its path is TAR:MEMBER.
            ResourceError: The process may not open any more files.
        """
        tar, offset, size = (int(number) for number in self.spans[index])
        file = self.root / self.tars[tar]
        path = Path(f"{file}:{self.names[index]}")
        try:
            return decode(io.BytesIO(_content(file, offset, size)), "RGB")
        except MemoryError:
            raise
        except Exception as error:  # decoders raise many types
            if isinstance(error, OSError) and error.errno in OUT_OF_FILES:
                raise ResourceError(
                    f"{file}: cannot be opened ({error.strerror}); load with fewer --workers"
                ) from error
            raise UnreadableImage(path, decoding_error(error)) from error

    def subset(self, indices: NDArray[np.int64]) -> TarSplit:
        """The images at `indices`."""
        names = tuple(self.names[i] for i in indices)
        return TarSplit(self.root, self.tars, names, self.spans[indices], self.labels[indices])

    def fingerprint(self) -> str:
        """Hash of the images' names, sizes and labels; pixels are not read."""
        lines = (f"{self.tars[s[0]]}:{name} {s[2]}" for name, s in zip(self.names, self.spans.tolist(), strict=True))
        return digest("\n".join(lines).encode(), self.labels.data)


def load(path: str, root: Path, download: bool) -> DataSet:
    """Reads PATH/classnames.txt, PATH/test/0.tar and so on, and PATH/train/ if it exists.

    The file nshards.txt in the same folder has the number of tar files. They hold KEY.jpg (or .jpeg, .png, .webp) and
    KEY.cls, the index of its class. A set for retrieval says so in dataset_type.txt, or has no classnames.txt: instead
    of KEY.cls it has KEY.txt with one caption per line, and only PATH/test/ is read. A relative PATH is looked for in
    the current folder, then in the data folder.

    Raises:
        DataError: Something is missing or damaged, or a class has no name.
    """
    folder = find_folder(
        f"wds:{path}", path, root, "that of a set with test/0.tar, test/nshards.txt and, for classes, classnames.txt"
    )
    if _is_for_retrieval(folder):
        return _with_captions(f"wds:{path}", folder)
    names = tuple(read_lines(folder / "classnames.txt"))
    if not names:
        raise DataError(f"{folder / 'classnames.txt'}: is empty; write the name of one class on each line")
    return DataSet(
        name=f"wds:{path}",
        class_names=names,
        channels=3,
        image_size=None,
        mean=_MEAN,
        std=_STD,
        flip=True,
        train=_read_split(folder, "train", _Members(len(names))) if (folder / "train").is_dir() else None,
        test=_read_split(folder, "test", _Members(len(names))),
    )


def _is_for_retrieval(folder: Path) -> bool:
    file = folder / "dataset_type.txt"
    kind = " ".join(read_lines(file)).lower() if file.is_file() else "classification"
    if kind not in ("classification", "retrieval"):
        raise DataError(f"{file}: {kind!r:.40} is neither classification nor retrieval, and nothing else is read")
    return kind == "retrieval" or not (folder / "classnames.txt").exists()


def _with_captions(name: str, folder: Path) -> DataSet:
    members = _Members(None)
    test = _read_split(folder, "test", members)
    return DataSet(
        name=name,
        class_names=tuple(members.captions),
        channels=3,
        image_size=None,
        mean=_MEAN,
        std=_STD,
        flip=True,
        train=None,
        test=test,
        task="retrieval",
        described=tuple(members.described),
    )


def templates_file(root: Path) -> Path | None:
    """The file of prompts in the folder `root` of a set, one per line with {c} for the class."""
    file = root / "zeroshot_classification_templates.txt"
    return file if file.is_file() else None


@dataclass
class _Members:
    """What the tar files read so far hold; see `TarSplit`.

    Attributes:
        classes: Number of classes; None if images have captions.
        captions: Captions of all images, image by image.
        described: Number of the image that each caption belongs to.
        count: Number of members, images or not.
    """

    classes: int | None
    names: list[str] = field(default_factory=list)
    spans: list[tuple[int, int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    described: list[int] = field(default_factory=list)
    count: int = 0

    @property
    def suffix(self) -> str:
        """Suffix of members with a class or captions."""
        return _TEXT if self.classes is None else _LABEL

    def add(self, name: str, span: tuple[int, int, int], label: int | tuple[str, ...]) -> None:
        """Adds an image with its class or captions."""
        number = len(self.names)
        self.names.append(name)
        self.spans.append(span)
        self.labels.append(label if isinstance(label, int) else number)
        if not isinstance(label, int):
            self.captions += label
            self.described += [number] * len(label)


def _read_split(folder: Path, part: str, members: _Members) -> TarSplit:
    tars = tuple(f"{part}/{number}.tar" for number in range(_shards(folder / part)))
    for number, tar in enumerate(tars):
        _read_tar(folder / tar, number, members)
    if not members.names:
        raise DataError(f"{folder / part}: no images; expected KEY.jpg and KEY{members.suffix} in 0.tar")
    spans = np.array(members.spans, dtype=np.int64)
    return TarSplit(folder, tars, tuple(members.names), spans, np.array(members.labels, dtype=np.int64))


def _shards(folder: Path) -> int:
    """The number of tar files, if nshards.txt and the folder agree on it."""
    file = folder / "nshards.txt"
    lines = read_lines(file) if file.is_file() else []
    tars = {path.name for path in folder.glob("*.tar")}
    if not tars:
        raise DataError(f"{folder}: no tar files; expected 0.tar and nshards.txt in it")
    if len(lines) != 1 or not (lines[0].isascii() and lines[0].isdecimal()):
        raise DataError(f"{file}: does not say how many tar files there are; write the number, such as {len(tars)}")
    announced = lines[0].lstrip("0") or "0"
    others = tars - {f"{number}.tar" for number in range(len(tars))}
    if announced != str(len(tars)) or others:
        there = f"there {'is' if len(tars) == 1 else 'are'} {len(tars)}"
        odd = f", one of them {min(others)}" if others else ""
        raise DataError(
            f"{file}: says {announced:.20} tar files, from 0.tar on, and {there}{odd}; fetch those that are missing or "
            "correct it"
        )
    return len(tars)


def _read_tar(path: Path, number: int, members: _Members) -> None:
    """Adds the samples of a tar file to `members`."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int | tuple[str, ...]] = {}
    try:
        irregular = irregularity(path)
        if irregular is not None:
            raise ValueError(irregular)
        with path.open("rb") as stream:
            for member in _members(stream):
                members.count += 1
                if members.count > _MOST_MEMBERS:
                    raise DataError(f"{path}: more than {_MOST_MEMBERS:,} members up to this file; give a smaller set")
                key, suffix = os.path.splitext(member.name)
                suffix = suffix.lower()
                if suffix not in (*_IMAGES, members.suffix):
                    continue
                shown = _shown(member.name)
                if not member.isreg() or member.issparse():
                    raise DataError(f"{path}:{shown}: is not a plain file; pack the set again without links")
                if key in (labels if suffix == members.suffix else images):
                    kind = "image" if suffix != members.suffix else "class" if suffix == _LABEL else "text"
                    raise DataError(f"{path}:{shown}: is the second {kind} of one key; rename or remove one of them")
                if suffix == members.suffix:
                    labels[key] = _label(stream, member, f"{path}:{shown}", members.classes)
                else:
                    images[key] = (shown, member.offset_data, member.size)
    except DataError:
        raise
    except Exception as error:  # headers that say anything raise many types
        raise DataError(f"{path}: not a readable tar file ({decoding_error(error)}); fetch it again") from error
    for key, (shown, offset, size) in images.items():
        if key not in labels:
            what = "class; put its number" if members.classes is not None else "caption; put one on each line"
            hint = "" if members.classes is not None else ", or write classnames.txt if images have classes"
            raise DataError(f"{path}:{shown}: has no {what} into a member {_shown(key)}{members.suffix}{hint}")
        members.add(shown, (number, offset, size), labels[key])
    alone = next((key for key in labels if key not in images), None)
    if alone is not None:
        raise DataError(
            f"{path}:{_shown(alone)}{members.suffix}: has no image; add {', '.join(_IMAGES[:-1])} or {_IMAGES[-1]}"
        )


def _members(stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Members up to the end marker, each checked to lie inside the file and after the one before it."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        end = 0
        while (member := archive.next()) is not None:
            # A negative size would send tarfile back to members that it has read, forever.
            if member.size < 0 or not end < archive.offset <= size:
                raise ValueError(f"{_shown(member.name)} of {member.size:,} bytes does not fit into it")
            end = archive.offset
            yield member
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep all of them in memory
        stream.seek(end)
        if stream.read(_BLOCK) != bytes(_BLOCK):  # tarfile takes a damaged header for the end
            raise ValueError(f"it is cut off or damaged at byte {end:,}")


def _label(stream: BinaryIO, member: tarfile.TarInfo, name: str, classes: int | None) -> int | tuple[str, ...]:
    """The class of an image, or its captions."""
    stream.seek(member.offset_data)
    if classes is None:
        if member.size > _MOST_TEXT:
            raise DataError(f"{name}: has {member.size:,} bytes of captions; at most {_MOST_TEXT:,} are read")
        try:
            lines = stream.read(member.size).decode("utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise DataError(f"{name}: its captions are not UTF-8 ({error}); write them again") from error
        captions = tuple(line.strip() for line in lines if line.strip())
        if not captions:
            raise DataError(f"{name}: is empty; write one caption on each line")
        return captions
    text = stream.read(min(member.size, 32)).decode("utf-8", "replace").strip()
    if not (text.isascii() and text.isdecimal() and member.size <= 32 and int(text) < classes):
        raise DataError(
            f"{name}: {text!r:.40} is not a class from 0 to {classes - 1}, the lines of classnames.txt; correct either"
        )
    return int(text)


def _shown(name: str) -> str:
    """A member's name on one line, whatever characters it has."""
    return name if name.isprintable() else repr(name)


def _content(file: Path, offset: int, size: int) -> bytes:
    irregular = irregularity(file)
    if irregular is not None:
        raise ValueError(f"its tar file is {irregular}")
    if size > _MOST_BYTES:
        raise ValueError(f"it has over {_MOST_BYTES / 2**20:,g} MiB")
    with file.open("rb") as stream:
        stream.seek(offset)
        content = stream.read(size)
    if not size:
        raise ValueError("the file is empty")
    if len(content) < size:
        raise ValueError("its tar file has been cut since it was scanned")
    return content
