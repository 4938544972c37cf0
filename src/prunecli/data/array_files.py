"""Size checks on NumPy's files, before NumPy allocates what a file claims."""

from __future__ import annotations

import math
import zipfile
from typing import IO, Any

import numpy as np


def _announced(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type according to the header of a .npy file."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    return shape, dtype


def announced_bytes(stream: IO[bytes], available: int, name: str) -> int:
    """Size of an array in bytes according to its header; NumPy would allocate that much before it reads.

    Args:
        stream: A .npy file, at its beginning.
        available: Size of the file in bytes, header included.
        name: Name of the array, for messages.

    Raises:
        ValueError: The header claims more than the file has, or it is not a .npy file.
    """
    shape, dtype = _announced(stream)
    size = math.prod(shape) * dtype.itemsize
    if size > available:
        raise ValueError(f"{name} announces {size:,} bytes and has {available:,}")
    return size


def member_bytes(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Size in bytes of an array in a .npz file.

    Raises:
        ValueError: Its header claims more than the archive says it unpacks to, or it is not a .npy file.
    """
    with archive.open(member) as stream:
        return announced_bytes(stream, member.file_size, member.filename)
