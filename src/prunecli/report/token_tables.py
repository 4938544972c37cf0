"""What leaving out tokens came to, as rows: plain numbers in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from prunecli.report.numbers import count, fixed, interval

Rows = list[tuple[str, ...]]
COLUMNS = ("figure", "unpruned", "pruned", "random")
FRONTIER_COLUMNS = ("selector", "block", "keep", "macs_ratio", "top1", "agreement", "cosine")


def per_block_text(per_block: Sequence[int]) -> str:
    """Tokens behind each block, runs of equal ones put together: "65 x1, 33 x5"."""
    runs = [(tokens, len(list(group))) for tokens, group in groupby(per_block)]
    return ", ".join(f"{tokens} x{blocks}" for tokens, blocks in runs)


def ratio_row(name: str, totals: Sequence[int]) -> tuple[str, ...]:
    """Counts with their ratio to the first."""
    first, *others = totals
    return (name, count(first), *(f"{count(other)} (x{other / max(first, 1):.3f})" for other in others))


def latency_row(
    batch: int, medians: Sequence[float], speedups: Sequence[tuple[float, float, float]]
) -> tuple[str, ...]:
    """Milliseconds of a batch, and how many times as fast with an interval."""
    images = "1 image" if batch == 1 else f"{batch} images"
    cells = [f"{medians[0]:.2f} ms"]
    for median, (speedup, low, high) in zip(medians[1:], speedups, strict=True):
        cells.append(f"{median:.2f} ms ({speedup:.2f}x {interval(low, high)})")
    return (f"latency, {images}", *cells)


def score_row(name: str, scores: Sequence[float], bounds: Sequence[tuple[float, float] | None]) -> tuple[str, ...]:
    """Percentages with intervals, and differences to the first."""
    cells = []
    for place, (score, bound) in enumerate(zip(scores, bounds, strict=True)):
        difference = f" ({score - scores[0]:+.2f})" if place else ""
        cells.append(fixed(score, unit=" %") + difference + (f" {interval(*bound, digits=1)}" if bound else ""))
    return (name, *cells)


def frontier_row(values: Sequence[Any]) -> tuple[str, ...]:
    """One selection of a frontier, in the order of `FRONTIER_COLUMNS`."""
    selector, block, keep, macs, top1, agreement, cosine = values
    scores = (fixed(top1, unit=" %"), fixed(agreement, unit=" %"), fixed(cosine, 4))
    return (selector, str(block), f"{keep:g}", f"x{macs:.3f}", *scores)
