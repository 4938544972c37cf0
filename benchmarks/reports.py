"""Time and memory of `report`, `compare` and `inspect` for 1, 10 and 200 reports, and for a file of 500 MB.

python benchmarks/reports.py -o reports.json [--rounds 5]

Every command is a process of its own; commands take turns. Memory is the largest resident size of the process.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from prunecli.measure.environment import describe_environment
from prunecli.report.schema import REPORT_SCHEMA, DataInfo, Latency, Metrics, ModelInfo, Report

PRUNE = [sys.executable, "-m", "prunecli"]
COUNTS = (1, 10, 200)
_LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), time.perf_counter() - start, usage.ru_maxrss]))
os._exit(0)
"""


def write_reports(folder: Path, count: int) -> list[str]:
    """Reports of networks of many sizes, drawn with a seed."""
    chance, paths = random.Random(0), []
    for number in range(count):
        share = 1.0 if number == 0 else chance.uniform(0.1, 1.0)
        latency = 10 * share * chance.uniform(0.8, 1.2)
        metrics = Metrics(
            top1=90 - 20 * (1 - share) ** 2 * chance.uniform(0.5, 1.5),
            params=int(1e6 * share),
            macs=int(1e9 * share * chance.uniform(0.9, 1.1)),
            size_bytes=int(4e6 * share),
            latency_ms=Latency(median=latency, interval=(0.9 * latency, 1.1 * latency), batch_size=1, runs=30),
        )
        model = ModelInfo(ref="cifar:resnet20", input_shape=(3, 32, 32))
        data = DataInfo(name="cifar10", split="test", images=10_000, fingerprint="0")
        report = Report(schema=REPORT_SCHEMA, model=model, data=data, metrics=metrics, command=f"prune eval {number}")
        path = folder / f"network-{number}.json"
        path.write_text(report.to_json())
        paths.append(str(path))
    return paths


def timed(words: list[str], folder: Path) -> tuple[float, float]:
    """Seconds and mebibytes of one process, started by a small one: whoever starts it counts towards its memory."""
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCHER, *PRUNE, *words], cwd=folder, capture_output=True, check=True
    )
    code, seconds, memory = json.loads(done.stdout)
    assert code == 0, words
    return seconds, memory / 1024


def main() -> None:
    """Measures, prints a table and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reports = write_reports(folder, COUNTS[-1])
        torch.manual_seed(0)
        big = {f"layer{i}.{j}.weight": torch.randn(1024, 1024) for i in range(25) for j in range(5)}
        save_file(big, folder / "big.safetensors")
        commands: dict[str, list[str]] = {}
        for count in COUNTS:
            commands[f"report of {count}"] = ["report", *reports[:count], "-o", "r.html", "--force"]
            if count > 1:
                commands[f"compare {count}"] = ["compare", *reports[:count]]
                commands[f"compare {count} --plot"] = ["compare", *reports[:count], "--plot", "p.svg", "--force"]
        commands["inspect REPORT"] = ["inspect", reports[0]]
        commands["inspect --tree, 524 MB"] = ["inspect", "--tree", "big.safetensors"]
        commands["inspect --tree --zeros, 524 MB"] = ["inspect", "--tree", "--zeros", "big.safetensors"]
        taken: dict[str, list[tuple[float, float]]] = {command: [] for command in commands}
        for _ in range(arguments.rounds):
            for command, words in commands.items():
                taken[command].append(timed(words, folder))
    rows: dict[str, Any] = {}
    for command, figures in taken.items():
        seconds, memory = zip(*figures, strict=True)
        rows[command] = {"seconds": median(seconds), "range": [min(seconds), max(seconds)], "mib": max(memory)}
        print(f"{command:32} {median(seconds):6.2f} s [{min(seconds):.2f}, {max(seconds):.2f}] {max(memory):7.0f} MiB")
    result = {"rounds": arguments.rounds, "rows": rows, "environment": describe_environment(torch.device("cpu"))}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
