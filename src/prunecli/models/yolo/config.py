"""Configurations of YOLO networks: what of one may reach the package, since it may come from somebody else's file.

The package evaluates words in a configuration as Python, imports what it names and downloads weights that it mentions.
So a configuration is rebuilt here from the layers, numbers and words that YOLO networks consist of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prunecli.checkpoint.records import printable
from prunecli.errors import ModelError

_DETECTION, _SEGMENTATION, _POSE, _BOXES = "DetectionModel", "SegmentationModel", "PoseModel", "OBBModel"
HEADS = {
    "Detect": _DETECTION,
    "v10Detect": _DETECTION,
    "Segment": _SEGMENTATION,
    "Segment26": _SEGMENTATION,
    "Pose": _POSE,
    "Pose26": _POSE,
    "OBB": _BOXES,
    "OBB26": _BOXES,
    "Classify": "ClassificationModel",
    "SemanticSegment": "SemanticSegmentationModel",
    "Depth": "DepthModel",
}
"""The class of the network by its last layer."""
CLASSES = tuple(dict.fromkeys(HEADS.values()))
_LAYERS = frozenset(
    "AConv ADown AIFI A2C2f Bottleneck BottleneckCSP C1 C2 C2f C2fCIB C2fPSA C2PSA C3 C3Ghost C3k2 C3TR C3x CBFuse "
    "CBLinear Concat Conv ConvTranspose Conv2 DWConv DWConvTranspose2d ELAN1 Focus GhostBottleneck GhostConv HGBlock "
    "HGStem PSA RepC3 RepConv RepNCSPELAN4 RepVGGDW ResNetLayer SCDown SPP SPPELAN SPPF".split()
)
_ACTIVATIONS = "CELU ELU GELU Hardswish Hardtanh Identity LeakyReLU Mish ReLU ReLU6 SELU SiLU Sigmoid Softplus Tanh"
_OTHERS = "AvgPool2d BatchNorm2d Conv2d ConvTranspose2d MaxPool2d Upsample ZeroPad2d"
_OF_TORCH = frozenset(f"nn.{name}" for name in f"{_OTHERS} {_ACTIVATIONS}".split())
_TEXT = frozenset("C2fAttn ImagePoolingAttn LRPCHead WorldDetect YOLOEDetect YOLOESegment YOLOESegment26".split())
"""Layers that read texts of classes."""
_WORDS = frozenset("None True False nc kpt_shape reg_max nearest bilinear bicubic area".split())
"""Words among the arguments of layers: values that the package knows, and ways to interpolate."""
MARK = "pruned by prune: "
"""How the class of the first layer begins in files of pruned networks, which cannot be built of their configuration."""
_RENAMED = {"Silence": "nn.Identity"}
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CALL = re.compile(
    rf"(?:torch\.)?nn\.({'|'.join(_ACTIVATIONS.split())})"
    rf"\((?:(?:\w+ ?= ?)?(?:{_NUMBER}|True|False)(?:, ?|(?=\))))*\)"
)
_SCALE = re.compile(r"[a-z0-9]{1,8}")
_MOST_LAYERS, _MOST_REPEATS, _MOST_ARGUMENTS, _MOST_SOURCES = 512, 128, 16, 32
_LARGEST = 16_384
"""Of widths, kernels and the like; the widest published network has 1,536 channels."""
_MOST_CLASSES, _MOST_CHANNELS, _MOST_KEYPOINTS = 1_000_000, 4096, 4096
_MOST_NAME, _MOST_PIXELS = 200, 8192


def checked(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A configuration with nothing in it but layers, numbers and words that YOLO networks consist of.

    Args:
        config: As in a YAML file of the package, with `scale` and maybe `channels`, `names` and `imgsz`, the side of
            the images that it is for.
        where: Its file or network, for messages.

    Raises:
        ModelError: Something in it is unknown, out of bounds or no configuration at all; the message says what.
    """
    parts = [config.get(part) for part in ("backbone", "head")]
    if not all(isinstance(part, (list, tuple)) and part for part in parts):
        raise ModelError(f"{where}: no configuration of a YOLO network: it needs a backbone and a head")
    rows = [len(part) for part in parts if part is not None]
    if sum(rows) > _MOST_LAYERS:
        raise ModelError(f"{where}: has {sum(rows):,} layers, and at most {_MOST_LAYERS} make sense; it was altered")
    kept = _settings(config, where)
    layers = [_layer(row, index, where) for index, row in enumerate([*parts[0], *parts[1]])]  # type: ignore[misc]
    kept["backbone"], kept["head"] = layers[: rows[0]], layers[rows[0] :]
    head = layers[-1][2]
    if head not in HEADS:
        raise ModelError(f"{where}: its last layer is {head}, and networks end in one of {', '.join(HEADS)}")
    early = next((layer[2] for layer in layers[:-1] if layer[2] in HEADS), None)
    if early is not None:
        raise ModelError(f"{where}: has a {early} before its last layer; only the last one gives predictions")
    if "kpt_shape" not in kept and class_of(kept) == _POSE:
        raise ModelError(f"{where}: finds poses and does not say how many points: kpt_shape is missing")
    return kept


