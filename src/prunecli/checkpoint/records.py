"""Inert records of what a pickle would create: names, objects, storages and tensors."""

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
_MAX_COUNT = 1 << 62


@dataclass(frozen=True, eq=False)
class Global:
    """A class or function by name; it is never imported.

    Attributes:
        path: Module and name, joined by a dot, as torch identifies it.
    """

    path: str

    @property
    def module(self) -> str:
        """The path without its last component."""
        return self.path.rpartition(".")[0]


@dataclass(eq=False)
class ObjectRecord:
    """An object that a pickle creates by calling a class or function.

    Attributes:
        factory: Name of the class or function.
        foreign: Whether it is not one of the few that torch itself allows.
        values: The content of a dictionary; None for other objects.
        state: The state that the object is given.
    """

    factory: str
    foreign: bool = True
    values: dict[Any, Any] | None = None
    state: Any = None


@dataclass(frozen=True, eq=False)
class Storage:
    """A block of numbers that the pickle claims is in the file.

    Attributes:
        key: Its name.
        type_name: For instance "torch.FloatStorage".
        itemsize: Size of one number in bytes.
        count: How many numbers it has.
        dtype: Their type; uint8 for an untyped storage.
    """

    key: str
    type_name: str
    itemsize: int
    count: int
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.itemsize * self.count

    @classmethod
    def from_persistent_id(cls, persistent_id: Any, *, legacy: bool) -> Storage:
        """Reads the persistent id that torch.save writes in place of a storage.

        Raises:
            Damaged: It is not a storage's persistent id.
        """
        length = 6 if legacy else 5
        if not isinstance(persistent_id, tuple) or len(persistent_id) != length or persistent_id[0] != "storage":
            raise Damaged("a reference to a storage in it is damaged")
        kind, key, location, count = persistent_id[1:5]
        if not isinstance(kind, Global) or not isinstance(key, str) or not isinstance(location, str):
            raise Damaged("a reference to a storage in it is damaged")
        if type(count) is not int or not 0 <= count < _MAX_COUNT:
            raise Damaged(f"storage {printable(key)} claims an impossible size")
        dtype = torch.uint8 if kind.path == _UNTYPED else _STORAGES.get(kind.path.removeprefix("torch."))
        if dtype is None:
            raise Damaged(
                f"it holds numbers of the type {printable(kind.path)}, not plain ones", "save the weights as float32"
            )
        return cls(key, kind.path, dtype.itemsize, count, dtype)

    def part(self, key: str, offset: int, count: int) -> Storage:
        """The `count` numbers from `offset` on, to which older versions of torch gave their own key.

        Raises:
            Damaged: They lie outside the storage.
        """
        if type(offset) is not int or type(count) is not int or not 0 <= offset <= offset + count <= self.count:
            raise Damaged(f"a part of storage {printable(self.key)} lies outside it")
        return replace(self, key=key, count=count)


@dataclass(frozen=True, eq=False)
class TensorRecord:
    """A tensor that a pickle describes.

    Attributes:
        view: Storage key, offset, shape and strides.
        size: Size of its numbers in bytes.
    """

    view: tuple[Any, ...]
    size: int


def printable(name: str) -> str:
    """Makes a name from a file safe to print: quoted, without control characters, and shortened."""
    return repr(name if len(name) <= 120 else name[:117] + "...")
