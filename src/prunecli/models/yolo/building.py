"""From names, YAML files and configurations to networks with new weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from prunecli.errors import ModelError, unknown
from prunecli.models.yolo.config import checked, class_of
from prunecli.models.yolo.dry_run import check_size
from prunecli.models.yolo.names import package_files
from prunecli.models.yolo.package import quiet, tasks

_SIZED = re.compile(r"yolov?\d+([nslmx])")
_MOST_BYTES = 1 << 20
_ALIAS = re.compile(r"^[^#\n]*[&*][A-Za-z0-9_]", re.MULTILINE)


def from_config(config: Mapping[str, Any], where: str) -> nn.Module:
    """Builds the network of a checked configuration, on the CPU: it runs once to find its strides.

    Args:
        config: What `checked` returned.
        where: Its name, for messages.

    Raises:
        ModelError: Its layers do not fit together, or it is larger than any YOLO network.
    """
    package = tasks()
    with quiet(), torch.device("cpu"):
        check_size(package, config, where)
        given = copy.deepcopy({key: value for key, value in config.items() if key != "names"})
        kind = getattr(package, class_of(config))
        model: Any = kind(given, ch=config["channels"], verbose=False)
    if "names" in config:
        model.names = dict(enumerate(config["names"]))
    built: nn.Module = model
    return built


def named(name: str) -> dict[str, Any]:
    """The configuration of one of the package's names.

    Raises:
        ModelError: There is none.
    """
    files = package_files()
    if name not in files:
        raise ModelError(unknown("architecture", f"ultralytics:{name}", (f"ultralytics:{known}" for known in files)))
    path, scale = files[name]
    return read_yaml(path, scale)


def read_yaml(path: Path, scale: str | None = None) -> dict[str, Any]:
    """A configuration in a YAML file.

    Args:
        path: The file.
        scale: The size, where the file has several; None: the one in its name, as in `my-yolo11s.yaml`, else its first.

    Raises:
        ModelError: It is missing, no YAML, or no configuration of a YOLO network.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{path}: too large for a configuration of a YOLO network")
        text = path.read_text(encoding="utf-8")
        if _ALIAS.search(text):
            raise ModelError(f"{path}: has YAML anchors or aliases; write its layers out")
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: no configuration of a YOLO network")
    if scale is None:
        match = _SIZED.search(path.stem)
        scale = match[1] if match else content.get("scale")
    return checked({**content, "scale": scale}, str(path))
