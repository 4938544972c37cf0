"""Killed at any moment and resumed, a run writes the same bytes as one that nobody stopped."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest
import torch

from prunecli.checkpoint.runstate import RunIdentity, StateStore
from prunecli.errors import RecipeError, ResourceError, Stopped
from tests.faults.bombs import bombs
from tests.faults.conftest import Undisturbed, checkpoints
from tests.faults.payloads import hostile
from tests.faults.processes import FAULTS, PROGRESSIVE, TRAIN, Processes, Sent, killed_and_resumed, sha256

_QUICK = [
    ("train", "state:tensors@5"), ("train", "stage:saved"), ("progressive", "fit:step@9"),
    ("finetune", "fit:step@9"), ("run", "run:noted@3"),
]  # fmt: skip
_MORE = [
    ("train", "fit:step@4"), ("train", "state:renamed@9"), ("progressive", "fit:step@3"),
    ("progressive", "stage:pruned"), ("run", "fit:step@14"),
]  # fmt: skip
_PRUNING = [fault.replace("stage:trained", "stage:pruned") for fault in FAULTS]
_ALL = [
    *((name, f"{fault}@{time}") for name, faults in (("train", FAULTS), ("progressive", _PRUNING)) for fault in faults
      for time in (1, 2, 7)),
    *(("run", f"{fault}@{time}") for fault in [*FAULTS, "stage:pruned", "run:noted"] for time in (1, 2, 4)),
]  # fmt: skip


def _check(processes: Processes, undisturbed: Undisturbed, place: Path, name: str, **when: object) -> bool:
    wanted = undisturbed.hashes(name)
    words = undisturbed.folder(name, place)
    came = killed_and_resumed(processes, words, place, **when)  # type: ignore[arg-type]
    assert came["code"] == 0, came["err"]
    assert checkpoints(place) == wanted
    assert not list(place.glob("**/*.state")) and not list(place.glob("**/.x.*"))
    return bool(came["killed"])


@pytest.mark.parametrize(
    ("name", "fault"), [*_QUICK, *(pytest.param(*point, marks=pytest.mark.slow) for point in _MORE)]
)
def test_killed_at_a_point(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, name: str, fault: str
) -> None:
    assert _check(processes, undisturbed, tmp_path, name, fault=fault)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fault"), _ALL)
def test_killed_at_every_point(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, name: str, fault: str
) -> None:
    killed = _check(processes, undisturbed, tmp_path, name, fault=fault)
    assert killed or not fault.endswith("@1"), "the point was never reached"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "progressive", "run"])
def test_killed_at_twenty_random_moments(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, name: str
) -> None:
    (tmp_path / "timed").mkdir()
    seconds = undisturbed.seconds(name, tmp_path / "timed")
    generator = random.Random(0)
    killed = 0
    for moment in range(20):
        place = tmp_path / str(moment)
        place.mkdir()
        killed += _check(processes, undisturbed, place, name, after=generator.uniform(0, seconds))
    assert killed >= 15


def test_metrics_are_those_of_one_run(processes: Processes, undisturbed: Undisturbed, tmp_path: Path) -> None:
    def rows(folder: Path) -> list[dict[str, float]]:
        lines = (folder / "x.metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]

    wanted = rows(undisturbed.result("train"))
    assert processes.run(TRAIN, tmp_path, fault="fit:epoch@2").code == -signal.SIGKILL
    with (tmp_path / "x.metrics.jsonl").open("a") as log:
        log.write('{"epoch": 2, "cut o')  # as a crash in the middle of a write leaves it
    assert processes.run([*TRAIN, "--resume"], tmp_path).code == 0
    assert rows(tmp_path) == wanted and len(wanted) == 3


@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, number: int, code: int, name: str
) -> None:
    words = [word if word != "0" else "1000" for word in TRAIN]  # nothing is saved but for the signal
    stopped = processes.run(words, tmp_path, signals=[Sent(number, text="epoch 1/3")])
    assert stopped.code == code
    lines = stopped.err.splitlines()
    assert lines[-2] == "finishing the step, then saving; press again to abort without saving"
    assert lines[-1].startswith(f"error: stopped by {name} at epoch ")
    assert lines[-1].endswith(f"Resume with: prune {' '.join(words)} --resume")
    assert len(list(tmp_path.glob("x.safetensors.state/state-*"))) == 1 and not (tmp_path / "x.safetensors").exists()
    resumed = processes.run([*words, "--resume"], tmp_path)
    assert resumed.code == 0 and checkpoints(tmp_path) == undisturbed.hashes("train"), resumed.err


def test_a_second_signal_aborts_at_once(processes: Processes, tmp_path: Path) -> None:
    # Two long steps an epoch, so that the second signal comes while the first waits for its step.
    words = "train cifar:resnet110 --data digits --epochs 3 --batch-size 1000 -o x.safetensors".split()
    signals = [Sent(signal.SIGINT, text="epoch 1/3"), Sent(signal.SIGINT, text="finishing the step")]
    stopped = processes.run(words, tmp_path, signals=signals)
    assert stopped.code == 130
    assert stopped.err.splitlines()[-1] == "error: stopped by Ctrl-C; no state was saved"
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob("*.state"))


def test_a_damaged_state_is_set_aside_and_the_one_before_is_used(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    assert processes.run(TRAIN, tmp_path, fault="fit:step@9").code == -signal.SIGKILL
    older, newest = sorted(tmp_path.glob("x.safetensors.state/state-*"))
    content = bytearray((newest / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (newest / "state.pt").write_bytes(bytes(content))
    resumed = processes.run([*TRAIN, "--resume"], tmp_path)
    assert resumed.code == 0 and checkpoints(tmp_path) == undisturbed.hashes("train")
    warning = next(line for line in resumed.err.splitlines() if line.startswith("warning"))
    assert newest.name in warning and "set aside as damaged-state-" in warning and older.name not in warning


def test_where_no_state_is_whole_nothing_is_thrown_away(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    assert processes.run(TRAIN, tmp_path, fault="fit:step@9").code == -signal.SIGKILL
    for state in tmp_path.glob("x.safetensors.state/state-*"):
        (state / "manifest.json").write_text("{")
    resumed = processes.run([*TRAIN, "--resume"], tmp_path)
    assert resumed.code == 2 and resumed.err.count("set aside as") == 2
    assert "its 2 states are damaged; start again with --force" in resumed.err
    assert len(list(tmp_path.glob("x.safetensors.state/damaged-state-*/state.pt"))) == 2
    again = processes.run([*TRAIN, "--resume"], tmp_path)
    assert again.code == 2 and "start again with --force" in again.err
    assert processes.run([*TRAIN, "--force"], tmp_path).code == 0
    assert checkpoints(tmp_path) == undisturbed.hashes("train")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--lr", "0.01"], "was saved with lr 0.05, not 0.01; use the same settings with --resume"),
        (["--seed", "3"], "was saved with seed 0, not 3"),
        (["--batch-size", "32"], "was saved with data.batch_size 64, not 32"),
    ],
)
def test_a_state_of_another_run_is_refused(
    processes: Processes, tmp_path_factory: pytest.TempPathFactory, extra: list[str], message: str
) -> None:
    place = tmp_path_factory.getbasetemp() / "half_done"
    if not place.exists():
        place.mkdir()
        assert processes.run(TRAIN, place, fault="fit:step@2").code == -signal.SIGKILL
    before = sorted(place.glob("x.safetensors.state/state-*/*"))
    refused = processes.run([*TRAIN, *extra, "--resume"], place)
    assert refused.code == 2 and message in refused.err and len(refused.err.splitlines()) <= 2, refused.err
    assert sorted(place.glob("x.safetensors.state/state-*/*")) == before and before


def test_what_to_do_with_an_unfinished_run_has_to_be_said(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    assert processes.run(TRAIN, tmp_path, fault="fit:step@2").code == -signal.SIGKILL
    asked = processes.run(TRAIN, tmp_path)
    assert asked.code == 2 and "add --resume to continue it, or --force to start again" in asked.err
    both = processes.run([*TRAIN, "--resume", "--force"], tmp_path)
    assert both.code == 2 and "give one of them" in both.err
    anew = processes.run([*TRAIN, "--force"], tmp_path)
    assert anew.code == 0 and checkpoints(tmp_path) == undisturbed.hashes("train")
    done = processes.run([*TRAIN, "--resume"], tmp_path)
    assert done.code == 0 and "finished already" in done.err


def test_the_newest_states_are_kept(processes: Processes, tmp_path: Path) -> None:
    processes.run([*TRAIN, "--keep-states", "3"], tmp_path, fault="fit:step@8")
    names = [path.name for path in sorted(tmp_path.glob("x.safetensors.state/state-*"))]
    assert names == ["state-00000006", "state-00000007", "state-00000008"][: len(names)] and len(names) == 3


def test_a_resumed_run_finds_its_plan_changed(processes: Processes, undisturbed: Undisturbed, tmp_path: Path) -> None:
    words = undisturbed.folder("run", tmp_path)
    assert processes.run(words, tmp_path, fault="run:noted@2").code == -signal.SIGKILL
    changed = processes.run([*words, "--resume", "--set", "stages.3.epochs=5"], tmp_path)
    assert changed.code == 2 and "differs from this plan" in changed.err
    (tmp_path / "out" / "trained.safetensors").unlink()
    missing = processes.run([*words, "--resume"], tmp_path)
    assert missing.code == 2 and "trained.safetensors: is missing" in missing.err


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 5, 6])
def test_as_many_states_stay_as_are_asked_for(tmp_path: Path, keep: int) -> None:
    store = StateStore(tmp_path, RunIdentity({}, {}), keep=keep)
    for step in range(1, 9):
        store.save({"step": step}, str(step))
        assert len(list(tmp_path.glob("state-*"))) == min(step, keep)
    found = store.load()
    assert found is not None and found["step"] == 8


def test_a_signal_while_a_state_is_read_is_not_taken_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateStore(tmp_path, RunIdentity({}, {}))
    store.save({"step": 1}, "1")
    for error in (Stopped(signal.SIGTERM), MemoryError(), OSError(5, "Input/output error")):

        def fail(path: Path, raised: BaseException = error) -> str:
            raise raised

        monkeypatch.setattr("prunecli.checkpoint.runstate.file_sha256", fail)
        with pytest.raises((Stopped, MemoryError, ResourceError)):
            store.load()
        assert [path.name for path in tmp_path.iterdir()] == ["state-00000001"]
    monkeypatch.undo()
    assert store.load() == {"step": 1}


def test_a_state_from_a_stranger_is_bounded_and_runs_nothing(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    for content in [*hostile(sentinel).values(), *(make() for make in bombs(many=10_000).values())]:
        store = StateStore(tmp_path, RunIdentity({}, {}))
        store.discard()
        store.save({"step": 1}, "1")
        (state,) = tmp_path.glob("state-*")
        (state / "state.pt").write_bytes(content)
        manifest = json.loads((state / "manifest.json").read_text())
        manifest["sha256"] = sha256(state / "state.pt")
        (state / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RecipeError, match="its state is damaged"):
            store.load()
        assert not sentinel.exists()


def test_a_kill_after_the_end_leaves_a_finished_run(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """Whatever is left of the lock and the states, the file that was written stays."""
    for turn in (1, 2):
        place = tmp_path / str(turn)
        place.mkdir()
        assert processes.run(TRAIN, place, fault=f"state:discarding@{turn}").code == -signal.SIGKILL
        done = processes.run([*TRAIN, "--resume"], place)
        assert done.code == 0 and checkpoints(place) == undisturbed.hashes("train")
    assert "finished already" in done.err


def test_ctrl_c_reaches_the_processes_that_load_images_too(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    words = [*TRAIN, "--workers", "2"]
    stopped = processes.run(words, tmp_path, signals=[Sent(signal.SIGINT, text="epoch 1/3", group=True)])
    assert stopped.code == 130 and stopped.err.count("finishing the step") == 1, stopped.err
    assert processes.run([*TRAIN, "--resume"], tmp_path).code == 0
    assert checkpoints(tmp_path) == undisturbed.hashes("train")


def test_a_state_says_what_it_is(processes: Processes, tmp_path: Path) -> None:
    assert processes.run(TRAIN, tmp_path, fault="fit:step@2").code == -signal.SIGKILL
    state = sorted(tmp_path.glob("x.safetensors.state/state-*"))[-1]
    manifest = json.loads((state / "manifest.json").read_text())
    assert manifest["place"] == "epoch 1, batch 1" and manifest["identity"]["lr"] == 0.05
    content = torch.load(state / "state.pt", weights_only=True)
    assert {"model", "optimizer", "schedule", "scaler", "random", "position"} <= set(content)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_do_not_change_what_is_resumed(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, workers: int
) -> None:
    words = [*TRAIN, "--workers", str(workers)]
    assert processes.run(words, tmp_path, fault="fit:step@8").code == -signal.SIGKILL
    assert processes.run([*TRAIN, "--resume"], tmp_path).code == 0  # none now
    model = torch.load(sorted(tmp_path.glob("copy.safetensors.state/state-*"))[-1] / "state.pt", weights_only=True)[
        "model"
    ]
    assert all(torch.isfinite(tensor.float()).all() for tensor in model.values())
    # The command in the manifest names the workers of the process that finished, which had none.
    assert checkpoints(tmp_path) == undisturbed.hashes("train")


def test_a_progressive_run_can_be_stopped_in_its_last_step(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    wanted = undisturbed.hashes("progressive")
    words = undisturbed.folder("progressive", tmp_path)
    stopped = processes.run(words, tmp_path, signals=[Sent(signal.SIGTERM, text="step 1/2")])
    assert stopped.code == 143 and "Resume with: prune l1" in stopped.err, stopped.err
    resumed = processes.run([*PROGRESSIVE, "--resume"], tmp_path)
    assert resumed.code == 0 and checkpoints(tmp_path) == wanted, resumed.err


@pytest.mark.parametrize(
    "part", ["pruning", "tensors", *(pytest.param(part, marks=pytest.mark.slow) for part in ("edits", "attributes"))]
)
def test_a_state_of_pruning_that_lacks_a_part_is_one_line(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, part: str
) -> None:
    words = undisturbed.folder("progressive", tmp_path)
    assert processes.run(words, tmp_path, fault="fit:step@3").code == -signal.SIGKILL
    for state in tmp_path.glob("x.safetensors.state/state-*"):
        content = torch.load(state / "state.pt", weights_only=True)
        del (content if part == "pruning" else content["pruning"])[part]
        torch.save(content, state / "state.pt")
        manifest = json.loads((state / "manifest.json").read_text())
        manifest["sha256"] = sha256(state / "state.pt")
        (state / "manifest.json").write_text(json.dumps(manifest))
    refused = processes.run([*words, "--resume"], tmp_path)
    assert refused.code == 2 and "start again with --force" in refused.err.splitlines()[-1], refused.err
    assert "this is a bug" not in refused.err and list(tmp_path.glob("x.safetensors.state/state-*"))
