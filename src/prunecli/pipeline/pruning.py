"""Pruning one network: the flow shared by the Python interface and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from prunecli.checkpoint.manifest import Manifest, Step, as_json
from prunecli.checkpoint.masks import renamed
from prunecli.collective import require_agreed_weights
from prunecli.errors import ModelError
from prunecli.measure.environment import library_versions
from prunecli.methods.outcome import Pruned, PruneReport
from prunecli.methods.parts import PartMethod, PartReport, PartRequest
from prunecli.methods.registry import get_method
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.loading import save
from prunecli.models.precision import rename_precision
from prunecli.surgery.tracing.traced import Trace


@dataclass(frozen=True, repr=False)
class _Result:
    """A pruned network and its manifest."""

    model: nn.Module
    manifest: Manifest

    def save(self, path: str | Path) -> None:
        """Writes the checkpoint that `prunecli.load` reads.

        Raises:
            ModelError: The name does not end in .safetensors.
        """
        if Path(path).suffix != ".safetensors":
            raise ModelError(f"{path}: checkpoints are safetensors; name it {Path(path).with_suffix('.safetensors')}")
        save(Path(path), self.model, self.manifest, self.dense)

    dense: nn.Module | None = field(default=None, kw_only=True)


@dataclass(frozen=True, repr=False)
class PruneResult(_Result):
    """A pruned network, its manifest, its report, and the trace that led to it."""

    report: PruneReport
    trace: Trace

    def __repr__(self) -> str:
        return f"PruneResult(model={type(self.model).__name__}, report={self.report!r})"


@dataclass(frozen=True, repr=False)
class PartResult(_Result):
    """A network without some of its parts, its manifest and its report."""

    report: PartReport

    def __repr__(self) -> str:
        return f"PartResult(model={type(self.model).__name__}, report={self.report!r})"


def prune_model(
    model: nn.Module,
    manifest: Manifest,
    request: PruneRequest,
    *,
    step: Step | None = None,
    dense: nn.Module | None = None,
) -> PruneResult:
    """Prunes a copy of `model`.

    Args:
        model: The network; not changed.
        manifest: What is known about it; the result's manifest continues it.
        request: The method, its parameters and everything it needs.
        step: Origin of the new entry in the history (parent, data, command).
        dense: For a network outside the catalogue that was pruned before: the original one.

    Raises:
        MethodError: The method cannot do what was asked.
        VerificationError: The result is not the masked original.
    """
    pruned = prune_structural(model, request)
    settings = {"params": asdict(request.params), "keep": list(request.keep), "compensate": request.compensation}
    continued = continued_manifest(manifest, pruned, settings, seed=request.seed, step=step)
    first = dense if dense is not None else model
    return PruneResult(
        pruned.model, continued, pruned.report, pruned.trace, dense=None if manifest.architecture.ref else first
    )


def remove_parts(
    model: nn.Module,
    manifest: Manifest,
    request: PartRequest,
    *,
    step: Step | None = None,
    dense: nn.Module | None = None,
) -> PartResult:
    """Removes blocks or experts of a copy of `model`.

    Args:
        model: The network; not changed.
        manifest: What is known about it; the result's manifest continues it.
        request: The method, its parameters and everything it needs.
        step: Origin of the new entry in the history (parent, data, command).
        dense: For a network outside the catalogue that was pruned before: the original one.

    Raises:
        MethodError: The method cannot do what was asked.
        RanksDiffer: Processes that work together come to different networks.
        VerificationError: The result is not what the method's proof compares it with.
    """
    method: PartMethod = get_method(request.method).load()
    pruned = method(model, request)
    require_agreed_weights(pruned.model)
    report, base = pruned.report, step or Step(stage="prune")
    settings = {"method": report.method, "params": asdict(request.params), "keep": list(request.keep)}
    entry = base.model_copy(
        update={
            "settings": as_json(base.settings | settings),
            "seed": request.seed,
            "figures": report.figures(),
            "untouched": list(report.untouched),
            "versions": library_versions(),
        }
    )
    masks = renamed(manifest.masks, pruned.former) if manifest.masks is not None else None
    continued = manifest.model_copy(
        update={
            "blocks": [*manifest.blocks, *pruned.blocks],
            "edits": [*manifest.edits, *report.edits],
            "masks": masks,
            "history": [*manifest.history, entry],
        }
    )
    rename_precision(pruned.model, pruned.former)
    first = dense if dense is not None else model
    return PartResult(pruned.model, continued, report, dense=None if manifest.architecture.ref else first)


def continued_manifest(
    manifest: Manifest, pruned: Pruned, settings: Mapping[str, Any], *, seed: int, step: Step | None = None
) -> Manifest:
    """The manifest of a pruned network: that of the original with the edits and a new entry in the history.

    Args:
        manifest: The manifest of the original.
        pruned: The result of pruning.
        settings: Parameters of the method and other settings.
        seed: Seed of everything random.
        step: Origin of the new entry (parent, data, command).
    """
    report = pruned.report
    base = step or Step(stage="prune")
    entry = base.model_copy(
        update={
            "settings": as_json(base.settings | {"method": report.method} | dict(settings)),
            "seed": seed,
            "figures": report.figures(),
            "untouched": list(report.untouched),
            "versions": library_versions(),
        }
    )
    return manifest.model_copy(
        update={"edits": [*manifest.edits, *report.edits], "history": [*manifest.history, entry]}
    )
