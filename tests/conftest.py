"""What many tests need: the real data, and `prune` as a real process."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processes import Processes

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Nothing is left in the cache of who runs the tests, and processes that tests start keep to one core each.

    A shell starts background jobs with Ctrl-C ignored, and the processes of the tests would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PRUNE_LOG_EVERY"] = "0"  # how long something takes decides nowhere what a test sees
    os.environ["PRUNE_CACHE"] = tempfile.mkdtemp(prefix="prune-cache-")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Removes it."""
    shutil.rmtree(os.environ["PRUNE_CACHE"], ignore_errors=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What imports have made stays to the end: looking through all of it for garbage takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


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


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """One server for all tests of a worker."""
    server = Processes()
    yield server
    server.close()


@pytest.fixture(scope="session")
def new_processes() -> Iterator[Processes]:
    """Processes that start without any library that only some networks need: for tests of how these are imported."""
    server = Processes()
    yield server
    server.close()


@pytest.fixture(scope="session")
def transformers_ready(processes: Processes) -> None:
    """Processes start with the slowest parts of transformers imported."""
    pytest.importorskip("transformers")
    processes.preload("transformers.modeling_layers")
    processes.preload("transformers.generation")


@pytest.fixture(scope="session")
def spiking_ready(processes: Processes) -> None:
    """Processes start with the slowest parts of spikingjelly imported."""
    processes.preload("spikingjelly._ops.lif")
    processes.preload("prunecli.models.spiking_transformers")


@pytest.fixture
def prune(processes: Processes, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Prune:
    """Runs the command line as a process of its own, in `tmp_path`."""

    streams = tmp_path_factory.mktemp("streams")  # not in the folder whose files tests count

    def run(
        *words: object, env: dict[str, str] | None = None, cwd: Path | None = None, patience: float = 240.0
    ) -> Finished:
        given = {"COLUMNS": "80", **(env or {})}
        done = processes.run(words, cwd or tmp_path, env=given, streams=streams, patience=patience)
        return Finished(done.code, done.out, done.err)

    return run


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two test workers share two cores."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
    yield
