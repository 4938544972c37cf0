"""Reading recordings of events in several formats; unreadable files are named."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from prunecli.data.aedat import MAGIC, Interval, read_aedat
from prunecli.data.array_files import announced_bytes, member_bytes
from prunecli.data.events import BACKWARDS, POLARITIES, Events, Size, unwrapped
from prunecli.data.images import OUT_OF_FILES, UnreadableImage, irregularity
from prunecli.errors import ResourceError, first_line

SUFFIXES = (".bin", ".aedat", ".npz", ".npy")
MOST_BYTES = 2**27
"""Maximal unpacked size of one recording in bytes."""
_ATIS_BYTES, _ATIS_WRAP = 5, 1 << 23
_ATIS_OVERFLOW, _ATIS_STEP = 240, 1 << 13
_FIELDS = {"x": ("x",), "y": ("y",), "t": ("t", "ts", "timestamp"), "p": ("p", "pol", "polarity")}
"""Names that each field of an array may have."""


class UnreadableRecording(UnreadableImage):
    """A file that is not a readable recording of events."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason, "recording")


def read_recording(
    path: Path, sensor: Size | None, *, aedat: str | None = None, interval: Interval | None = None
) -> Events | NDArray[np.float32]:
    """Reads events, or frames if the file has these.

    - `.bin`: the ATIS format of N-MNIST and N-Caltech101 (Orchard et al., 2015), 40 bits for each event.
    - `.aedat`: AEDAT 2.0 of a DVS128, or AEDAT 3.1.
    - `.npz`: arrays `x`, `y`, `t` and `p`, or an array `frames` of shape (T, 2, H, W), as spikingjelly writes them.
    - `.npy`: one structured array with these fields.

    Args:
        path: The file.
        sensor: Height and width in which all events must lie; None: any.
        aedat: "2.0" or "3.1" to accept only that version of an `.aedat` file.
        interval: Part of an `.aedat` file to read, in microseconds.

    Returns:
        At least one event, in the order of the file, or frames of shape (T, 2, H, W).

    Raises:
        UnreadableRecording: The file is not in its suffix's format, is damaged, has no events or events outside the
            sensor, its times run backwards, or it would take more than `MOST_BYTES`.
        ResourceError: The process may not open any more files.
    """
    try:
        irregular = irregularity(path)
        if irregular is not None:
            raise ValueError(irregular)
        size = path.stat().st_size
        if size == 0:
            raise ValueError("the file is empty")
        with path.open("rb") as stream:
            content = _read(stream, path.suffix.lower(), size, aedat, interval)
        if isinstance(content, Events):
            _check(content, sensor, interval)
        return content
    except MemoryError:
        raise
    except Exception as error:  # zip, header and pickle errors each have a type of their own
        if isinstance(error, OSError) and error.errno in OUT_OF_FILES:
            raise ResourceError(f"{path}: cannot be opened ({error.strerror}); load with fewer --workers") from error
        raise UnreadableRecording(path, _reason(path, error)) from error


def _read(
    stream: IO[bytes], suffix: str, size: int, aedat: str | None, interval: Interval | None
) -> Events | NDArray[np.float32]:
    if suffix == ".aedat":
        return read_aedat(stream, size, aedat, interval, MOST_BYTES)
    if size > MOST_BYTES:
        raise ValueError(f"it has over {MOST_BYTES / 2**20:g} MiB; cut it into shorter recordings")
    if suffix == ".bin":
        return _read_atis(stream.read())
    if suffix == ".npz":
        return _read_npz(stream)
    if suffix == ".npy":
        announced_bytes(stream, size, "the array")
        stream.seek(0)
        array = np.lib.format.read_array(stream, allow_pickle=False)
        if array.dtype.names is None:
            raise ValueError(f"it holds {array.dtype}{list(array.shape)}, expected fields x, y, t and p")
        return _from_fields({name: array[name] for name in array.dtype.names})
    raise ValueError(f"recordings are {', '.join(SUFFIXES)} files")


