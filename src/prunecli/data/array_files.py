"""What NumPy's files announce, looked at before NumPy makes room for it."""

from __future__ import annotations

import math
import zipfile
from typing import IO, Any

import numpy as np


def announced(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type by the header of a .npy file, from its beginning.

    Raises:
        ValueError: It is no such file.
    """
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    return shape, dtype


def announced_bytes(stream: IO[bytes], available: int, name: str) -> int:
    """What an array will take, by its header; NumPy would make room for that much before it reads.

    Args:
        stream: A .npy file at its beginning.
        available: Bytes that are there, header and all.
        name: What messages call it.

    Raises:
        ValueError: It is more than there is, or no array.
    """
    shape, dtype = announced(stream)
    size = math.prod(shape) * dtype.itemsize
    if size > available:
        raise ValueError(f"{name} announces {size:,} bytes and has {available:,}")
    return size


def member_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """What an array in a .npz file will take.

    Raises:
        ValueError: It is more than the file says it unpacks to, or no array.
    """
    with archive.open(member) as stream:
        return announced_bytes(stream, member.file_size, member.filename)
