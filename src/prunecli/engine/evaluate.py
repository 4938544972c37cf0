"""Accuracy and loss over a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.utils.metrics import accuracy
from torch import Tensor, nn

from prunecli.engine.device import channels_last
from prunecli.measure.forward import logits


@dataclass(frozen=True)
class Accuracy:
    """Percentages over `images` images; `loss` is the mean cross-entropy in nats."""

    top1: float
    top5: float
    loss: float
    images: int


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device,
    on_step: Callable[[int], None] | None = None,
) -> Accuracy:
    """Runs `model` over all batches in evaluation mode.

    Args:
        model: Returns class scores of shape (N, classes); moved to `device`, its mode is put back afterwards.
        batches: Images of shape (N, C, H, W) and labels of shape (N,).
        device: Where to run.
        on_step: Called after each batch with the number of images done so far.
    """
    training = model.training
    model.to(device).eval()
    sums: list[Tensor] = []  # added up on the CPU in float64, which not every accelerator has
    images = 0
    with channels_last(model) as layout, torch.inference_mode():
        for batch, labels in batches:
            labels = labels.to(device, non_blocking=True)
            scores = logits(model(batch.to(device, non_blocking=True, memory_format=layout))).float()
            top1, top5 = accuracy(scores, labels, topk=(1, 5))
            count = len(labels)
            loss = F.cross_entropy(scores, labels)
            sums.append(torch.stack([top1.to(device), top5.to(device), loss]) * count)
            images += count
            if on_step is not None:
                on_step(images)
    model.train(training)
    totals = torch.stack(sums).cpu().double().sum(dim=0) if sums else torch.zeros(3)
    top1, top5, mean_loss = (totals / max(images, 1)).tolist()
    return Accuracy(top1, top5, mean_loss, images)
