"""Files that the package itself opens: `YOLO("pruned.pt")` predicts, validates and exports with them.

The package pickles networks whole, and its trainer builds a new one from the configuration inside, of the widths from
before pruning, into which it copies what happens to fit. So that this is an error and not another network, the
configuration in such a file names a first layer that does not exist, and its name says what to do.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.durable import write_atomically
from prunecli.copying import copied
from prunecli.errors import ModelError
from prunecli.models.yolo.building import from_config
from prunecli.models.yolo.config import MARK
from prunecli.models.yolo.package import module, quiet

_LOST = (
    f"{MARK}its widths are not those of its configuration; train it with prune finetune, or with a trainer whose "
    "get_model returns the weights it is given"
)
_TASKS = {
    "DetectionModel": "detect",
    "SegmentationModel": "segment",
    "PoseModel": "pose",
    "OBBModel": "obb",
    "ClassificationModel": "classify",
    "SemanticSegmentationModel": "semantic",
    "DepthModel": "depth",
}


def write(model: nn.Module, config: Mapping[str, Any], size: tuple[int, int] | None, path: Path) -> None:
    """Writes a network as the package does.

    Args:
        model: The network; not changed.
        config: The configuration of the dense network.
        size: Height and width of the images it is for.
        path: The file, which ends in .pt: the package opens no other.

    Raises:
        ModelError: The file does not end in .pt, or the network is none of the package's.
    """
    if path.suffix != ".pt":
        raise ModelError(f"{path}: ultralytics opens files that end in .pt; give such a name")
    kind = type(model).__name__
    if kind not in _TASKS or not type(model).__module__.startswith("ultralytics."):
        raise ModelError(f"{path}: a {kind} is no network of ultralytics; this is for ultralytics:... alone")
    content = _content(model, config, size)
    buffer = io.BytesIO()  # in a file of that name, its name would be among its bytes
    with quiet():
        torch.save(content, buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def _content(model: nn.Module, config: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    defaults = dict(module("utils").DEFAULT_CFG_DICT)
    arguments = {**defaults, "task": _TASKS[type(model).__name__], "model": None, "imgsz": max(size) if size else 640}
    network: Any = copied(model).eval()
    _forget_run_time(network)
    network.yaml = copy.deepcopy({key: value for key, value in config.items() if key != "names"})
    network.yaml.setdefault("yaml_file", f"{arguments['task']}.yaml")
    if not _same_shapes(model, from_config(config, "ultralytics")):
        network.yaml["backbone"][0][2] = _LOST
    names = config.get("names") or [str(number) for number in range(config["nc"])]
    network.names = dict(enumerate(names))
    network.args, network.task = arguments, arguments["task"]
    for parameter in network.parameters():
        parameter.requires_grad = False
    return {
        "epoch": -1,
        "model": network,
        "ema": None,
        "train_args": arguments,
        "version": version("ultralytics"),
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
    }


def _same_shapes(one: nn.Module, other: nn.Module) -> bool:
    shapes = [{name: tensor.shape for name, tensor in network.state_dict().items()} for network in (one, other)]
    return shapes[0] == shapes[1]


def _forget_run_time(network: nn.Module) -> None:
    """Removes what passes have left on a head, and what this program keeps on networks."""
    for part in network.modules():
        for name in ("anchors", "strides", "shape") if hasattr(type(part), "anchors") else ():
            vars(part).pop(name, None)
        for name in [name for name in vars(part) if name.startswith("_prunecli")]:
            delattr(part, name)
