"""The model source `ultralytics:`."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.errors import ModelError, unknown
from prunecli.models.yolo.config import CLASSES, checked, class_of, with_classes
from prunecli.models.yolo.dry_run import check_size
from prunecli.models.yolo.package import folder, quiet, tasks

_SIZED = re.compile(r"(yolov?\d+)([nslmxtcebu])(-.*)?$")
_LEFT_OUT = ("yoloe", "-world", "-rtdetr", "-resnet")
"""Parts of the names of networks that read texts, are transformers, or come from torchvision."""
_DETECTOR_SIZE, _CLASSIFIER_SIZE = 640, 224
"""What the package trains and predicts at by default."""


def names() -> list[str]:
    """The names of the package's configurations with each of their sizes, and the classes that manifests name."""
    return [*CLASSES, *_files()]


def build(
    name: str,
    pretrained: bool,
    *,
    config: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """Builds a network with new weights.

    Args:
        name: One of `names()`.
        pretrained: Refused: published weights are files that the user gives.
        config: The configuration, where `name` is a class.
        num_classes: Number of classes, if not that of the configuration.
        in_chans: Number of input channels, if not that of the configuration.

    Raises:
        ModelError: The name does not exist, the configuration is not one of a YOLO network, or does not fit the class.
    """
    if pretrained:
        raise ModelError(
            f"ultralytics:{name}: its published weights are not fetched from here; fetch {name}.pt with the package "
            "and give that file"
        )
    if name in CLASSES and config is None:
        raise ModelError(f"ultralytics:{name} is a class; give the name of a network, such as ultralytics:yolo11n")
    known = checked(config, f"ultralytics:{name}") if config is not None else named(name)
    if name in CLASSES and class_of(known) != name:
        raise ModelError(f"ultralytics:{name}: its last layer makes it a {class_of(known)}; the file was altered")
    if num_classes is not None:
        known = with_classes(known, num_classes)
    if in_chans is not None:
        known = {**known, "channels": in_chans}
    return from_config(known, f"ultralytics:{name}")


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
        model: nn.Module = kind(given, ch=config["channels"], verbose=False)
    if "names" in config:
        model.names = dict(enumerate(config["names"]))  # type: ignore[assignment]
    return model


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int], InputNormalisation]:
    """The size at which the package runs such networks by default, and pixels from 0 to 1."""
    size = _CLASSIFIER_SIZE if type(model).__name__ == "ClassificationModel" else _DETECTOR_SIZE
    channels = getattr(model, "yaml", {}).get("channels", 3)
    return (size, size), InputNormalisation(mean=(0.0,) * channels, std=(1.0,) * channels)


def named(name: str) -> dict[str, Any]:
    """The configuration of one of the package's names.

    Raises:
        ModelError: There is none.
    """
    files = _files()
    if name not in files:
        raise ModelError(unknown("architecture", f"ultralytics:{name}", (f"ultralytics:{known}" for known in files)))
    path, scale = files[name]
    return read_yaml(path, scale)


def read_yaml(path: Path, scale: str | None = None) -> dict[str, Any]:
    """A configuration in a YAML file.

    Args:
        path: The file.
        scale: The size, where the file has several.

    Raises:
        ModelError: It is missing, no YAML, or no configuration of a YOLO network.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ModelError(f"{path}: too large for a configuration of a YOLO network")
        text = path.read_text(encoding="utf-8")
        if re.search(r"^[^#\n]*[&*][A-Za-z0-9_]", text, re.MULTILINE):
            raise ModelError(f"{path}: has YAML anchors or aliases; write its layers out")
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(f"{path}: not readable as YAML ({' '.join(str(error).split())[:120]})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path}: no configuration of a YOLO network")
    return checked({**content, "scale": scale} if scale is not None else content, str(path))


_MOST_BYTES = 1 << 20


@cache
def _files() -> dict[str, tuple[Path, str | None]]:
    """File and size by name."""
    return dict(sorted(_each_file()))


def _each_file() -> Iterator[tuple[str, tuple[Path, str | None]]]:
    for path in sorted((folder() / "cfg" / "models").glob("*/yolo*.yaml")):
        stem = path.stem
        if any(part in stem for part in _LEFT_OUT):
            continue
        scales = re.findall(r"^  ([a-z]): ?\[", path.read_text(encoding="utf-8"), re.MULTILINE)
        if not scales or _SIZED.fullmatch(stem):
            yield stem, (path, scales[0] if scales else None)
            continue
        match = re.fullmatch(r"(yolov?\d+)(-.*)?", stem)
        for scale in scales if match else ():
            yield f"{match[1]}{scale}{match[2] or ''}", (path, scale)  # type: ignore[index]
