"""Comparing reports with a baseline, and gates on the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from prunecli.errors import RecipeError
from prunecli.report.conditions import Condition
from prunecli.report.schema import DataInfo, Metrics, Report
from prunecli.report.scores import SCORES, Score

_COMPARISON_SCHEMA: Literal["prunecli.comparison/1"] = "prunecli.comparison/1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Compared(_Strict):
    name: str
    metrics: Metrics


_fields: dict[str, Any] = {score.loss_name: (float | None, None) for score in SCORES}
_Drops: Any = create_model("_Drops", __base__=_Compared, **_fields)


class Candidate(_Drops):
    """One network compared with the baseline. A ratio is candidate / baseline; None: cannot be compared.

    The rise of a sparsity is a fraction.
    """

    loss_rise: float | None = None
    params_ratio: float | None = None
    params_nonzero_ratio: float | None = None
    macs_ratio: float | None = None
    latency_ratio: float | None = None
    latency_ratio_interval: tuple[float, float] | None = None
    speedup: float | None = None
    peak_memory_ratio: float | None = None
    size_ratio: float | None = None
    synops_ratio: float | None = None
    energy_ratio: float | None = None
    integer_energy_ratio: float | None = None
    firing_rate_ratio: float | None = None
    footprint_ratio: float | None = None
    activation_sparsity_rise: float | None = None
    connection_sparsity_rise: float | None = None


class GatePart(_Strict):
    """One comparison of a gate's condition, of one network.

    Attributes:
        network: Its name.
        condition: The comparison, for instance "top1_drop > 1.0".
        holds: Whether it is true.
        failed: Whether the gate fails because of it.
        values: The figures that it names.
    """

    network: str
    condition: str
    holds: bool
    failed: bool
    values: dict[str, float]


class GateResult(_Strict):
    """What a gate came to.

    Attributes:
        condition: All of it.
        failed: Whether it holds for a network.
        networks: Those for which it holds.
        parts: Its comparisons, of each network.
    """

    condition: str
    failed: bool
    networks: tuple[str, ...]
    parts: tuple[GatePart, ...]


class Comparison(_Strict):
    """A baseline and its candidates.

    Attributes:
        judged_alike: Networks whose scores can be compared: those judged on the same samples as the baseline.
        front: For each cost, the networks that none beats in both score and cost, the cheapest first.
        best: The one that was asked for.
        gate: What became of the condition that was to fail, if there was one.
    """

    schema_name: Literal["prunecli.comparison/1"] = Field(_COMPARISON_SCHEMA, alias="schema")
    baseline: str
    baseline_metrics: Metrics
    candidates: tuple[Candidate, ...]
    paired_latency: bool = False
    judged_alike: tuple[str, ...] | None = None
    front: dict[str, tuple[str, ...]] | None = None
    best: str | None = None
    gate: GateResult | None = None
    notes: tuple[str, ...] = ()


def read_comparison(path: Path) -> Comparison:
    """Reads a comparison that `prune compare -o` or a run wrote.

    Raises:
        RecipeError: It is none, or damaged.
    """
    try:
        return Comparison.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RecipeError(f"{path}: is no comparison, or damaged; write it again with `prune compare -o`") from error


_NOT_GATES = ("name", "metrics", "latency_ratio_interval")
GATE_NAMES = tuple(name for name in Candidate.model_fields if name not in _NOT_GATES)


def compare_reports(
    names: list[str],
    reports: list[Report],
    paired: list[tuple[float, tuple[float, float]]] | None = None,
) -> Comparison:
    """Compares every report after the first with the first.

    Args:
        names: Name of each report.
        reports: At least two reports.
        paired: For each report its latency ratio to the first and the ratio's interval, if they were timed in turns;
            otherwise ratios are those of medians measured at different times.
    """
    base = reports[0]
    candidates = []
    for index, (name, report) in enumerate(zip(names[1:], reports[1:], strict=True), start=1):
        ratio, interval = paired[index] if paired else (_latency_ratio(base, report), None)
        candidate = _candidate(name, base.metrics, report.metrics, ratio, interval)
        if _different_tasks(base, report):
            losses = [*(score.loss_name for score in SCORES if not score.of_text), "loss_rise"]
            candidate = candidate.model_copy(update=dict.fromkeys(losses))
        candidates.append(candidate)
    return Comparison(
        schema=_COMPARISON_SCHEMA,
        baseline=names[0],
        baseline_metrics=base.metrics,
        candidates=tuple(candidates),
        paired_latency=paired is not None,
        judged_alike=tuple(name for name, report in zip(names, reports, strict=True) if _alike(base, report)),
        notes=tuple(_notes(names, reports, paired is not None)),
    )


def _candidate(
    name: str, base: Metrics, other: Metrics, ratio: float | None, interval: tuple[float, float] | None
) -> Candidate:
    return Candidate(
        name=name,
        metrics=other,
        **{score.loss_name: _lost(score, base, other) for score in SCORES},
        loss_rise=_difference(other.loss, base.loss),
        params_ratio=_ratio(base.params, other.params),
        params_nonzero_ratio=_ratio(base.params_nonzero, other.params_nonzero),
        macs_ratio=_ratio(base.macs, other.macs),
        latency_ratio=ratio,
        latency_ratio_interval=interval,
        speedup=1 / ratio if ratio else None,
        peak_memory_ratio=_ratio(base.peak_memory_bytes, other.peak_memory_bytes),
        size_ratio=_ratio(base.size_bytes, other.size_bytes),
        synops_ratio=_ratio(base.synops, other.synops),
        energy_ratio=_ratio(base.energy_nj, other.energy_nj),
        integer_energy_ratio=_ratio(_integer_energy(base), _integer_energy(other)),
        firing_rate_ratio=_ratio(base.firing_rate, other.firing_rate),
        footprint_ratio=_ratio(base.footprint_bytes, other.footprint_bytes),
        activation_sparsity_rise=_difference(other.activation_sparsity, base.activation_sparsity),
        connection_sparsity_rise=_difference(other.connection_sparsity, base.connection_sparsity),
    )


def _integer_energy(metrics: Metrics) -> float | None:
    """Energy with integers read as spikes; without spikes it is the plain energy."""
    return metrics.integer_energy_nj if metrics.integer_energy_nj is not None else metrics.energy_nj


def _latency_ratio(base: Report, other: Report) -> float | None:
    first, second = base.metrics.latency_ms, other.metrics.latency_ms
    if first is None or second is None or first.batch_size != second.batch_size:
        return None
    return second.median / first.median


def _ratio(base: float | None, other: float | None) -> float | None:
    return other / base if base and other is not None else None


def _difference(first: float | None, second: float | None) -> float | None:
    return first - second if first is not None and second is not None else None


def _lost(score: Score, base: Metrics, other: Metrics) -> float | None:
    before, after = getattr(base, score.name), getattr(other, score.name)
    return score.lost(before, after) if before is not None and after is not None else None


def _different_tasks(base: Report, other: Report) -> bool:
    """Whether the reports are about different tasks, so that accuracies cannot be compared."""
    tasks = [report.data.task if report.data else None for report in (base, other)]
    return None not in tasks and tasks[0] != tasks[1]


def _alike(base: Report, other: Report) -> bool:
    """Whether scores are those of the same samples, classes and task."""
    if base.data is None or other.data is None:
        return base.data is other.data
    first, second = base.data, other.data
    lists = None in (first.class_list, second.class_list) or first.class_list == second.class_list
    return first.fingerprint == second.fingerprint and lists and not _different_tasks(base, other)


def _notes(names: list[str], reports: list[Report], paired: bool) -> list[str]:
    notes = [note for name, report in zip(names, reports, strict=True) for note in _shortcomings(name, report)]
    base = reports[0]
    for name, report in zip(names[1:], reports[1:], strict=True):
        if base.data and report.data and base.data.fingerprint != report.data.fingerprint:
            tokens = report.metrics.tokens is not None
            other = "on another text, or with another vocabulary," if tokens else "on other images"
            what = "figures were" if tokens else "accuracy was"
            notes.append(f"{name}: its {what} measured {other} than the baseline's")
        if base.data and report.data:
            notes += _other_wording(name, base.data, report.data)
        if base.data and report.data and _different_tasks(base, report):
            notes.append(f"{name}: its accuracy is that of {report.data.task}, the baseline's of {base.data.task}")
        if not paired and report.environment.get("device") != base.environment.get("device"):
            notes.append(f"{name}: its latency was measured on another machine than the baseline's")
        if not paired and report.environment.get("threads") != base.environment.get("threads"):
            notes.append(f"{name}: its latency was measured with another number of threads than the baseline's")
        steps, base_steps = report.metrics.timesteps, base.metrics.timesteps
        if steps != base_steps and steps is not None and base_steps is not None:
            notes.append(f"{name}: its {steps} time steps are not the baseline's {base_steps}, so neither are its MACs")
        if report.metrics.energy_images != base.metrics.energy_images and steps is not None and base_steps is not None:
            notes.append(f"{name}: its spikes were counted on another number of images than the baseline's")
        if report.model.input_shape != base.model.input_shape:
            notes.append(f"{name}: its input shape is not the baseline's, so MACs and latency are not alike")
    if not paired and any(r.metrics.latency_ms for r in reports):
        notes.append(
            "latencies were measured at different times; compare the checkpoints themselves for a paired ratio"
        )
    if paired:
        notes.append("latencies are medians; their ratio is that of the least disturbed runs, taken in turns")
    return notes


def _other_wording(name: str, base: DataInfo, other: DataInfo) -> list[str]:
    """Notes on classes and prompts that are not the baseline's."""
    notes = []
    if None not in (base.classes, other.classes) and base.classes != other.classes:
        notes.append(f"{name}: chose among {other.classes} classes, the baseline among {base.classes}")
    elif None not in (base.class_list, other.class_list) and base.class_list != other.class_list:
        notes.append(f"{name}: its {other.classes} classes have other names, or another order, than the baseline's")
    if base.templates is not None and other.templates is not None and base.templates != other.templates:
        first = next((text for text in other.templates if text not in base.templates), None)
        one = f", for instance {first!r}" if first is not None else ""
        notes.append(f"{name}: was given {len(other.templates)} other prompts, the baseline {len(base.templates)}{one}")
    return notes