def class_of(config: Mapping[str, Any]) -> str:
    """The class that the package builds of a checked configuration."""
    return HEADS[config["head"][-1][2]]


def with_channels(config: Mapping[str, Any], count: Any) -> dict[str, Any]:
    """The configuration for images of another number of channels.

    Raises:
        ModelError: The number makes no sense.
    """
    return {**config, "channels": _integer(count, "in_chans", 1, _MOST_CHANNELS, "ultralytics")}


def with_classes(config: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The configuration for another number of classes, which then have no names.

    Raises:
        ModelError: The number makes no sense.
    """
    changed = {**config, "nc": _integer(count, "num_classes", 1, _MOST_CLASSES, "ultralytics")}
    if count != config["nc"]:
        changed.pop("names", None)
    return changed


def _settings(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Everything but the layers."""
    kept: dict[str, Any] = {"nc": _integer(config.get("nc", 80), "nc", 1, _MOST_CLASSES, where)}
    channels = config.get("channels", config.get("ch", 3))
    kept["channels"] = _integer(channels, "channels", 1, _MOST_CHANNELS, where)
    for name in ("depth_multiple", "width_multiple"):
        if name in config:
            kept[name] = _real(config[name], name, 1e-3, 16.0, where)
    if config.get("scales"):
        kept["scale"], kept["scales"] = _scales(config, where)
    elif config.get("scale"):  # some layers ask for it
        kept["scale"] = _scale(config["scale"], where)
    if config.get("activation") is not None:
        kept["activation"] = _activation(config["activation"], where)
    for name in ("end2end", "inplace"):
        if config.get(name) is not None:
            kept[name] = _switch(config[name], name, where)
    if "reg_max" in config:
        kept["reg_max"] = _integer(config["reg_max"], "reg_max", 1, 256, where)
    if config.get("imgsz") is not None:
        kept["imgsz"] = _integer(config["imgsz"], "imgsz", 1, _MOST_PIXELS, where)
    if config.get("kpt_shape") is not None:
        kept["kpt_shape"] = _keypoints(config["kpt_shape"], where)
    names = _names(config.get("names"), kept["nc"])
    return {**kept, "names": names} if names else kept


def _scales(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, list[float]]]:
    """The size that is built, and its depth, width and largest width."""
    scales = config["scales"]
    if not isinstance(scales, Mapping) or len(scales) > 64:
        raise ModelError(f"{where}: scales is no table of sizes")
    scale = config.get("scale") or next(iter(scales))
    if _scale(scale, where) not in scales:
        known = ", ".join(printable(str(name)) for name in list(scales)[:8])
        raise ModelError(f"{where}: has no size {scale}; it has {known}")
    factors = scales[scale]
    if not isinstance(factors, (list, tuple)) or len(factors) != 3:
        raise ModelError(f"{where}: size {scale} needs a depth, a width and a largest width")
    depth, width = (_real(factor, f"size {scale}", 1e-3, 16.0, where) for factor in factors[:2])
    return scale, {scale: [depth, width, _integer(factors[2], f"size {scale}", 1, _LARGEST, where)]}


