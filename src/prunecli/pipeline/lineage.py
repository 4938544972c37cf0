"""History of networks: parents and checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.confinement import stays_inside
from prunecli.checkpoint.foreign_files import Chosen
from prunecli.checkpoint.io import file_sha256
from prunecli.checkpoint.manifest import Step, UsedData, UsedLabel, as_json
from prunecli.data.splits import Split
from prunecli.errors import ModelError
from prunecli.inputs import call, output_tensors
from prunecli.measure.environment import library_versions
from prunecli.models.catalog import opens
from prunecli.models.loading import LoadedModel, load_companion, load_file, save, widen
from prunecli.models.precision import is_narrow
from prunecli.phases import phase
from prunecli.pipeline.model_inputs import ModelInputs
from prunecli.pipeline.state import RunState
from prunecli.report.schema import ModelInfo

_EXACT, _ROUNDED = 1e-6, 0.05
"""Largest difference relative to the largest output: of equal weights, and of weights in half precision."""


class Lineage:
    """History of the current network of a run.

    Args:
        state: The run.
        inputs: Inputs of its network.
    """

    def __init__(self, state: RunState, inputs: ModelInputs) -> None:
        self._state, self._inputs = state, inputs

    def model_info(self) -> ModelInfo:
        """The current network, for a report."""
        loaded = self._state.model()
        return ModelInfo(
            ref=loaded.manifest.architecture.ref,
            path=str(loaded.path) if loaded.path else None,
            sha256=loaded.sha256,
            input_shape=self._inputs.shape(),
            arguments=loaded.manifest.architecture.kwargs,
        )

    def step(
        self, stage: str, settings: Mapping[str, Any], *, split: Split | None = None, split_name: str = "train"
    ) -> Step:
        """A history entry for the current network."""
        loaded = self._state.model()
        data = None
        if split is not None:
            data = UsedData(
                name=self._state.data().name,
                split=split_name,
                images=len(split.labels),
                fingerprint=split.fingerprint(),
                labels=[UsedLabel(**dataclasses.asdict(label)) for label in self._state.data().labels],
            )
        binning = self._inputs.binning() if split is not None else None
        frames = {"binning": dataclasses.asdict(binning)} if binning is not None else {}
        return Step(
            stage=stage,
            settings=as_json({**settings, **frames}),
            seed=self._state.recipe.seed,
            data=data,
            parent=str(loaded.path) if loaded.path else None,
            parent_sha256=loaded.sha256,
            parent_weights=loaded.chosen.to_json() if loaded.chosen is not None else {},
            versions=library_versions(),
            command=self._state.command,
        )

    @phase("save")
    def finish(self, loaded: LoadedModel, path: Path) -> Path:
        """Saves `loaded` as the run's current network.

        Returns:
            The file it was saved to: one with a similar name if somebody else has written `path` in the meantime.
        """
        state = self._state
        asked, number = path, 1
        while path.exists() and not state.may_replace:
            number += 1
            path = asked.with_stem(f"{asked.stem}-{number}")
        if path != asked:
            state.sink.warn(f"{asked}: another process has written it meanwhile; saved as {path}")
        architecture = loaded.manifest.architecture.model_copy(
            update={"input_shape": self._inputs.shape(), "integer_inputs": self._inputs.integers()}
        )
        learned = {
            "architecture": architecture,
            "normalisation": self._inputs.normalisation(),
            "vocabulary": state.vocabulary(),
            "tokenizer": state.tokenizer(),
        }
        manifest = loaded.manifest.model_copy(update=learned)
        save(path, loaded.model.cpu(), manifest)
        # The next stage starts from what is on the disk, so that it computes the same when it is resumed from there.
        allow_nonfinite = state.recipe.model.allow_nonfinite
        state.loaded = load_file(path, allow_nonfinite=allow_nonfinite, scratch=state.scratch)
        if opens(architecture.ref):
            self._check_loaded(loaded.model, state.loaded, path)
        return path

    def _check_loaded(self, saved: nn.Module, loaded: LoadedModel, path: Path) -> None:
        """Compares a network whose code is not ours with what its file gives back.

        Raises:
            ModelError: They compute different things; the file is removed.
        """
        example = self._inputs.example()
        pairs = zip(_outputs(saved, example), _outputs(loaded.model, example), strict=True)
        tolerance = _ROUNDED if is_narrow(saved) else _EXACT
        if all(first.shape == second.shape and _agree(first, second, tolerance) for first, second in pairs):
            return
        path.unlink(missing_ok=True)
        raise ModelError(
            f"{path}: not saved, because the network computes something else once it is loaded: it keeps values that "
            "are neither parameters nor buffers, or builds itself differently each time; register them as buffers"
        )

    def teacher(self, name: str) -> LoadedModel:
        """The network to learn from: a weights file, or "parent" for the one that the current network was pruned from.

        Raises:
            ModelError: There is none, or it cannot be loaded.
        """
        loaded = self._state.model()
        ref = loaded.manifest.architecture.ref
        step = loaded.manifest.last("prune")
        if name != "parent":
            path = Path(name).expanduser()
            chosen = None
            if step is not None and step.parent_weights and path.is_file() and file_sha256(path) == step.parent_sha256:
                chosen = Chosen.from_json(step.parent_weights)  # of several networks in the file, the one pruned
            return load_companion(path, ref, chosen=chosen)
        if self._state.parent is not None:
            return widen(self._state.parent)
        path = self.parent_file(step, "--teacher")
        return load_companion(path, ref, chosen=Chosen.from_json(step.parent_weights) if step is not None else None)

    def parent_file(self, step: Step | None, option: str) -> Path:
        """The file that a step of the current network's history started from, if it is still the same.

        Args:
            step: The step, None if there is none.
            option: What names another file, for messages.

        Raises:
            ModelError: There is no such file.
        """
        loaded = self._state.model()
        if step is None or step.parent is None:
            raise ModelError(f"{loaded.name}: names no parent it was pruned from; give {option} a weights file")
        # The path is that of the machine that pruned; the file may also be next to the checkpoint.
        checkpoint = loaded.path or Path()
        recorded = Path(step.parent)
        candidates = [
            path
            for path in (recorded, checkpoint.with_name(recorded.name))
            if stays_inside(path, checkpoint.parent, Path())
        ]
        found = [path for path in candidates if path.is_file()]
        path = next((p for p in found if file_sha256(p) == step.parent_sha256), None)
        if path is None:
            # Whether a file lies anywhere else is not looked at: somebody else may have written its path.
            what = (
                f"{found[0]}: has changed since {loaded.name} was pruned from it"
                if found
                else f"{step.parent}: the parent is not in this folder or the checkpoint's"
            )
            raise ModelError(f"{what}; give {option} the file it was pruned from")
        return path


def _outputs(network: nn.Module, example: Any) -> list[Tensor]:
    """What a network returns in evaluation mode, with equal random numbers each time."""
    with torch.random.fork_rng(devices=()), torch.no_grad():
        torch.manual_seed(0)
        return output_tensors(call(network.cpu().eval(), example))


def _agree(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether two outputs are equal, but for a difference relative to the largest."""
    if not first.is_floating_point():
        return True  # the best class of nearly equal scores may differ
    largest = first.abs().max() if first.numel() else 0
    return bool(torch.allclose(first, second, rtol=0, atol=tolerance * float(largest), equal_nan=True))
