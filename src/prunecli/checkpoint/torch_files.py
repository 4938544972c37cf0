"""Reading what torch.save wrote, with nothing in it run and no claim in it believed."""

from __future__ import annotations

import gc
import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from prunecli.checkpoint.archive import Damaged
from prunecli.checkpoint.inert import StandIn, stand_ins
from prunecli.checkpoint.kinds import entries_of, refusal
from prunecli.checkpoint.pickles import MAX_BYTES, MODULE_CLASS, Contents, examine, without_sources
from prunecli.checkpoint.records import TensorRecord, printable

_PARTS_OF_LEGACY = 3
_MAX_SMALL = 64
_MAX_KEYS = 250_000
_MAX_REPEATS = 4
_SLACK = 1 << 20


def read_torch_file(file: BinaryIO, path: Path, *, legacy: bool) -> Any:
    """Reads a file of torch.save.

    Args:
        file: The open file.
        path: Its name for messages.
        legacy: Whether it has the format from before torch 1.6, which is not a zip file.

    Returns:
        Dense tensors on the CPU in plain containers, with `Inert` objects in place of all other objects.

    Raises:
        ModelError: It is damaged, hostile or holds something other than plain weights.
    """
    size = file.seek(0, 2)
    try:
        with _garbage_collection_paused():
            return _read(file, path, size, legacy)
    except Damaged as error:
        raise refusal(path, f"is not a file of plain weights: {error.cause}", error.remedy) from error


def _read(file: BinaryIO, path: Path, size: int, legacy: bool) -> Any:
    contents, source = _checked_legacy(file, size) if legacy else (_checked(file, size, path), file)
    _check_repeats(contents, size)
    contents.root = None  # frees memory for the second pass
    # Where torch allows a name itself, that takes precedence over the stand-in.
    return _load(source, stand_ins(contents.globals, contents.mappings, contents.sequences, MODULE_CLASS))


def _checked(file: BinaryIO, size: int, path: Path) -> Contents:
    entries = entries_of(file, size, path)
    pickles = [name for name in entries if name.partition("/")[2] == "data.pkl"]
    folder = pickles[0].partition("/")[0]
    if any(name.partition("/")[0] != folder for name in entries):
        raise Damaged("its zip file has more than one folder")
    packed = next((name for name, entry in entries.items() if not entry.plain), None)
    if packed is not None:
        raise Damaged(
            f"its entry {printable(packed)} is compressed", "save it again with torch.save, which does not compress"
        )
    small = [entry for name, entry in entries.items() if name not in pickles and not name.startswith(f"{folder}/data/")]
    if entries[pickles[0]].size > MAX_BYTES:
        raise Damaged("its list of tensors is over 64 MiB", "save `model.state_dict()` alone with torch.save")
    contents = examine(_bytes_of(file, entries[pickles[0]].offset, entries[pickles[0]].size))
    for storage in contents.storages.values():
        entry = entries.get(f"{folder}/data/{storage.key}")
        if entry is None:
            raise Damaged(f"the numbers of storage {printable(storage.key)} are missing")
        if storage.size != entry.size:
            raise Damaged(
                f"storage {printable(storage.key)} claims {storage.size:,} bytes, the file has {entry.size:,}"
            )
    for entry in small:
        if entry.name.endswith(("/.storage_alignment", "/byteorder", "/.format_version")) and entry.size > _MAX_SMALL:
            raise Damaged(f"its entry {printable(entry.name)} is damaged")
    return contents


def _checked_legacy(file: BinaryIO, size: int) -> tuple[Contents, BinaryIO]:
    """Checks the older format: three pickles, then those of the content and of the storage keys, then the numbers."""
    data = _bytes_of(file, 0, min(size, MAX_BYTES))
    position = 0
    for _ in range(_PARTS_OF_LEGACY):
        position = examine(data, position, instructions=_MAX_SMALL).end
    start = position
    contents = examine(data, start, legacy=True)
    listed = examine(data, contents.end, instructions=_MAX_KEYS)
    position, keys = listed.end, listed.root
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Damaged("its list of storages is damaged")
    if set(keys) != set(contents.storages) or len(set(keys)) != len(keys) or set(keys) & set(contents.parts):
        raise Damaged("its list of storages is damaged")
    for key in keys:
        storage = contents.storages[key]
        (count,) = struct.unpack("<q", _bytes_of(file, position, 8))
        position += 8 + storage.size
        if count != storage.count or position > size:
            raise Damaged(f"storage {printable(key)} claims {storage.size:,} bytes that the file does not have")
    if not contents.sources:
        return contents, file
    rest = _bytes_of(file, contents.end, size - contents.end)
    return contents, io.BytesIO(b"".join((data[:start], without_sources(data, start, contents), rest)))


def _check_repeats(contents: Contents, size: int) -> None:
    """Refuses a small file that describes many large overlapping tensors."""
    described: dict[tuple[Any, ...], TensorRecord] = {tensor.view: tensor for tensor in contents.tensors}
    if sum(tensor.size for tensor in described.values()) > _MAX_REPEATS * size + _SLACK:
        raise Damaged(
            "its tensors overlap, and would be many times as large as the file", "save a copy of each tensor (.clone())"
        )


def _load(source: BinaryIO, names: Sequence[StandIn]) -> Any:
    source.seek(0)
    try:
        with _only_safe_globals(names), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError as error:
        raise Damaged(
            "it needs more memory than is available", "close other programs or use a larger machine"
        ) from error
    except Exception as error:  # ten types in practice, some with an empty or misleading message
        raise Damaged("it is damaged, or contains objects that cannot be read safely", _REMEDY) from error


_REMEDY = "save `model.state_dict()` with torch.save and give that file"


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Pauses garbage collection, which takes half of the time for a million small objects."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


@contextmanager
def _only_safe_globals(names: Sequence[StandIn]) -> Iterator[None]:
    """Limits torch to `names` and what it allows itself: other packages add real classes to its list."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(list(names)):
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _bytes_of(file: BinaryIO, offset: int, count: int) -> bytes:
    file.seek(offset)
    data = file.read(count)
    if len(data) != count:
        raise Damaged("it is cut short")
    return data
