"""The header of a safetensors file: bounds are checked before it is parsed; our checkpoints seal it with a hash.

It is read without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from prunecli.checkpoint.kinds import open_weights, refusal
from prunecli.checkpoint.manifest import MANIFEST_SCHEMA, Manifest, parse_manifest
from prunecli.errors import ModelError
from prunecli.naming import plain_weights

MANIFEST_KEY = "prunecli.manifest"
UNSEALED = "0" * 64
_MAX_HEADER = 64 << 20
_MAX_TENSORS = 100_000
_MAX_DIMENSIONS = 64
_MAX_NAME = 1024
_MAX_TYPE = 16
_LENGTH = 8
_AGAIN = "fetch or make the file again"
_BEFORE_SEAL = f'{{"__metadata__":{{"{MANIFEST_KEY}":"{{\\"schema\\":\\"{MANIFEST_SCHEMA}\\",\\"sha256\\":\\"'.encode()
_SEAL_AT = _LENGTH + len(_BEFORE_SEAL)
_AFTER_SEAL = b'\\",'
_MARKS = (MANIFEST_KEY.encode(), b'\\"tensor_sha256\\":', MANIFEST_SCHEMA.encode())
"""Texts in the header of our checkpoints; one damaged byte leaves two, so it is not taken for plain weights."""


class TensorHeader(NamedTuple):
    """What a header says of one tensor: the format's name for its type, its shape, and which bytes it is."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """A safetensors header.

    Attributes:
        raw: Length (8 bytes, little-endian), JSON and padding.
        metadata: Its metadata strings.
        tensors: Every tensor by name.
    """

    raw: bytes
    metadata: dict[str, str]
    tensors: dict[str, TensorHeader]

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to one of our checkpoints, even with one damaged byte."""
        return MANIFEST_KEY in self.metadata or any(mark in self.raw for mark in _MARKS)

    @property
    def is_intact(self) -> bool:
        """Whether it is the header of a checkpoint, unchanged since it was written."""
        return _sealed(self.raw) == self.raw


def read_header(path: Path) -> Header:
    """Reads the header of a safetensors file.

    Raises:
        ModelError: It is cut short, not valid JSON, or claims more than the file holds.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if _LENGTH + length > size:
            raise refusal(path, f"is cut short: its header claims {length:,} bytes", "fetch or save the file again")
        if length > _MAX_HEADER:
            raise refusal(
                path,
                f"its header is {length:,} bytes, over {_MAX_HEADER:,}",
                "save the weights alone, without metadata",
            )
        file.seek(0)
        raw = file.read(_LENGTH + length)
    damaged = _damage(raw)
    try:
        content = json.loads(raw[_LENGTH:])
    except (ValueError, RecursionError) as error:
        raise damaged(path, "is not valid JSON") from error
    metadata = content.pop("__metadata__", {}) if isinstance(content, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise damaged(path, "is not a mapping from names to tensors")
    if len(content) > _MAX_TENSORS:
        raise refusal(
            path, f"claims {len(content):,} tensors, over {_MAX_TENSORS:,}", "save the network's weights alone"
        )
    tensors: dict[str, TensorHeader] = {}
    for name, entry in content.items():
        tensor = _tensor(name, entry, size - len(raw))
        if tensor is None:
            raise damaged(path, f"claims a tensor {name[:120]!r} that the file does not hold")
        tensors[name] = tensor
    return Header(raw, metadata, tensors)


def read_manifest(path: Path) -> Manifest | None:
    """Reads only the manifest of a checkpoint; None for plain weights.

    Raises:
        ModelError: The file is unreadable, or its manifest is damaged or of another schema.
    """
    with open_weights(path) as (_, kind):
        return _manifest_in(read_header(path), path) if kind == "safetensors" else None


def manifest_of(path: Path) -> tuple[Manifest, Header]:
    """Reads the manifest and the header of a checkpoint.

    Raises:
        ModelError: It holds no manifest, or it is damaged.
    """
    with open_weights(path) as (_, kind):
        header = read_header(path) if kind == "safetensors" else None
    manifest = _manifest_in(header, path) if header is not None else None
    if manifest is None or header is None:
        raise ModelError(f"{path}: {plain_weights()}")
    return manifest, header


def seal(path: Path) -> None:
    """Writes the hash of a checkpoint's header into the field reserved for it."""
    header = read_header(path)
    if not header.raw.startswith(_BEFORE_SEAL, _LENGTH):
        raise ModelError(f"{path}: its header is not laid out as expected; install another version of safetensors")
    with path.open("r+b") as file:
        file.seek(_SEAL_AT)
        file.write(_sealed(header.raw)[_SEAL_AT : _SEAL_AT + len(UNSEALED)])


def _sealed(raw: bytes) -> bytes:
    """A header with its hash filled in; empty if it lacks the field, as headers of other programs do."""
    end = _SEAL_AT + len(UNSEALED)
    if not raw.startswith(_BEFORE_SEAL, _LENGTH) or not raw.startswith(_AFTER_SEAL, end):
        return b""
    digest = hashlib.sha256(raw[:_SEAL_AT] + UNSEALED.encode() + raw[end:]).hexdigest()
    return raw[:_SEAL_AT] + digest.encode() + raw[end:]


def _tensor(name: str, entry: Any, available: int) -> TensorHeader | None:
    """What an entry says; None if it is wrong. The library checks the rest."""
    if not isinstance(entry, dict) or len(name) > _MAX_NAME:
        return None
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS:
        return None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets):
        return None
    begin, end = offsets
    sizes = tuple(length for length in shape if type(length) is int and length >= 0)
    if not 0 <= begin <= end <= available or len(sizes) < len(shape):
        return None
    return TensorHeader(str(entry.get("dtype"))[:_MAX_TYPE], sizes, begin, end)


def _damage(raw: bytes) -> Callable[[Path, str], ModelError]:
    ours = any(mark in raw for mark in _MARKS)
    subject = "its header is damaged: it" if ours else "not a readable safetensors file: its header"
    return lambda path, problem: refusal(path, f"{subject} {problem}", _AGAIN)


def _manifest_in(header: Header, path: Path) -> Manifest | None:
    if not header.is_ours:
        return None
    if MANIFEST_KEY not in header.metadata:
        raise refusal(path, "its header is damaged (the manifest is not where it belongs)", _AGAIN)
    return parse_manifest(header.metadata[MANIFEST_KEY], path, intact=header.is_intact)
