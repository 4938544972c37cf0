"""Pruning one network: the flow shared by the Python interface and the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from torch import nn

from prunecli.checkpoint.manifest import Edit, Manifest, Step, Untouched, as_json
from prunecli.criteria.base import Loss, default_loss
from prunecli.errors import ModelError
from prunecli.inputs import Inputs
from prunecli.measure.counts import Macs, count_macs, parameter_count
from prunecli.measure.environment import library_versions
from prunecli.methods.registry import get_structural
from prunecli.methods.structural import Recover, State, StructuralOutcome, prune_structural
from prunecli.methods.targets import Target
from prunecli.models.loading import save
from prunecli.surgery.groups import Trace
from prunecli.surgery.removal.compensate import Compensation


@dataclass(frozen=True, repr=False)
class PruneReport:
    """What pruning did, in figures.

    Attributes:
        method: Name of the method.
        scope: How channels competed: global, local, isomorphic, or "by name".
        steps: Steps of the schedule.
        target: The figure that was aimed at instead of a ratio, with the share asked for and the share reached.
        requested: Share of the prunable channels that was to be removed; with a target, that was removed.
        achieved: Share that was removed.
        params_before: Parameters of the network given.
        params_after: Parameters of the pruned network.
        macs_before: Multiply-accumulates for the example inputs.
        macs_after: The same, pruned.
        verify_error: Largest relative difference to the masked original, in float64.
        compensated: Layers into which removed channels were folded.
        recalibrated: Batch normalisations whose statistics were measured anew.
        seconds: Wall time by phase.
        edits: One entry per group that lost channels.
        untouched: Every layer that kept its width or was held back, and why.
    """

    method: str
    scope: str
    steps: int
    target: Target | None
    requested: float
    achieved: float
    params_before: int
    params_after: int
    macs_before: Macs
    macs_after: Macs
    verify_error: float
    compensated: int
    recalibrated: int
    seconds: dict[str, float]
    edits: tuple[Edit, ...]
    untouched: tuple[Untouched, ...]

    def __repr__(self) -> str:
        return (
            f"PruneReport(method={self.method!r}, requested={self.requested:g}, achieved={self.achieved:g}, "
            f"params={self.params_before} -> {self.params_after}, macs={self.macs_before.total} -> "
            f"{self.macs_after.total}, verify_error={self.verify_error:.1e}, edits={len(self.edits)}, "
            f"untouched={len(self.untouched)})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, edits without their indices."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("edits", "untouched")}
        plain["edits"] = [edit.model_dump(exclude={"keep_indices", "kind"}) for edit in self.edits]
        plain["untouched"] = [entry.model_dump() for entry in self.untouched]
        plain["macs_uncounted"] = sorted({*self.macs_before.uncounted, *self.macs_after.uncounted})
        for key in ("macs_before", "macs_after"):
            plain[key] = plain[key]["total"]
        return plain


@dataclass(frozen=True, repr=False)
class PruneResult:
    """A pruned network, its manifest, its report, and the trace that led to it."""

    model: nn.Module
    manifest: Manifest
    report: PruneReport
    trace: Trace
    dense: nn.Module | None = None

    def __repr__(self) -> str:
        return f"PruneResult(model={type(self.model).__name__}, report={self.report!r})"

    def save(self, path: str | Path) -> None:
        """Writes the checkpoint that `prunecli.load` reads.

        Raises:
            ModelError: The name does not end in .safetensors.
        """
        if Path(path).suffix != ".safetensors":
            raise ModelError(f"{path}: checkpoints are safetensors; name it {Path(path).with_suffix('.safetensors')}")
        save(Path(path), self.model, self.manifest, self.dense)


def prune_model(
    model: nn.Module,
    manifest: Manifest,
    method: str,
    params: Any,
    example_inputs: Inputs,
    *,
    keep: Sequence[str] = (),
    seed: int = 0,
    calibration: Iterable[Any] | None = None,
    compensation: Compensation = "none",
    recalibrate: bool = True,
    loss: Loss = default_loss,
    recover: Recover | None = None,
    resume: tuple[int, State] | None = None,
    step: Step | None = None,
    dense: nn.Module | None = None,
) -> PruneResult:
    """Prunes a copy of `model`.

    Args:
        model: The network; not changed.
        manifest: What is known about it; the result's manifest continues it.
        method: Name of a method.
        params: An instance of that method's parameter dataclass.
        example_inputs: Inputs the network accepts.
        keep: Layer names or patterns whose width stays.
        seed: Seed of methods that draw random numbers.
        calibration: Batches that can be gone through more than once, inputs or (inputs, labels), for methods that look
            at data; None leaves compensation and recalibration out too.
        compensation: How removed channels are folded into those that stay.
        recalibrate: Whether batch normalisation statistics are measured anew.
        loss: What methods take gradients of.
        recover: Called after every step of a schedule, to train.
        resume: The step to go on from, and the `Transition.state` of it.
        step: Origin of the new entry in the history (parent, data, command).
        dense: For a network outside the catalogue that was pruned before: what it was at first.

    Raises:
        MethodError: The method cannot do what was asked.
        VerificationError: The result is not the masked original.
    """
    outcome = prune_structural(
        model,
        example_inputs,
        get_structural(method).load(),
        params,
        keep_patterns=keep,
        seed=seed,
        calibration=calibration,
        compensation=compensation,
        recalibrate=recalibrate,
        loss=loss,
        recover=recover,
        resume=resume,
    )
    report = _report(method, model, outcome, example_inputs)
    settings = {"method": method, "params": asdict(params), "keep": list(keep), "compensate": compensation}
    base = step or Step(stage="prune")
    entry = base.model_copy(
        update={
            "settings": as_json(base.settings | settings),
            "seed": seed,
            "figures": _figures(report),
            "untouched": outcome.untouched,
            "versions": library_versions(),
        }
    )
    continued = manifest.model_copy(
        update={"edits": [*manifest.edits, *outcome.edits], "history": [*manifest.history, entry]}
    )
    first = dense if dense is not None else model
    return PruneResult(outcome.model, continued, report, outcome.trace, None if manifest.architecture.ref else first)


def _report(method: str, model: nn.Module, outcome: StructuralOutcome, example_inputs: Inputs) -> PruneReport:
    return PruneReport(
        method=method,
        scope=outcome.scope,
        steps=outcome.steps,
        target=outcome.target,
        requested=round(outcome.requested, 6),
        achieved=round(outcome.achieved, 6),
        params_before=parameter_count(model),
        params_after=parameter_count(outcome.model),
        macs_before=count_macs(model, example_inputs),
        macs_after=count_macs(outcome.model, example_inputs),
        verify_error=outcome.verify_error,
        compensated=outcome.compensated,
        recalibrated=outcome.recalibrated,
        seconds=outcome.seconds,
        edits=tuple(outcome.edits),
        untouched=tuple(outcome.untouched),
    )


def _figures(report: PruneReport) -> dict[str, JsonValue]:
    """What the manifest keeps; a time differs from run to run, so a latency reached stays out."""
    aim = {f"{report.target.kind}_asked": report.target.requested} if report.target is not None else {}
    return {
        "scope": report.scope,
        "steps": report.steps,
        **aim,
        "requested": report.requested,
        "achieved": report.achieved,
        "params_before": report.params_before,
        "params_after": report.params_after,
        "macs_before": report.macs_before.total,
        "macs_after": report.macs_after.total,
        "verify_error": report.verify_error,
        "compensated": report.compensated,
        "recalibrated": report.recalibrated,
    }
