"""Figures of reports and comparisons as tables for people, with no formatting for a particular terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prunecli.report.comparison import Candidate, Comparison
from prunecli.report.energy_tables import (
    LAYER_COLUMNS,
    NEURON_COLUMNS,
    energy_rows,
    layer_rows,
    neuron_rows,
    shows_energy,
)
from prunecli.report.numbers import count, fixed, interval, joules, macs, share, size
from prunecli.report.schema import Metrics, Report
from prunecli.report.scores import SCORES, Score
from prunecli.report.table import Table


def score_text(metrics: Metrics, score: Score, base: Metrics | None = None) -> str:
    """One of `SCORES` with its interval, and its difference from a baseline's."""
    name = score.name
    bounds: tuple[float, float] | None = getattr(metrics, f"{name}_interval", None)
    value = getattr(metrics, name)
    text = score.text(value) + (f" ({value - getattr(base, name):+.2f})" if base is not None else "")
    return text if bounds is None else f"{text} {interval(*bounds, digits=1)}"


def _latency(metrics: Metrics) -> str:
    if metrics.latency_ms is None:
        return "-"
    return f"{metrics.latency_ms.median:.2f} ms {interval(*metrics.latency_ms.interval)}"


def _macs(metrics: Metrics) -> str:
    return macs(metrics.macs, metrics.macs_uncounted)


def _loss(metrics: Metrics) -> str:
    return "not finite" if "loss" in metrics.nonfinite else fixed(metrics.loss, 4)


def report_table(report: Report) -> Table:
    """One report as name and value."""
    m = report.metrics
    rows = [("model", report.model.ref), ("input", "x".join(map(str, report.model.input_shape)))]
    if report.data is not None:
        skipped = f", {report.data.skipped} could not be read" if report.data.skipped else ""
        captions = f" with {m.captions} captions" if m.captions else ""
        noun = "texts" if len(report.model.input_shape) == 1 else "images"
        counted = (noun, f"{report.data.images}{captions}") if m.tokens is None else ("tokens", f"{m.tokens}")
        rows.append((counted[0], f"{counted[1]} of {report.data.name} ({report.data.split}){skipped}"))
    rows += [(score.label, score_text(m, score)) for score in SCORES if getattr(m, score.name) is not None]
    rows += [(f"IoU of {name}", fixed(value, unit=" %")) for name, value in (m.class_iou or {}).items()]
    rows += [("loss", _loss(m))] if _loss(m) != "-" else []
    rows += [
        (name, text)
        for name, text, value in (
            ("parameters", count(m.params), m.params),
            ("non-zero", count(m.params_nonzero), m.params_nonzero),
            ("MACs", _macs(m), m.macs),
            ("not counted", ", ".join(m.macs_uncounted), m.macs_uncounted or None),
            ("latency", _latency(m), m.latency_ms),
            ("peak memory", size(m.peak_memory_bytes), m.peak_memory_bytes),
            ("file size", size(m.size_bytes), m.size_bytes),
        )
        if value is not None
    ]
    rows += energy_rows(m, report.energy_formula) if shows_energy(m) else _zeros(m)
    return Table(("figure", "value"), rows + _measured_on(report.environment))


def _zeros(metrics: Metrics) -> list[tuple[str, str]]:
    """The share of zeros in the weights, if there are any."""
    zeros = share(metrics.connection_sparsity)
    return [("connection sparsity", zeros)] if zeros not in ("-", share(0.0)) else []


def report_tables(report: Report) -> list[Table]:
    """One report: its figures, then what it has about neurons and energy."""
    return [
        table for table in (report_table(report), _neuron_table(report), _energy_table(report)) if table is not None
    ]


def _neuron_table(report: Report) -> Table | None:
    """Firing of each layer of neurons; None for a report without it."""
    if not report.neurons:
        return None
    return Table(NEURON_COLUMNS, neuron_rows(report.neurons), numeric=(1, 2, 3))


def _energy_table(report: Report) -> Table | None:
    """Operations and energy of each layer for one image; None for a report without them."""
    if not report.layers:
        return None
    return Table(LAYER_COLUMNS, layer_rows(report.layers), numeric=(2, 3, 4, 5))


def _measured_on(environment: Mapping[str, str | int]) -> list[tuple[str, str]]:
    rows = []
    if "device" in environment and "threads" in environment:
        number, cores = environment["threads"], environment.get("cores", "?")
        threads = f"{number} {'thread' if number == 1 else 'threads'} of {cores} {'core' if cores == 1 else 'cores'}"
        rows.append(("measured on", f"{environment['device']}, {threads}"))
    rows += [("commit", str(environment["commit"]))] if "commit" in environment else []
    return rows


