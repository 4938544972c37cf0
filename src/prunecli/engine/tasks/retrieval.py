"""Images found by captions and captions by images, judged while batches pass: no score matrix is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunecli.engine.tasks.base import Described, Meter, Task
from prunecli.measure.intervals import accuracy_interval

RANKS = (1, 5, 10)
"""Numbers of best answers among which a right one is looked for."""


@dataclass(frozen=True)
class Recalls:
    """Share of the questions, in percent, that have a right answer among the best 1, 5 and 10 (`RANKS`).

    Attributes:
        image: Of `captions` captions, whose image is looked for among all images.
        text: Of `images` images, one of whose captions is looked for among all captions.
        images: Images that were read.
        captions: Their captions.
    """

    image: tuple[float, ...]
    text: tuple[float, ...]
    images: int
    captions: int
    score_name: ClassVar[str] = "image_recall_1"
    score_label: ClassVar[str] = "image R@1"

    @property
    def score(self) -> float:
        """Share of captions whose image comes first."""
        return self.image[0]

    @property
    def logged(self) -> dict[str, float]:
        """The score alone: networks are not trained for retrieval."""
        return {self.score_name: self.score}


class Retrieval(Task):
    """Scores of shape (N, captions); the label of an image is its own number."""

    name = "retrieval"
    figures = Recalls
    trainable = False
    needs_text_tower = True
    refused_evaluations = dict.fromkeys(("zeroshot", "classification"), ("captions", "retrieval"))

    def __init__(self, data: Described) -> None:
        super().__init__(data)
        self._described = torch.tensor(data.described)

    def meter(self, device: torch.device) -> _RecallMeter:
        """Counts recalls."""
        return _RecallMeter(self._described.to(device))

    def named(self, figures: Recalls) -> dict[str, Any]:
        """Recalls with intervals of so many images: captions of one image are not independent of each other."""
        named: dict[str, Any] = {"images": figures.images, "captions": figures.captions}
        for target, recalls in (("image", figures.image), ("text", figures.text)):
            for rank, recall in zip(RANKS, recalls, strict=True):
                named[f"{target}_recall_{rank}"] = recall
                named[f"{target}_recall_{rank}_interval"] = accuracy_interval(recall, figures.images)
        return named


class _RecallMeter(Meter):
    def __init__(self, described: Tensor) -> None:
        self._described = described
        self._hits = torch.zeros(len(RANKS), dtype=torch.long)
        self._seen: list[Tensor] = []
        self._scores: Tensor | None = None
        self._best: Tensor | None = None
        """Numbers of the images with the best scores for each caption so far, shape (at most 10, captions)."""

    def measure(self, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        answers = scores.topk(min(RANKS[-1], scores.shape[1]), dim=1).indices
        right = self._described[answers] == labels.unsqueeze(1)
        hits = torch.stack([right[:, :rank].any(dim=1).sum() for rank in RANKS]).cpu()
        best, rows = scores.topk(min(RANKS[-1], len(scores)), dim=0)
        return hits, labels, best, labels[rows]

    def add(self, measured: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        hits, labels, scores, numbers = (tensor.to(self._described.device) for tensor in measured)
        self._hits += hits.cpu()
        self._seen.append(labels)
        if self._scores is not None and self._best is not None:
            scores, numbers = torch.cat([self._scores, scores]), torch.cat([self._best, numbers])
        self._scores, rows = scores.topk(min(RANKS[-1], len(scores)), dim=0)
        self._best = numbers.gather(0, rows)

    def compute(self) -> Recalls:
        if self._best is None:
            return Recalls((0.0,) * len(RANKS), (0.0,) * len(RANKS), 0, 0)
        seen = torch.cat(self._seen)
        asked = torch.isin(self._described, seen)  # not the captions of an image that could not be read
        right = (self._best == self._described) & asked
        hits = torch.stack([right[:rank].any(dim=0).sum() for rank in RANKS])
        images, captions = len(seen), int(asked.sum())
        return Recalls(
            tuple((100 * hits.double() / max(captions, 1)).tolist()),
            tuple((100 * self._hits.double() / images).tolist()),
            images,
            captions,
        )
