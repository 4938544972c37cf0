"""What is in a weights file: its tensors, and the manifest of a checkpoint. Of safetensors without torch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from prunecli.checkpoint.header import TensorHeader, read_header, read_manifest
from prunecli.checkpoint.kinds import open_weights
from prunecli.checkpoint.manifest import Edit, Manifest

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U64": 8, "U32": 4}
_BYTES |= {"U16": 2, "BOOL": 1}
_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    **{f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)},
}
"""Types by the names that torch has for them."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        name: Its name.
        dtype: Its type, as torch calls it.
        shape: Its shape.
        size: Bytes.
        zeros: How many of its numbers are zero; None if nobody counted.
        sha256: Hash of its bytes, where the file has it.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    zeros: int | None = None
    sha256: str | None = None

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Contents:
    """A weights file.

    Attributes:
        path: The file.
        kind: "safetensors" or "torch".
        size: Bytes of the file.
        tensors: By name, in the order of the file; of our checkpoints in that of the network.
        manifest: Of our checkpoints.
        key: Which set of weights of a file of torch.save it is.
    """

    path: Path
    kind: str
    size: int
    tensors: dict[str, StoredTensor]
    manifest: Manifest | None = None
    key: str | None = None

    def kept(self) -> dict[str, tuple[int, list[int]]]:
        """For each layer that lost channels, how many it had, and which of them it kept, by their first indices."""
        return kept_channels(self.manifest.edits) if self.manifest is not None else {}


def contents_of(path: Path, *, key: str | None = None, zeros: bool = False) -> Contents:
    """Reads what a file holds: of a safetensors file only the header, unless zeros are counted.

    Args:
        path: A safetensors file, or one of torch.save.
        key: Which set of weights of a file of torch.save, by its keys joined by dots.
        zeros: Whether to count zeros, for which the tensors are read.

    Raises:
        ModelError: It is no weights file, or damaged.
    """
    with open_weights(path) as (_, kind):
        pass
    size = path.stat().st_size
    if kind != "safetensors":
        return Contents(path, "torch", size, _torch_tensors(path, key, zeros=zeros), key=key)
    header, manifest = read_header(path), read_manifest(path)
    hashes = manifest.tensor_sha256 if manifest is not None else {}
    counted = _zeros(path, header.tensors, len(header.raw)) if zeros else {}
    order = sorted(header.tensors, key=lambda name: header.tensors[name].begin)
    if hashes:
        order = [*(name for name in hashes if name in header.tensors), *(name for name in order if name not in hashes)]
    tensors = {
        name: StoredTensor(
            name,
            _TYPES.get(header.tensors[name].dtype, header.tensors[name].dtype),
            header.tensors[name].shape,
            header.tensors[name].size,
            counted.get(name),
            hashes.get(name),
        )
        for name in order
    }
    return Contents(path, "safetensors", size, tensors, manifest)


def digests(contents: Contents, names: Collection[str]) -> dict[str, str]:
    """Hashes of the bytes of tensors, by name; those that the file has are trusted.

    Args:
        contents: A file.
        names: Which of its tensors.
    """
    known = {name: tensor.sha256 for name in names if (tensor := contents.tensors[name]).sha256 is not None}
    missing = [name for name in names if name not in known]
    if not missing:
        return known
    if contents.kind == "safetensors":
        header = read_header(contents.path)
        with contents.path.open("rb") as file:
            for name in missing:
                file.seek(len(header.raw) + header.tensors[name].begin)
                known[name] = hashlib.sha256(file.read(header.tensors[name].size)).hexdigest()
        return known
    import torch

    from prunecli.checkpoint.foreign_files import read_foreign

    tensors = read_foreign(contents.path, key=contents.key, allow_nonfinite=True).tensors
    for name in missing:
        plain = tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy()
        known[name] = hashlib.sha256(plain.data).hexdigest()
    return known


def kept_channels(edits: list[Edit]) -> dict[str, tuple[int, list[int]]]:
    """For each layer, its first width and which of these channels are left after all edits, in order."""
    kept: dict[str, tuple[int, list[int]]] = {}
    for edit in edits:
        for layer in edit.layers:
            width, before = kept.get(layer, (edit.width_before, list(range(edit.width_before))))
            if len(before) != edit.width_before:  # the name has moved on to other channels
                width, before = edit.width_before, list(range(edit.width_before))
            kept[layer] = width, [before[index] for index in edit.keep_indices]
    return kept


def _torch_tensors(path: Path, key: str | None, *, zeros: bool) -> dict[str, StoredTensor]:
    from prunecli.checkpoint.foreign_files import read_foreign

    weights = read_foreign(path, key=key, allow_nonfinite=True)
    return {
        name: StoredTensor(
            name,
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.numel() * tensor.element_size(),
            int((tensor == 0).sum()) if zeros else None,
        )
        for name, tensor in weights.tensors.items()
    }


def _zeros(path: Path, tensors: Mapping[str, TensorHeader], offset: int) -> dict[str, int]:
    """How many numbers of each tensor are zero; types that numpy has no number of bits for are left out."""
    import numpy as np

    data = np.memmap(path, dtype=np.uint8, mode="r")
    counts = {}
    for name, tensor in tensors.items():
        width = _BYTES.get(tensor.dtype)
        if width is None or tensor.size % width:
            continue
        # A copy, since tensors in a file need not begin where the processor wants numbers of this width to begin.
        bits = np.array(data[offset + tensor.begin : offset + tensor.end]).view(f"u{width}")
        if "F" in tensor.dtype:
            bits = bits << np.array(1, bits.dtype)  # the sign: minus zero is zero
        counts[name] = int(bits.size - np.count_nonzero(bits))
    return counts
