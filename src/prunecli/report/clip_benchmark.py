"""A report in the form of CLIP_benchmark, whose `build` makes one table of many such files."""

from __future__ import annotations

import json

from prunecli.errors import RecipeError
from prunecli.report.schema import Report

_TASKS = {"zeroshot": "zeroshot_classification", "linear-probe": "linear_probe"}
"""What they are called there."""


def clip_benchmark_json(report: Report) -> str:
    """One result: dataset, model, pretrained, task, shares of one, language.

    Raises:
        RecipeError: The report has no accuracy.
    """
    metrics = report.metrics
    if report.data is None or metrics.top1 is None:
        raise RecipeError("--clip-benchmark writes accuracies, and none was measured: name a data set with --data")
    _, _, name = report.model.ref.partition(":")
    architecture, _, tag = name.partition("@")
    found = {"acc1": metrics.top1, "acc5": metrics.top5, "mean_per_class_recall": metrics.mean_class_recall}
    content = {
        "dataset": report.data.name,
        "model": architecture,
        "pretrained": tag or report.model.path or "",
        "task": _TASKS.get(report.data.task or "", report.data.task),
        "metrics": {key: value / 100 for key, value in found.items() if value is not None},
        "language": "en",
    }
    return json.dumps(content, indent=2) + "\n"
