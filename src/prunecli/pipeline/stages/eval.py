"""The stage eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from prunecli import ranks
from prunecli.checkpoint.durable import write_text_atomically
from prunecli.engine.evaluate import evaluate
from prunecli.errors import GateFailed
from prunecli.measure.counts import count_macs, nonzero_count, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import Timing, time_model
from prunecli.measure.memory import peak_memory_bytes
from prunecli.phases import shown_by
from prunecli.pipeline.probing import linear_probe
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import EvalStage
from prunecli.report.conditions import Condition
from prunecli.report.schema import METRIC_NAMES, REPORT_SCHEMA, DataInfo, Latency, Metrics, Report

_PROBE = "linear-probe"


def eval_stage(space: Workspace, stage: EvalStage, out: Path | None) -> Report:
    """Measures the current network and writes its report.

    Raises:
        DataError: Accuracy is asked for and the data cannot be used with the network.
        RecipeError: The network cannot be judged as asked.
    """
    loaded = space.model()
    space.judging.check_evaluation(stage.task)
    accuracy: dict[str, Any] = {}
    info = None
    if "accuracy" in stage.measure:
        if space.data_name() is not None:
            accuracy, info = _accuracy(space, stage)
        else:
            space.sink.warn("no data set, so no accuracy: name one with --data")
    example = space.inputs.example()
    model = loaded.model.cpu()
    with space.inputs.running(), shown_by(space.sink.phase):
        macs = count_macs(model, example) if "macs" in stage.measure else None
        timed, measured = "latency" in stage.measure, "memory" in stage.measure
        # One process measures, while others that could disturb it wait.
        latency = ranks.by_first(lambda: _latency(space, model, stage.latency_rounds)) if timed else None
        memory = ranks.by_first(lambda: peak_memory_bytes(model, example)) if measured else None
        energy = space.activity.evaluate(stage, macs, example)
    metrics = Metrics(
        **accuracy,
        params=parameter_count(model) if "params" in stage.measure else None,
        params_nonzero=nonzero_count(model) if "params" in stage.measure else None,
        macs=macs.total if macs else None,
        macs_uncounted=macs.uncounted if macs else (),
        latency_ms=latency,
        peak_memory_bytes=memory,
        size_bytes=loaded.size_bytes if "size" in stage.measure else None,
        **energy.metrics,
    )
    report = Report(
        schema=REPORT_SCHEMA,
        model=space.lineage.model_info(),
        data=info,
        metrics=metrics,
        **energy.report,
        environment=describe_environment(space.device),
        seed=space.recipe.seed,
        command=space.command,
    )
    if out is not None:
        path, text = out, report.to_json()
        ranks.by_first(lambda: write_text_atomically(path, text, replace=space.may_replace))
        space.reports.append(out)
    return report


def required(stage: EvalStage) -> Condition | None:
    """The condition that the figures of a stage have to meet, if there is one.

    Raises:
        RecipeError: It is not a valid condition.
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
    measured = ", ".join(f"{figure} is {figures[figure]:g}" for figure in condition.named)
    return GateFailed(f"{name}: required {condition.text}, but {measured}")


def latency_figures(timing: Timing) -> Latency:
    """A timing of one image as a report records it."""
    return Latency(median=timing.median, interval=timing.interval, batch_size=1, runs=timing.runs)


def _latency(space: Workspace, model: nn.Module, rounds: int) -> Latency:
    return latency_figures(time_model(model, space.inputs.example(), rounds=rounds, device=space.device))


def _accuracy(space: Workspace, stage: EvalStage) -> tuple[dict[str, Any], DataInfo]:
    """Figures of the data's task by their names in a report, and what they were measured on."""
    data = space.data()
    split = space.split(stage.split)
    if stage.task == _PROBE:
        named = linear_probe(space, split)
    else:
        space.judging.check()
        task = space.judging.labelled_task()
        with space.sink.progress(f"eval {data.name}", len(split.labels)) as advance:
            figures = evaluate(
                space.judging.classifier(remember=True),
                space.inputs.batches(split),
                space.device,
                lambda done: advance(done, f"{done} {space.inputs.noun}"),
                task=task,
            )
        named = {**task.named(figures), **task.named_of(figures, split)}
    space.report_bad()
    images = named.get("images", len(split.labels))
    info = DataInfo(
        name=data.name,
        split=stage.split,
        images=images,
        fingerprint=split.fingerprint(),
        skipped=len(split.labels) - images,
        task=stage.task if stage.task == _PROBE else space.judging.task_name(),
        **(space.judging.wording() if stage.task != _PROBE else {}),
    )
    return named, info
