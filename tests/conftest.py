"""What many tests need: the real data, and `prune` as a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data; tests that need it are skipped without it."""
    folder = os.environ.get("PRUNE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PRUNE_DATA is not set to the folder of real data")
    return Path(folder).resolve()


@dataclass(frozen=True)
class Finished:
    """A process that has ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


Prune = Callable[..., Finished]


@pytest.fixture
def prune(tmp_path: Path) -> Prune:
    """Runs the command line as a process of its own, in `tmp_path`."""

    def run(*words: object, env: dict[str, str] | None = None, cwd: Path | None = None) -> Finished:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", **(env or {})}
        environment.pop("_PRUNE_COMPLETE", None)
        done = subprocess.run(
            [sys.executable, "-m", "prunecli", *map(str, words)],
            cwd=cwd or tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two test workers share two cores."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
    yield
