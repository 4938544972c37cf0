"""The packages whose detectors are known. A new one is a module here and one line; none is imported to ask."""

from __future__ import annotations

import re
from importlib import import_module

from torch import nn

from prunecli.engine.detectors.base import Detector

_KNOWN = {
    "torchvision.models.detection.": (r".*", "from_torchvision:TorchvisionDetector"),
    "transformers.models.": (
        r"(?!Owl|GroundingDino|MMGroundingDino|OmDet).*ForObjectDetection",
        "from_transformers:TransformersDetector",
    ),
    "ultralytics.nn.tasks": (r"DetectionModel", "from_ultralytics:UltralyticsDetector"),
}
"""Beginnings of the names of modules, which of their classes are detectors, and the adapter.

Of the classes that a network's own is derived from, the first one of a package counts: a network for masks may be
derived from one for boxes. Networks that find what a text says have no classes of their own, so they are none.
"""


def detector_of(network: nn.Module) -> Detector | None:
    """How a network that finds boxes is trained and asked; None for every other network."""
    for prefix, (names, adapter) in _KNOWN.items():
        kind = next((kind for kind in type(network).__mro__ if kind.__module__.startswith(prefix)), None)
        if kind is not None and re.fullmatch(names, kind.__name__):
            module, _, name = adapter.partition(":")
            detector: Detector = getattr(import_module(f"prunecli.engine.detectors.{module}"), name)()
            return detector
    return None