def _shortcomings(name: str, report: Report) -> list[str]:
    """Caveats about a network's own figures."""
    notes = []
    if report.metrics.macs_uncounted:
        operators = ", ".join(report.metrics.macs_uncounted)
        notes.append(f"{name}: its MACs are a lower bound, and their ratio is not exact: {operators} is not counted")
    if report.metrics.energy_uncounted:
        operators = ", ".join(report.metrics.energy_uncounted)
        notes.append(f"{name}: its energy is a lower bound: {operators} is not counted")
    if report.metrics.nonfinite:
        notes.append(f"{name}: its loss is not finite, so its weights or its scores hold NaN or infinity")
    if report.data is not None and report.data.skipped:
        notes.append(f"{name}: {report.data.skipped} images could not be read and count nowhere")
    return notes


class Gate(Condition):
    """A condition over the figures of a candidate, for `--fail-if`.

    Args:
        text: The condition.
        option: The option or the key that it comes from, for messages.

    Raises:
        RecipeError: The text is not a condition, or a name is unknown.
    """

    def __init__(self, text: str, option: str = "--fail-if") -> None:
        super().__init__(text, GATE_NAMES, option, "top1_drop > 1.0")

    def holds(self, candidate: Candidate) -> bool:
        """Whether the condition is true for `candidate`.

        Raises:
            RecipeError: A figure it needs was not measured.
        """
        return self.true_of(candidate.model_dump())

    def result(self, comparison: Comparison) -> GateResult:
        """Which candidates it holds for, and because of what.

        Raises:
            RecipeError: A figure it needs was not measured.
        """
        parts, failed = [], []
        for candidate in comparison.candidates:
            holds = self.holds(candidate)
            failed += [candidate.name] if holds else []
            parts += [
                GatePart(
                    network=candidate.name,
                    condition=part.text,
                    holds=part.true,
                    failed=holds and part.decisive,
                    values=dict(part.values),
                )
                for part in self.parts_of(candidate.model_dump())
            ]
        return GateResult(condition=self.text, failed=bool(failed), networks=tuple(failed), parts=tuple(parts))
