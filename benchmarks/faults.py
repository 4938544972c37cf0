"""Long tests of the promises in docs/reliability.md: kills, full disks, mutated and hostile files, A against A.

python benchmarks/faults.py -o faults.json [--only kills moments limits fuzz guided payloads bombs flips latency states]

Takes about an hour. Counts are written section by section, so an interrupted run keeps its results; the first failure
ends the run with an error that describes it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tests.faults.bombs import bombs, text_bombs  # noqa: E402
from tests.faults.conftest import Undisturbed, checkpoints  # noqa: E402
from tests.faults.fuzzing import GUIDED, TARGETS, run_coverage_guided, run_fuzz  # noqa: E402
from tests.faults.payloads import hostile, wrappings  # noqa: E402
from tests.faults.processes import FAULTS, TRAIN, Processes, killed_and_resumed, sha256  # noqa: E402
from tests.faults.ratio_trials import busy_cores, ratio_trials  # noqa: E402

from prunecli.checkpoint.foreign_files import read_foreign  # noqa: E402
from prunecli.checkpoint.io import read_checkpoint, read_manifest, write_checkpoint  # noqa: E402
from prunecli.checkpoint.manifest import Architecture, Manifest  # noqa: E402
from prunecli.checkpoint.runstate import RunIdentity, StateStore  # noqa: E402
from prunecli.errors import ModelError, PruneError  # noqa: E402
from prunecli.measure.environment import describe_environment  # noqa: E402
from prunecli.recipe.loader import load_yaml  # noqa: E402
from prunecli.report.schema import read_report  # noqa: E402

RUNS = ("train", "finetune", "progressive", "run")
SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt", ".tar", ".json", ".yaml")


class Work:
    """A folder to work in, and processes that run commands."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes = Processes()
        (root / "undisturbed").mkdir()
        self.undisturbed = Undisturbed(self.processes, root / "undisturbed")
        self._number = 0

    def new_folder(self) -> Path:
        """A new empty folder."""
        self._number += 1
        folder = self.root / str(self._number)
        folder.mkdir()
        return folder

    def equal_after(self, name: str, **when: Any) -> bool:
        """Whether a run was killed; fails if it does not end with the same bytes as the undisturbed run."""
        folder = self.new_folder()
        result = killed_and_resumed(self.processes, self.undisturbed.folder(name, folder), folder, **when)
        assert result["code"] == 0 and checkpoints(folder) == self.undisturbed.hashes(name), (name, when, result["err"])
        return bool(result["killed"])


def kills(work: Work) -> dict[str, Any]:
    """SIGKILL the first, second and seventh time each named point is reached."""
    counts: dict[str, Counter[str]] = {}
    for name in RUNS:
        points = set(FAULTS) | ({"stage:pruned"} if name in ("progressive", "run") else set())
        points |= {"run:noted"} if name == "run" else set()
        points -= {"stage:trained"} if name == "progressive" else set()
        points |= {"state:discarding"} if name != "run" else set()
        endings = Counter[str]()
        for point in sorted(points):
            for turn in (1, 2, 7):
                killed = work.equal_after(name, fault=f"{point}@{turn}")
                assert killed or turn > 1, f"{name} never reaches {point}"
                endings["killed" if killed else "ended before"] += 1
        counts[name] = endings | Counter({"points": len(points)})
    return counts


def moments(work: Work) -> dict[str, Any]:
    """SIGKILL at 20 random moments of each kind of run."""
    chance = random.Random(1)
    counts = {}
    for name in RUNS:
        seconds = work.undisturbed.seconds(name, work.new_folder())
        killed = sum(work.equal_after(name, after=chance.uniform(0, seconds)) for _ in range(20))
        counts[name] = {"moments": 20, "killed": killed}
    return counts


def limits(work: Work) -> dict[str, Any]:
    """Limits on file size in steps of 100 kB, over an older checkpoint that has to survive."""
    endings = Counter[str]()
    good = (work.undisturbed.result("progressive") / "x.safetensors").read_bytes()
    for limit in (4096, *range(100_000, 4_000_000, 100_000)):
        folder = work.new_folder()
        old = folder / "x.safetensors"
        old.write_bytes(good)
        done = work.processes.run([*TRAIN, "--force"], folder, file_limit=limit)
        read_checkpoint(old)
        assert done.code in (0, 1) and (done.code == 0 or old.read_bytes() == good), done.err
        assert done.code == 1 or sha256(old) == work.undisturbed.hashes("train")["x.safetensors"]
        endings["finished" if done.code == 0 else "refused, the old checkpoint whole"] += 1
    return endings


