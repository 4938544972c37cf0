"""Reading and writing checkpoints: a safetensors file with the manifest in its metadata."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from prunecli import ranks
from prunecli.checkpoint.durable import write_atomically
from prunecli.checkpoint.finite import check_finite
from prunecli.checkpoint.header import MANIFEST_KEY, UNSEALED, manifest_of, read_header, seal
from prunecli.checkpoint.header import read_manifest as read_manifest
from prunecli.checkpoint.kinds import refusal
from prunecli.checkpoint.manifest import Manifest
from prunecli.checkpoint.piecewise import write_piecewise
from prunecli.checkpoint.records import printable
from prunecli.errors import ModelError
from prunecli.stored import Scratch
from prunecli.widened import WORTH_STORING, is_on_disk, on_disk, plain

_AGAIN = "fetch or make the file again"
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes of tensors that may stay in a file, by the names that safetensors has for them."""
_SYSTEM_ERROR = re.compile(r"os error (\d+)")


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], manifest: Manifest) -> None:
    """Writes tensors and manifest to `path` in one atomic step.

    Args:
        path: The file to write; its folder is made if it does not exist.
        tensors: Tensors by name. Tensors that share memory are stored once and listed as aliases.
        manifest: Stored in the same file, in a copy with hashes and aliases filled in.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    storages: set[int] = set()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach()
        view = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and view in seen:
            aliases[name] = seen[view]
            continue
        seen[view] = name
        stored[name] = tensor.contiguous() if is_on_disk(tensor) else _apart(tensor.cpu().contiguous(), storages)
    hashes = {name: tensor_sha256(tensor) for name, tensor in stored.items()}
    complete = manifest.model_copy(update={"sha256": UNSEALED, "aliases": aliases, "tensor_sha256": hashes})

    def save(temporary: Path) -> None:
        # A single entry: safetensors writes several in random order, and equal networks should be equal bytes.
        if any(map(is_on_disk, stored.values())):
            write_piecewise(temporary, stored, {MANIFEST_KEY: complete.to_json()})
            seal(temporary)
            return
        try:
            save_file(stored, temporary, metadata={MANIFEST_KEY: complete.to_json()})
        except safetensors.SafetensorError as error:  # the system's error number is only in its text
            number = _SYSTEM_ERROR.search(str(error))
            raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error
        seal(temporary)

    ranks.by_first(lambda: write_atomically(path, save))


def _apart(tensor: Tensor, storages: set[int]) -> Tensor:
    """The tensor if it has a whole storage for itself, as safetensors demands, else a copy."""
    storage = tensor.untyped_storage()
    if storage.data_ptr() in storages or storage.nbytes() != tensor.numel() * tensor.element_size():
        tensor = tensor.clone()
    storages.add(tensor.untyped_storage().data_ptr())
    return tensor


def read_checkpoint(
    path: Path, *, allow_nonfinite: bool = False, scratch: Scratch | None = None
) -> tuple[Manifest, dict[str, Tensor]]:
    """Reads a checkpoint and compares its header and every tensor with the recorded hashes.

    Args:
        path: The file.
        allow_nonfinite: Whether tensors may hold NaN or infinity.
        scratch: If given, large tensors stay in the file, and what is computed of them goes here.

    Raises:
        ModelError: The file is not a checkpoint of this tool, or is damaged.
    """
    manifest, _ = manifest_of(path)
    tensors: dict[str, Tensor] = {}
    for name, tensor, intact in _checked_tensors(path, manifest, scratch):
        if not intact:
            raise refusal(path, f"tensor {printable(name)} is damaged (its sha256 differs)", _AGAIN)
        tensors[name] = tensor
    for name, source in manifest.aliases.items():
        if source not in tensors:
            raise ModelError(f"{path}: alias {name!r} names a missing tensor {source!r}; the file was altered")
        tensors[name] = tensors[source]
    check_finite(tensors, path, allow_nonfinite)
    return manifest, tensors


@dataclass(frozen=True)
class TensorState:
    """Whether a tensor of a checkpoint is unchanged since it was written.

    Attributes:
        name: The tensor.
        size: Its size in bytes.
        intact: Whether its hash is the recorded one.
    """

    name: str
    size: int
    intact: bool


def verify_checkpoint(path: Path) -> tuple[Manifest, list[TensorState]]:
    """Compares every tensor of a checkpoint with its recorded hash, one at a time.

    Raises:
        ModelError: It has no hashes, or its header itself is damaged.
    """
    manifest, header = manifest_of(path)
    return manifest, [
        TensorState(name, header.tensors[name].size, intact) for name, _, intact in _checked_tensors(path, manifest)
    ]


def read_tensors(path: Path, scratch: Scratch | None = None) -> dict[str, Tensor]:
    """Reads all tensors of a safetensors file.

    Each is cloned, because views into the file are often unaligned and kernels then round differently.

    Args:
        path: The file.
        scratch: As for `read_checkpoint`.

    Raises:
        ModelError: The file is unreadable.
    """
    with _open_safetensors(path) as file:
        with _taking(path, file, scratch) as take:
            return {name: take(name) for name in file.keys()}


def tensor_sha256(tensor: Tensor) -> str:
    """Hash of a tensor's dtype, shape and bytes, as hex."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    raw = plain(tensor.detach()).cpu().contiguous().flatten()
    digest.update(raw.view(torch.uint8).numpy().data if raw.numel() else b"")
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _taking(path: Path, file: Any, scratch: Scratch | None) -> Iterator[Callable[[str], Tensor]]:
    """Gives a tensor of an open file by its name: a copy of it, or one that stays in the file.

    The library maps the whole file and keeps what has been read of it resident beside the copies, so large tensors are
    mapped here, one at a time.
    """
    header, own = read_header(path), path.open("rb")

    def take(name: str) -> Any:
        said, kind = header.tensors[name], _DTYPES.get(header.tensors[name].dtype)
        if kind is None or math.prod(said.shape) < WORTH_STORING or said.size != math.prod(said.shape) * kind.itemsize:
            return file.get_tensor(name).clone()
        place = scratch if scratch is not None else Scratch(path.parent)  # which is a file once something is put there
        stored = place.in_file(own, len(header.raw) + said.begin, kind, said.shape)
        if scratch is None:
            return stored.read().clone()
        return on_disk(torch.empty(said.shape, dtype=kind, device="meta"), stored)

    with ExitStack() as reading:
        if scratch is None:
            reading.enter_context(own)
        yield take


def _checked_tensors(
    path: Path, manifest: Manifest, scratch: Scratch | None = None
) -> Iterator[tuple[str, Tensor, bool]]:
    """Yields every tensor with whether its hash is the recorded one."""
    with _open_safetensors(path) as file:
        names = list(file.keys())
        differing = sorted(set(names) ^ set(manifest.tensor_sha256))
        if differing:
            raise ModelError(
                f"{path}: tensor {printable(differing[0])} does not agree with the manifest; the file was altered"
            )
        with _taking(path, file, scratch) as take:
            for name in names:
                tensor = take(name)
                yield name, tensor, tensor_sha256(tensor) == manifest.tensor_sha256[name]


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    """Opens a safetensors file with the library, after checking the bounds of its header."""
    read_header(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except ModelError:
        raise
    except Exception as error:  # the library raises its own type, OSError and others
        lines = str(error).strip().splitlines()
        cause = lines[0][:200] if lines else type(error).__name__
        raise ModelError(f"{path}: not a readable safetensors file ({cause}); {_AGAIN}") from error
