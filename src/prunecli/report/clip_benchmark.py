"""Converting a report to the JSON of CLIP_benchmark; `clip_benchmark build` makes a table of such files."""

from __future__ import annotations

import json

from prunecli.errors import RecipeError
from prunecli.report.schema import Metrics, Report

_TASKS = {"zeroshot": "zeroshot_classification", "linear-probe": "linear_probe", "retrieval": "zeroshot_retrieval"}
"""CLIP_benchmark's names of our tasks."""
_METRICS = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_class_recall"}


def clip_benchmark_json(report: Report) -> str:
    """Returns one result: data set, model, pretrained tag, task, metrics as fractions, language.

    Raises:
        RecipeError: The report has no accuracy.
    """
    metrics = _metrics(report.metrics)
    if report.data is None or not metrics:
        raise RecipeError("--clip-benchmark writes accuracies, but none was measured; name a data set with --data")
    _, _, name = report.model.ref.partition(":")
    architecture, _, tag = name.partition("@")
    content = {
        "dataset": report.data.name,
        "model": architecture,
        "pretrained": report.model.path or tag,
        "task": _TASKS.get(report.data.task or "", report.data.task),
        "metrics": metrics,
        "language": "en",
    }
    return json.dumps(content, indent=2) + "\n"


def _metrics(metrics: Metrics) -> dict[str, float]:
    """Metrics as fractions, under CLIP_benchmark's names."""
    values = {theirs: getattr(metrics, ours) for theirs, ours in _METRICS.items()}
    for name in Metrics.model_fields:
        retrieved, separator, rank = name.partition("_recall_")
        if separator and rank.isdecimal():
            values[f"{retrieved}_retrieval_recall@{rank}"] = getattr(metrics, name)
    return {name: value / 100 for name, value in values.items() if value is not None}
