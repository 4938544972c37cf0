"""YOLO of ultralytics: three losses from one grid, and boxes after non-maximum suppression."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.engine.detectors.base import Detector, Found, Target, centred, without_ignored

_LEAST_SCORE, _OVERLAP, _MOST = 0.001, 0.7, 300
"""What the package's own validation removes duplicates with."""


class UltralyticsDetector(Detector):
    """A `DetectionModel`; boxes are centre, width and height in shares of the image."""

    package = "ultralytics"

    def num_classes(self, network: nn.Module) -> int:
        """Those of its head."""
        head: Any = network.get_submodule("model")[-1]  # type: ignore[index]
        return int(head.nc)

    def losses(self, network: nn.Module, inputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Box, class and distribution losses with the package's gains, as a mean over images."""
        own = [without_ignored(target) for target in targets]
        batch = {
            "img": inputs,
            "batch_idx": torch.cat([torch.full_like(target["labels"], i) for i, target in enumerate(own)]).float(),
            "cls": torch.cat([target["labels"] for target in own]).unsqueeze(1).float(),
            "bboxes": torch.cat([centred(target["boxes"], *inputs.shape[-2:]) for target in own]),
        }
        with _with_gains(network) as criterion:
            total, items = criterion(network(inputs), batch)
        names = items if isinstance(items, dict) else [f"loss_{number}" for number in range(total.numel())]
        return dict(zip(names, total.flatten() / len(inputs), strict=False))

    def found(self, network: nn.Module, inputs: Any) -> list[Found]:
        """After the package's own non-maximum suppression, where the network needs one."""
        from ultralytics.utils.nms import non_max_suppression

        head: Any = network.get_submodule("model")[-1]  # type: ignore[index]
        outputs = non_max_suppression(
            network(inputs),
            _LEAST_SCORE,
            _OVERLAP,
            multi_label=True,
            max_det=_MOST,
            max_time_img=math.inf,
            end2end=bool(getattr(head, "end2end", False)),
        )
        return [{"boxes": x[:, :4], "scores": x[:, 4], "labels": x[:, 5].long()} for x in outputs]


@contextmanager
def _with_gains(network: Any) -> Iterator[Any]:
    """The criterion of a network that need not have been made by the package's trainer, which sets `args`."""
    from ultralytics.utils import DEFAULT_CFG, IterableSimpleNamespace

    before = network.__dict__.get("args")
    given = before if isinstance(before, dict) else vars(before) if before is not None else {}
    network.args = IterableSimpleNamespace(**{**vars(DEFAULT_CFG), **given})
    try:
        yield network.init_criterion()
    finally:
        if before is None:
            del network.args
        else:
            network.args = before
