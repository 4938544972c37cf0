"""A full disk, a folder that is read-only or gone: no good checkpoint is lost, and the run can be gone on with."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prunecli.checkpoint.io import read_checkpoint
from tests.faults.conftest import Undisturbed, checkpoints
from tests.faults.processes import FEW_DIGITS, TRAIN, Processes, sha256, when

NOBODY = 65534
LIMITS = (4096, 100_000, 1_000_000, 1_050_000, 1_120_000, 3_000_000, 20_000_000)
"""A checkpoint of the network here is 1.1 MB and a state about 3.4 MB."""


def _check_limit(processes: Processes, undisturbed: Undisturbed, place: Path, limit: int) -> int:
    """Trains over an older checkpoint with a bound on the size of files; returns the exit code."""
    wanted = undisturbed.hashes("train")
    old = place / "x.safetensors"
    shutil.copy(undisturbed.result("progressive") / "x.safetensors", old)
    before = sha256(old)
    done = processes.run([*TRAIN, "--force"], place, file_limit=limit)
    assert done.code in (0, 1), done.err
    assert "Traceback" not in done.err
    assert not list(place.glob(".x.*")) and not list(place.glob("x.safetensors.state/.staged-*"))
    read_checkpoint(old)
    if done.code == 0:
        assert checkpoints(place) == wanted
        return 0
    errors = [line for line in done.err.splitlines() if not line.startswith(("warning", "epoch", "train"))]
    assert len(errors) == 1 and "could not be written (File too large)" in errors[0]
    assert sha256(old) == before
    again = processes.run([*TRAIN, "--resume"], place)
    if "finished already" in again.err:  # no state fitted either, so there is nothing to go on from
        again = processes.run([*TRAIN, "--force"], place)
    assert again.code == 0 and checkpoints(place) == wanted, again.err
    return 1


@pytest.mark.parametrize("limit", [4096, 1_050_000, 1_120_000])
def test_files_that_may_not_grow(processes: Processes, undisturbed: Undisturbed, tmp_path: Path, limit: int) -> None:
    code = _check_limit(processes, undisturbed, tmp_path, limit)
    assert code == (0 if limit == 1_120_000 else 1)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [*LIMITS, *range(200_000, 4_000_000, 200_000)])
def test_files_of_any_size_that_may_not_grow(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, limit: int
) -> None:
    _check_limit(processes, undisturbed, tmp_path, limit)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system in memory of a given size."""
    places = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("file systems cannot be mounted here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_too_little_space_is_noticed_before_the_first_epoch(
    processes: Processes, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=2m")
    done = processes.run([*TRAIN[:-4], "-o", disk / "x.safetensors"], tmp_path)
    assert done.code == 1 and "epoch" not in done.err
    assert "has 2 MB free and this run writes up to" in done.err and len(done.err.splitlines()) == 1
    assert not list(disk.iterdir())


def test_a_disk_that_fills_up_costs_nothing(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=24m")
    words = [*TRAIN[:-4], "--epochs", "8", "-o", disk / "x.safetensors", "--save-every", "0"]
    (tmp_path / "reference").mkdir()
    assert processes.run([*words[:-4], "-o", "x.safetensors"], tmp_path / "reference").code == 0

    ended = threading.Event()

    def fill() -> None:
        with (disk / "ballast").open("wb", buffering=0) as file:
            while not ended.is_set():  # what a failed write gives back is taken too
                try:
                    file.write(bytes(1 << 14))
                except OSError:
                    time.sleep(0.001)

    filler = when(tmp_path / ".err", "epoch 2/8", fill)
    full = processes.run(words, tmp_path)
    ended.set()
    filler.join()
    assert full.code == 1, full.err
    assert full.err.count("the run continues") == 1 and "epoch 8/8" in full.err
    assert full.err.splitlines()[-1].startswith(f"error: {disk}/x.safetensors: could not be written (No space left")
    assert list(disk.glob("x.safetensors.state/state-*")) and not (disk / "x.safetensors").exists()
    (disk / "ballast").unlink()
    assert processes.run([*words, "--resume"], tmp_path).code == 0
    assert sha256(disk / "x.safetensors") == sha256(tmp_path / "reference" / "x.safetensors")


def test_a_read_only_disk_is_noticed_before_the_first_epoch(
    processes: Processes, tmp_path: Path, small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=50m,ro")
    done = processes.run([*TRAIN[:-4], "-o", disk / "x.safetensors"], tmp_path)
    assert done.code == 1 and "epoch" not in done.err
    assert (
        "could not be written (Read-only file system); choose another folder" in done.err
        and len(done.err.splitlines()) == 1
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_that_belongs_to_somebody_else(processes: Processes) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        train = [word if word != FEW_DIGITS else "digits" for word in TRAIN]  # that file may be out of nobody's reach
        warm = [*train[:-4], "--epochs", "1", "-o", place / "warm.safetensors"]
        done = processes.run(train, place, user=NOBODY, warm=warm)
        assert done.code == 1, done.err
        lines = [line for line in done.err.splitlines() if "epoch 1/1" not in line]
        assert (
            lines[-1].startswith("error: ") and "could not be written (Permission denied); choose another" in lines[-1]
        )
        assert not any("epoch 1/3" in line for line in lines) and not (place / "x.safetensors").exists()


def test_a_folder_that_vanishes_is_made_again(processes: Processes, undisturbed: Undisturbed, tmp_path: Path) -> None:
    folder = tmp_path / "sub"
    words = [word if word != "x.safetensors" else "sub/x.safetensors" for word in TRAIN]
    remover = when(tmp_path / ".err", "epoch 1/3", lambda: shutil.rmtree(folder, ignore_errors=True))
    done = processes.run(words, tmp_path)
    remover.join()
    assert done.code == 0, done.err
    assert sha256(folder / "x.safetensors") == undisturbed.hashes("train")["x.safetensors"]


@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775)]
)
def test_modes_follow_the_umask(processes: Processes, tmp_path: Path, umask: int, file: int, folder: int) -> None:
    words = [*TRAIN[:-4], "--epochs", "1", "--save-every", "0", "-o", "new/x.safetensors"]
    assert processes.run(words, tmp_path, umask=umask, fault="stage:saved").code == -signal.SIGKILL
    for path in (tmp_path / "new").glob("**/*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o777 if path.is_dir() else 0o666) & ~umask, path
