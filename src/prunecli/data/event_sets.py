"""`n-mnist`, `cifar10-dvs`, `dvs-gesture`, `n-caltech101` and `events:PATH`: recordings of neuromorphic cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prunecli.data.event_files import SUFFIXES, UnreadableRecording, read_recording
from prunecli.data.events import POLARITIES, Events, Size
from prunecli.data.recordings import EventSplit, Recording
from prunecli.data.splits import SPLIT_SEED, DataSet, find_folder, read_lines
from prunecli.errors import DataError

_GESTURES = (
    "hand_clapping right_hand_wave left_hand_wave right_arm_clockwise right_arm_counter_clockwise left_arm_clockwise "
    "left_arm_counter_clockwise arm_roll air_drums air_guitar other_gestures"
).split()
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
_TEST_SHARE = 0.1
_EVALUATION = ("test", "val", "validation")
_SENSOR_FILE = "sensor.txt"
_SENSORS: tuple[Size, ...] = ((34, 34), (128, 128), (180, 240), (240, 304), (260, 346), (480, 640), (720, 1280))
"""N-MNIST's part of a sensor, DVS128, DAVIS240 and N-Caltech101, ATIS, DAVIS346, Gen3 and HD cameras."""
_INSPECTED = 64
"""Number of recordings from which the sensor of a folder is inferred."""


@dataclass(frozen=True)
class _Published:
    """A published set.

    Attributes:
        title: Name of its folder, for messages.
        spellings: Names that the folder may have, in lower case and without punctuation.
        sensor: Height and width.
        expected: Contents of the folder, for messages.
        classes: Names of the class folders; None: all that exist.
        flip: Whether a mirrored recording still belongs to its class.
        suffix: Suffix of the original recordings.
        inside: Folders that unpacking may have created around them.
        aedat: Version of its `.aedat` files.
        transposed: See `EventSplit`.
    """

    title: str
    spellings: tuple[str, ...]
    sensor: Size
    expected: str
    classes: Sequence[str] | None
    flip: bool
    suffix: str
    inside: tuple[str, ...] = ()
    aedat: str | None = None
    transposed: bool = False


_PUBLISHED = {
    "n-mnist": _Published(
        "N-MNIST", ("nmnist",), (34, 34), "Train/0/*.bin and Test/0/*.bin", [str(digit) for digit in range(10)], False,
        suffix=".bin",
    ),
    "cifar10-dvs": _Published(
        "CIFAR10-DVS", ("cifar10dvs",), (128, 128), "airplane/*.aedat", _CIFAR10, True, suffix=".aedat", aedat="2.0",
        transposed=True,
    ),
    "dvs-gesture": _Published(
        "DvsGesture", ("dvsgesture", "dvs128gesture"), (128, 128), "trials_to_train.txt", _GESTURES, False,
        suffix=".aedat", inside=("DvsGesture",), aedat="3.1",
    ),
    "n-caltech101": _Published(
        "N-Caltech101", ("ncaltech101",), (180, 240), "airplanes/*.bin", None, True, suffix=".bin",
        inside=("Caltech101",),
    ),
}  # fmt: skip


def load(name: str, root: Path, download: bool) -> DataSet:
    """Reads one of the published sets below `root`, or the folder of `events:PATH`.

    A published set has the layout in which it is unpacked (`N-MNIST/Train/0/00002.bin`), or that of the folders
    `extract` and `events_np` that spikingjelly makes. CIFAR10-DVS and N-Caltech101 have no official split: a fixed
    tenth of each class is the test split.

    `events:PATH` reads PATH/train/CLASS/... and PATH/test/CLASS/..., or PATH/CLASS/..., of which a fixed tenth of each
    class is the test split. The sensor's height and width come from a file `sensor.txt`, else from the recordings. A
    relative PATH is looked for in the current folder, then in the data folder.

    Raises:
        DataError: The set is missing, or its folder holds no recordings.
    """
    if name not in _PUBLISHED:
        return _load_folder(name, root)
    known = _PUBLISHED[name]
    for folder in _folders(root, known):
        splits = _gestures(folder, known) if name == "dvs-gesture" else None
        splits = splits or _classes(folder, (known.suffix,), known)
        if splits is not None:
            return _image_data(name, known.sensor, known.flip, *splits)
    for folder in _folders(root, known):
        splits = _classes(folder / "events_np", (".npz",), known)
        if splits is not None:
            return _image_data(name, known.sensor, known.flip, *splits)
    raise DataError(
        f"{name} is not in {root} (looked for {known.title}/{known.expected} and what spikingjelly makes of it); "
        "unpack it there by hand, or name the folder that contains it with --data-root or PRUNE_DATA"
    )


