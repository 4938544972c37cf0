"""The promises of docs/reliability.md put to the test at length: kills, disks, mutated and hostile files, A against A.

python benchmarks/faults.py -o faults.json [--only kills moments limits fuzz guided payloads bombs flips latency states]

Takes about an hour. Counts go to the file section by section, so that a run that was stopped has not been for nothing;
the first thing that goes wrong ends it with what it was.
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
    """A folder to work in, and the processes to do it with."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.processes = Processes()
        (root / "undisturbed").mkdir()
        self.undisturbed = Undisturbed(self.processes, root / "undisturbed")
        self._number = 0

    def place(self) -> Path:
        """A new empty folder."""
        self._number += 1
        folder = self.root / str(self._number)
        folder.mkdir()
        return folder

    def equal_after(self, name: str, **when: Any) -> bool:
        """Whether a run was killed; fails if it did not end with the bytes of the undisturbed one."""
        place = self.place()
        came = killed_and_resumed(self.processes, self.undisturbed.folder(name, place), place, **when)
        assert came["code"] == 0 and checkpoints(place) == self.undisturbed.hashes(name), (name, when, came["err"])
        return bool(came["killed"])


def kills(work: Work) -> dict[str, Any]:
    """SIGKILL at every named point, at its first, second and seventh time."""
    counts: dict[str, Counter[str]] = {}
    for name in RUNS:
        points = set(FAULTS) | ({"stage:pruned"} if name in ("progressive", "run") else set())
        points |= {"run:noted"} if name == "run" else set()
        points -= {"stage:trained"} if name == "progressive" else set()
        points |= {"state:discarding"} if name != "run" else set()
        found = Counter[str]()
        for point in sorted(points):
            for turn in (1, 2, 7):
                killed = work.equal_after(name, fault=f"{point}@{turn}")
                assert killed or turn > 1, f"{name} never reaches {point}"
                found["killed" if killed else "ended before"] += 1
        counts[name] = found | Counter({"points": len(points)})
    return counts


def moments(work: Work) -> dict[str, Any]:
    """SIGKILL at twenty random moments of each kind of run."""
    chance = random.Random(1)
    counts = {}
    for name in RUNS:
        seconds = work.undisturbed.seconds(name, work.place())
        killed = sum(work.equal_after(name, after=chance.uniform(0, seconds)) for _ in range(20))
        counts[name] = {"moments": 20, "killed": killed}
    return counts


def limits(work: Work) -> dict[str, Any]:
    """A bound on file size in steps of 100 kB, over an older checkpoint that has to survive."""
    found = Counter[str]()
    good = (work.undisturbed.result("progressive") / "x.safetensors").read_bytes()
    for limit in (4096, *range(100_000, 4_000_000, 100_000)):
        place = work.place()
        old = place / "x.safetensors"
        old.write_bytes(good)
        done = work.processes.run([*TRAIN, "--force"], place, file_limit=limit)
        read_checkpoint(old)
        assert done.code in (0, 1) and (done.code == 0 or old.read_bytes() == good), done.err
        assert done.code == 1 or sha256(old) == work.undisturbed.hashes("train")["x.safetensors"]
        found["finished" if done.code == 0 else "refused, the old checkpoint whole"] += 1
    return found


def fuzz(work: Work) -> dict[str, Any]:
    """Mutated files of every kind that is read."""
    return {target: run_fuzz(target, 4000, seed=1) for target in TARGETS}


def guided(work: Work) -> dict[str, Any]:
    """Files that a coverage-guided fuzzer makes up."""
    return {target: run_coverage_guided(target, 20_000, seed=1) for target in GUIDED}


def payloads(work: Work) -> dict[str, Any]:
    """Hostile pickles in every wrapping under every name: a sentinel has to stay untouched."""
    place = work.place()
    sentinel = place / "sentinel"
    found = hostile(sentinel)
    reads = 0
    for suffix in SUFFIXES:
        path = place / f"file{suffix}"
        for content in found.values():
            for wrap in wrappings().values():
                path.write_bytes(wrap(content))
                for read in (read_foreign, read_manifest, read_report, load_yaml):
                    try:
                        read(path)  # type: ignore[operator]
                    except PruneError:
                        pass
                    reads += 1
                    assert not sentinel.exists(), (suffix, read)
    return {"payloads": len(found), "wrappings": len(wrappings()), "names": len(SUFFIXES), "reads": reads, "run": 0}


def in_little_memory(work: Work) -> dict[str, Any]:
    """Files that claim more than they are, read with 1 GiB more than the process has."""
    place = work.place()
    made = {f"{number}.pt": make() for number, make in enumerate(bombs().values())} | text_bombs()
    for name, content in made.items():
        (place / name).write_bytes(content)
    command = [sys.executable, "-m", "tests.faults.limited", str(1 << 30), *(str(place / name) for name in made)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert len(found) == len(made) and all(message for _, message in found.values())
    return {"files": len(found), "seconds_at_most": max(seconds for seconds, _ in found.values()), "bytes": 1 << 30}


def flips(work: Work) -> dict[str, Any]:
    """Every bit of a small checkpoint."""
    path = work.place() / "x.safetensors"
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
        raise AssertionError(f"bit {bit} is not noticed")
    return {"bits": 8 * len(good), "refused": 8 * len(good)}


def latency(work: Work) -> dict[str, Any]:
    """How often the interval of a network's latency ratio to itself holds 1."""
    torch.set_num_threads(1)
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten()).eval()
    image = torch.randn(1, 3, 32, 32)
    found = {}
    for name, cores in (("quiet", 0), ("busy", 2)):
        with busy_cores(cores):
            trials = ratio_trials(network, network, image, repetitions=100)
        widths = sorted(high - low for low, high in trials.intervals)
        found[name] = {"measurements": 100, "hold 1.00": trials.covered(), "median width": widths[50]}
    return found


def states(work: Work) -> dict[str, Any]:
    """Size of a saved state and the time it takes: weights, best weights and Adam's moments."""
    found = {}
    for name in ("resnet18", "vit_b_16"):
        network = getattr(torchvision.models, name)()
        optimizer = torch.optim.AdamW(network.parameters())
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        best = {key: value.clone() for key, value in network.state_dict().items()}
        content = {"model": dict(network.state_dict()), "best": best, "optimizer": optimizer.state_dict()}
        place = work.place()
        store = StateStore(place, RunIdentity({}, {}))
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            assert store.save(content, "here")
            seconds.append(round(time.perf_counter() - start, 2))
        size = next(place.glob("state-*/state.pt")).stat().st_size
        found[name] = {"bytes": size, "seconds": seconds}
    return found


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
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        work = Work(Path(folder))
        for name in arguments.only:
            start = time.perf_counter()
            counts = SECTIONS[name](work)
            found[name] = {**counts, "seconds": round(time.perf_counter() - start, 1)}
            found["environment"] = describe_environment()
            arguments.out.write_text(json.dumps(found, indent=2) + "\n")
            print(name, json.dumps(found[name]), flush=True)
        work.processes.close()


if __name__ == "__main__":
    main()
