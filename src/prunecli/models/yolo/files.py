"""From files of the package ultralytics to networks: whole pickled networks, read without running them, and weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunecli.checkpoint.foreign_files import ForeignWeights
from prunecli.checkpoint.records import printable
from prunecli.errors import ModelError
from prunecli.models.stored_settings import contradictions
from prunecli.models.yolo.building import from_config, named
from prunecli.models.yolo.config import CLASSES, checked, class_of, with_classes

_PACKAGE, _NETWORKS, _LAYERS = "ultralytics.", "ultralytics.nn.tasks.", "ultralytics.nn.modules."
_YOLOV5 = ("models.yolo.", "models.common.")
"""Classes of the repositories YOLOv5 and YOLOv7, which are not those of the package."""
_RENAMED = {"YOLOv10DetectionModel": "DetectionModel"}
_LEFT_ALONE = frozenset(
    "training np type inplace dynamic export format shape max_det agnostic_nms xyxy end2end legacy".split()
)
"""Attributes of layers that say how a network was made or is to be run; the package sets those itself."""
_COUNTER = "num_batches_tracked"
_CLASSES = re.compile(r"(?:cv3\.\d+\.\d+|linear|classifier\.\d+)\.weight")
_AGAIN = "prune the network itself in Python, prunecli.prune(YOLO(...).model, ...)"


@dataclass(frozen=True)
class FromFile:
    """A network of a file.

    Attributes:
        model: The network with its weights, in the precision of the file.
        config: The configuration it was built of.
        notes: What the user should know.
    """

    model: nn.Module
    config: dict[str, Any]
    notes: tuple[str, ...] = ()


def is_of_package(class_path: str | None) -> bool:
    """Whether a pickled network is one of the package's, or of the repositories before it."""
    return (class_path or "").startswith((_PACKAGE, *_YOLOV5))


def read_whole(weights: ForeignWeights, where: str, num_classes: int | None = None) -> FromFile:
    """Rebuilds a network that was pickled as a whole from the configuration inside it.

    Args:
        weights: The file's content.
        where: The file, for messages.
        num_classes: Number of classes, if another than the file's is wanted.

    Raises:
        ModelError: It is none that the package builds, or has been changed since it was built.
    """
    path = weights.class_path or ""
    if path.startswith(_YOLOV5):
        raise ModelError(
            f"{where}: its network is of the YOLOv5 repository ({printable(path)}), which the package ultralytics "
            "cannot run; give its counterpart there, such as yolov5nu.pt, or build it with --arch module:"
        )
    kind = path.removeprefix(_NETWORKS)
    kind = _RENAMED.get(kind, kind)
    if kind not in CLASSES:
        others = ", ".join(CLASSES)
        raise ModelError(f"{where}: its network is a {printable(path)}, which is none of {others}; {_AGAIN}")
    if weights.attributes.get("modelopt") or weights.settings.get("modelopt"):
        raise ModelError(f"{where}: its network was trained for quantisation; give the one before")
    config = weights.attributes.get("yaml")
    if not isinstance(config, Mapping):
        raise ModelError(f"{where}: its network holds no configuration (yaml); {_AGAIN}")
    known = checked({**config, "names": weights.attributes.get("names"), "imgsz": _side(weights)}, where)
    if class_of(known) != kind:
        raise ModelError(f"{where}: its network is a {kind} whose configuration makes a {class_of(known)}; {_AGAIN}")
    tensors = {f"model.{name}": tensor for name, tensor in _bare(weights.tensors)}
    return _filled(known, tensors, weights, where, num_classes)


def _side(weights: ForeignWeights) -> int | None:
    """The side of the images that the network was trained with; of a rectangle the longer one."""
    arguments = weights.attributes.get("args")
    said = arguments.get("imgsz") if isinstance(arguments, Mapping) else None
    said = weights.settings.get("imgsz", said)
    sides = [side for side in (said if isinstance(said, (list, tuple)) else (said,)) if type(side) is int and side > 0]
    return max(sides, default=None)


