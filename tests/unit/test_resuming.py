"""Training that is stopped after any step and resumed equals training that is not stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunecli.checkpoint.runstate import RunIdentity, StateStore
from prunecli.engine.config import FitConfig
from prunecli.engine.fit import FitResult, fit
from prunecli.engine.freezing import FreezeBackbone
from prunecli.engine.resuming import random_state, set_random_state
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import ModelError, PruneError, RecipeError, ResourceError
from tests.unit.test_engine import CPU, _batches, _digest

CONFIGS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "best epoch": {"lr": 0.003},
    "adamw, no schedule": {"optimizer": "adamw", "lr": 0.003, "schedule": "constant"},
    "lamb, warm-up, step schedule": {"optimizer": "lamb", "lr": 0.01, "schedule": "step", "warmup_epochs": 1},
    "mixup": {"mixup": 0.2, "cutmix": 1.0, "label_smoothing": 0.1},
    "accumulated, clipped": {"accumulate": 3, "clip_grad": 1.0},
    "frozen at first": {"freeze_backbone_epochs": 2},
    "early stop": {"lr": 1e-9, "patience": 1, "epochs": 5},
}
VALIDATED = ("best epoch", "early stop")
TASK = Classification.with_classes(4)


class _Stopped(Exception):
    pass


class _Dies:
    """A keeper that raises `_Stopped` once it has saved a number of states; None: never."""

    def __init__(self, store: StateStore, after: int | None) -> None:
        self._store, self._after = store, after
        self.saved = 0
        self.load, self.due, self.interrupted = store.load, store.due, store.interrupted

    def save(self, content: dict[str, Any], position: str) -> bool:
        self._store.save(content, position)
        self.saved += 1
        if self.saved == self._after:
            raise _Stopped
        return True


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(128, 4)
    )


def _store(folder: Path, **identity: Any) -> StateStore:
    return StateStore(folder, RunIdentity(identity, {}), every=0)


def _train(config: FitConfig, keeper: Any, validate: bool = False) -> tuple[str, FitResult]:
    model = _network()
    validation = _batches(2, seed=1) if validate else None
    hooks = [FreezeBackbone(config.freeze_backbone_epochs)] if config.freeze_backbone_epochs else []
    result = fit(model, _batches(4, 8), validation, config, CPU, task=TASK, hooks=hooks, keeper=keeper)
    return _digest(model), result


@pytest.mark.parametrize("name", CONFIGS)
def test_stopped_after_any_step_it_resumes_the_same(tmp_path: Path, name: str) -> None:
    config = FitConfig(**({"epochs": 3 if name == "frozen at first" else 2, "lr": 0.05} | CONFIGS[name]))
    validate = name in VALIDATED
    expected, result = _train(config, None, validate)
    watching = _Dies(_store(tmp_path / "whole"), None)
    assert _train(config, watching, validate)[0] == expected  # saving changes nothing
    for after in range(1, watching.saved + 1):
        folder = tmp_path / str(after)
        folder.mkdir()
        with pytest.raises(_Stopped):
            _train(config, _Dies(_store(folder), after), validate)
        digest, resumed = _train(config, _Dies(_store(folder), None), validate)
        assert digest == expected, f"stopped after {after} of {watching.saved}"
        assert resumed.chosen == result.chosen
        assert [(e.epoch, e.lr, e.loss, e.validation) for e in resumed.epochs] == [
            (e.epoch, e.lr, e.loss, e.validation) for e in result.epochs
        ]
    if name == "early stop":
        assert len(result.epochs) < config.epochs
    assert name != "best epoch" or result.chosen > 1


@pytest.mark.parametrize("left_out", ["random", "optimizer", "updates", "best", "position"])
def test_every_part_of_the_state_matters(tmp_path: Path, left_out: str) -> None:
    """A state that lacks a part gives another result or an error, so the test above can fail."""
    validate = left_out == "best"
    config = FitConfig(epochs=3, lr=2.0 if validate else 0.05, mixup=0.2)  # too high a rate: the first epoch is best
    expected, result = _train(config, None, validate)
    assert not validate or result.chosen == 1
    with pytest.raises(_Stopped):
        _train(config, _Dies(_store(tmp_path), 7), validate)

    class _Forgetful(_Dies):
        def __init__(self) -> None:
            super().__init__(_store(tmp_path), None)
            kept = self._store.load()
            assert kept is not None
            torch.manual_seed(99)
            np.random.seed(99)
            fresh = {"random": random_state(CPU), "updates": 0, "best": None}
            if left_out == "optimizer":
                kept["optimizer"]["state"] = {}
            elif left_out == "position":
                kept["position"]["batch"] = 0
            else:
                kept[left_out] = fresh[left_out]
            self.load = lambda: kept  # type: ignore[method-assign]

    assert _train(config, _Forgetful(), validate)[0] != expected


def test_every_generator_continues_where_it_was() -> None:
    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), float(np.random.randn()), random.random()]

    draw()
    state = random_state(CPU)
    first = draw()
    draw()
    set_random_state(state, CPU)
    assert draw() == first


def test_weights_that_are_not_finite_are_neither_saved_nor_returned(tmp_path: Path) -> None:
    config = FitConfig(epochs=2, lr=1e30, schedule="constant")
    with pytest.raises(PruneError, match=r"NaN or infinity|loss is (nan|inf)"):
        _train(config, _Dies(_store(tmp_path), None))
    state = _store(tmp_path).load()
    assert state is None or all(bool(torch.isfinite(t.float()).all()) for t in state["model"].values())
    # One step alone breaks the weights and no later loss shows it: the end of the epoch does.
    model = _network()
    with pytest.raises(PruneError, match="holds NaN or infinity at epoch 1, batch 1"):
        fit(model, _batches(1), None, FitConfig(epochs=1, lr=3e38, schedule="constant"), CPU, task=TASK)


def test_a_state_of_another_network_is_one_line(tmp_path: Path) -> None:
    config = FitConfig(epochs=2, lr=0.05)
    with pytest.raises(_Stopped):
        _train(config, _Dies(_store(tmp_path), 1))
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    with pytest.raises(ModelError, match="the saved state does not fit this network"):
        fit(other, _batches(4, 8), None, config, CPU, task=TASK, keeper=_store(tmp_path))


def test_states_of_another_run_are_refused(tmp_path: Path) -> None:
    warnings: list[str] = []
    content = {"x": torch.ones(2)}
    StateStore(tmp_path, RunIdentity({"lr": 0.1}, {"torch": "1"})).save(content, "here")
    with pytest.raises(RecipeError, match=r"was saved with lr 0\.1, not 0\.2"):
        StateStore(tmp_path, RunIdentity({"lr": 0.2}, {"torch": "1"})).load()
    restored = StateStore(tmp_path, RunIdentity({"lr": 0.1}, {"torch": "2"}), warn=warnings.append).load()
    assert restored is not None and torch.equal(restored["x"], content["x"])
    assert len(warnings) == 1 and "was saved with torch 1, now 2; the last bits may differ" in warnings[0]


def test_saving_takes_a_bounded_share_of_the_time(tmp_path: Path) -> None:
    store = StateStore(tmp_path, RunIdentity({}, {}), every=0.05)
    assert not store.due()
    store._took = 10.0
    store._last -= 5
    assert not store.due()  # ten seconds for a state are a twentieth of the time only every 200
    store._last -= 200
    assert store.due()


def test_a_state_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    warnings: list[str] = []
    store = StateStore(tmp_path, RunIdentity({}, {}), warn=warnings.append)
    assert store.save({"x": 1}, "first")
    assert not store.save({"x": object()}, "second") and not store.save({"x": object()}, "third")
    assert len(warnings) == 1 and "the state at second could not be saved" in warnings[0]
    assert store.load() == {"x": 1} and not list(tmp_path.glob(".staged-*"))
    assert issubclass(ResourceError, PruneError)


class _Gappy:
    """Four batches per epoch, one of which cannot be read."""

    def __init__(self, missing: int) -> None:
        self._missing, self.position = missing, 0

    def __len__(self) -> int:
        return 4

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for index, batch in enumerate(_batches(4, 8)):
            if index >= first and index != self._missing:
                self.position = index + 1
                yield batch


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_a_missing_batch_leaves_no_gradient_behind(tmp_path: Path, missing: int) -> None:
    """Batches 0 and 1 make one step, 2 and 3 the next, whichever is missing, also after a resume."""
    config = FitConfig(epochs=2, lr=0.05, accumulate=2)
    steps: list[tuple[int, int]] = []

    class _Steps:
        def on_step(self, epoch: int, step: int, steps_: int, loss: float) -> None:
            steps.append((epoch, step))

        def on_epoch(self, epoch: Any, tables: Any) -> None:
            pass

    def train(keeper: Any) -> str:
        model = _network()
        batches: Any = _Gappy(missing)
        fit(model, batches, None, config, CPU, task=TASK, keeper=keeper, progress=_Steps())
        return _digest(model)

    expected = train(None)
    assert len(steps) == 4, steps
    for after in range(1, 6):
        folder = tmp_path / str(after)
        folder.mkdir()
        with pytest.raises(_Stopped):
            train(_Dies(_store(folder), after))
        assert train(_store(folder)) == expected, after
