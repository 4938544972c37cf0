"""Reading weights that other programs saved, without running anything in the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from prunecli.checkpoint.archive import Damaged
from prunecli.checkpoint.finite import check_finite
from prunecli.checkpoint.inert import Inert, class_path, is_module, state_dict_of
from prunecli.checkpoint.io import read_tensors
from prunecli.checkpoint.kinds import open_weights, refusal
from prunecli.checkpoint.records import printable
from prunecli.checkpoint.torch_files import read_torch_file
from prunecli.errors import ModelError

_WRAPPERS = ("model_ema", "state_dict_ema", "state_dict", "model_state_dict", "model", "module", "net", "params")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MAX_WRAPPERS = 8
_MAX_NAME = 1024


@dataclass(frozen=True)
class ForeignWeights:
    """Weights that another program saved.

    Attributes:
        tensors: The state dict.
        class_path: The class of a model pickled as a whole, for instance "torchvision.models.resnet.ResNet".
    """

    tensors: dict[str, Tensor]
    class_path: str | None = None


def read_foreign(path: Path, *, allow_nonfinite: bool = False) -> ForeignWeights:
    """Reads weights from a safetensors file or one of torch.save that holds a state dict or a whole model.

    Nested dictionaries (`state_dict`, `model`, `model_ema` and the like) are unwrapped, exponential averages first,
    and prefixes that all keys share (`module.`, `_orig_mod.`) are removed. Nothing in the file is executed, and no
    class named in it is imported.

    Args:
        path: The file; its name does not matter.
        allow_nonfinite: Whether tensors may hold NaN or infinity.

    Raises:
        ModelError: The file holds no state dict, is damaged, or claims more than it holds.
    """
    with open_weights(path) as (file, kind):
        if kind == "safetensors":
            weights = ForeignWeights(read_tensors(path))
        else:
            weights = _unwrap(read_torch_file(file, path, legacy=kind == "legacy"), path)
    if not weights.tensors:
        raise ModelError(f"{path}: holds no tensors; give a file of weights")
    tensors = _without_prefixes(weights.tensors)
    for name, tensor in tensors.items():
        if len(name) > _MAX_NAME:
            raise refusal(path, f"has a tensor name of {len(name):,} characters", "fetch or save the file again")
        if tensor.is_sparse or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
            raise refusal(path, f"tensor {printable(name)} is not dense", "save dense tensors")
    check_finite(tensors, path, allow_nonfinite)
    return ForeignWeights(tensors, weights.class_path)


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes prefixes that all names share, repeatedly, and the counter of torch's AveragedModel."""
    while True:
        named = {name: tensor for name, tensor in tensors.items() if name != "n_averaged"}
        prefix = next((p for p in _PREFIXES if named and all(name.startswith(p) for name in named)), None)
        if prefix is None:
            return tensors
        tensors = {name.removeprefix(prefix): tensor for name, tensor in named.items()}


def _unwrap(content: Any, path: Path) -> ForeignWeights:
    for _ in range(_MAX_WRAPPERS):
        if is_module(content):
            return _from_module(content, path)
        if not isinstance(content, Mapping):
            raise _not_a_state_dict(content, path)
        inner = next((content[key] for key in _WRAPPERS if _may_hold_weights(content.get(key))), None)
        if inner is None:
            modules = [value for value in content.values() if is_module(value)]
            tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
            if tensors or len(modules) != 1:
                break
            inner = modules[0]
        content = inner
    else:
        raise refusal(path, "wraps its weights over and over", "save `model.state_dict()` and give that file")
    if not tensors:
        raise ModelError(f"{path}: holds no tensors; expected a state dict or a dictionary with one inside")
    return ForeignWeights(tensors)


def _may_hold_weights(value: Any) -> bool:
    return isinstance(value, Mapping) or is_module(value)


def _from_module(module: Inert, path: Path) -> ForeignWeights:
    try:
        tensors = {name: tensor.detach() for name, tensor in state_dict_of(module).items()}
    except Damaged as error:
        raise refusal(path, error.cause, error.remedy) from error
    if not tensors:
        raise ModelError(f"{path}: holds a {printable(module.path)} without any tensors; give a file with weights")
    return ForeignWeights(tensors, class_path(module))


def _not_a_state_dict(content: Any, path: Path) -> ModelError:
    kind = printable(content.path) if isinstance(content, Inert) else type(content).__name__
    return ModelError(
        f"{path}: holds a {kind}, not a state dict of named tensors; save `model.state_dict()` and give that file"
    )
