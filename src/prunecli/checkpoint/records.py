"""Inert records of what a pickle would make: names, objects, storages and tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from prunecli.checkpoint.archive import Damaged

_STORAGES: dict[str, torch.dtype] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
_UNTYPED = "torch.storage.UntypedStorage"
_LARGEST = 1 << 62


@dataclass(frozen=True, eq=False)
class Global:
    """A class or function by its name, which is never looked up.

    Attributes:
        path: Module and name with dots between, which is all that torch goes by.
    """

    path: str

    @property
    def module(self) -> str:
        """The path without its last part."""
        return self.path.rpartition(".")[0]


@dataclass(eq=False)
class Made:
    """An object that a pickle makes with a class or function.

    Attributes:
        maker: Name of the class or function.
        foreign: Whether that is none of the few that torch itself allows.
        values: What a dictionary holds, if it is one.
        state: What the object is filled with.
    """

    maker: str
    foreign: bool = True
    values: dict[Any, Any] | None = None
    state: Any = None


@dataclass(frozen=True, eq=False)
class Storage:
    """A run of numbers that a pickle claims to be in the file.

    Attributes:
        key: Its name.
        type_name: For instance "torch.FloatStorage".
        itemsize: Bytes of one number.
        count: How many numbers.
        dtype: Their type; bytes for an untyped storage.
    """

    key: str
    type_name: str
    itemsize: int
    count: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return self.itemsize * self.count

    @classmethod
    def from_note(cls, note: Any, *, legacy: bool) -> Storage:
        """Reads the note that torch.save writes in place of a storage.

        Raises:
            Damaged: It is no such note.
        """
        if not isinstance(note, tuple) or len(note) != (6 if legacy else 5) or note[0] != "storage":
            raise Damaged("a note of a storage in it is damaged")
        kind, key, location, count = note[1:5]
        if not isinstance(kind, Global) or not isinstance(key, str) or not isinstance(location, str):
            raise Damaged("a note of a storage in it is damaged")
        if type(count) is not int or not 0 <= count < _LARGEST:
            raise Damaged(f"storage {shown(key)} claims an impossible size")
        dtype = torch.uint8 if kind.path == _UNTYPED else _STORAGES.get(kind.path.removeprefix("torch."))
        if dtype is None:
            raise Damaged(
                f"it holds numbers of the type {shown(kind.path)}, not plain ones", "save the weights as float32"
            )
        return cls(key, kind.path, dtype.itemsize, count, dtype)

    def part(self, key: str, offset: int, count: int) -> Storage:
        """`count` numbers from `offset` on, which older versions of torch gave a key of their own.

        Raises:
            Damaged: They lie outside.
        """
        if type(offset) is not int or type(count) is not int or not 0 <= offset <= offset + count <= self.count:
            raise Damaged(f"a part of storage {shown(self.key)} lies outside of it")
        return replace(self, key=key, count=count)


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A tensor that a pickle describes.

    Attributes:
        place: What makes it one tensor: storage, offset, shape and strides.
        size: Bytes of its numbers.
    """

    place: tuple[Any, ...]
    size: int


def shown(name: str) -> str:
    """A name from a file, fit to be printed: quoted, without control characters, and not too long."""
    return repr(name if len(name) <= 120 else name[:117] + "...")
