"""A report in the form of CLIP_benchmark, whose `build` makes one table of many such files."""

from __future__ import annotations

import json

from prunecli.errors import RecipeError
from prunecli.report.schema import Metrics, Report

_TASKS = {"zeroshot": "zeroshot_classification", "linear-probe": "linear_probe", "retrieval": "zeroshot_retrieval"}
"""What they are called there."""
_NAMES = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_class_recall"}


def clip_benchmark_json(report: Report) -> str:
    """One result: dataset, model, pretrained, task, shares of one, language.

    Raises:
        RecipeError: The report has no accuracy.
    """
    metrics = report.metrics
    found = _named(metrics)
    if report.data is None or not found:
        raise RecipeError("--clip-benchmark writes accuracies, and none was measured: name a data set with --data")
    _, _, name = report.model.ref.partition(":")
    architecture, _, tag = name.partition("@")
    content = {
        "dataset": report.data.name,
        "model": architecture,
        "pretrained": report.model.path or tag,
        "task": _TASKS.get(report.data.task or "", report.data.task),
        "metrics": found,
        "language": "en",
    }
    return json.dumps(content, indent=2) + "\n"


def _named(metrics: Metrics) -> dict[str, float]:
    """Shares of one under that tool's names."""
    found = {theirs: getattr(metrics, ours) for theirs, ours in _NAMES.items()}
    for name in Metrics.model_fields:
        sought, between, rank = name.partition("_recall_")
        if between and rank.isdecimal():
            found[f"{sought}_retrieval_recall@{rank}"] = getattr(metrics, name)
    return {name: value / 100 for name, value in found.items() if value is not None}
