"""The result of pruning."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from pydantic import JsonValue
from torch import nn

from prunecli.checkpoint.manifest import Edit, Untouched, as_json
from prunecli.measure.counts import Macs
from prunecli.methods.repair_trials import RepairTrial
from prunecli.methods.targets import Target
from prunecli.surgery.removal.slice import AttributeChange
from prunecli.surgery.tracing.traced import Trace

_IF_ANY = ("scoring", "repairs", "reconstruction")
"""Fields that are left out where they are empty."""


@dataclass(frozen=True, repr=False)
class PruneReport:
    """Figures of one pruning.

    Attributes:
        method: Name of the method.
        scope: How channels competed: global, local, isomorphic, or "by name".
        steps: Steps of the schedule.
        target: The target that was set instead of a ratio, with the share requested and the share reached.
        requested: Share of the prunable channels to remove; with a target, the share that was removed.
        achieved: Share that was removed.
        params_before: Parameters of the original network.
        params_after: Parameters of the pruned network.
        macs_before: Multiply-accumulates for the example inputs.
        macs_after: The same, pruned.
        verify_error: Largest relative difference to the masked original, in float64, over all steps.
        compensated: Layers into which removed channels were folded, in the last step that removed any.
        recalibrated: Batch normalisations whose statistics were measured again in that step.
        repairs: The repairs that were compared in that step; empty where there was nothing to choose.
        reconstruction: What reconstruction did in that step; see `Reconstructed.figures`.
        seconds: Wall time by phase.
        edits: One entry per step and group that lost channels.
        untouched: Every layer that kept its width or was held back, and why.
        attributes: Attributes of modules that were changed, other than those that repeat the shape of a layer's weight.
        outputs: Names of the outputs that keep their width; empty for all.
        free_outputs: Names of the outputs whose width may have changed.
        scoring: What the criterion found out besides scores, in the last step; see `Calibration.found`.
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
    attributes: tuple[AttributeChange, ...] = ()
    outputs: tuple[str, ...] = ()
    free_outputs: tuple[str, ...] = ()
    scoring: dict[str, Any] = field(default_factory=dict)
    repairs: tuple[RepairTrial, ...] = ()
    reconstruction: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"PruneReport(method={self.method!r}, requested={self.requested:g}, achieved={self.achieved:g}, "
            f"params={self.params_before} -> {self.params_after}, macs={self.macs_before.total} -> "
            f"{self.macs_after.total}, verify_error={self.verify_error:.1e}, edits={len(self.edits)}, "
            f"untouched={len(self.untouched)})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, edits without their indices."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("edits", "untouched", "attributes")}
        plain = {key: value for key, value in plain.items() if key not in _IF_ANY or value}
        plain["edits"] = [edit.model_dump(exclude={"keep_indices", "kind"}) for edit in self.edits]
        plain["untouched"] = [entry.model_dump() for entry in self.untouched]
        plain["attributes"] = [
            {"name": change.name, "before": as_json(change.old), "after": as_json(change.new)}
            for change in self.attributes
        ]
        plain["macs_uncounted"] = sorted({*self.macs_before.uncounted, *self.macs_after.uncounted})
        for key in ("macs_before", "macs_after"):
            plain[key] = plain[key]["total"]
        return plain

    def figures(self) -> dict[str, JsonValue]:
        """Figures for the manifest, without latencies, which differ from run to run."""
        aim = {f"{self.target.kind}_asked": self.target.requested} if self.target is not None else {}
        return {
            "scope": self.scope,
            "steps": self.steps,
            **aim,
            "requested": self.requested,
            "achieved": self.achieved,
            "params_before": self.params_before,
            "params_after": self.params_after,
            "macs_before": self.macs_before.total,
            "macs_after": self.macs_after.total,
            "verify_error": self.verify_error,
            "compensated": self.compensated,
            "recalibrated": self.recalibrated,
            **({"scoring": as_json(self.scoring)} if self.scoring else {}),
            **({"repairs": [as_json(asdict(trial)) for trial in self.repairs]} if self.repairs else {}),
            **({"reconstruction": as_json(self.reconstruction)} if self.reconstruction else {}),
            **({"outputs": list(self.outputs)} if self.outputs else {}),
            "attributes": {change.name: [as_json(change.old), as_json(change.new)] for change in self.attributes},
        }


class Pruned(NamedTuple):
    """A pruned network, its report, and the trace that led to it (that of the last step)."""

    model: nn.Module
    report: PruneReport
    trace: Trace
