"""Reading and writing checkpoints: one safetensors file whose metadata carries the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from prunecli.checkpoint.durable import write_atomically
from prunecli.checkpoint.manifest import Manifest
from prunecli.errors import ModelError

MANIFEST_KEY = "prunecli.manifest"


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], manifest: Manifest) -> None:
    """Writes tensors and manifest to `path` in one atomic step.

    Args:
        path: The file to write; its folder is made if it does not exist.
        tensors: Tensors by name. Tensors that share memory are stored once and listed as aliases.
        manifest: Stored beside them; its hashes and aliases are filled in on a copy.
    """
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach()
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        if tensor.numel() and place in seen:
            aliases[name] = seen[place]
            continue
        seen[place] = name
        stored[name] = tensor.cpu().contiguous().clone()
    complete = manifest.model_copy(
        update={"aliases": aliases, "tensor_sha256": {name: tensor_sha256(t) for name, t in stored.items()}}
    )

    def save(temporary: Path) -> None:
        # One entry alone: safetensors writes several in random order, and equal networks should be equal bytes.
        save_file(stored, temporary, metadata={MANIFEST_KEY: complete.to_json()})

    write_atomically(path, save)


def read_checkpoint(path: Path) -> tuple[Manifest, dict[str, Tensor]]:
    """Reads a checkpoint and checks every tensor against its recorded hash.

    Raises:
        ModelError: The file is not a checkpoint of this tool, or is damaged.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise ModelError(f"{path}: holds no pruning manifest; give the architecture with --arch to load plain weights")
    tensors = read_tensors(path)
    if set(tensors) != set(manifest.tensor_sha256):
        odd = sorted(set(tensors) ^ set(manifest.tensor_sha256))[0]
        raise ModelError(f"{path}: tensor {odd!r} does not agree with the manifest; the file was altered")
    for name, tensor in tensors.items():
        if tensor_sha256(tensor) != manifest.tensor_sha256[name]:
            raise ModelError(f"{path}: tensor {name!r} is damaged (its sha256 differs); fetch or make the file again")
    for name, source in manifest.aliases.items():
        if source not in tensors:
            raise ModelError(f"{path}: alias {name!r} names a missing tensor {source!r}; the file was altered")
        tensors[name] = tensors[source]
    return manifest, tensors


def read_manifest(path: Path) -> Manifest | None:
    """Reads only the manifest of a safetensors file; None when it holds plain weights.

    Raises:
        ModelError: The file is unreadable or its manifest is of another schema.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # the reader raises its own type, OSError and others
        raise ModelError(f"{path}: not a readable safetensors file ({_first_line(error)})") from error
    if MANIFEST_KEY not in metadata:
        return None
    try:
        return Manifest.model_validate_json(metadata[MANIFEST_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"{path}: its manifest is not one this version reads ({place}: {first['msg']}); "
            "it was written by another version of prune or altered"
        ) from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of a safetensors file into memory of their own.

    Each is cloned: views into the file are often unaligned, and kernels then round differently.

    Raises:
        ModelError: The file is unreadable.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}
    except Exception as error:
        raise ModelError(f"{path}: not a readable safetensors file ({_first_line(error)})") from error


def tensor_sha256(tensor: Tensor) -> str:
    """Hash of a tensor's dtype, shape and bytes, as hex."""
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    raw = tensor.detach().cpu().contiguous().flatten()
    digest.update(raw.view(torch.uint8).numpy().data if raw.numel() else b"")
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
