"""The stages prune and eval, each from a workspace to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from prunecli.checkpoint.durable import write_text_atomically
from prunecli.engine.evaluate import evaluate
from prunecli.engine.retrieval import Recalls
from prunecli.engine.tasks import Figures
from prunecli.errors import GateFailed, RecipeError
from prunecli.measure.counts import count_macs, nonzero_count, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import Timing, time_model
from prunecli.measure.memory import peak_memory_bytes
from prunecli.models.prompt_classifier import has_text_tower
from prunecli.pipeline.judging import judge_of, named_figures
from prunecli.pipeline.probing import linear_probe
from prunecli.pipeline.profiling import energy_figures, split_for
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import EvalStage
from prunecli.report.conditions import Condition
from prunecli.report.schema import METRIC_NAMES, REPORT_SCHEMA, DataInfo, Latency, Metrics, ModelInfo, Report


def eval_stage(space: Workspace, stage: EvalStage, out: Path | None) -> Report:
    """Measures the current network and writes its report.

    Raises:
        DataError: Accuracy is asked for and the data cannot be used with the network.
    """
    loaded = space.model()
    texts = has_text_tower(loaded.model)
    if stage.task == "zeroshot" and not texts:
        raise RecipeError(
            f"--task zeroshot: {loaded.name} has no text tower; leave it out, or give an open_clip network"
        )
    if stage.task == "classification" and texts:
        raise RecipeError(
            f"--task classification: {loaded.name} has a text tower and no classifier; use --task zeroshot"
        )
    if stage.task in ("zeroshot", "classification", "retrieval") and space.data_name() is not None:
        captions = space.data().task == "retrieval"
        if captions != (stage.task == "retrieval"):
            has, task = ("captions", "retrieval") if captions else ("no captions", "zeroshot")
            raise RecipeError(f"--task {stage.task}: {space.data().name} has {has}; use --task {task}")
    accuracy: dict[str, Any] = {}
    info = None
    if "accuracy" in stage.measure:
        if space.data_name() is not None:
            accuracy, info = _accuracy(space, stage)
        else:
            space.sink.warn("no data set, so no accuracy: name one with --data")
    example = space.example()
    model = loaded.model.cpu()
    with space.running():
        macs = count_macs(model, example) if "macs" in stage.measure else None
        latency = _latency(space, model, stage.latency_rounds) if "latency" in stage.measure else None
        memory = peak_memory_bytes(model, example) if "memory" in stage.measure else None
        energy = energy_figures(space, stage, macs, example)
    metrics = Metrics(
        **accuracy,
        params=parameter_count(model) if "params" in stage.measure else None,
        params_nonzero=nonzero_count(model) if "params" in stage.measure else None,
        macs=macs.total if macs else None,
        macs_uncounted=macs.uncounted if macs else (),
        latency_ms=latency,
        peak_memory_bytes=memory,
        size_bytes=loaded.path.stat().st_size if loaded.path and "size" in stage.measure else None,
        **energy.metrics,
    )
    report = Report(
        schema=REPORT_SCHEMA,
        model=ModelInfo(
            ref=loaded.manifest.architecture.ref,
            path=str(loaded.path) if loaded.path else None,
            sha256=loaded.sha256,
            input_shape=space.input_shape(),
            arguments=loaded.manifest.architecture.kwargs,
        ),
        data=info,
        metrics=metrics,
        **energy.report,
        environment=describe_environment(space.device),
        seed=space.recipe.seed,
        command=space.command,
    )
    if out is not None:
        write_text_atomically(out, report.to_json(), replace=space.may_replace)
        space.reports.append(out)
    return report


def required(stage: EvalStage) -> Condition | None:
    """What the figures of a stage have to meet, if anything.

    Raises:
        RecipeError: It is no condition.
    """
    return Condition(stage.require, METRIC_NAMES, "require", "top1 >= 95") if stage.require is not None else None


def unmet(stage: EvalStage, report: Report) -> GateFailed | None:
    """The failure to raise once the report is shown: its figures are not what the stage requires.

    Raises:
        RecipeError: A figure that the condition needs was not measured.
    """
    condition = required(stage)
    name = report.model.path or report.model.ref
    figures = report.metrics.model_dump() | {"name": name}
    if condition is None or condition.true_of(figures):
        return None
    found = ", ".join(f"{figure} is {figures[figure]:g}" for figure in condition.named)
    return GateFailed(f"{name}: required {condition.text}, but {found}")


def _accuracy(space: Workspace, stage: EvalStage) -> tuple[dict[str, Any], DataInfo]:
    """Figures of the data's task by their names in a report, and what they were measured on."""
    data = space.data()
    split = split_for(space, stage.split)
    if stage.task == "linear-probe":
        figures: Figures | Recalls = linear_probe(space, split)
    else:
        space.check_classes()
        with space.sink.progress(f"eval {data.name}", len(split.labels)) as advance:
            figures = evaluate(
                space.classifier(remember=True),
                space.batches(split),
                space.device,
                lambda done: advance(done, f"{done} images"),
                task=judge_of(space),
            )
    space.tell_bad()
    info = DataInfo(
        name=data.name,
        split=stage.split,
        images=figures.images,
        fingerprint=split.fingerprint(),
        skipped=len(split.labels) - figures.images,
        task=_task(space, stage),
    )
    return named_figures(figures, data.class_names), info


def _task(space: Workspace, stage: EvalStage) -> str:
    """What was judged, by its name in a report."""
    if stage.task == "linear-probe":
        return stage.task
    if space.data().task != "classification":
        return space.data().task
    return "zeroshot" if has_text_tower(space.model().model) else "classification"


def _latency(space: Workspace, model: nn.Module, rounds: int) -> Latency:
    return latency_figures(time_model(model, space.example(), rounds=rounds, device=space.device))


def latency_figures(timing: Timing) -> Latency:
    """A timing of one image as a report records it."""
    return Latency(median=timing.median, interval=timing.interval, batch_size=1, runs=timing.runs)
