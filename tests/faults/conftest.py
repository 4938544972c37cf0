"""Processes to kill, and the results of undisturbed runs to compare with."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.faults.processes import FINETUNE, PROGRESSIVE, RECIPE, RUN, TRAIN, Processes, sha256


class Undisturbed:
    """Results of runs that nobody stopped, by name of the run; each is made once, also by several test workers."""

    def __init__(self, processes: Processes, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self._processes, self._root = processes, root
        self._lock = FileLock(root / "lock")

    def folder(self, name: str, place: Path) -> list[str]:
        """Puts what the run `name` needs into `place`; returns its command line."""
        if name in ("progressive", "finetune"):
            shutil.copy(self.result("train") / "x.safetensors", place / "dense.safetensors")
        if name == "run":
            (place / "recipe.yaml").write_text(RECIPE)
        return {"train": TRAIN, "progressive": PROGRESSIVE, "finetune": FINETUNE, "run": RUN}[name]

    def result(self, name: str) -> Path:
        """The folder of the finished run."""
        folder = self._root / name
        with self._lock:
            if not folder.exists():
                folder.mkdir()
                done = self._processes.run(self.folder(name, folder), folder)
                assert done.code == 0, done.err
        return folder

    def hashes(self, name: str) -> dict[str, str]:
        """What `checkpoints` should give."""
        return checkpoints(self.result(name))

    def seconds(self, name: str, place: Path) -> float:
        """How long the run takes."""
        return self._processes.run(self.folder(name, place), place).seconds


def checkpoints(folder: Path) -> dict[str, str]:
    """Hashes of all checkpoints that a run in `folder` wrote."""
    found = [*folder.glob("x.safetensors"), *folder.glob("out/*.safetensors")]
    return {path.name: sha256(path) for path in found}


@pytest.fixture(scope="session")
def undisturbed(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """See `Undisturbed`."""
    own = tmp_path_factory.getbasetemp()
    return Undisturbed(processes, (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "undisturbed")
