"""Prune stages of methods that set single weights to zero."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.durable import crash_point
from prunecli.checkpoint.io import file_sha256
from prunecli.checkpoint.manifest import Manifest, Step, Untouched, as_json
from prunecli.checkpoint.masks import spike_mask_name
from prunecli.collective import first_decides
from prunecli.copying import copied
from prunecli.criteria.base import default_loss
from prunecli.data.loader import Batches
from prunecli.data.splits import Split
from prunecli.engine.resources import resource_errors
from prunecli.errors import MethodError, RecipeError
from prunecli.inputs import Inputs, split_batch
from prunecli.measure.counts import count_macs, nonzero_count, parameter_count
from prunecli.measure.effective import effective_macs
from prunecli.measure.latency import PairedTiming
from prunecli.measure.sparse_kernels import SparseTiming, largest_tried, time_csr, time_semi_structured
from prunecli.methods.registry import get_method
from prunecli.methods.request import Transition
from prunecli.methods.runtime import recorded_change
from prunecli.methods.sparse import SparseRequest, WeightPruning, parse_pattern
from prunecli.methods.sparse_params import SparseParams
from prunecli.models.loading import LoadedModel, load_companion
from prunecli.phases import counting, phase
from prunecli.pipeline.progressive import StepTraining
from prunecli.pipeline.resumption import identity_of, room_for, saved_states
from prunecli.pipeline.timed import note_timings, timed_in_turns
from prunecli.pipeline.tracked import training_log
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.pruning_tables import left_alone_tables
from prunecli.report.schema import Metrics
from prunecli.report.score_change import ScoreChange
from prunecli.report.sparse_tables import DENSE_KERNELS, SparseFigures, csr_table, semi_structured_table, sparse_table
from prunecli.report.table import Table
from prunecli.sparsity.spike_masks import masked_spikes
from prunecli.surgery.removal.rebuild import state_tensors
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm


@dataclass(frozen=True)
class SparseOutcome:
    """What a stage that masked weights left behind.

    Attributes:
        path: The checkpoint.
        sparse: Figures before and after.
        timing: The networks before and after, timed in turns.
        reasons: By layer, why its weights were left alone.
        energy: Firing and energy before and after, on training images; None without spiking neurons or data.
        score: The score of the task before and after, if it was measured.
        csr: Layers as sparse matrices on the CPU, if asked for.
        semi_structured: Layers with 2:4 weights on a GPU.
    """

    path: Path
    sparse: SparseFigures
    timing: PairedTiming
    reasons: dict[str, str]
    energy: tuple[Metrics, Metrics] | None = None
    csr: Sequence[SparseTiming] = ()
    semi_structured: Sequence[tuple[str, float]] = field(default_factory=tuple)
    score: ScoreChange | None = None

    def figures(self) -> dict[str, Any]:
        """Sparsity asked for and achieved, what is not zero, and the score if it was measured."""
        return _figures_of(self.sparse) | (self.score.figures() if self.score is not None else {})

    def document(self) -> dict[str, Any]:
        """Everything."""
        return {
            "checkpoint": str(self.path),
            **_figures_of(self.sparse),
            "layers": self.sparse.layers,
            "left_alone": self.reasons,
            "latency_ms_before": self.timing.timings[0].median,
            "latency_ms_after": self.timing.timings[1].median,
            "latency_ratio": self.timing.ratios[1],
            "latency_ratio_interval": list(self.timing.ratio_intervals[1]),
            "energy": [figures.model_dump(exclude_none=True) for figures in self.energy] if self.energy else None,
            "score": self.score.document() if self.score is not None else None,
            "csr": [dataclasses.asdict(timing) for timing in self.csr],
            "semi_structured": [list(entry) for entry in self.semi_structured],
        }

    def tables(self) -> Sequence[Table]:
        """Figures before and after, sparse kernels, and layers left alone."""
        medians = [timing.median for timing in self.timing.timings]
        ratio, interval = self.timing.ratios[1], self.timing.ratio_intervals[1]
        tables = [sparse_table(self.sparse, medians, ratio, interval, self.energy, self.score)]
        tables += [csr_table(self.csr, largest_tried())] if self.csr else []
        tables += [semi_structured_table(self.semi_structured)] if self.semi_structured else []
        return [*tables, *left_alone_tables(self.reasons)]


def sparse_stage(space: Workspace, stage: PruneStage, out: Path) -> SparseOutcome:
    """Masks the current network in one step or several, trains in between if asked to, and saves it with its masks.

    Raises:
        MethodError: Nothing can be masked as asked.
        RecipeError: There are no images for what is asked, or settings exclude each other.
    """
    loaded, params = space.model(), SparseParams(**stage.params)
    _check(space, stage, params)
    split = _images(space, stage)
    recalibrate = _recalibrated(space, stage, split)
    rewinding = _Rewinding(space, params.rewind) if params.rewind is not None else None
    calibration = space.inputs.calibration(split, stage.calibration_images).labelled if split is not None else None
    training = {"epochs": stage.epochs, "lr": stage.lr, "optimizer": stage.optimizer} if stage.epochs else {}
    step = space.lineage.step("prune", training, split=split)
    room_for(space, out, states=stage.epochs > 0)
    files = {"rewind_sha256": rewinding.sha256} if rewinding is not None else {}
    with (
        resource_errors(space.recipe.data.batch_size),
        saved_states(space, out, identity_of(space, stage, **files)) as states,
        training_log(space, stage, out, continued=states.exists()) as log,
    ):
        network = copied(loaded.model)
        request = SparseRequest(
            method=stage.method,
            params=params,
            example_inputs=space.inputs.example(),
            keep=stage.keep,
            seed=space.recipe.seed,
            calibration=calibration if get_method(stage.method).needs_data else None,
            loss=default_loss if calibration is None else space.judging.loss(),
        )
        with space.inputs.running(), phase("trace"):
            pruning = WeightPruning(network, request, loaded.manifest.masks)
        trainer = StepTraining(space, stage, states, log) if stage.epochs else None
        _mask_in_steps(network.to(space.device), pruning, trainer, rewinding)
        if recalibrate and calibration is not None:
            with phase("repair"):
                recalibrate_batchnorm(network, counting(_Inputs(calibration), "batch"))
        space.report_bad()
        crash_point("stage:pruned")
        return _finished(space, stage, network.cpu().eval(), pruning, step, out)


def _check(space: Workspace, stage: PruneStage, params: SparseParams) -> None:
    """Checks everything that needs neither the network nor images.

    Raises:
        MethodError: The pattern is malformed, or the network runs differently than its weights say.
        RecipeError: Settings exclude each other.
    """
    loaded, method = space.model(), get_method(stage.method).load()
    parse_pattern(params.pattern)
    if params.rewind is not None and not stage.epochs:
        raise RecipeError("--rewind puts weights back to train them again: say for how long with --epochs")
    if params.rewind is not None and method.solve is not None:
        raise RecipeError(f"--rewind would undo how {stage.method} adjusts weights; leave it out")
    recorded = recorded_change(loaded.manifest)
    if recorded is not None:
        raise MethodError(f"{loaded.name}: {recorded.method.done} already; mask its weights first, and do that after")
    if space.untrained():
        space.sink.warn(f"{loaded.name} has random weights; give a weights file, or --pretrained")
    if params.schedule != "once" and not stage.epochs:
        space.sink.note("without --epochs nothing is trained between the steps of the schedule")


def _images(space: Workspace, stage: PruneStage) -> Split | None:
    """The training images, if there is use for them.

    Raises:
        DataError: They cannot be read, or have no labels where these are needed.
        RecipeError: None are named.
    """
    spec = get_method(stage.method)
    needed = spec.needs_data or stage.epochs > 0 or bool(stage.recalibrate)
    if space.data_name() is None and needed:
        what = f"method {stage.method}" if spec.needs_data else "--epochs" if stage.epochs else "--recalibrate"
        raise RecipeError(f"{what} needs images: name a data set with --data")
    if not needed and (space.recipe.data.name is None or not space.data().trainable):
        return None
    if spec.load().needs_labels:
        space.judging.labelled_task()
        space.judging.check()
    return space.data().training_split()


def _recalibrated(space: Workspace, stage: PruneStage, split: Split | None) -> bool:
    """Whether batch normalisations are measured again: where images are used and nothing is trained on them."""
    if stage.recalibrate is not None:
        return stage.recalibrate
    return split is not None and not stage.epochs


def _weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """All tensors but masks of spikes, which an earlier state may not have had."""
    spikes = {spike_mask_name(name) for name in masked_spikes(network)}
    return {name: tensor for name, tensor in state_tensors(network).items() if name not in spikes}


class _Rewinding:
    """Puts back the weights of an earlier state of the network.

    Raises:
        ModelError: The file cannot be read.
        RecipeError: It holds another network.
    """

    def __init__(self, space: Workspace, file: str) -> None:
        path, loaded = Path(file).expanduser(), space.model()
        earlier = load_companion(path, loaded.manifest.architecture.ref or None)
        self._tensors = _weights_of(earlier.model)
        own, theirs = loaded.manifest.architecture.ref, earlier.manifest.architecture.ref
        shapes = {name: tensor.shape for name, tensor in _weights_of(loaded.model).items()}
        if own != theirs or shapes != {name: tensor.shape for name, tensor in self._tensors.items()}:
            which = f"{theirs}, not {own}" if own != theirs else f"{own} with other shapes"
            raise RecipeError(f"--rewind {file}: is of another network ({which}); give an earlier state of this one")
        self.sha256 = file_sha256(path)

    def __call__(self, network: nn.Module, pruning: WeightPruning) -> None:
        """Copies everything but what is masked."""
        gone = {name: network.get_parameter(name).detach() == 0 for name in pruning.masks().weights}
        with torch.no_grad():
            for name, tensor in _weights_of(network).items():
                tensor.copy_(self._tensors[name])
            for name, zero in gone.items():
                network.get_parameter(name).masked_fill_(zero, 0.0)


def _mask_in_steps(
    network: nn.Module, pruning: WeightPruning, trainer: StepTraining | None, rewinding: _Rewinding | None
) -> None:
    """Masks and trains in turns; a resumed run goes on with the training of the step at which it was stopped."""
    resumed, state = trainer.resume if trainer is not None and trainer.resume is not None else (0, {})
    if resumed:
        pruning.restore(state)
    steps = len(pruning.goals)
    for number, goal in enumerate(pruning.goals, start=1):
        if number < resumed:
            continue
        if number > resumed:
            pruning.step(goal)
            if rewinding is not None:
                rewinding(network, pruning)
            crash_point("stage:masked")
        if trainer is not None:
            if rewinding is not None:
                trainer.forget_moments()
            trainer.masks = pruning.masks()
            trainer(Transition(network, network, {}, number, steps, pruning.state))


class _Inputs:
    """The inputs of labelled batches."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            yield split_batch(batch)[0]


