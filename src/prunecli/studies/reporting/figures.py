"""Sections about figures: before and after, fronts, firing and energy, where things went, studies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunecli.errors import RecipeError
from prunecli.report.audit_plots import audit_plots
from prunecli.report.audit_tables import audit_tables
from prunecli.report.auto_tables import auto_tables
from prunecli.report.comparison import Candidate, Comparison, compare_reports
from prunecli.report.contest_tables import contest_tables
from prunecli.report.numbers import count, fixed, interval
from prunecli.report.page import Block, Picture, Rows, Section, Text, Tile
from prunecli.report.page_plots import Part, waterfall_plot
from prunecli.report.pareto import score_of, with_fronts
from prunecli.report.pareto_tables import pareto_figure, pareto_tables
from prunecli.report.plots import firing_plot, rendered
from prunecli.report.schema import Metrics, Report
from prunecli.report.scores import SCORES, Score
from prunecli.report.table import Table
from prunecli.report.tables import comparison_table, report_tables, score_text
from prunecli.studies.reporting.material import Material

if TYPE_CHECKING:
    from prunecli.studies.reporting.parts import Parts


def compared(material: Material) -> Comparison | None:
    """The comparison to show: one that was made, with paired latencies, or one of the reports; None without either."""
    if material.comparisons:
        return with_fronts(list(material.comparisons.values())[-1])
    if len(material.reports) < 2:
        return None
    names = material.names(list(material.reports))
    return with_fronts(compare_reports(names, list(material.reports.values())))


def tiles_of(comparison: Comparison | None, reports: Sequence[Report]) -> list[Tile]:
    """Main figures of the last network, beside those of the baseline."""
    if comparison is None:
        metrics = reports[-1].metrics if reports else None
        return [] if metrics is None else [Tile(label, value) for label, value in _plain_figures(metrics)]
    base, last = comparison.baseline_metrics, comparison.candidates[-1]
    tiles: list[Tile] = []
    for score in SCORES:
        after, before = getattr(last.metrics, score.name), getattr(base, score.name)
        if after is not None and not (score.name in ("top5", "mean_class_recall") and tiles):
            lost = getattr(last, score.loss_name)
            sign = lost if score.less_is_better else None if lost is None else -lost
            change = "" if sign is None else f"{sign + 0.0:+.{score.digits}f}{' points' if score.unit else ''}"
            told = score_text(base, score) if before is not None else ""
            tiles.append(Tile(score.label, score.text(after), _interval(last.metrics, score), told, change))
    return tiles + _ratio_tiles(base, last, paired=comparison.paired_latency)


def _ratio_tiles(base: Metrics, last: Candidate, *, paired: bool) -> list[Tile]:
    tiles = []
    for label, name, ratio in (("parameters", "params", last.params_ratio), ("MACs", "macs", last.macs_ratio)):
        before, after = getattr(base, name), getattr(last.metrics, name)
        if after is not None:
            tiles.append(Tile(label, count(after), "", count(before) if before else "", _times(ratio)))
    before_latency, latency = base.latency_ms, last.metrics.latency_ms
    if latency is not None:
        told = fixed(before_latency.median, 2, " ms") if before_latency else ""
        bounds = last.latency_ratio_interval
        sure = f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else "" if paired else ", unpaired"
        change = f"{_times(last.latency_ratio)}{sure}" if last.latency_ratio is not None else ""
        tiles.append(Tile("latency", fixed(latency.median, 2, " ms"), interval(*latency.interval), told, change))
    return tiles


def figure_sections(comparison: Comparison | None, material: Material) -> list[Section]:
    """Figures before and after, and the Pareto fronts of three networks and more."""
    if comparison is None:
        blocks: list[Block] = []
        for report in material.reports.values():
            blocks += [Rows(table) for table in report_tables(report)[:1]]
        return [Section("figures", "Figures", blocks)] if blocks else []
    blocks = [Rows(comparison_table(comparison)), *_intervals(comparison)]
    blocks += [Text(note, caution=True) for note in comparison.notes]
    sections = [Section("figures", "Figures before and after", blocks)]
    score = score_of(comparison)
    if comparison.front and score is not None:
        table = next(iter(pareto_tables(comparison)), None)
        said = "; ".join(f"{cost}: {', '.join(names)}" for cost, names in comparison.front.items())
        picture = rendered(pareto_figure(comparison, columns=2), "svg")
        caption = f"{score.label} against cost; filled: no network beats it"
        sections.append(Section("fronts", "Pareto fronts", [Picture(picture, "svg", caption, said, table)]))
    return sections


def _intervals(comparison: Comparison) -> list[Rows]:
    """Scores of all networks with their 95 % intervals; nothing where no score has one."""
    networks = [(comparison.baseline, comparison.baseline_metrics)]
    networks += [(candidate.name, candidate.metrics) for candidate in comparison.candidates]
    scores = [
        score
        for score in SCORES
        if score.has_interval and any(getattr(metrics, f"{score.name}_interval") for _, metrics in networks)
    ]
    rows = [(name, *(score_text(metrics, score) for score in scores)) for name, metrics in networks]
    columns = ("95 % intervals", *(score.label for score in scores))
    return [Rows(Table(columns, rows, numeric=tuple(range(1, len(columns)))))] if scores else []


def firing_sections(material: Material) -> list[Section]:
    """How neurons fire and what layers spend, for each report of a spiking network."""
    blocks: list[Block] = []
    for name, report in zip(material.names(list(material.reports)), material.reports.values(), strict=True):
        if report.neurons:
            rates = "; ".join(f"{neuron.name} {100 * neuron.rate:.1f} %" for neuron in report.neurons)
            table = next(t for t in report_tables(report)[1:] if t.columns[0] != "figure")
            drawn = firing_plot(report.neurons, name, "svg")
            blocks.append(Picture(drawn, "svg", f"Firing rates of {name}", f"mean rates: {rates}", table))
            blocks += [Rows(t, f"Energy of {name}, by layer", long=True) for t in report_tables(report)[2:]]
    return [Section("firing", "Spikes and energy", blocks)] if blocks else []


def parts_section(parts: Parts) -> Section:
    """Waterfalls of parameters, multiply-accumulates and time."""
    spent: tuple[tuple[str, Sequence[Part], tuple[tuple[float, str], ...]], ...] = (
        ("parameters", parts.params, ((1e6, "millions"), (1e3, "thousands"), (1, ""))),
        ("MACs", parts.macs, ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (1, ""))),
        ("time", parts.seconds, ((1, "s"), (1e-3, "ms"), (1e-6, "us"))),
    )
    blocks: list[Block] = []
    for label, row, units in spent:
        total = sum(part.before for part in row)
        if not total:
            continue
        scale, unit = next(((s, u) for s, u in units if total >= 2 * s), units[-1])
        left = sum(part.after for part in row)
        rows = [
            (
                p.name,
                *(f"{n / scale:.3g}" for n in (p.before, p.after)),
                f"x{p.after / p.before:.3f}" if p.before else "-",
            )
            for p in (*row, Part("all", total, left))
        ]
        table = Table(("part", f"before ({unit})" if unit else "before", "after", "ratio"), rows, numeric=(1, 2, 3))
        said = f"from {total / scale:.3g} to {left / scale:.3g} {unit}".rstrip()
        caption = f"Where {label} went"
        blocks.append(Picture(waterfall_plot(row, label, unit, scale), "svg", caption, said, table))
    blocks.append(
        Text(
            "The dense network was built again, with random weights, for these figures. Times are those of single "
            f"layers on {parts.device}, the fastest of several passes in turns. What happens between layers is "
            "missing, or that of the network itself."
        )
    )
    return Section("parts", "Where parameters, MACs and time went", blocks)


def study_sections(material: Material) -> list[Section]:
    """Audits of criteria, comparisons of methods, and searches."""
    sections = []
    for number, (path, audit) in enumerate(material.audits.items(), start=1):
        blocks: list[Block] = [Text(line) for line in audit.verdict]
        blocks += [
            Picture(picture, "png", f"{path.name}: {name.removesuffix('.png')}", "; ".join(audit.verdict))
            for name, picture in audit_plots(audit).items()
        ]
        blocks += [
            Rows(table, long=bool(place), caption="More figures") for place, table in enumerate(audit_tables(audit, {}))
        ]
        sections.append(Section(f"audit-{number}", f"Audit of criteria: {path.name}", blocks))
    for number, (path, contest) in enumerate(material.contests.items(), start=1):
        blocks = [*(Text(line) for line in contest.verdict), *(Rows(table) for table in contest_tables(contest))]
        sections.append(Section(f"methods-{number}", f"Methods compared: {path.name}", blocks))
    for number, (path, search) in enumerate(material.searches.items(), start=1):
        blocks = [Text(search.why), *(Rows(table) for table in reversed(auto_tables(search)))]
        sections.append(Section(f"search-{number}", f"The smallest network within a drop: {path.name}", blocks))
    return sections


def check_not_empty(material: Material) -> None:
    """Checks that there is something to report.

    Raises:
        RecipeError: There is nothing but pictures.
    """
    if not (
        material.reports
        or material.manifests
        or material.comparisons
        or material.audits
        or material.contests
        or material.searches
        or material.training
    ):
        raise RecipeError("there are only pictures to report; give reports or checkpoints as well")


def _plain_figures(metrics: Metrics) -> list[tuple[str, str]]:
    figures = [(s.label, score_text(metrics, s)) for s in SCORES if getattr(metrics, s.name) is not None]
    latency = metrics.latency_ms
    more = (("parameters", metrics.params), ("MACs", metrics.macs))
    figures += [(label, count(value)) for label, value in more if value is not None]
    return figures + ([("latency", fixed(latency.median, 2, " ms"))] if latency is not None else [])


def _interval(metrics: Metrics, score: Score) -> str:
    bounds: tuple[float, float] | None = getattr(metrics, f"{score.name}_interval", None)
    return interval(*bounds, digits=1) if bounds is not None else ""


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"x{ratio:.3f}"
