"""DETR and its relatives in transformers: a set of queries, each of which finds one object or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from prunecli.engine.detectors.base import Detector, Found, Target, centred, without_ignored
from prunecli.errors import ModelError


class TransformersDetector(Detector):
    """Any `...ForObjectDetection`; boxes are centre, width and height in shares of the image."""

    package = "transformers"
    first_category = 0

    def num_classes(self, network: nn.Module) -> int:
        """As its configuration says; a query that finds nothing has a score of its own."""
        config: Any = network.config
        return int(config.num_labels)

    def losses(self, network: nn.Module, inputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The sum over all layers of the decoder, weighted as the configuration says."""
        height, width = inputs.shape[-2:]
        own = [without_ignored(target) for target in targets]
        labels = [
            {"class_labels": target["labels"], "boxes": centred(target["boxes"], height, width)} for target in own
        ]
        return {"loss": network(pixel_values=inputs, labels=labels).loss}

    def found(self, network: nn.Module, inputs: Any) -> list[Found]:
        """What the image processor of the network's family makes of its outputs, without a threshold.

        Raises:
            ModelError: transformers has none for it.
        """
        height, width = inputs.shape[-2:]
        config: Any = network.config
        processor = _processor(config)
        output = network(pixel_values=inputs)
        found: list[Found] = processor.post_process_object_detection(
            output, threshold=0.0, target_sizes=[(height, width)] * len(inputs)
        )
        return found


def _processor(config: Any) -> Any:
    """The image processor of a network's family; only what it makes of outputs is used, so its settings do not matter.

    Raises:
        ModelError: There is none, or it makes no boxes.
    """
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    known: Any = IMAGE_PROCESSOR_MAPPING  # one class, or several by what they compute with
    kinds = known[type(config)] if type(config) in known else {}
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if hasattr(kind, "post_process_object_detection"):
            return kind()
    raise ModelError(f"transformers does not say how the outputs of a {config.model_type} become boxes; use a DETR")