def _scale(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _SCALE.fullmatch(value):
        raise ModelError(f"{where}: scale {printable(str(value))} is not the name of a size, such as n")
    return value


def _layer(row: Any, index: int, where: str) -> list[Any]:
    """One layer: the layers it reads, how often it is repeated, its class and its arguments."""
    if not isinstance(row, (list, tuple)) or len(row) != 4 or not isinstance(row[2], str):
        raise ModelError(f"{where}: layer {index} is not written as [from, repeats, class, arguments]")
    sources, repeats, kind, arguments = row
    at = f"layer {index}"
    kind = _RENAMED.get(str(kind), str(kind))
    if kind in _TEXT:
        raise ModelError(f"{where}: {at} is a {kind}, which reads texts of classes; YOLO-World and YOLOE are not read")
    if kind.startswith(MARK):
        raise ModelError(f"{where}: was pruned by prune; give the checkpoint that it was made from")
    if kind not in HEADS and kind not in _LAYERS and kind not in _OF_TORCH:
        raise ModelError(
            f"{where}: {at} is a {printable(kind)}, which is not one of the layers that are built from a file; prune "
            "the network itself in Python, prunecli.prune(YOLO(...).model, ...)"
        )
    several = isinstance(sources, (list, tuple))
    read = list(sources) if several else [sources]
    if not 1 <= len(read) <= _MOST_SOURCES:
        raise ModelError(f"{where}: {at} reads {len(read)} layers")
    read = [_integer(source, f"{at}: from", -max(index, 1), max(index - 1, -1), where) for source in read]
    if not isinstance(arguments, (list, tuple)) or len(arguments) > _MOST_ARGUMENTS:
        raise ModelError(f"{where}: {at}: its arguments are no short list")
    return [
        read if several else read[0],
        _integer(repeats, f"{at}: repeats", 1, _MOST_REPEATS, where),
        kind,
        [_argument(value, f"{at}, {kind}", where) for value in arguments],
    ]


def _argument(value: Any, at: str, where: str) -> Any:
    if value is None or type(value) is bool:
        return value
    if type(value) is int:
        return _integer(value, at, -1, _LARGEST, where)
    if type(value) is float:
        return _real(value, at, -1e4, 1e4, where)
    if isinstance(value, str) and value in _WORDS:
        return value
    if isinstance(value, (list, tuple)) and len(value) <= _MOST_ARGUMENTS:
        return [_integer(item, at, -1, _LARGEST, where) for item in value]
    raise ModelError(f"{where}: {at}: {printable(str(value))} is not an argument that a layer may have")


def _activation(value: Any, where: str) -> str:
    if isinstance(value, str) and len(value) <= 200 and _CALL.fullmatch(value.strip()):
        return value.strip()
    raise ModelError(
        f"{where}: activation {printable(str(value))} is not one of torch.nn's written with plain numbers, such as "
        "nn.LeakyReLU(0.1)"
    )


def _keypoints(value: Any, where: str) -> list[int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ModelError(f"{where}: kpt_shape is not a number of points and one of coordinates")
    points = _integer(value[0], "kpt_shape", 1, _MOST_KEYPOINTS, where)
    return [points, _integer(value[1], "kpt_shape", 2, 3, where)]


def _names(value: Any, count: int) -> list[str] | None:
    """Names of all classes in their order; None where they are not all there, or are their own numbers."""
    if isinstance(value, Mapping):
        value = [value.get(number) for number in range(count)] if len(value) == count else None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        return None
    names = [str(name)[:_MOST_NAME] for name in value if isinstance(name, (str, int))]
    return names if len(names) == count and names != [str(number) for number in range(count)] else None


def _integer(value: Any, name: str, lowest: int, highest: int, where: str) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        raise ModelError(
            f"{where}: {name} is {printable(str(value))} and has to be an integer from {lowest:,} to {highest:,}"
        )
    return value


def _real(value: Any, name: str, lowest: float, highest: float, where: str) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not lowest <= value <= highest:
        raise ModelError(
            f"{where}: {name} is {printable(str(value))} and has to be a number from {lowest:g} to {highest:g}"
        )
    return value  # type: ignore[no-any-return]


def _switch(value: Any, name: str, where: str) -> bool:
    if type(value) is not bool:
        raise ModelError(f"{where}: {name} is {printable(str(value))} and has to be true or false")
    return value
