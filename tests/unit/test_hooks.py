"""Training hooks: when they are called, what they may change, and that they resume bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.checkpoint.runstate import RunIdentity, StateStore
from prunecli.engine.config import FitConfig
from prunecli.engine.device import channels_last
from prunecli.engine.distillation import Distillation
from prunecli.engine.fit import Epoch, FitResult, fit
from prunecli.engine.freezing import FreezeBackbone
from prunecli.engine.hooks import Batch, Hook, State, Training
from prunecli.engine.optimizer import make_optimizer
from prunecli.engine.tasks.classification import Classification
from prunecli.engine.tracking import MetricsLog
from prunecli.errors import ModelError, RecipeError
from prunecli.pipeline.fit_progress import FitProgress
from prunecli.report.table import Table
from tests.unit.test_engine import CPU, _batches, _digest

TASK = Classification.with_classes(4)


class Masked(Hook):
    """Somebody else's hook: the weights of a mask, grown by one position after every step, are held at zero."""

    name = "masked"

    def begin(self, training: Training) -> None:
        weight = training.model.get_parameter("0.weight")
        self._weight, self._mask = weight, torch.ones(weight.numel(), dtype=torch.bool)
        self._mask[::3] = False
        self._steps = 0
        self.largest: list[float] = []

    def after_step(self) -> None:
        self._steps += 1
        self._mask[self._steps % len(self._mask)] = False
        with torch.no_grad():
            self._weight.mul_(self._mask.view_as(self._weight))
        self.largest.append(float(self._weight.detach().flatten()[~self._mask].abs().max()))

    def state(self) -> State:
        return {"mask": self._mask.clone(), "steps": self._steps}

    def restore(self, state: State) -> None:
        self._mask.copy_(state["mask"])
        self._steps = state["steps"]