def comparison_table(comparison: Comparison) -> Table:
    """One row per figure and one column per network, with each candidate's ratio or drop in brackets."""
    base = comparison.baseline_metrics
    rows: list[tuple[str, ...]] = []

    def row(label: str, of_base: str, cells: Sequence[str]) -> None:
        if any(cell != "-" for cell in (of_base, *cells)):
            rows.append((label, of_base, *cells))

    def annotated(text: str, note: str) -> str:
        return text if text == "-" or note == "-" else f"{text} ({note})"

    each = comparison.candidates
    for score in SCORES:
        drops = [_signed(score, getattr(c, score.loss_name)) for c in each]
        figures = [score.text(getattr(c.metrics, score.name)) for c in each]
        cells = [annotated(figure, drop) for figure, drop in zip(figures, drops, strict=True)]
        row(score.label, score.text(getattr(base, score.name)), cells)
    row("loss", _loss(base), [_loss(c.metrics) for c in each])
    row("parameters", count(base.params), [annotated(count(c.metrics.params), _times(c.params_ratio)) for c in each])
    row(
        "non-zero",
        count(base.params_nonzero),
        [annotated(count(c.metrics.params_nonzero), _times(c.params_nonzero_ratio)) for c in each],
    )
    row("MACs", _macs(base), [annotated(_macs(c.metrics), _times(c.macs_ratio)) for c in each])
    row("latency", _latency(base), [annotated(_latency(c.metrics), _times(c.latency_ratio)) for c in each])
    row("speed-up", "1.00x", [_speedup(c.speedup, c.latency_ratio_interval) for c in each])
    row(
        "peak memory",
        size(base.peak_memory_bytes),
        [annotated(size(c.metrics.peak_memory_bytes), _times(c.peak_memory_ratio)) for c in each],
    )
    row("file size", size(base.size_bytes), [annotated(size(c.metrics.size_bytes), _times(c.size_ratio)) for c in each])
    everyone = [base, *(c.metrics for c in each)]
    masked = _ZEROS if any(map(_zeros, everyone)) else ()
    for label, figure, note in _ENERGY if any(map(shows_energy, everyone)) else masked:
        row(label, figure(base), [annotated(figure(c.metrics), note(c)) for c in each])
    columns = ("figure", f"{comparison.baseline} (baseline)", *(c.name for c in each))
    return Table(columns, rows)


def plain_table(comparison: Comparison) -> Table:
    """One row of unrounded numbers for each network, the baseline first; cells without a measurement are empty."""
    scores = [score.name for score in SCORES]
    figures = (*scores, "loss", "params", "params_nonzero", "macs", "macs_uncounted", "peak_memory_bytes", "size_bytes")
    figures = (*figures, *_ENERGY_FIGURES)
    names = [name for name in comparison.candidates[0].__class__.model_fields if name not in ("name", "metrics")]
    ratios = [name for name in names if name != "latency_ratio_interval"]

    def cells(metrics: Metrics) -> list[str]:
        latency = metrics.latency_ms.median if metrics.latency_ms else None
        return [_bare(value) for value in (*(getattr(metrics, figure) for figure in figures), latency)]

    rows = [(comparison.baseline, *cells(comparison.baseline_metrics), *("" for _ in ratios))]
    for candidate in comparison.candidates:
        rows.append((candidate.name, *cells(candidate.metrics), *(_bare(getattr(candidate, r)) for r in ratios)))
    return Table(("name", *figures, "latency_ms", *ratios), rows)


_ENERGY_FIGURES = (
    "timesteps",
    "firing_rate",
    "synops",
    "multiplied",
    "accumulated",
    "energy_nj",
    "integer_energy_nj",
    "activation_sparsity",
    "connection_sparsity",
    "footprint_bytes",
)


def _bare(value: float | tuple[str, ...] | None) -> str:
    if isinstance(value, tuple):
        return " ".join(value)
    return "" if value is None else str(value)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"x{ratio:.3f}"


def _signed(score: Score, lost: float | None) -> str:
    """How a score changed, given how much was lost of it."""
    if lost is None:
        return "-"
    return f"{lost if score.less_is_better else 0.0 - lost:+.{score.digits}f}"


def _percentage_points(rise: float | None) -> str:
    return "-" if rise is None else f"{100 * rise + 0.0:+.2f}"


_ENERGY: tuple[tuple[str, Callable[[Metrics], str], Callable[[Candidate], str]], ...] = (
    ("time steps", lambda m: "-" if m.timesteps is None else str(m.timesteps), lambda c: "-"),
    ("firing rate", lambda m: share(m.firing_rate), lambda c: _times(c.firing_rate_ratio)),
    ("synaptic operations", lambda m: count(m.synops), lambda c: _times(c.synops_ratio)),
    ("energy (45 nm)", lambda m: joules(m.energy_nj), lambda c: _times(c.energy_ratio)),
    (
        "energy, integers as spikes",
        lambda m: joules(m.integer_energy_nj),
        lambda c: _times(c.integer_energy_ratio),
    ),
    (
        "activation sparsity",
        lambda m: share(m.activation_sparsity),
        lambda c: _percentage_points(c.activation_sparsity_rise),
    ),
    (
        "connection sparsity",
        lambda m: share(m.connection_sparsity),
        lambda c: _percentage_points(c.connection_sparsity_rise),
    ),
    ("footprint", lambda m: size(m.footprint_bytes), lambda c: _times(c.footprint_ratio)),
)
"""Rows of a comparison about spikes and energy: label, figure, and a candidate's ratio or rise."""
_ZEROS = tuple(row for row in _ENERGY if row[0] == "connection sparsity")
"""What of them is of interest where nothing spikes, and weights are masked."""


def _speedup(speedup: float | None, ratios: tuple[float, float] | None) -> str:
    if speedup is None:
        return "-"
    if ratios is None:
        return f"{speedup:.2f}x, unpaired"
    return f"{speedup:.2f}x {interval(1 / ratios[1], 1 / ratios[0])}"
