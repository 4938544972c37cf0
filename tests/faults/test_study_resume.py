"""Killed at any moment and resumed, an audit and a comparison of methods write the same bytes."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Undisturbed
from tests.faults.processes import FEW_DIGITS, Processes, Sent, killed_and_resumed, sha256

_AUDIT = (
    f"audit dense.safetensors --data {FEW_DIGITS} --methods taylor --units 10 --batches 1 --batch-size 64 "
    "-o x.json --save-every 0"
).split()
_CONTEST = (
    f"compare dense.safetensors --methods taylor --data {FEW_DIGITS} --seeds 2 --recover 2 --batch-size 64 "
    "--calibration-images 64 --images 20 -o x.json"
).split()
_WORDS = {"audit": _AUDIT, "contest": _CONTEST}
_REPORTS: dict[str, bytes] = {}


def _place(folder: Path, undisturbed: Undisturbed) -> Path:
    folder.mkdir(exist_ok=True)
    shutil.copy(undisturbed.result("train") / "x.safetensors", folder / "dense.safetensors")
    return folder


def _expected(name: str, processes: Processes, undisturbed: Undisturbed, folder: Path) -> bytes:
    """The report of a run that nobody stopped."""
    if name not in _REPORTS:
        place = _place(folder / "undisturbed", undisturbed)
        done = processes.run(_WORDS[name], place)
        assert done.code == 0, done.err
        _REPORTS[name] = (place / "x.json").read_bytes()
    return _REPORTS[name]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("audit", "state:renamed@4"),  # in the middle of the ablations
        pytest.param("audit", "state:tensors@12", marks=pytest.mark.slow),  # of the scores
        pytest.param("contest", "state:renamed@2", marks=pytest.mark.slow),
        *(
            pytest.param(name, fault, marks=pytest.mark.slow)
            for name in ("audit", "contest")
            for fault in ("state:begin@1", "state:manifest@3", "file:synced@1", "file:renamed@1", "stage:saved")
        ),
        pytest.param("contest", "fit:step@3", marks=pytest.mark.slow),
        pytest.param("audit", "file:renamed@2", marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_point(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, name: str, fault: str
) -> None:
    wanted = _expected(name, processes, undisturbed, tmp_path)
    place = _place(tmp_path / "killed", undisturbed)
    came = killed_and_resumed(processes, _WORDS[name], place, fault=fault)
    assert came["killed"] and came["code"] == 0, came["err"]
    assert (place / "x.json").read_bytes() == wanted
    assert not list(place.glob("**/*.state")) and not list(place.glob(".x.*"))


@pytest.mark.parametrize(("name", "text"), [("audit", "ablating 10 units"), ("contest", "1/6 taylor, seed 0")])
def test_a_signal_says_how_to_go_on(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, name: str, text: str
) -> None:
    wanted = _expected(name, processes, undisturbed, tmp_path)
    place = _place(tmp_path / "stopped", undisturbed)
    words = [word if word != "0" else "1000" for word in _WORDS[name]]  # nothing is saved but for the signal
    stopped = processes.run(words, place, signals=[Sent(signal.SIGINT, text=text)])
    assert stopped.code == 130, stopped.err
    assert stopped.err.splitlines()[-1].endswith(f"Resume with: prune {' '.join(words)} --resume")
    assert not (place / "x.json").exists() and list(place.glob("x.json.state/state-*"))
    assert processes.run([*words, "--resume"], place).code == 0
    assert (place / "x.json").read_bytes() == wanted


def test_only_the_same_study_is_resumed(processes: Processes, undisturbed: Undisturbed, tmp_path: Path) -> None:
    place = _place(tmp_path / "other", undisturbed)
    assert processes.run(_AUDIT, place, fault="state:renamed@2").code == -signal.SIGKILL
    again = processes.run(_AUDIT, place)
    assert again.code == 2 and "holds the state of an unfinished run; add --resume" in again.err
    words = [word if word != "10" else "12" for word in _AUDIT]
    other = processes.run([*words, "--resume"], place)
    assert other.code == 2 and "was saved with units 10, not 12" in other.err
    methods = processes.run([word if word != "taylor" else "l1" for word in _AUDIT] + ["--resume"], place)
    assert methods.code == 2 and 'was saved with methods "taylor", not "l1"' in methods.err
    assert sha256(place / "dense.safetensors")


def test_what_is_finished_is_shown_again(processes: Processes, undisturbed: Undisturbed, tmp_path: Path) -> None:
    place = _place(tmp_path / "done", undisturbed)
    for name, words in _WORDS.items():
        wanted = _expected(name, processes, undisturbed, tmp_path)
        (place / "x.json").write_bytes(wanted)
        done = processes.run([*words, "--resume", "--json"], place)
        assert done.code == 0 and "finished already, nothing to resume" in done.err
        assert json.loads(wanted).items() <= json.loads(done.out).items()


_SEARCH = (
    f"auto dense.safetensors --data {FEW_DIGITS} --methods l2 --scope local --trials 5 --epochs 1 --images 32 "
    "--calibration-images 64 --batch-size 64 --max-drop 60 -o x.safetensors"
).split()


@pytest.mark.parametrize(
    "fault",
    [
        "state:renamed@3",  # between networks
        pytest.param("fit:step@1", marks=pytest.mark.slow),  # in the middle of finetuning
        pytest.param("stage:pruned", marks=pytest.mark.slow),
        pytest.param("file:renamed@4", marks=pytest.mark.slow),
    ],
)
def test_a_search_that_is_killed_goes_on(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, fault: str
) -> None:
    whole = _place(tmp_path / "undisturbed", undisturbed)
    done = processes.run(_SEARCH, whole)
    assert done.code == 0, done.err
    place = _place(tmp_path / "killed", undisturbed)
    came = killed_and_resumed(processes, _SEARCH, place, fault=fault)
    assert came["killed"] and came["code"] == 0, came["err"]
    for name in ("x.safetensors", "x.yaml", "x.json"):
        assert (place / name).read_bytes() == (whole / name).read_bytes(), name
    assert not list(place.glob("**/*.state")) and not list(place.glob("*.trials"))