def _load_folder(path: str, root: Path) -> DataSet:
    folder = find_folder(f"events:{path}", path, root, "the path of a folder with one sub-folder per class")
    splits = _classes(folder, SUFFIXES, None)
    if splits is None:
        others = sorted({path.suffix for path in folder.glob("*/*") if path.suffix and path.is_file()})
        unread = f" ({', '.join(others)} is not read)" if others else ""
        raise DataError(
            f"{folder}: no recordings{unread}; expected CLASS/*{SUFFIXES[0]} (or {', '.join(SUFFIXES[1:])}) below it, "
            "or below train/ and test/ in it"
        )
    names, train, test, validation = splits
    parts = [part for part in (train, test, validation) if part is not None]
    sensor = _sensor(folder, parts)
    train, validation = (part and replace(part, sensor=sensor) for part in (train, validation))
    return _image_data(f"events:{path}", sensor, False, names, train, replace(test, sensor=sensor), validation)


_Splits = tuple[tuple[str, ...], EventSplit | None, EventSplit, EventSplit | None]
"""Class names, and the splits train, test and validation."""


def _image_data(
    name: str,
    sensor: Size,
    flip: bool,
    class_names: tuple[str, ...],
    train: EventSplit | None,
    test: EventSplit,
    validation: EventSplit | None,
) -> DataSet:
    return DataSet(
        name=name,
        class_names=class_names,
        channels=POLARITIES,
        image_size=sensor,
        mean=(0.0,) * POLARITIES,
        std=(1.0,) * POLARITIES,
        flip=flip,
        train=train,
        test=test,
        validation=validation,
        samples="recordings",
    )


def _folders(root: Path, known: _Published) -> list[Path]:
    """Folders that may have the set: `root` or folders in it, by name, and in each the usual inner ones first."""
    try:
        folders = [path for path in (root, *sorted(root.iterdir())) if path.is_dir()]
    except OSError:
        return []  # there is no such folder
    named = [path for path in folders if "".join(filter(str.isalnum, path.resolve().name.lower())) in known.spellings]
    tops = [top for path in named for top in (path / "extract", path)]
    return [folder for top in tops for folder in (*map(top.joinpath, known.inside), top)]


def _classes(folder: Path, suffixes: Sequence[str], known: _Published | None) -> _Splits | None:
    """Recordings in one folder per class, split by the folders above or at random; None if there are none."""
    if not folder.is_dir():
        return None
    parts = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    train = parts.get("train")
    evaluation = [parts[part] for part in _EVALUATION if part in parts]
    if train is None and not evaluation:
        files = _files(folder, suffixes)
        names = _class_names(files, known)
        return _divided(names, _labelled(folder, files, names, known)) if files else None
    files_of = {part: _files(part, suffixes) for part in (train, *evaluation) if part is not None}
    if not any(files_of.values()):
        return None
    for part, files in files_of.items():
        if not files:
            raise DataError(f"{part}: no recordings; expected CLASS/*{suffixes[0]} below it")
    if not evaluation:
        raise DataError(f"{folder}: has train/ but none of {', '.join(_EVALUATION)}; add the recordings to evaluate on")
    names = _class_names(next(iter(files_of.values())), known)
    splits = {part: _labelled(part, files, names, known) for part, files in files_of.items()}
    if train is None:
        return names, None, splits[evaluation[0]], None
    return names, splits[train], splits[evaluation[0]], splits[evaluation[1]] if len(evaluation) > 1 else None


def _class_names(files: Sequence[Path], known: _Published | None) -> tuple[str, ...]:
    """The published set's class names, else the names of the folders; numbers are sorted as numbers."""
    if known is not None and known.classes is not None:
        return tuple(known.classes)
    names = {file.parts[0] for file in files}
    return tuple(sorted(names, key=lambda name: (0, int(name), name) if name.isdecimal() else (1, 0, name)))


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """Recordings in folders below `folder`, relative to it."""
    paths = (path for path in folder.glob("*/**/*") if path.suffix.lower() in suffixes and not path.is_dir())
    return sorted(path.relative_to(folder) for path in paths)


def _labelled(folder: Path, files: Sequence[Path], names: tuple[str, ...], known: _Published | None) -> EventSplit:
    label_of = {str(label): label for label in range(len(names))} if known is not None and known.classes else {}
    label_of |= {name: label for label, name in enumerate(names)}
    unknown = sorted({file.parts[0] for file in files} - set(label_of))
    if unknown:
        raise DataError(
            f"{folder}: class folder {unknown[0]!r} is not one of the {len(names)} classes; remove or rename it"
        )
    labels = np.array([label_of[file.parts[0]] for file in files], dtype=np.int64)
    return _split(folder, [Recording(file.as_posix()) for file in files], labels, known)


