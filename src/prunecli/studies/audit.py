"""Which criterion to trust: scores of several, beside what removing single units of a network really costs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunecli.checkpoint.durable import write_text_atomically
from prunecli.checkpoint.manifest import as_json
from prunecli.checkpoint.runstate import StateStore
from prunecli.engine.resources import resource_errors
from prunecli.errors import RecipeError
from prunecli.measure.environment import describe_environment
from prunecli.measure.rank_statistics import spearman
from prunecli.pipeline.resumption import identity_of, saved_states
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.audit import Audit, UnitAblation, read_audit
from prunecli.studies.ablation import rise
from prunecli.studies.audit_bench import Bench
from prunecli.studies.audit_figures import AuditFigures, Scored
from prunecli.studies.audit_verdict import leader, verdict
from prunecli.studies.entrants import Entrant, entrants, shared_params
from prunecli.studies.finished import network_of, refuse_other, settings_of

_FEWEST_UNITS = 8


@dataclass(frozen=True)
class AuditSettings:
    """What is audited, and how closely.

    Attributes:
        methods: Methods with commas; see `prunecli.studies.entrants.entrants`.
        units: How many units are ablated.
        batches: Calibration batches, for scores and ablations.
    """

    methods: str
    units: int = 64
    batches: int = 8

    def check(self) -> None:
        """Checks what can be checked before anything is loaded.

        Raises:
            RecipeError: There are too few units or batches.
        """
        if self.units < _FEWEST_UNITS:
            raise RecipeError(f"--units {self.units}: an order of so few says nothing; ask for {_FEWEST_UNITS} or more")
        if self.batches < 1:
            raise RecipeError(f"--batches has to be at least 1 (got {self.batches})")


@dataclass(frozen=True)
class AuditOutcome:
    """The report, and the wall times of the methods in seconds, which are no part of it because they never repeat."""

    audit: Audit
    seconds: dict[str, float]


def run_audit(space: Workspace, settings: AuditSettings, stage: PruneStage, out: Path) -> AuditOutcome:
    """Ablates a random sample of units, scores all of them with every method, and writes what comes of it.

    What is finished is saved, so that a run that was stopped continues there. Wall times are written to a file of
    their own beside the report.

    Args:
        space: Network, data and device.
        settings: What is audited.
        stage: Parameters that all methods share, and patterns.
        out: The report (JSON).

    Raises:
        RecipeError: There are fewer units or samples than asked for.
        MethodError: A method does not exist, or no layer can shrink.
        DataError: There is no data set with labels.
    """
    settings.check()
    taking_part = entrants(settings.methods, shared_params(stage))
    bench = Bench(space, stage, settings.units, settings.batches)
    for entrant in taking_part:
        bench.check(entrant)
    identity = identity_of(space, settings) | {"prune": as_json(dataclasses.asdict(stage))}
    with resource_errors(space.recipe.data.batch_size), saved_states(space, out, identity) as states:
        work = _Work(bench, taking_part, states)
        rises, scored = work.ablations(), work.scores()
        space.report_bad()
        audit = _report(work, bench, taking_part, settings_of(space, settings, prune=stage), rises, scored)
        seconds = {label: round(entry.seconds, 4) for label, entry in scored.items()}
        write_text_atomically(out, audit.to_json(), replace=space.may_replace)
        write_text_atomically(seconds_path(out), json.dumps(seconds, indent=2) + "\n")
    return AuditOutcome(audit, seconds)


def finished_audit(space: Workspace, settings: AuditSettings, stage: PruneStage, out: Path) -> Audit:
    """The report of an audit that is finished; for the arguments see `run_audit`.

    Raises:
        RecipeError: It is no report, or that of another audit than the one asked for.
    """
    audit = read_audit(out)
    stored = {**audit.settings, "seed": audit.seed, "network": audit.model.sha256 or audit.model.ref}
    asked = {**settings_of(space, settings, prune=stage), "seed": space.recipe.seed, "network": network_of(space)}
    refuse_other(out, stored, asked)
    return audit


def seconds_path(out: Path) -> Path:
    """The file of the wall times that belong to a report."""
    return out.with_suffix(".seconds.json")


class _Work:
    """The two long parts of an audit, one after the other; what a saved state has is not done again."""

    def __init__(self, bench: Bench, entrants: Sequence[Entrant], states: StateStore) -> None:
        self._bench, self._entrants, self._states = bench, entrants, states
        saved = states.load() or {}
        self._rises: list[list[float]] = saved.get("rises", [])
        self._scored: dict[str, dict[str, Any]] = saved.get("scored", {})

    def ablations(self) -> list[tuple[float, float]]:
        """By how much the loss rises without each sampled unit, on either half of the data."""
        units, sink = self._bench.units, self._bench.space.sink
        ablation = self._bench.ablation()
        try:
            sink.note(f"ablating {len(units)} units; the loss of a sample is {ablation.baseline:.4f} as it is")
            with sink.progress("ablation", len(units)) as advance:
                for number in range(len(self._rises), len(units)):
                    self._rises.append(list(ablation.rises(units[number])))
                    if self._states.due():
                        self._save()
                    advance(number + 1, units[number].group)
        except KeyboardInterrupt:
            self._save()
            raise
        self._baseline = ablation.baseline
        self._save()
        return [(first, second) for first, second in self._rises]

    @property
    def baseline(self) -> float:
        """Mean loss of a sample with everything in place."""
        return self._baseline

    def scores(self) -> dict[str, Scored]:
        """What every method gives to the units."""
        sink = self._bench.space.sink
        with sink.progress("scores", len(self._entrants)) as advance:
            for number, entrant in enumerate(self._entrants, start=1):
                if entrant.label not in self._scored:
                    self._scored[entrant.label] = vars(self._bench.scored(entrant))
                    self._save()
                    sink.note(f"{number}/{len(self._entrants)} scored with {entrant.label}")
                advance(number, entrant.label)
        return {label: Scored(**fields) for label, fields in self._scored.items()}

    def _save(self) -> None:
        position = f"{len(self._rises)} units ablated, {len(self._scored)} methods scored"
        self._states.save({"rises": self._rises, "scored": self._scored}, position)


def _report(
    work: _Work,
    bench: Bench,
    entrants: Sequence[Entrant],
    settings: dict[str, Any],
    by_half: list[tuple[float, float]],
    scored: dict[str, Scored],
) -> Audit:
    seed, rises = bench.space.recipe.seed, rise(by_half, bench.samples)
    figures = AuditFigures(entrants, scored, bench.units, rises, seed)
    methods = figures.methods()
    fused = figures.fusions({row.label: row.stability for row in methods})
    best = leader(methods, fused)
    differences = figures.differences(best.label) if best is not None else ()
    halves = spearman(*zip(*by_half, strict=True))
    return Audit(
        model=bench.model_info(),
        data=bench.data_info(),
        settings=settings,
        prunable_units=sum(group.units for group in bench.selection.groups),
        verify_error=bench.verify_error,
        baseline_loss=work.baseline,
        ablation_halves=halves,
        ablations=tuple(
            UnitAblation(
                group=unit.group,
                unit=unit.index,
                rise=cost,
                rise_by_half=pair,
                scores={label: _known(values[number]) for label, values in figures.sampled.items()},
            )
            for number, (unit, cost, pair) in enumerate(zip(bench.units, rises, by_half, strict=True))
        ),
        methods=methods,
        agreement=figures.agreement(),
        differences=differences,
        fusions=fused,
        left_out={entry.name: entry.reason for entry in bench.selection.untouched},
        recommended=best.label if best is not None else None,
        verdict=verdict(methods, differences, fused, halves),
        environment=describe_environment(bench.space.device),
        seed=seed,
        command=bench.space.command,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
