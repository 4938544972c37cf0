"""Reading other people's weights without running anything they contain."""

from __future__ import annotations

import argparse
import collections
import pathlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunecli.checkpoint.io import read_tensors
from prunecli.errors import ModelError

_WRAPPERS = ("model_ema", "state_dict_ema", "state_dict", "model_state_dict", "model", "module", "net", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from `.safetensors` or from a file written by `torch.save`.

    Nested dictionaries (`state_dict`, `model`, `model_ema` and the like) are unwrapped, exponential averages first,
    and prefixes that every key carries (`module.`, `_orig_mod.`) are removed. Only plain tensors and containers are
    accepted from pickles; nothing in the file is executed.

    Raises:
        ModelError: The file holds no state dict, or something other than plain data.
    """
    tensors = read_tensors(path) if path.suffix == ".safetensors" else _unwrap(_read_pickle(path), path)
    tensors = _without_prefixes(tensors)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: tensor {name!r} holds NaN or infinity; the weights are damaged")
    return tensors


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes off what every name begins with, however often, and the counter of torch's AveragedModel."""
    while True:
        named = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
        prefix = next((p for p in _PREFIXES if named and all(name.startswith(p) for name in named)), None)
        if prefix is None:
            return tensors
        tensors = {name.removeprefix(prefix): tensor for name, tensor in named.items()}


def _read_pickle(path: Path) -> Any:
    try:
        with (
            warnings.catch_warnings(),
            torch.serialization.safe_globals(
                [argparse.Namespace, collections.defaultdict, pathlib.PosixPath, pathlib.PurePosixPath, dict, list]
            ),
        ):
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # ten different types in practice, some with an empty or misleading message
        raise ModelError(
            f"{path}: not a file of plain weights ({_cause(path, error)}); save `model.state_dict()` with "
            "torch.save or safetensors and give that file"
        ) from error


def _cause(path: Path, error: BaseException) -> str:
    head = path.read_bytes()[:16] if path.is_file() else b""
    if not head:
        return "it is empty"
    if "Unsupported global" in str(error) or "Unsupported class" in str(error):
        return "it pickles Python objects, perhaps a whole model"
    if not head.startswith((b"PK", b"\x80")):
        return "it was not written by torch.save"
    return "it is truncated or not a torch checkpoint"


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(8):
        if not isinstance(content, Mapping):
            raise ModelError(f"{path}: holds a {type(content).__name__}, not a state dict of named tensors")
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not tensors:
        raise ModelError(f"{path}: holds no tensors; expected a state dict or a dictionary with one inside")
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
