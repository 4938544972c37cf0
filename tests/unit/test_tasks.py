"""Tasks: losses, figures, and what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.tasks.base import Labels, Task
from prunecli.engine.tasks.classification import Classification
from prunecli.engine.tasks.index import task_of
from prunecli.engine.tasks.segmentation import Segmentation
from prunecli.errors import DataError
from prunecli.report.scores import SCORES
from tests.unit.test_engine import CPU, _batches

TASKS = ["classification", "segmentation", "retrieval", "unlabelled"]


def _task(name: str) -> Task:
    return task_of(Labels("somewhere", name, ("a", "b", "c"), (0, 0, 1)))


def _figures(task: Task, *batches: tuple[torch.Tensor, torch.Tensor]) -> object:
    meter = task.meter(CPU)
    for scores, labels in batches:
        meter.update(scores, labels)
    return meter.compute()


@pytest.mark.parametrize("name", TASKS)
def test_every_task_measures_what_it_names(name: str) -> None:
    task = _task(name)
    assert task.name == name and task.data_name == "somewhere" and task.class_names == ("a", "b", "c")
    assert task.better(2.0, 1.0) and not task.better(1.0, 1.0)
    scores = torch.randn(2, 3, 4, 4) if task.per_pixel else torch.randn(2, 3)
    labels = torch.randint(0, 3, (2, 4, 4)) if task.per_pixel else torch.tensor([0, 1])
    figures = _figures(task, (scores, labels))
    if not task.labelled:
        assert figures is None and task.named(figures) == {}
        with pytest.raises(DataError, match="somewhere has images without classes: give another data set"):
            task.require_labels()
        return
    task.require_labels()
    assert isinstance(figures, task.figures)
    named = task.named(figures)
    assert named["images"] == 2 and named[figures.score_name] == figures.score
    assert figures.logged[figures.score_name] == figures.score


@pytest.mark.parametrize("name", TASKS)
def test_a_task_that_cannot_be_trained_refuses_in_one_line(name: str) -> None:
    task = _task(name)
    scores = torch.randn(2, 3, 4, 4) if task.per_pixel else torch.randn(2, 3)
    labels = torch.randint(0, 3, (2, 4, 4)) if task.per_pixel else torch.tensor([0, 1])
    if task.trainable:
        task.require_training()
        assert float(task.loss(scores, labels, 0.1)) > 0
        assert float(task.teacher_loss(scores, scores, 2.0)) == pytest.approx(0, abs=1e-6)
        return
    for call in (lambda: task.loss(scores, labels, 0.0), lambda: task.teacher_loss(scores, scores, 2.0)):
        with pytest.raises(DataError, match=r"^somewhere has images without classes"):
            call()


def test_classification_smooths_labels_but_not_mixed_ones() -> None:
    task, scores, labels = Classification.with_classes(4), torch.randn(8, 4), torch.randint(0, 4, (8,))
    assert torch.equal(task.loss(scores, labels, 0.2), F.cross_entropy(scores, labels, label_smoothing=0.2))
    mixed = F.one_hot(labels, 4).float()
    assert torch.equal(task.loss(scores, mixed, 0.2), F.cross_entropy(scores, mixed))


def test_void_pixels_count_nowhere() -> None:
    task = Segmentation.with_classes(3)
    scores, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    labels[:, :2] = 255
    seen = task.loss(scores, labels, 0.0)
    assert seen == pytest.approx(float(F.cross_entropy(scores[:, :, 2:], labels[:, 2:])), rel=1e-5)
    assert float(task.loss(scores, torch.full_like(labels, 255), 0.0)) == 0
    changed = scores.clone()
    changed[:, :, :2] += torch.randn(2, 3, 2, 4)
    assert _figures(task, (scores, labels)) == _figures(task, (changed, labels))


def test_figures_do_not_depend_on_the_batches() -> None:
    for task, scores, labels in (
        (Classification.with_classes(7), torch.randn(40, 7), torch.randint(0, 7, (40,))),
        (_task("retrieval"), torch.randn(40, 3), torch.arange(40)),
    ):
        whole = _figures(task, (scores, labels))
        parts = _figures(task, *((scores[i : i + 16], labels[i : i + 16]) for i in range(0, 40, 16)))
        for name, value in task.named(whole).items():
            assert task.named(parts)[name] == pytest.approx(value, rel=1e-6), name


def test_shapes_and_numbers_of_outputs_are_checked() -> None:
    task = Classification.with_classes(4)
    task.check_scores(torch.zeros(1, 4), "net")
    with pytest.raises(DataError, match="net finds a class for every pixel, the data has one for each image"):
        task.check_scores(torch.zeros(1, 4, 2, 2), "net")
    with pytest.raises(DataError, match="net has 5 outputs and the data has 4 classes"):
        task.check_outputs(5, "net")
    _task("unlabelled").check_outputs(5, "net")


def test_somebody_elses_task_decides_what_better_means() -> None:
    class LeastLoss(Classification):
        def loss(self, scores: torch.Tensor, labels: torch.Tensor, label_smoothing: float) -> torch.Tensor:
            return 2 * super().loss(scores, labels, label_smoothing)

        def better(self, score: float, best: float) -> bool:
            return score < best

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    config, validation = FitConfig(epochs=3, lr=0.05), _batches(2, seed=1)
    result = fit(model, _batches(), validation, config, CPU, task=LeastLoss.with_classes(4))
    worst = min(result.epochs, key=lambda epoch: epoch.validation.score)  # type: ignore[union-attr]
    assert result.chosen == worst.epoch


def test_scores_of_tasks_are_columns_of_reports() -> None:
    columns = {score.name for score in SCORES}
    for name in TASKS:
        task = _task(name)
        if task.labelled:
            assert task.figures.score_name in columns
