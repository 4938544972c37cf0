"""Writing safetensors a tensor at a time: of what is computed or read when it is needed, no second copy is made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunecli.widened import plain

_NAMES: Mapping[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.complex64: "C64",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
"""The format's names of dtypes, in the order in which the library writes them, backwards."""


def write_piecewise(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes the bytes that `safetensors.torch.save_file` writes, and reads every tensor only when its turn comes.

    Args:
        path: The file.
        tensors: Contiguous tensors by name.
        metadata: A single entry: the library has no order for several.

    Raises:
        OSError: The disk is full.
        KeyError: The format has no name for a dtype.
    """
    order = list(_NAMES)
    names = sorted(tensors, key=lambda name: (-order.index(tensors[name].dtype), name.encode()))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in names:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb", buffering=0) as file:
        _write(file, memoryview(len(text).to_bytes(8, "little") + text))
        for name in names:
            raw = plain(tensors[name].detach()).cpu().contiguous().flatten()
            if raw.numel():
                _write(file, memoryview(raw.view(torch.uint8).numpy()))


def _write(file: Any, content: memoryview) -> None:
    while content.nbytes:
        content = content[file.write(content) :]