def _split(folder: Path, recordings: Sequence[Recording], labels: np.ndarray, known: _Published | None) -> EventSplit:
    if known is None:
        return EventSplit(folder, tuple(recordings), labels, (0, 0))
    return EventSplit(folder, tuple(recordings), labels, known.sensor, known.aedat, known.transposed)


def _divided(names: tuple[str, ...], everything: EventSplit) -> _Splits:
    """Moves a fixed tenth of each class, at least one recording, to the test split."""
    generator = np.random.default_rng(SPLIT_SEED)
    test = np.zeros(len(everything.labels), dtype=bool)
    for label in range(len(names)):
        members = generator.permutation(np.flatnonzero(everything.labels == label))
        test[members[: max(1, round(_TEST_SHARE * len(members)))]] = len(members) > 1
    if not test.any():
        raise DataError(f"{everything.root}: has one recording in each class; add more, or train/ and test/ folders")
    return names, everything.subset(np.flatnonzero(~test)), everything.subset(np.flatnonzero(test)), None


def _gestures(folder: Path, known: _Published) -> _Splits | None:
    """DVS Gesture: files with many gestures each, tables of their times, and lists of the files in each split."""
    lists = [folder / f"trials_to_{part}.txt" for part in ("train", "test")]
    if not lists[1].is_file():
        return None
    splits: list[EventSplit | None] = []
    for path in lists:
        if not path.is_file():  # the test recordings can be used alone
            splits.append(None)
            continue
        recordings: list[Recording] = []
        labels: list[int] = []
        for line in read_lines(path):
            file = Path(line).name
            for label, start, end in _table(folder / f"{Path(file).stem}_labels.csv", len(_GESTURES)):
                recordings.append(Recording(file, (start, end)))
                labels.append(label - 1)
        if not recordings:
            raise DataError(f"{path}: names no recordings; unpack the set again")
        splits.append(_split(folder, recordings, np.array(labels, dtype=np.int64), known))
    train, test = splits
    assert test is not None, "its list is there"
    return tuple(_GESTURES), train, test, None


def _table(path: Path, classes: int) -> list[tuple[int, int, int]]:
    """Rows of class (from 1), start and end in microseconds."""
    rows = []
    for number, line in enumerate(read_lines(path)[1:], start=2):
        try:
            label, start, end = (int(cell) for cell in line.split(","))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {line[:80]!r} is not class,start,end; unpack it again") from error
        if not 1 <= label <= classes or start >= end:
            raise DataError(
                f"{path}, line {number}: a class from 1 to {classes} and an interval are expected, not {line[:80]!r}; "
                "unpack it again"
            )
        rows.append((label, start, end))
    return rows


def _sensor(folder: Path, parts: Sequence[EventSplit]) -> Size:
    """Height and width from `sensor.txt`, from frames, or of the smallest camera that fits nine in ten recordings.

    Not all ten, because a damaged one may have events anywhere; it is reported when it is loaded.
    """
    written = folder / _SENSOR_FILE
    if written.is_file():
        return _written(written)
    files = [part.root / recording.file for part in parts for recording in part.recordings]
    failed: UnreadableRecording | None = None
    needed: list[Size] = []
    for index in np.unique(np.linspace(0, len(files) - 1, _INSPECTED).round().astype(int)):
        try:
            content = read_recording(files[index], None)
        except UnreadableRecording as error:
            failed = failed or error
            continue
        if not isinstance(content, Events):
            return content.shape[2], content.shape[3]
        needed.append((int(content.y.max()) + 1, int(content.x.max()) + 1))
    if not needed:
        assert failed is not None, "a folder has recordings"
        raise failed
    cameras = sorted(_camera(size) for size in needed)
    camera = cameras[int(0.9 * (len(cameras) - 1))]
    if camera == len(_SENSORS):
        raise DataError(
            f"{folder}: has events up to row {max(needed)[0] - 1:,}, more than any known camera; write its height and "
            f"width, such as 480x640, into {_SENSOR_FILE}"
        )
    return _SENSORS[camera]


def _camera(size: Size) -> int:
    """Index in `_SENSORS` of the smallest one that holds `size`; their number if none does."""
    fits = (index for index, (height, width) in enumerate(_SENSORS) if size[0] <= height and size[1] <= width)
    return next(fits, len(_SENSORS))


def _written(path: Path) -> Size:
    text = "x".join(read_lines(path))
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and 0 < int(height) <= 10_000 and 0 < int(width) <= 10_000):
        raise DataError(f"{path}: {text[:40]!r} is not a height and width; write them as 480x640")
    return int(height), int(width)
