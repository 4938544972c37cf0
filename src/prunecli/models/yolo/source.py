"""The model source `ultralytics:`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from prunecli.checkpoint.foreign_files import ForeignWeights, read_foreign
from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.errors import ModelError, unknown
from prunecli.models.source import Opened, OpenRequest
from prunecli.models.yolo.building import from_config, named, read_yaml
from prunecli.models.yolo.config import CLASSES, checked, class_of, with_channels, with_classes
from prunecli.models.yolo.export import write
from prunecli.models.yolo.files import FromFile, is_of_package, read_weights, read_whole
from prunecli.models.yolo.names import package_files

__all__ = ["build", "describe", "input_spec", "names", "open", "read", "write"]
_DETECTOR_SIZE, _CLASSIFIER_SIZE = 640, 224
"""What the package trains and predicts at by default."""
_YAML = (".yaml", ".yml")


def names() -> list[str]:
    """The package's names of networks, with each of their sizes, and the classes that manifests name."""
    return [*CLASSES, *package_files()]


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
    where = f"ultralytics:{name}"
    _refuse_pretrained(name, pretrained)
    if name in CLASSES and config is None:
        raise ModelError(f"{where} is a class; give the name of a network, such as ultralytics:yolo11n")
    known = checked(config, where) if config is not None else named(name)
    if name in CLASSES and class_of(known) != name:
        raise ModelError(f"{where}: its last layer makes it a {class_of(known)}; the file was altered")
    return from_config(_with(known, num_classes, in_chans), where)


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int], InputNormalisation]:
    """The size that the network was trained at, else the package's default, and pixels from 0 to 1.

    Like the package, it takes the next multiple of the coarsest stride: maps of other sizes do not fit together.
    """
    default = _CLASSIFIER_SIZE if type(model).__name__ == "ClassificationModel" else _DETECTOR_SIZE
    config: Mapping[str, Any] = vars(model).get("yaml", {})
    stride = max(vars(model)["stride"].long().tolist(), default=1) if "stride" in vars(model) else 1
    size, channels = -(-config.get("imgsz", default) // stride) * stride, config.get("channels", 3)
    return (size, size), InputNormalisation(mean=(0.0,) * channels, std=(1.0,) * channels)


def open(name: str, request: OpenRequest) -> Opened:
    """Opens one of the package's networks (with new weights), a YAML file (likewise), or a file of the package.

    Args:
        name: `yolo11n-seg`, `FILE.yaml` or `FILE.pt`.
        request: Settings: `in_chans`, and `scale` of a YAML file with several sizes.

    Raises:
        ModelError: There is no such network, or its file is not one of the package.
    """
    path = Path(name).expanduser()
    _refuse_pretrained(name, request.pretrained)
    if path.suffix not in _YAML and path.is_file():
        weights = read_foreign(path, allow_nonfinite=request.allow_nonfinite)
        _check_settings(request, ())
        if not is_of_package(weights.class_path):
            raise ModelError(
                f"{path}: holds no network of ultralytics, only weights; name it with --arch ultralytics:NAME"
            )
        return _opened(read_whole(weights, str(path), request.num_classes), path)
    _check_settings(request, ("in_chans", "scale"))
    scale = request.kwargs.get("scale")
    if path.suffix in _YAML and path.is_file():
        config = read_yaml(path, scale)
    else:
        bare = name.removesuffix(path.suffix) if path.suffix in _YAML else name
        if bare not in package_files():
            hint = unknown("architecture", f"ultralytics:{bare}", (f"ultralytics:{known}" for known in package_files()))
            raise ModelError(f"{hint}, or a file of the package; there is no file {name}")
        config = named(bare)
    config = _with(config, request.num_classes or request.data_classes(), request.kwargs.get("in_chans"))
    return _opened(FromFile(from_config(config, f"ultralytics:{name}"), config), None)


def read(weights: ForeignWeights, name: str | None, path: Path, request: OpenRequest) -> Opened:
    """The network of a file that is a pickled network of the package, or the weights of one that is named.

    Args:
        weights: The file's content.
        name: What follows "ultralytics:", if the user says so.
        path: The file.
        request: What else the user says.

    Raises:
        ModelError: The file holds another network.
    """
    _check_settings(request, ())
    if is_of_package(weights.class_path) and (name is None or name in CLASSES or name not in package_files()):
        return _opened(read_whole(weights, str(path), request.num_classes), path)
    if name is None or name not in package_files():
        raise ModelError(f"{path}: holds weights alone; name their network, such as --arch ultralytics:yolo11n")
    return _opened(read_weights(weights, name, str(path), request.num_classes), path)


def describe(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The class of a live network of the package and its configuration, with names of classes and size of images."""
    kind, held = type(model).__name__, vars(model)
    arguments = held.get("args", {})
    arguments = arguments if isinstance(arguments, Mapping) else vars(arguments)
    config = held.get("yaml")
    if kind not in CLASSES or not isinstance(config, Mapping):
        return None
    size = arguments.get("imgsz")
    said = {"names": held.get("names"), "imgsz": size if isinstance(size, int) else None}
    try:
        known = checked({**config, **said}, f"ultralytics:{kind}")
    except ModelError:
        return None
    return (kind, known) if class_of(known) == kind else None


def _opened(read: FromFile, path: Path | None) -> Opened:
    kind = class_of(read.config)
    size, normalisation = input_spec(kind, read.model)
    return Opened(kind, read.config, read.model, path, size, normalisation, notes=read.notes, new=path is None)


def _with(config: dict[str, Any], classes: int | None, channels: int | None) -> dict[str, Any]:
    config = with_classes(config, classes) if classes is not None else config
    return with_channels(config, channels) if channels is not None else config


def _refuse_pretrained(name: str, pretrained: bool) -> None:
    if pretrained:
        raise ModelError(
            f"ultralytics:{name}: its published weights are not fetched from here; fetch {name.removesuffix('.pt')}.pt "
            "with the package and give that file"
        )


def _check_settings(request: OpenRequest, known: tuple[str, ...]) -> None:
    for name in request.kwargs:
        if name not in known:
            raise ModelError(f"ultralytics: {unknown('argument', name, known)}; see --model-kwargs")