class Recorder(Hook):
    """Records every call."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self._calls = name, calls  # type: ignore[misc]

    def _note(self, event: str) -> None:
        self._calls.append(f"{self.name} {event}")

    def begin(self, training: Training) -> None:
        self._note(f"begin {training.epochs} {training.steps} {training.num_classes}")

    def epoch_start(self, epoch: int, batch: int) -> None:
        self._note(f"start {epoch} {batch}")

    def loss(self, loss: Tensor, batch: Batch) -> Tensor:
        self._note(f"loss {len(batch.labels)} {tuple(batch.outputs.shape)}")
        return loss

    def before_step(self) -> None:
        self._note("before")

    def after_step(self) -> None:
        self._note("after")

    def epoch_end(self, epoch: int) -> None:
        self._note(f"epoch end {epoch}")

    def score(self, epoch: int, score: float) -> float:
        self._note(f"score {epoch}")
        return score

    def end(self) -> None:
        self._note("end")


class _Stopped(Exception):
    pass


class _Dies:
    """A keeper that raises after a number of saved states."""

    def __init__(self, store: StateStore, after: int | None) -> None:
        self._store, self._after, self.saved = store, after, 0
        self.load, self.due, self.interrupted = store.load, store.due, store.interrupted

    def save(self, content: State, position: str) -> bool:
        self._store.save(content, position)
        self.saved += 1
        if self.saved == self._after:
            raise _Stopped
        return True


def _network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def _trained(config: FitConfig, hooks: Sequence[Hook], **options: Any) -> tuple[nn.Module, FitResult]:
    model = _network()
    validation = options.pop("validation", None)
    return model, fit(model, _batches(4, 8), validation, config, CPU, task=TASK, hooks=hooks, **options)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_mask_holds_after_every_step_and_resumes_bit_by_bit(tmp_path: Path, optimizer: str) -> None:
    config = FitConfig(epochs=2, lr=0.05, optimizer=optimizer)  # both have momentum, which moves masked weights
    hook = Masked()
    model, _ = _trained(config, [hook])
    assert len(hook.largest) == 8 and max(hook.largest) == 0.0
    expected = _digest(model)
    for after in (2, 5, 7):  # in the middle of an epoch, and at its end
        store = StateStore(tmp_path / str(after), RunIdentity({}, {}), every=0)
        store.folder.mkdir()
        with pytest.raises(_Stopped):
            _trained(config, [Masked()], keeper=_Dies(store, after))
        again = Masked()
        resumed, _ = _trained(config, [again], keeper=_Dies(store, None))
        assert _digest(resumed) == expected, after
        assert 0 < len(again.largest) < 8


def test_a_hook_without_its_state_resumes_differently(tmp_path: Path) -> None:
    class Forgetful(Masked):
        def restore(self, state: State) -> None:
            pass

    config = FitConfig(epochs=2, lr=0.05)
    expected = _digest(_trained(config, [Masked()])[0])
    store = StateStore(tmp_path, RunIdentity({}, {}), every=0)
    with pytest.raises(_Stopped):
        _trained(config, [Masked()], keeper=_Dies(store, 5))
    assert _digest(_trained(config, [Forgetful()], keeper=_Dies(store, None))[0]) != expected


def test_a_state_of_other_hooks_does_not_fit(tmp_path: Path) -> None:
    config = FitConfig(epochs=2, lr=0.05)
    store = StateStore(tmp_path, RunIdentity({}, {}), every=0)
    with pytest.raises(_Stopped):
        _trained(config, [], keeper=_Dies(store, 3))
    with pytest.raises(ModelError, match=r"the saved state does not fit this network \('masked'\)"):
        _trained(config, [Masked()], keeper=_Dies(store, None))


def test_a_state_of_another_shape_does_not_fit(tmp_path: Path) -> None:
    class Larger(Masked):
        def state(self) -> State:
            return {"mask": torch.ones(7, dtype=torch.bool), "steps": 1}

    config = FitConfig(epochs=2, lr=0.05)
    store = StateStore(tmp_path, RunIdentity({}, {}), every=0)
    with pytest.raises(_Stopped):
        _trained(config, [Larger()], keeper=_Dies(store, 3))
    with pytest.raises(
        ModelError, match=r"the saved state does not fit this network \(.*size.*start again with --force"
    ):
        _trained(config, [Masked()], keeper=_Dies(store, None))


def test_hooks_with_one_name_would_lose_a_state() -> None:
    with pytest.raises(RecipeError, match="two training hooks are named 'masked'; their states need different names"):
        _trained(FitConfig(epochs=1, lr=0.05), [Masked(), Masked()])


def test_hooks_are_called_in_order() -> None:
    calls: list[str] = []
    hooks = [Recorder("a", calls), Recorder("b", calls)]
    _trained(FitConfig(epochs=1, lr=0.05, accumulate=2), hooks, validation=_batches(1))
    of_first = [call.removeprefix("a ") for call in calls if call.startswith("a")]
    step = ["loss 8 (8, 4)", "loss 8 (8, 4)", "before", "after"]
    assert of_first == ["begin 1 2 4", "start 1 0", *step, *step, "epoch end 1", "score 1", "end"]
    assert [call[0] for call in calls] == ["a", "b"] * len(of_first)


def test_a_loss_term_shrinks_weights() -> None:
    class Penalty(Hook):
        def begin(self, training: Training) -> None:
            self._weight = training.model.get_parameter("4.weight")

        def loss(self, loss: Tensor, batch: Batch) -> Tensor:
            return loss + self._weight.square().sum()

    def size(hooks: Sequence[Hook]) -> float:
        model, _ = _trained(FitConfig(epochs=3, lr=0.05, weight_decay=0.0), hooks)
        return float(model.get_parameter("4.weight").detach().norm())

    assert size([Penalty()]) < 0.5 * size([])


def test_before_step_sees_clipped_gradients() -> None:
    norms: list[float] = []

    class Watching(Hook):
        def begin(self, training: Training) -> None:
            self._model = training.model

        def before_step(self) -> None:
            gradients = [p.grad.flatten() for p in self._model.parameters() if p.grad is not None]
            norms.append(float(torch.cat(gradients).norm()))

    _trained(FitConfig(epochs=1, lr=0.05, clip_grad=0.01), [Watching()])
    assert norms and all(norm <= 0.0101 for norm in norms)


def test_hooks_influence_which_epoch_is_best() -> None:
    class Only(Hook):
        def __init__(self, judged: Callable[[int, float], float | None]) -> None:
            self.score = judged  # type: ignore[method-assign, assignment]

    config, validation = FitConfig(epochs=4, lr=0.02), _batches(2, seed=1)
    for epoch in (1, 3):
        judge = Only(lambda number, score, epoch=epoch: score if number == epoch else None)  # type: ignore[misc]
        _, result = _trained(config, [judge], validation=validation)
        assert result.chosen == epoch
    _, inverted = _trained(config, [Only(lambda number, score: -number)], validation=validation)
    assert inverted.chosen == 1
    _, none = _trained(config, [Only(lambda number, score: None)], validation=validation)
    assert none.chosen == 4  # no epoch may be chosen, so the last weights stay


def test_tables_reach_the_log_and_the_screen(tmp_path: Path) -> None:
    class Counting(Hook):
        epochs = 0

        def epoch_end(self, epoch: int) -> None:
            self.epochs = epoch

        def tables(self) -> Sequence[Table]:
            return [Table(("layer", "alive"), [("conv", str(8 - self.epochs))], title="channels")]

    class Sink:
        def __init__(self) -> None:
            self.tables: list[Table] = []

        def note(self, text: str) -> None:
            pass

        warn = note

        def aside(self, table: Table) -> None:
            pass

        def live(self, table: Table) -> None:
            self.tables.append(table)

    sink = Sink()
    with MetricsLog(tmp_path / "m.jsonl") as log:
        progress = FitProgress(sink, lambda done, text: None, "", 2, log)  # type: ignore[arg-type]
        _trained(FitConfig(epochs=2, lr=0.05), [Counting()], progress=progress)
    assert [table.rows for table in sink.tables] == [[("conv", "7")], [("conv", "6")]]
    assert '"tables": [{"columns": ["layer", "alive"], "rows": [["conv", "6"]]' in (tmp_path / "m.jsonl").read_text()


def _plain_loop(
    model: nn.Module, config: FitConfig, start_epoch: Callable[[int], None], loss_of: Callable[[Tensor, Tensor], Tensor]
) -> str:
    """A training loop without hooks, and the digest of what it trained."""
    optimizer = make_optimizer(model, config)
    with channels_last(model) as layout:
        for epoch in range(1, config.epochs + 1):
            model.train()
            start_epoch(epoch)
            for images, labels in _batches(4, 8):
                loss_of(images.to(memory_format=layout), labels).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return _digest(model)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_freezing_equals_a_plain_loop(optimizer: str) -> None:
    config = FitConfig(epochs=3, lr=0.05, optimizer=optimizer, schedule="constant")
    model = _network()

    def start_epoch(epoch: int) -> None:
        for module in model[:-1]:
            module.train(epoch > 2)
            module.requires_grad_(epoch > 2)

    expected = _plain_loop(model, config, start_epoch, lambda images, labels: F.cross_entropy(model(images), labels))
    trained, _ = _trained(config, [FreezeBackbone(2)])
    assert _digest(trained) == expected
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert _digest(_trained(config, [])[0]) != expected


def test_distillation_equals_a_plain_loop() -> None:
    config = FitConfig(epochs=2, lr=0.05, schedule="constant")
    model, teacher = _network(), _network(seed=1).eval()

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        scores = model(images)
        with torch.no_grad():
            target = (teacher(images) / 2).log_softmax(1)
        divergence = F.kl_div((scores / 2).log_softmax(1), target, reduction="sum", log_target=True) / len(scores)
        return (1 - 0.3) * F.cross_entropy(scores, labels) + 0.3 * 2.0**2 * divergence

    expected = _plain_loop(model, config, lambda epoch: None, loss_of)
    trained, _ = _trained(config, [Distillation(teacher, TASK, weight=0.3, temperature=2.0)])
    assert _digest(trained) == expected


def test_distillation_follows_its_formula() -> None:
    student_scores, teacher = torch.randn(8, 4), nn.Linear(3, 4).eval()
    images, labels = torch.randn(8, 3), torch.randint(0, 4, (8,))
    hook = Distillation(teacher, TASK, weight=0.3, temperature=2.0)
    cross_entropy = TASK.loss(student_scores, labels, 0.0)
    with torch.no_grad():
        p = (teacher(images) / 2).softmax(1)
    divergence = (p * (p.log() - (student_scores / 2).log_softmax(1))).sum() / 8  # KL(teacher || student)
    blended = hook.loss(cross_entropy, Batch(images, labels, student_scores))
    assert float(blended) == pytest.approx(float(0.7 * cross_entropy + 0.3 * 4 * divergence), rel=1e-5)


def test_progress_gets_epochs_with_tables() -> None:
    seen: list[tuple[int, int]] = []

    class Progress:
        def on_step(self, epoch: int, step: int, steps: int, loss: float) -> None:
            pass

        def on_epoch(self, epoch: Epoch, tables: Sequence[Table]) -> None:
            seen.append((epoch.epoch, len(tables)))

    _trained(FitConfig(epochs=2, lr=0.05), [Hook()], progress=Progress())
    assert seen == [(1, 0), (2, 0)]
