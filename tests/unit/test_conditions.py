"""Conditions that an evaluation has to meet."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunecli.errors import RecipeError
from prunecli.pipeline.stages.eval import unmet
from prunecli.recipe.schema import EvalStage
from prunecli.report.schema import METRIC_NAMES, REPORT_SCHEMA, Metrics, ModelInfo, Report
from tests.conftest import Prune


def report(top1: float | None) -> Report:
    model = ModelInfo(ref="cifar:resnet20", path="net.safetensors", input_shape=(3, 32, 32))
    return Report(schema=REPORT_SCHEMA, model=model, metrics=Metrics(top1=top1, params=1000))


def test_a_condition_is_about_the_figures_of_the_report() -> None:
    assert {"top1", "miou", "params", "synops", "firing_rate"} <= set(METRIC_NAMES)
    assert unmet(EvalStage(), report(10.0)) is None
    assert unmet(EvalStage(require="top1 >= 95 and params < 2000"), report(96.0)) is None
    failure = unmet(EvalStage(require="top1 >= 95"), report(93.25))
    assert str(failure) == "net.safetensors: required top1 >= 95, but top1 is 93.25"
    with pytest.raises(RecipeError, match=r"top1 of net\.safetensors was not measured"):
        unmet(EvalStage(require="top1 >= 95"), report(None))


def test_a_run_stops_at_a_base_that_is_too_bad_to_compare_with(prune: Prune, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    stages = (
        "[{stage: eval, require: top1 >= 95, measure: [accuracy]}, {stage: prune}, {stage: eval}, {stage: compare}]"
    )
    recipe.write_text(f"version: 1\nmodel: {{ref: 'cifar:resnet20'}}\ndata: {{name: digits}}\nstages: {stages}\n")
    done = prune("run", recipe)
    assert done.code == 3 and "required top1 >= 95, but top1 is" in done.err
    assert not list(tmp_path.rglob("pruned.safetensors"))
    done = prune("run", recipe, "--force", "--set", "stages.0.require=top5 > ninety")
    assert done.code == 2 and "unknown figure 'ninety'" in done.err and "stage 1" not in done.err
    done = prune("eval", "cifar:resnet20", "--data", "digits", "--measure", "accuracy", "--require", "top1 >= 95")
    assert done.code == 3 and "top-1" in done.out