def _finished(
    space: Workspace, stage: PruneStage, network: nn.Module, pruning: WeightPruning, step: Step, out: Path
) -> SparseOutcome:
    """Measures, saves, and makes the masked network the current one."""
    loaded, example, params = space.model(), space.inputs.example(), SparseParams(**stage.params)
    before = loaded.model.cpu()
    figures = _measured(before, network, pruning, example)
    _warn(space, pruning, figures)
    settings = {"method": stage.method, "params": dataclasses.asdict(params), "keep": list(stage.keep)}
    entry = step.model_copy(
        update={
            "settings": as_json(step.settings | settings),
            "figures": _figures_of(figures),
            "untouched": [Untouched(name=name, channels=0, reason=why) for name, why in pruning.reasons.items()],
        }
    )
    timing = timed_in_turns(space, [before, network], example, stage.latency_rounds)
    note_timings(space, [timing])
    energy = None
    if space.data_name() is not None:
        energy = space.activity.before_and_after([before, network], stage.calibration_images)
    names = [name for weight in pruning.weights for name in weight.modules[:1]]
    csr = first_decides(lambda: time_csr(network, example, names)) if params.csr else []
    if params.csr and not csr:
        space.sink.note("--csr: no masked linear layer or 1x1 convolution to time")
    semi_structured = _semi_structured(space, network, names, params)
    manifest: Manifest = loaded.manifest.model_copy(
        update={"history": [*loaded.manifest.history, entry], "masks": pruning.masks()}
    )
    space.parent = loaded
    path = space.lineage.finish(LoadedModel(network, manifest, loaded.fixed_size), out)
    space.sink.note(DENSE_KERNELS)
    return SparseOutcome(path, figures, timing, pruning.reasons, energy, csr, semi_structured)