def fuzz(work: Work) -> dict[str, Any]:
    """Mutated files of every kind that `prune` reads."""
    return {target: run_fuzz(target, 4000, seed=1) for target in TARGETS}


def guided(work: Work) -> dict[str, Any]:
    """Files from a coverage-guided fuzzer."""
    return {target: run_coverage_guided(target, 20_000, seed=1) for target in GUIDED}


def payloads(work: Work) -> dict[str, Any]:
    """Hostile pickles in every wrapping under every name: the sentinel file must not appear."""
    folder = work.new_folder()
    sentinel = folder / "sentinel"
    pickles = hostile(sentinel)
    reads = 0
    for suffix in SUFFIXES:
        path = folder / f"file{suffix}"
        for content in pickles.values():
            for wrap in wrappings().values():
                path.write_bytes(wrap(content))
                for read in (read_foreign, read_manifest, read_report, load_yaml):
                    try:
                        read(path)  # type: ignore[operator]
                    except PruneError:
                        pass
                    reads += 1
                    assert not sentinel.exists(), (suffix, read)
    return {"payloads": len(pickles), "wrappings": len(wrappings()), "names": len(SUFFIXES), "reads": reads, "run": 0}


def in_little_memory(work: Work) -> dict[str, Any]:
    """Files that claim to be larger than they are, read with 1 GiB of additional memory."""
    folder = work.new_folder()
    files = {f"{number}.pt": make() for number, make in enumerate(bombs().values())} | text_bombs()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, "-m", "tests.faults.limited", str(1 << 30), *(str(folder / name) for name in files)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    results = json.loads(done.stdout)
    assert len(results) == len(files) and all(message for _, message in results.values())
    return {"files": len(results), "seconds_at_most": max(seconds for seconds, _ in results.values()), "bytes": 1 << 30}


def flips(work: Work) -> dict[str, Any]:
    """Every single-bit error of a small checkpoint."""
    path = work.new_folder() / "x.safetensors"
    manifest = Manifest(architecture=Architecture(ref="cifar:resnet20"))
    write_checkpoint(path, {"a": torch.arange(6.0), "b": torch.ones(2, 3).half()}, manifest)
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(bad))
        try:
            read_checkpoint(path)
        except ModelError:
            continue
        raise AssertionError(f"a flip of bit {bit} was not detected")
    return {"bits": 8 * len(good), "refused": 8 * len(good)}


def latency(work: Work) -> dict[str, Any]:
    """How often the interval of a network's latency ratio with itself contains 1."""
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten()).eval()
    image = torch.randn(1, 3, 32, 32)
    counts = {}
    for name, cores in (("quiet", 0), ("busy", 2)):
        with busy_cores(cores):
            trials = ratio_trials(network, network, image, repetitions=100)
        widths = sorted(high - low for low, high in trials.intervals)
        counts[name] = {"measurements": 100, "hold 1.00": trials.covered(), "median width": widths[50]}
    return counts


def states(work: Work) -> dict[str, Any]:
    """Size of a saved state and the time to save it: weights, best weights and Adam's moments."""
    costs = {}
    for name in ("resnet18", "vit_b_16"):
        network = getattr(torchvision.models, name)()
        optimizer = torch.optim.AdamW(network.parameters())
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        best = {key: value.clone() for key, value in network.state_dict().items()}
        content = {"model": dict(network.state_dict()), "best": best, "optimizer": optimizer.state_dict()}
        folder = work.new_folder()
        store = StateStore(folder, RunIdentity({}, {}))
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            assert store.save(content, "test")
            seconds.append(round(time.perf_counter() - start, 2))
        size = next(folder.glob("state-*/state.pt")).stat().st_size
        costs[name] = {"bytes": size, "seconds": seconds}
    return costs


SECTIONS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "kills": kills,
    "moments": moments,
    "limits": limits,
    "fuzz": fuzz,
    "guided": guided,
    "payloads": payloads,
    "bombs": in_little_memory,
    "flips": flips,
    "latency": latency,
    "states": states,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    arguments = parser.parse_args()
    document = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder))
        for name in arguments.only:
            start = time.perf_counter()
            counts = SECTIONS[name](work)
            document[name] = {**counts, "seconds": round(time.perf_counter() - start, 1)}
            document["environment"] = describe_environment()
            arguments.out.write_text(json.dumps(document, indent=2) + "\n")
            print(name, json.dumps(document[name]), flush=True)
        work.processes.close()


if __name__ == "__main__":
    main()