def read_weights(weights: ForeignWeights, name: str, where: str, num_classes: int | None = None) -> FromFile:
    """Builds a network of the package's names with weights alone, a state dict for instance.

    Args:
        weights: The file's content.
        name: The network, such as "yolo11n".
        where: The file, for messages.
        num_classes: Number of classes, if another than the file's is wanted.

    Raises:
        ModelError: The weights do not fit the network.
    """
    config = named(name)
    tensors = {f"model.{own}": tensor for own, tensor in _bare(weights.tensors)}
    count = _class_count(tensors, config)
    config = with_classes(config, count) if count is not None else config
    return _filled(config, tensors, weights, where, num_classes)


def _bare(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Tensors by their names inside the sequence of layers."""
    for name, tensor in tensors.items():
        yield name.removeprefix("model."), tensor


def _class_count(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> int | None:
    """How many classes the last layer of the weights has scores for."""
    last = f"model.{len(config['backbone']) + len(config['head']) - 1}."
    heads = [tensor for name, tensor in tensors.items() if _CLASSES.fullmatch(name.removeprefix(last))]
    return len(heads[0]) if heads else None


def _filled(
    config: dict[str, Any], tensors: Mapping[str, Tensor], weights: ForeignWeights, where: str, num_classes: int | None
) -> FromFile:
    """Builds the network, puts the weights in, and compares its layers with those that were pickled."""
    model = from_config(config, where)
    _check_shapes(model, tensors, where)
    model.load_state_dict(dict(tensors), strict=False, assign=True)  # old files lack counters
    _check_layers(weights, model, where)
    notes: tuple[str, ...] = (f"a {class_of(config)} of ultralytics with {config['nc']} classes",)
    if num_classes is None or num_classes == config["nc"]:
        return FromFile(model, config, notes)
    config = with_classes(config, num_classes)
    other = from_config(config, where)
    old = model.state_dict()
    kept = {name: old[name] for name, tensor in other.state_dict().items() if old[name].shape == tensor.shape}
    other.load_state_dict(kept, strict=False, assign=True)
    new = len(old) - len(kept)
    notes += (f"{new} tensors of its last layer are new, because it now has {num_classes} classes",)
    return FromFile(other, config, notes)


def _check_shapes(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Compares names and shapes of the weights with those of the network.

    Raises:
        ModelError: They differ; the message names the first.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in expected if name not in tensors and not name.endswith(_COUNTER)]
    surplus = [name for name in tensors if name not in expected]
    if missing and all(".bn." in name for name in missing):
        raise ModelError(
            f"{where}: its normalisations have been fused into its convolutions, for inference; give the file from "
            "before that"
        )
    if missing or surplus:
        kind = "lacks" if missing else "has"
        first = printable((missing or surplus)[0])
        raise ModelError(f"{where}: does not fit its configuration: it {kind} {first}; {_AGAIN}")
    for name, shape in expected.items():
        actual = tuple(tensors[name].shape) if name in tensors else shape
        if actual != shape:
            raise ModelError(
                f"{where}: {printable(name)} is {list(actual)} and its configuration makes it {list(shape)}, so the "
                f"network was changed after it was built, by pruning for instance; {_AGAIN}"
            )


def _check_layers(weights: ForeignWeights, model: nn.Module, where: str) -> None:
    """Compares the layers that were pickled with those that this version of the package builds.

    Raises:
        ModelError: They would compute something else.
    """
    layers = model.get_submodule("model")
    found = next((str(one) for one in contradictions(weights.modules, layers)), None) or _differing(weights, layers)
    if found:
        version = weights.settings.get("version")
        made = f", made by ultralytics {printable(str(version))}," if version else ""
        raise ModelError(
            f"{where}: its network{made} has other layers than this version of the package builds: {found}; {_AGAIN}"
        )


def _differing(weights: ForeignWeights, layers: nn.Module) -> str | None:
    """The first layer of the package that is of another class or has another setting."""
    for name, module in layers.named_modules():
        stored = weights.modules.get(name)
        if stored is None or not stored.path.startswith(_LAYERS):
            continue
        kind = stored.path.rpartition(".")[2]
        if kind != type(module).__name__:
            return f"{name} is a {printable(kind)}, not a {type(module).__name__}"
        for setting, value in stored.settings.items():
            if setting.startswith("_") or setting in _LEFT_ALONE or setting not in vars(module):
                continue
            ours: Any = vars(module)[setting]
            ours = tuple(ours) if isinstance(ours, list) else ours
            if not isinstance(ours, (Tensor, nn.Module)) and ours != value:
                return f"{name}: {setting} is {value}, not {ours}"
    return None
