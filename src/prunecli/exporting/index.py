"""The formats that networks leave in. A new one is a module here and one line; nothing heavy is imported to list them.

An installed package adds its own with an entry point in the group `prunecli.exports` that names a `Format`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.errors import ModelError, RecipeError
from prunecli.registry import Registry

if TYPE_CHECKING:
    from prunecli.exporting.base import Format

FORMATS: Registry[Format] = Registry(
    "format",
    "prunecli.exports",
    {
        "onnx": "prunecli.exporting.onnx:FORMAT",
        "torch-export": "prunecli.exporting.torch_export:FORMAT",
        "openvino": "prunecli.exporting.openvino:FORMAT",
        "safetensors-plain": "prunecli.exporting.safetensors_plain:FORMAT",
        "hf": "prunecli.exporting.hugging_face:FORMAT",
        "package": "prunecli.exporting.package:FORMAT",
    },
    ModelError,
)

RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}
"""Formats in whose runtimes `compare` times networks, and what those are called."""

_SUFFIXES = {
    ".onnx": "onnx",
    ".pt2": "torch-export",
    ".xml": "openvino",
    ".safetensors": "safetensors-plain",
    "": "hf",
    ".pt": "package",
}
"""What the end of an output's name stands for; a name without one is a folder."""


def format_for(path: Path, asked: str | None) -> str:
    """The format to write.

    Args:
        path: The output.
        asked: The format that the user names; None: the name of the output says it.

    Raises:
        RecipeError: The name says nothing.
        ModelError: There is no such format.
    """
    if asked is not None:
        FORMATS.require(asked)
        return asked
    if path.is_dir() or path.suffix in _SUFFIXES:
        return _SUFFIXES["" if path.is_dir() else path.suffix]
    known = ", ".join(f"{suffix} ({name})" for suffix, name in _SUFFIXES.items() if suffix)
    raise RecipeError(
        f"-o {path}: which format? Name it with --to, or give a name that ends in {known}; one without an end is a "
        "folder (hf)"
    )