def _measured(before: nn.Module, after: nn.Module, pruning: WeightPruning, example: Inputs) -> SparseFigures:
    counted = count_macs(before, example)
    weights, _ = pruning.counts
    originals = [before.get_parameter(weight.name) for weight in pruning.weights]
    zeros = sum(parameter.numel() - int(torch.count_nonzero(parameter)) for parameter in originals)
    return SparseFigures(
        requested=pruning.goals[-1].share,
        sparsity=(zeros / weights, pruning.sparsity),
        weights=weights,
        layers=len(pruning.weights),
        steps=len(pruning.goals),
        params=parameter_count(after),
        nonzero=(nonzero_count(before), nonzero_count(after)),
        macs=counted.total,
        effective_macs=(
            effective_macs(before, example, counted.total),
            effective_macs(after, example, counted.total),
        ),
        uncounted=counted.uncounted,
    )


def _warn(space: Workspace, pruning: WeightPruning, figures: SparseFigures) -> None:
    lone = pruning.lone()
    if lone:
        space.sink.warn(
            f"a single weight, which always stays, is all that is left of {', '.join(lone)}; ask for less, or give "
            "--scope layer"
        )
    difference = (figures.sparsity[1] - figures.requested) * figures.weights
    if pruning.goals[-1].pattern is None and abs(difference) > figures.layers:  # more than rounding explains
        space.sink.warn(
            f"a sparsity of {figures.requested:g} was asked for and {figures.sparsity[1]:.6g} is what there is, since "
            "every layer keeps at least one weight, and the zeros that it has"
        )


def _semi_structured(
    space: Workspace, network: nn.Module, names: Sequence[str], params: SparseParams
) -> list[tuple[str, float]]:
    if params.pattern != "2:4":
        return []
    if space.device.type != "cuda":
        space.sink.note("what 2:4 gains in time needs a GPU with sparse tensor cores; it was not measured here")
        return []
    return first_decides(lambda: time_semi_structured(network, names, space.device))


def _figures_of(sparse: SparseFigures) -> dict[str, Any]:
    """As they are recorded."""
    return {
        "sparsity_requested": sparse.requested,
        "sparsity_achieved": sparse.sparsity[1],
        "sparsity_before": sparse.sparsity[0],
        "weights": sparse.weights,
        "params": sparse.params,
        "nonzero_before": sparse.nonzero[0],
        "nonzero_after": sparse.nonzero[1],
        "macs": sparse.macs,
        "effective_macs_before": sparse.effective_macs[0],
        "effective_macs_after": sparse.effective_macs[1],
    }
