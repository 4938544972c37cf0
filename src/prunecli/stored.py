"""Tensors that stay in files and come into memory where they are read, for as long as somebody reads them.

A network that does not fit into memory is read a tensor at a time. Each read maps the tensor's bytes anew, and the
mapping ends with the tensor, so what was read neither adds up nor stays.
"""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from prunecli.errors import ResourceError

_ALIGNED = 64
"""Bytes at whose multiples tensors begin in a scratch file."""


class Scratch:
    """A file without a name for tensors that are computed and do not stay in memory; it ends with the process.

    Args:
        folder: Where it lies: a folder on a disk, since some systems keep temporary files in memory.

    Attributes:
        written: Bytes that were written to it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None
        self.written = 0

    def put(self, tensor: Tensor) -> Stored:
        """Writes a tensor.

        Raises:
            ResourceError: The folder has no space for it.
        """
        values = tensor.detach().cpu().contiguous()
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = cast(BinaryIO, tempfile.TemporaryFile(dir=self._folder, buffering=0))
            begin = -(-self.written // _ALIGNED) * _ALIGNED
            _write(self._file.fileno(), begin, values)
        except OSError as error:
            raise ResourceError(
                f"{self._folder}: weights that --offload keeps on the disk could not be written "
                f"({error.strerror or error}); free some space or choose another folder with -o"
            ) from error
        self.written = begin + values.numel() * values.element_size()
        return Stored(self._file, begin, values.dtype, tuple(values.shape), self)

    def in_file(self, file: BinaryIO, begin: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Stored:
        """A tensor in an open file of somebody else's; what is computed of it goes to this one."""
        return Stored(file, begin, dtype, shape, self)


def _write(descriptor: int, begin: int, values: Tensor) -> None:
    if not values.numel():
        return
    left = values.flatten().view(torch.uint8).numpy().data
    while left.nbytes:
        done = os.pwrite(descriptor, left, begin)
        begin, left = begin + done, left[done:]


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file, contiguous, as it is read.

    Attributes:
        file: The open file, which stays readable when its name is gone.
        begin: Its first byte.
        dtype: Its dtype.
        shape: Its shape.
        scratch: Where tensors go that are computed from it and kept.
    """

    file: BinaryIO
    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    scratch: Scratch

    def __deepcopy__(self, memo: Any) -> Stored:
        return self

    def read(self) -> Tensor:
        """The values; not to be written to. Their memory is given back with the tensor.

        Raises:
            ResourceError: The file has become shorter than it was.
        """
        size = math.prod(self.shape) * self.dtype.itemsize
        if not size:
            return torch.empty(self.shape, dtype=self.dtype)
        start = self.begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        try:
            mapped = mmap.mmap(self.file.fileno(), self.begin - start + size, access=mmap.ACCESS_COPY, offset=start)
        except (ValueError, OSError) as error:
            raise ResourceError(
                f"{self.file.name}: can no longer be read ({error}); leave the network's files alone while prune runs"
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=self.begin - start)
        if self.begin % self.dtype.itemsize:
            raw = raw.clone()
        return raw.view(self.dtype).reshape(self.shape)