def _read_atis(content: bytes) -> Events:
    """Five bytes per event, high byte first: x, y, one bit of polarity and 23 bits of time.

    An entry in row 240, which the sensors of these sets do not have, is not an event: it advances the clock of all
    later events by 2^13 microseconds.
    """
    if content.startswith((MAGIC, b"PK\x03\x04")):
        raise ValueError(f"it is {'an AEDAT' if content.startswith(MAGIC) else 'a zip'} file, expected ATIS events")
    if len(content) % _ATIS_BYTES:
        raise ValueError(f"its last event is cut: {len(content):,} bytes are not a multiple of {_ATIS_BYTES}")
    columns = np.frombuffer(content, dtype=np.uint8).reshape(-1, _ATIS_BYTES).T
    x, y, high, middle, low = (column.astype(np.int64) for column in columns)
    t = unwrapped((high & 0x7F) << 16 | middle << 8 | low, _ATIS_WRAP)
    overflows = y == _ATIS_OVERFLOW
    if overflows.any():
        t = t + _ATIS_STEP * np.cumsum(overflows)
    events = ~overflows
    return Events(x[events], y[events], t[events], high[events] >> 7)


def _read_npz(stream: IO[bytes]) -> Events | NDArray[np.float32]:
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        if "frames" in members:
            return _frames(_member(archive, members["frames"]))
        names = [name for spellings in _FIELDS.values() for name in spellings if name in members]
        claimed = sum(member_bytes(archive, members[name]) for name in names)
        if claimed > MOST_BYTES:
            raise ValueError(f"it would take {claimed / 2**20:,.0f} MiB; cut it into shorter recordings")
        return _from_fields({name: _member(archive, members[name]) for name in names})


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    claimed = member_bytes(archive, member)
    if claimed > MOST_BYTES:
        raise ValueError(f"{member.filename} would take {claimed / 2**20:,.0f} MiB")
    with archive.open(member) as stream:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array


def _frames(array: NDArray[Any]) -> NDArray[np.float32]:
    if array.ndim != 4 or array.shape[1] != POLARITIES or array.size == 0 or array.dtype.kind not in "biuf":
        raise ValueError(f"its frames are {array.dtype}{list(array.shape)}, expected numbers (T, {POLARITIES}, H, W)")
    frames: NDArray[np.float32] = array.astype(np.float32)
    if not np.isfinite(frames).all():
        raise ValueError("its frames hold NaN or infinity")
    return frames


def _from_fields(arrays: dict[str, NDArray[Any]]) -> Events:
    fields = {}
    for field, spellings in _FIELDS.items():
        name = next((spelling for spelling in spellings if spelling in arrays), None)
        if name is None:
            raise ValueError(f"it has no {field}; expected x, y, t and p" + ("" if arrays else ", or frames"))
        array = arrays[name]
        if array.ndim != 1 or array.dtype.kind not in "biu":
            raise ValueError(f"its {name} is {array.dtype}{list(array.shape)}, expected integers (events,)")
        fields[field] = array.astype(np.int64)
    lengths = {field: len(array) for field, array in fields.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"its arrays differ in length: {', '.join(f'{k} {v:,}' for k, v in lengths.items())}")
    lowest = int(fields["p"].min(initial=0))
    if lowest < -1 or fields["p"].max(initial=0) > 1:
        raise ValueError("its p holds more than 0 and 1, or -1 and 1")
    return Events(fields["x"], fields["y"], fields["t"], (fields["p"] > 0).astype(np.int64))


def _check(events: Events, sensor: Size | None, interval: Interval | None) -> None:
    if len(events) == 0:
        where = f" from {interval[0]:,} to {interval[1]:,} microseconds" if interval is not None else ""
        raise ValueError(f"it has no events{where}")
    height, width = sensor or (np.iinfo(np.int64).max,) * 2
    outside = (events.x < 0) | (events.x >= width) | (events.y < 0) | (events.y >= height)
    if outside.any():
        first = int(outside.argmax())
        raise ValueError(
            f"event {first:,} lies at column {events.x[first]:,}, row {events.y[first]:,}, outside the sensor "
            f"of {width} columns and {height} rows"
        )
    steps = np.diff(events.t)
    if len(steps) and steps.min() < -BACKWARDS:
        worst = int(steps.argmin())
        raise ValueError(
            f"its times run backwards: event {worst + 1:,} lies {-steps[worst]:,} microseconds before the last"
        )


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "a link to a file that does not exist" if path.is_symlink() else "it does not exist"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, io.UnsupportedOperation):
        return error.strerror
    return first_line(error)
