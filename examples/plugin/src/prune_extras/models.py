"""A model source: `extras:tiny`, a small convolutional network for images of any size."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from prunecli.checkpoint.manifest import InputNormalisation


class Tiny(nn.Module):
    """Three convolutions, each with a batch normalisation, and a classifier."""

    def __init__(self, num_classes: int, in_chans: int) -> None:
        super().__init__()
        widths = (in_chans, 16, 32, 32)
        self.features = nn.Sequential()
        for number, (before, after) in enumerate(pairwise(widths)):
            self.features.add_module(f"conv{number}", nn.Conv2d(before, after, 3, padding=1, bias=False))
            self.features.add_module(f"norm{number}", nn.BatchNorm2d(after))
            self.features.add_module(f"relu{number}", nn.ReLU())
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W)."""
        scores: Tensor = self.classifier(self.features(x).mean(dim=(2, 3)))
        return scores


def names() -> list[str]:
    """All names of this source."""
    return ["tiny"]


def build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Builds a network with new weights."""
    return Tiny(kwargs.get("num_classes", 10), kwargs.get("in_chans", 3))


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation]:
    """Images of any size, normalised to mean 0.5 and deviation 0.5."""
    channels = next(model.parameters()).shape[1]  # of the first convolution
    return None, InputNormalisation(mean=(0.5,) * channels, std=(0.5,) * channels)
