"""Training and evaluation on tiny real networks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from prunecli.engine.config import FitConfig
from prunecli.engine.device import pick_device
from prunecli.engine.distillation import Distillation
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import Epoch, fit
from prunecli.engine.hooks import Hook
from prunecli.engine.tasks.classification import Classification
from prunecli.engine.tracking import MetricsLog
from prunecli.errors import PruneError, RecipeError
from prunecli.report.table import Table
from prunecli.surgery.removal.rebuild import state_tensors

CPU = torch.device("cpu")
TASK = Classification.with_classes(4)
Batch = tuple[torch.Tensor, torch.Tensor]


def _batches(count: int = 4, size: int = 16, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        labels = torch.randint(0, 4, (size,), generator=generator)
        images = torch.randn(size, 1, 6, 6, generator=generator) * 0.3
        images[torch.arange(size), 0, labels, labels] += 3
        batches.append((images, labels))
    return batches


def _network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def _digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in state_tensors(model).values())).hexdigest()


def test_it_learns_and_keeps_the_best_epoch() -> None:
    model = _network()
    result = fit(model, _batches(), _batches(2, seed=1), FitConfig(epochs=5, lr=0.05), CPU, task=TASK)
    best = max(result.epochs, key=lambda epoch: (epoch.validation.top1, -epoch.validation.loss))  # type: ignore[union-attr]
    assert best.validation is not None and best.validation.top1 > 90
    assert evaluate(model, _batches(2, seed=1), CPU).top1 == best.validation.top1
    assert result.epochs[result.chosen - 1].validation == best.validation and not model.training


class _Strides(Hook):
    """Notes the layout of the first convolution in every step."""

    name = "strides"

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight, self.seen = weight, set[tuple[int, ...]]()

    def after_step(self) -> None:
        self.seen.add(tuple(self._weight.stride()))


def test_validation_leaves_the_layout_of_training() -> None:
    model = _network()
    before = model[0].weight.stride()  # type: ignore[index,operator]
    hook = _Strides(model[0].weight)  # type: ignore[arg-type,index]
    fit(model, _batches(), _batches(2, seed=1), FitConfig(epochs=2, lr=0.05), CPU, task=TASK, hooks=[hook])
    assert hook.seen == {(9, 1, 3, 1)} and model[0].weight.stride() == before  # type: ignore[index,operator]


class _Penalty(Hook):
    """Grows on purpose."""

    name = "penalty"
    weight = 1.0

    def loss(self, loss: torch.Tensor, batch: object) -> torch.Tensor:
        self.weight *= 3
        return loss + self.weight


def test_a_loss_that_explodes_without_being_nan_is_told_once() -> None:
    told: list[str] = []
    config = FitConfig(epochs=3, lr=50, schedule="constant", warmup_epochs=0)
    fit(_network(), _batches(), None, config, CPU, task=TASK, tell=told.append)
    assert len(told) == 1 and "in epoch 1" in told[0] and "--lr, 50 now" in told[0] and told[0].startswith("warning")
    told.clear()
    fit(
        _network(), _batches(), None, FitConfig(epochs=3, lr=0.05), CPU, task=TASK, hooks=[_Penalty()], tell=told.append
    )
    assert told == []


def test_a_trained_network_may_start_near_zero() -> None:
    told: list[str] = []
    model = _network()
    fit(model, _batches(), None, FitConfig(epochs=5, lr=0.05), CPU, task=TASK)
    misled = [(images, (labels + 1) % 4) for images, labels in _batches(2)]
    fit(model, [*_batches(1), *misled], None, FitConfig(epochs=1, lr=1e-4), CPU, task=TASK, tell=told.append)
    assert told == []


@pytest.mark.parametrize("extra", [{}, {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1}, {"clip_grad": 1.0}])
def test_equal_seeds_give_equal_bytes(extra: dict[str, float]) -> None:
    config = FitConfig(epochs=2, lr=0.05, **extra)  # type: ignore[arg-type]
    digests = []
    for _ in range(2):
        model = _network()
        fit(model, _batches(), None, config, CPU, task=TASK, seed=3)
        digests.append(_digest(model))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("count", [4, 5])
def test_accumulated_batches_make_the_step_of_one_large_batch(count: int) -> None:
    # Without batch normalisation the mean gradient of equal batches is that of their union; 5 leaves a short last step.
    small = _batches(count, 8)
    groups = [small[i : i + 4] for i in range(0, count, 4)]
    large = [(torch.cat([b[0] for b in g]), torch.cat([b[1] for b in g])) for g in groups]
    weights = []
    for batches, accumulate in ((small, 4), (large, 1)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
        config = FitConfig(epochs=1, lr=0.1, schedule="constant", accumulate=accumulate)
        fit(model, batches, None, config, CPU, task=TASK)
        weights.append(model[1].weight)
    assert torch.allclose(weights[0], weights[1], atol=1e-6)


def test_early_stop() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))  # hardly changes at this learning rate
    config = FitConfig(epochs=9, lr=1e-9, patience=2)
    assert len(fit(model, _batches(), _batches(1, seed=1), config, CPU, task=TASK).epochs) == 3


def test_a_loss_that_is_not_a_number_stops_at_once() -> None:
    batches = _batches()
    batches[1][0][0, 0, 0, 0] = float("nan")
    with pytest.raises(PruneError, match=r"loss is nan at epoch 1, batch 2; lower the learning rate"):
        fit(_network(), batches, None, FitConfig(epochs=1, lr=0.1), CPU, task=TASK)


def test_distillation_moves_towards_the_teacher() -> None:
    teacher = _network(1)
    fit(teacher, _batches(), None, FitConfig(epochs=3, lr=0.05), CPU, task=TASK)
    before = _digest(teacher)
    images = _batches(1, 64, seed=5)[0][0]

    def distance(weight: float) -> float:
        student = _network(2)
        config, hooks = FitConfig(epochs=3, lr=0.05), [Distillation(teacher, TASK, weight)]
        misled = [(images, labels.flip(0)) for images, labels in _batches()]  # only the teacher knows better
        fit(student, misled, None, config, CPU, task=TASK, hooks=hooks)
        with torch.no_grad():
            return float((student.eval()(images).softmax(1) - teacher(images).softmax(1)).abs().mean())

    assert distance(1.0) < 0.5 * distance(0.0)
    assert _digest(teacher) == before


@pytest.mark.parametrize(("field", "value"), [("optimizer", "sgdx"), ("schedule", "nothing")])
def test_names_timm_does_not_know(field: str, value: str) -> None:
    with pytest.raises(RecipeError, match=value):
        fit(_network(), _batches(), None, FitConfig(epochs=1, lr=0.1, **{field: value}), CPU, task=TASK)  # type: ignore[arg-type]


def test_evaluation_counts_and_restores_the_mode() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.eye(10)[torch.arange(len(x))] * 5 + torch.arange(10) * 0.1 + self.offset

    model = Fixed().train()
    labels = torch.tensor([0, 1, 9, 5, 8, 0])  # rows predict their own index; 5 is the fifth guess of row 3
    accuracy = evaluate(model, [(torch.zeros(6, 3, 2, 2), labels)], CPU)
    assert accuracy.images == 6 and model.training
    assert accuracy.top1 == pytest.approx(100 * 2 / 6)
    assert accuracy.top5 == pytest.approx(100 * 4 / 6)


def test_metrics_go_to_a_file(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "run" / "m.jsonl") as log:
        log.write({"epoch": 1, "train_loss": 0.5, "validation_top1": None})
    assert (tmp_path / "run" / "m.jsonl").read_text() == '{"epoch": 1, "train_loss": 0.5}\n'


def test_progress_receives_every_step_and_epoch() -> None:
    class Recorder:
        def __init__(self) -> None:
            self.steps: list[tuple[int, int, int]] = []
            self.epochs: list[int] = []

        def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
            self.steps.append((epoch, step, steps))

        def on_epoch(self, epoch: Epoch, tables: Sequence[Table]) -> None:
            self.epochs.append(epoch.epoch)

    recorder = Recorder()
    fit(_network(), _batches(2), None, FitConfig(epochs=2, lr=0.1), CPU, task=TASK, progress=recorder)
    assert recorder.steps == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)] and recorder.epochs == [1, 2]


def test_devices() -> None:
    assert pick_device("cpu").type == "cpu" and pick_device("auto")
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(RecipeError, match=name):
            pick_device(name)
