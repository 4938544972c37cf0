"""Removing whole parts of a network: what it is asked for, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from pydantic import JsonValue
from torch import nn

from prunecli.checkpoint.manifest import Edit, RemovedBlock, Untouched, as_json
from prunecli.criteria.base import Calibration, Loss, default_loss
from prunecli.inputs import Inputs
from prunecli.measure.counts import Macs


@dataclass(frozen=True, kw_only=True)
class PartRequest:
    """One request, from the Python interface or the command line down to the method.

    Attributes:
        method: Name of a method.
        params: An instance of that method's parameter dataclass.
        example_inputs: Inputs the network accepts.
        keep: Names or shell patterns of parts that stay.
        seed: Seed of methods that draw random numbers.
        calibration: Batches that can be iterated more than once, inputs or (inputs, labels).
        recalibrate: Whether batch normalisation statistics are measured again on them.
        loss: What is measured with labels.
    """

    method: str
    params: Any
    example_inputs: Inputs
    keep: Sequence[str] = ()
    seed: int = 0
    calibration: Iterable[Any] | None = None
    recalibrate: bool = False
    loss: Loss = default_loss

    def calibrated(self) -> Calibration:
        """Calibration for criteria, with a generator seeded with `seed`."""
        return Calibration(
            generator=torch.Generator().manual_seed(self.seed),
            batches=self.calibration,
            loss=self.loss,
            options=asdict(self.params),
            example_inputs=self.example_inputs,
        )


@dataclass(frozen=True, repr=False)
class PartReport:
    """Figures of one removal of parts.

    Attributes:
        method: Name of the method.
        parts: What a part is called, in the plural.
        reference: What the result was compared with, as in "original with blocks switched off".
        present: Parts that the network had.
        removed: Names of those that were removed.
        requested: Share of the parts that was asked for.
        scores: By name, the scores by which parts were chosen: the lowest went.
        params_before: Parameters of the original network.
        params_after: Parameters of the pruned network.
        macs_before: Multiply-accumulates for the example inputs.
        macs_after: The same, pruned.
        verify_error: Largest relative difference to the reference, in float64.
        recalibrated: Batch normalisations whose statistics were measured again.
        seconds: Wall time by phase.
        untouched: Parts that could not be removed, and why.
        edits: Tensors that were sliced.
        attributes: Attributes that were changed, by name: their values, of objects the entries that changed.
        notes: What else there is to know.
    """

    method: str
    parts: str
    reference: str
    present: int
    removed: tuple[str, ...]
    requested: float
    scores: Mapping[str, float]
    params_before: int
    params_after: int
    macs_before: Macs
    macs_after: Macs
    verify_error: float
    recalibrated: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    untouched: tuple[Untouched, ...] = ()
    edits: tuple[Edit, ...] = ()
    attributes: Mapping[str, JsonValue] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def achieved(self) -> float:
        """Share of the parts that was removed."""
        return round(len(self.removed) / self.present, 6)

    def __repr__(self) -> str:
        return (
            f"PartReport(method={self.method!r}, removed={list(self.removed)}, params={self.params_before} -> "
            f"{self.params_after}, macs={self.macs_before.total} -> {self.macs_after.total}, "
            f"verify_error={self.verify_error:.1e})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "method": self.method,
            **self.figures(),
            "macs_uncounted": sorted({*self.macs_before.uncounted, *self.macs_after.uncounted}),
            "seconds": dict(self.seconds),
            "untouched": [entry.model_dump() for entry in self.untouched],
            "notes": list(self.notes),
        }

    def figures(self) -> dict[str, JsonValue]:
        """Figures for the manifest, without times, which differ from run to run."""
        return {
            self.parts: self.present,
            "requested": self.requested,
            "achieved": self.achieved,
            "removed": list(self.removed),
            "scores": as_json(dict(self.scores)),
            "params_before": self.params_before,
            "params_after": self.params_after,
            "macs_before": self.macs_before.total,
            "macs_after": self.macs_after.total,
            "verify_error": self.verify_error,
            "recalibrated": self.recalibrated,
            "attributes": dict(self.attributes),
        }


class PartsRemoved(NamedTuple):
    """A network without some of its parts.

    Attributes:
        model: The network.
        report: Figures.
        blocks: What was taken out, for the manifest.
        former: From the names of the network's modules to those that they had before.
    """

    model: nn.Module
    report: PartReport
    blocks: tuple[RemovedBlock, ...]
    former: Mapping[str, str]


PartMethod = Callable[[nn.Module, PartRequest], PartsRemoved]
"""Removes parts of a copy of a network."""
