"""Curves of training runs: what each tracker's own library reads of what was written, and trackers that fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from prunecli.engine.trackers.base import TrackedRun, Tracker
from prunecli.engine.trackers.index import TRACKERS, make_trackers
from prunecli.engine.tracking import MetricsLog, Tracking
from prunecli.errors import RecipeError
from tests.conftest import REPOSITORY
from tests.unit.tracked_runs import READERS, SETTINGS

_STRANGE = ("TRACKIO_", "WANDB_", "MLFLOW_")


def available(name: str) -> None:
    """Skips a test where the library of a tracker is not installed."""
    try:
        make_trackers([name])
    except RecipeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "mlflow" else ()) for name in sorted(READERS)]
)
def test_a_run_in_two_parts_is_one_run_to_the_library(name: str, tmp_path: Path) -> None:
    available(name)
    env = {key: value for key, value in os.environ.items() if not key.startswith(_STRANGE)}
    env |= {
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY)]),
    }
    command = [sys.executable, "-m", "tests.unit.tracked_runs", name, str(tmp_path)]
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)  # nothing else may be there
    assert found["runs"] == 1 and found["names"] == ["train_loss"]
    assert [step for step, _ in found["points"]] == [1, 2, 3]
    assert [value for _, value in found["points"]] == pytest.approx([1, 1 / 2, 1 / 3])
    expected = {key: str(value) for key, value in SETTINGS.items()} if name == "mlflow" else SETTINGS
    assert found["settings"] == expected
    if name == "mlflow":
        assert found["ended"] == "FINISHED"
    if name == "wandb":
        assert found["ended"] == [1, 0], "the first part crashed"
    rows = [json.loads(line) for line in (tmp_path / "dense.metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3] and rows[0]["tables"] == [{"title": "a table"}]


def test_a_run_that_starts_again_replaces_its_curves(tmp_path: Path) -> None:
    for epochs in (4, 2):
        tracking = Tracking(make_trackers(["tensorboard"]), TrackedRun("dense", tmp_path, SETTINGS), None, pytest.fail)
        with MetricsLog(tmp_path / "dense.metrics.jsonl", tracking=tracking) as log:
            for epoch in range(1, epochs + 1):
                log.write({"epoch": epoch, "train_loss": float(epochs)})
    assert READERS["tensorboard"](tmp_path)["points"] == [(1, 2.0), (2, 2.0)]


class _Recorder(Tracker):
    """Keeps what it is told, and fails at one step."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.points: list[tuple[int, Mapping[str, float]]] = []
        self.known: list[str | None] = []
        self.ended: list[bool] = []
        self._fails_at = fails_at

    def start(self, run: TrackedRun, known: str | None, step: int) -> str:
        self.known.append(known)
        return "number 7"

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if step == self._fails_at:
            raise ValueError("no connection\nand more")
        self.points.append((step, dict(figures)))

    def finish(self, *, failed: bool) -> None:
        self.ended.append(failed)


def _log(folder: Path, trackers: Mapping[str, Tracker], warnings: list[str], *, continued: bool = False) -> MetricsLog:
    tracking = Tracking(trackers, TrackedRun("dense", folder, SETTINGS), folder / "known.json", warnings.append)
    return MetricsLog(folder / "dense.metrics.jsonl", tracking=tracking, continued=continued, warn=warnings.append)


def _row(epoch: int) -> dict[str, float | int | None]:
    return {"epoch": epoch, "train_loss": 0.5, "validation_top1": None}


def test_a_tracker_that_fails_costs_itself_alone(tmp_path: Path) -> None:
    warnings: list[str] = []
    bad, good = _Recorder(fails_at=2), _Recorder()
    with _log(tmp_path, {"bad": bad, "good": good}, warnings) as log:
        for epoch in (1, 2, 3):
            log.write(_row(epoch))
    assert warnings == ["bad: tracking failed (no connection); training goes on without it"]
    assert [step for step, _ in bad.points] == [1] and bad.ended == []
    assert good.points == [(epoch, {"train_loss": 0.5}) for epoch in (1, 2, 3)] and good.ended == [False]
    assert len((tmp_path / "dense.metrics.jsonl").read_text().splitlines()) == 3


def test_a_log_that_cannot_be_written_costs_no_tracker(tmp_path: Path) -> None:
    (tmp_path / "dense.metrics.jsonl").mkdir()
    warnings: list[str] = []
    good = _Recorder()
    with _log(tmp_path, {"good": good}, warnings) as log:
        log.write(_row(1))
        log.write(_row(2))
    assert len(warnings) == 1 and "could not be written" in warnings[0]
    assert [step for step, _ in good.points] == [1, 2]


def test_a_tracker_that_joins_later_gets_the_rows_before(tmp_path: Path) -> None:
    warnings: list[str] = []
    old = _Recorder()
    with pytest.raises(KeyError), _log(tmp_path, {"old": old}, warnings) as log:
        for epoch in (1, 2, 3):
            log.write(_row(epoch))
        raise KeyError
    assert old.ended == [True]
    again, new = _Recorder(), _Recorder()
    with _log(tmp_path, {"old": again, "new": new}, warnings, continued=True) as log:
        for epoch in (3, 4):
            log.write(_row(epoch))
    assert again.known == ["number 7"] and [step for step, _ in again.points] == [4]
    assert new.known == [None] and [step for step, _ in new.points] == [1, 2, 3, 4]
    assert not warnings


def test_nothing_is_started_before_the_first_row(tmp_path: Path) -> None:
    tracker = _Recorder()
    with pytest.raises(KeyError), _log(tmp_path, {"one": tracker}, []):
        raise KeyError
    assert tracker.known == [] and tracker.ended == [] and list(tmp_path.iterdir()) == []


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in (("mlflow", "mlflow"), ("wandb", "wandb"), ("trackio", "trackio")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            RecipeError, match=rf"--track {name}: {module} is not installed; pip install 'prunecli\[{name}\]'"
        ):
            make_trackers([name])
    with pytest.raises(RecipeError, match="did you mean 'tensorboard'"):
        make_trackers(["tensorbord"])


def test_no_library_is_imported_unless_it_is_asked_for() -> None:
    code = (
        "import sys; from prunecli.engine.trackers.index import TRACKERS; import prunecli.pipeline.tracked; "
        f"[TRACKERS.load(name) for name in {TRACKERS.built_in}]; "
        "print([name for name in ('wandb', 'mlflow', 'trackio', 'tensorboard') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
