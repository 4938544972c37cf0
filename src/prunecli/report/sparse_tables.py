"""What masking single weights came to, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from prunecli.report.energy_tables import change_rows
from prunecli.report.numbers import count, interval, macs
from prunecli.report.schema import Metrics
from prunecli.report.score_change import ScoreChange
from prunecli.report.table import Table

DENSE_KERNELS = (
    "zeros save no time here: dense kernels multiply them like other numbers; what they save is what sparse kernels or "
    "hardware make of them"
)


@dataclass(frozen=True)
class SparseFigures:
    """Figures of a network before and after.

    Attributes:
        requested: Sparsity that was asked for.
        sparsity: Share of the weights of masked layers that is zero.
        weights: Weights of masked layers.
        layers: How many layers are masked.
        steps: In how many steps.
        params: Parameters.
        nonzero: Parameters that are not zero.
        macs: Multiply-accumulates.
        effective_macs: The same without products with a zero weight.
        uncounted: Operators that are not in them.
    """

    requested: float
    sparsity: tuple[float, float]
    weights: int
    layers: int
    steps: int
    params: int
    nonzero: tuple[int, int]
    macs: int
    effective_macs: tuple[int, int]
    uncounted: tuple[str, ...] = ()


class _Kernel(Protocol):
    @property
    def layer(self) -> str: ...
    @property
    def outputs(self) -> int: ...
    @property
    def inputs(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def sparsity(self) -> float: ...
    @property
    def ratio(self) -> float: ...
    @property
    def break_even(self) -> float | None: ...


def sparse_table(
    figures: SparseFigures,
    medians: Sequence[float],
    ratio: float,
    ratio_interval: tuple[float, float],
    energy: tuple[Metrics, Metrics] | None,
    score: ScoreChange | None = None,
) -> Table:
    """Figures before and after, with their ratios.

    Args:
        figures: What was masked.
        medians: Milliseconds of the networks before and after.
        ratio: Of the latencies, timed in turns.
        ratio_interval: Its 95 % interval.
        energy: Firing and energy before and after, of a spiking network.
        score: The score of the task before and after, if it was measured.
    """
    before, after = figures.nonzero
    rows = [
        ("sparsity of masked layers", *(f"{100 * share:.2f} %" for share in figures.sparsity), _asked(figures)),
        ("masked layers", "", f"{figures.layers} with {count(figures.weights)} weights", _steps(figures.steps)),
        ("parameters", count(figures.params), count(figures.params), "x1.000"),
        ("parameters not zero", count(before), count(after), f"x{after / max(before, 1):.3f}"),
        ("MACs", *[macs(figures.macs, figures.uncounted)] * 2, "x1.000"),
        (
            "MACs with weights not zero",
            *(macs(value, figures.uncounted) for value in figures.effective_macs),
            f"x{figures.effective_macs[1] / max(figures.effective_macs[0], 1):.3f}",
        ),
        (
            "latency",
            f"{medians[0]:.2f} ms",
            f"{medians[1]:.2f} ms",
            f"x{ratio:.3f} {interval(*ratio_interval, digits=3)}",
        ),
        *([score.row()] if score is not None else []),
        *(change_rows(*energy) if energy else []),
    ]
    if figures.uncounted:
        rows.append(("not counted in MACs", "", ", ".join(figures.uncounted), ""))
    return Table(("figure", "before", "after", "ratio"), rows)


def csr_table(timings: Sequence[_Kernel], largest: float) -> Table:
    """Layers as sparse matrices on the CPU.

    Args:
        timings: One for each layer.
        largest: The largest sparsity at which the break-even was looked for.
    """
    rows = [
        (
            timing.layer,
            f"{timing.outputs}x{timing.inputs}, {timing.columns}",
            f"{100 * timing.sparsity:.1f} %",
            f"x{timing.ratio:.2f}",
            f"{100 * timing.break_even:.1f} %" if timing.break_even is not None else f"above {100 * largest:g} %",
        )
        for timing in timings
    ]
    columns = ("as CSR on the CPU", "weight, positions", "sparsity", "time to dense", "faster from")
    return Table(columns, rows, numeric=(2, 3, 4))


def semi_structured_table(ratios: Sequence[tuple[str, float]]) -> Table:
    """Layers with 2:4 weights on a GPU."""
    return Table(("as 2:4 on the GPU", "time to dense"), [(name, f"x{ratio:.2f}") for name, ratio in ratios])


def _asked(figures: SparseFigures) -> str:
    return f"{100 * figures.requested:.4g} % requested"


def _steps(steps: int) -> str:
    return "" if steps == 1 else f"{steps} steps"
