"""Several ways to run one network beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prunecli.report.numbers import fixed
from prunecli.report.schema import Metrics
from prunecli.report.scores import SCORES
from prunecli.report.table import Table
from prunecli.report.tables import score_text
from prunecli.report.token_tables import latency_row, macs_row


@dataclass(frozen=True)
class Variant:
    """One way to run the network, and its figures.

    Attributes:
        name: "unpruned", "pruned" or "random".
        macs: Multiply-accumulates of one image.
        macs_uncounted: Operators that were run and could not be counted.
        metrics: Accuracy or recalls on the images; None without data, or without labels.
        agreement: Share of the images, in percent, with the same best class, or caption, as unpruned.
        cosine: Mean cosine between its image features and the unpruned network's; for a network without a text tower
            between class scores.
    """

    name: str
    macs: int
    macs_uncounted: tuple[str, ...] = ()
    metrics: Metrics | None = None
    agreement: float | None = None
    cosine: float | None = None

    def document(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "name": self.name,
            "macs": self.macs,
            "macs_uncounted": list(self.macs_uncounted),
            "agreement": self.agreement,
            "cosine": self.cosine,
            **({} if self.metrics is None else self.metrics.model_dump(mode="json", exclude_defaults=True)),
        }


class _Timing(Protocol):
    @property
    def median(self) -> float: ...


class _Paired(Protocol):
    @property
    def timings(self) -> Sequence[_Timing]: ...
    @property
    def ratios(self) -> Sequence[float]: ...
    @property
    def ratio_intervals(self) -> Sequence[tuple[float, float]]: ...


def variant_table(
    variants: Sequence[Variant],
    first_rows: Sequence[tuple[str, ...]],
    timings: Mapping[int, _Paired],
    limit: float,
    batch_difference: float,
) -> Table:
    """Figures down, variants across.

    Args:
        variants: The network as it is first.
        first_rows: Rows that come first.
        timings: By batch size: the variants, timed in turns.
        limit: Speed-up if time were MACs.
        batch_difference: Largest difference between features of images alone and in a batch.
    """
    width, base = len(variants) + 1, variants[0]
    rows: list[tuple[str, ...]] = [row[:width] for row in first_rows]
    metrics = [variant.metrics for variant in variants]
    for score in SCORES:
        if getattr(base.metrics, score.name, None) is not None:
            cells = [
                score_text(one, score, base.metrics if index else None)
                for index, one in enumerate(metrics)
                if one is not None
            ]
            rows.append((score.label, *cells))
    if base.agreement is not None:
        rows.append(("agreement", "", *(fixed(variant.agreement, unit=" %") for variant in variants[1:])))
    if base.cosine is not None:
        rows.append(("cosine of features", "", *(fixed(variant.cosine, 4) for variant in variants[1:])))
    rows.append(macs_row([variant.macs for variant in variants], [variant.macs_uncounted for variant in variants]))
    for batch, timing in timings.items():
        speedups = [
            (1 / ratio, 1 / high, 1 / low)
            for ratio, (low, high) in zip(timing.ratios[1:], timing.ratio_intervals[1:], strict=True)
        ]
        rows.append(latency_row(batch, [one.median for one in timing.timings], speedups))
        reached = f"{100 * speedups[0][0] / limit:.0f} %" if speedups[0][0] > 1 else "nothing"
        rows.append(("of the MACs limit", "", f"{reached} of {limit:.2f}x", *[""] * (width - 3)))
    rows.append(("alone or in a batch", "", f"differs by {batch_difference:.0e}", *[""] * (width - 3)))
    return Table(("figure", *(variant.name for variant in variants)), rows)
