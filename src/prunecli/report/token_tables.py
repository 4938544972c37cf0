"""Table rows about token pruning."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from prunecli.report.numbers import fixed, interval, macs


def per_block_text(per_block: Sequence[int]) -> str:
    """Number of tokens after each block, with equal neighbours grouped: "65 x1, 33 x5"."""
    runs = [(tokens, len(list(group))) for tokens, group in groupby(per_block)]
    return ", ".join(f"{tokens} x{blocks}" for tokens, blocks in runs)


def macs_row(totals: Sequence[int], uncounted: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """MACs per image with their ratio to the first, marked if they are lower bounds."""
    texts = [macs(total, missing) for total, missing in zip(totals, uncounted, strict=True)]
    first, *others = totals
    ratios = (f"{text} (x{other / max(first, 1):.3f})" for text, other in zip(texts[1:], others, strict=True))
    return ("MACs", texts[0], *ratios)


def latency_row(
    batch: int, medians: Sequence[float], speedups: Sequence[tuple[float, float, float]]
) -> tuple[str, ...]:
    """Milliseconds per batch, and the speed-up with its interval."""
    images = "1 image" if batch == 1 else f"{batch} images"
    cells = [f"{medians[0]:.2f} ms"]
    for median, (speedup, low, high) in zip(medians[1:], speedups, strict=True):
        cells.append(f"{median:.2f} ms ({speedup:.2f}x {interval(low, high)})")
    return (f"latency, {images}", *cells)


def frontier_columns(score: str) -> tuple[str, ...]:
    """Columns of a frontier; `score` is the name of its accuracy."""
    return ("selector", "block", "keep", "macs_ratio", score, "agreement", "cosine")


def frontier_row(values: Sequence[Any]) -> tuple[str, ...]:
    """One row of a frontier, in the order of `frontier_columns`."""
    selector, block, keep, macs, score, agreement, cosine = values
    scores = (fixed(score, unit=" %"), fixed(agreement, unit=" %"), fixed(cosine, 4))
    return (selector, str(block), f"{keep:g}", f"x{macs:.3f}", *scores)
