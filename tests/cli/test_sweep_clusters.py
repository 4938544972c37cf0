"""Sweeps on a Ray cluster of two nodes, whose workers and driver are killed, and by submitit's own processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_sweep import NETWORK, OWN, PAIR, RECIPE, SWEEP, finished, stages_run
from tests.conftest import Prune
from tests.processes import Processes, Sent, when

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """A recipe whose stages take a moment, and sweeps over it."""
    (tmp_path / "own.py").write_text(NETWORK)
    (tmp_path / "base.yaml").write_text(RECIPE)
    (tmp_path / "s.yaml").write_text(SWEEP)
    (tmp_path / "pair.yaml").write_text(PAIR)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes, of which one has a GPU that only Ray believes in."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=2, num_gpus=1)
    yield made
    made.shutdown()


def _kill_writers(log: Path) -> None:
    """Kills whoever has a log open."""
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(link) == str(log) for link in descriptors.iterdir()):
                os.kill(int(descriptors.parent.name), signal.SIGKILL)
        except OSError:
            continue


def test_two_nodes_with_a_killed_worker_and_a_killed_driver(
    cluster: Any, processes: Processes, prune: Prune, tmp_path: Path
) -> None:
    words = ["sweep", "s.yaml", *OWN, "-o", "out", "--executor", "ray", "--address", cluster.address, "--jobs", "2"]
    planned = prune("sweep", "s.yaml", *OWN, "-o", "out", "--dry-run", "--json").json["cells"]
    log = tmp_path / "out" / "cells" / planned[0]["cell"] / "sweep.log"
    killer = when(log, "stage 2/3", lambda: _kill_writers(log))
    ended = processes.run(words, tmp_path, signals=[Sent(signal.SIGKILL, text="2/4 ")])
    killer.join()
    assert ended.code == -signal.SIGKILL, ended.err
    assert "2 Ray tasks on 2 nodes" in ended.err
    some = finished(tmp_path / "out")
    assert 2 <= some < 4
    done = prune(*words, "--json")
    assert done.code == 0, done.err
    assert done.json["finished"] == 4 and done.json["ran"] == 4 - some
    counts = stages_run(tmp_path / "out")
    assert counts["shared 1"] == 1
    # A stage was started again where its worker was killed, and in at most two cells that the driver's death ended.
    assert 4 <= counts["cells 3"] <= 6 and 5 <= counts["cells 2"] <= 7
    assert prune(*words, "--json").json["ran"] == 0 and stages_run(tmp_path / "out") == counts


def test_a_gpu_is_shared(cluster: Any, prune: Prune, tmp_path: Path) -> None:
    words = ("sweep", "pair.yaml", *OWN, "--executor", "ray", "--address", cluster.address)
    shared = prune(*words, "-o", "out", "--gpus", "0.5")
    assert shared.code == 0 and "2 Ray tasks on 2 nodes, 1 cores and 0.5 GPUs each" in shared.err, shared.err
    for more in (["--gpus", "2"], ["--jobs", "4"], ["--cpus", "3"]):
        refused = prune(*words, "-o", "other", *more)
        assert refused.code == 2 and "the Ray cluster has 3 cores and 1 GPUs" in refused.err.splitlines()[-1]


def test_batch_jobs(prune: Prune, tmp_path: Path) -> None:
    words = ("sweep", "pair.yaml", *OWN, "-o", "out", "--executor", "slurm", "--executor-option", "cluster=local")
    done = prune(*words, "--jobs", "2", "--json")
    assert done.code == 0, done.err
    assert done.json["ran"] == 2 and stages_run(tmp_path / "out") == {"shared 1": 1, "cells 2": 2, "cells 3": 2}
