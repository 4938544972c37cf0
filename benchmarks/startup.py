"""Time of starts of `prune` that need no network, compared with `import typer`, in interleaved rounds of processes.

python benchmarks/startup.py -o startup.json [--rounds 20]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunecli.cli.verbs import verbs
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import summarise
from prunecli.models.loading import load_reference, save
from prunecli.report.schema import REPORT_SCHEMA, Metrics, ModelInfo, Report

Command = tuple[list[str], dict[str, str]]
PRUNE = str(Path(sys.executable).with_name("prune"))
REFERENCE = "python -c 'import typer'"


def completion(*words: str) -> Command:
    """What bash asks: it breaks words at colons."""
    return [PRUNE], {
        "_PRUNE_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }


def commands(folder: Path) -> dict[str, Command]:
    """What is timed; the first one is what the others are compared with."""
    report, checkpoint = str(folder / "report.json"), str(folder / "model.safetensors")
    return {
        REFERENCE: ([sys.executable, "-c", "import typer"], {}),
        "python -c pass": ([sys.executable, "-c", "pass"], {}),
        "prune --help": ([PRUNE, "--help"], {}),
        "prune l1 --help": ([PRUNE, "l1", "--help"], {}),
        "completion of prune": completion("prune", ""),
        "completion of prune l1 --ra": completion("prune", "l1", "--ra"),
        "completion of prune l1 --arch cifar:res": completion("prune", "l1", "--arch", "cifar", ":", "res"),
        "prune inspect REPORT": ([PRUNE, "inspect", report], {}),
        "prune compare REPORT REPORT": ([PRUNE, "compare", report, report], {}),
        "prune inspect --manifest CHECKPOINT": ([PRUNE, "inspect", "--manifest", checkpoint], {}),
        "prune inspect --tree CHECKPOINT": ([PRUNE, "inspect", "--tree", checkpoint], {}),
        **{f"prune {verb} --help": ([PRUNE, verb, "--help"], {}) for verb in verbs()},
        "python -c 'import torch'": ([sys.executable, "-c", "import torch"], {}),
    }


def write_files(folder: Path) -> None:
    """A report and a checkpoint with a complete header."""
    loaded = load_reference("cifar:resnet20")
    architecture = loaded.manifest.architecture.model_copy(update={"input_shape": (3, 32, 32)})
    save(folder / "model.safetensors", loaded.model, loaded.manifest.model_copy(update={"architecture": architecture}))
    model = ModelInfo(ref="cifar:resnet20", input_shape=(3, 32, 32))
    report = Report(schema=REPORT_SCHEMA, model=model, metrics=Metrics(top1=90.0, params=270_000))
    (folder / "report.json").write_text(report.to_json(), encoding="utf-8")


def milliseconds(command: list[str], extra: dict[str, str]) -> tuple[float, float]:
    """Processor time (user and system) and wall time of one process."""
    # Installed packages have their bytecode beside them; an editable one writes it at its first start.
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment | extra, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return (usage.ru_utime + usage.ru_stime) * 1e3, wall * 1e3


def measured(timed: dict[str, Command], rounds: int) -> NDArray[np.float64]:
    """Samples of shape (rounds, commands, 2): processor time and wall time."""
    names = list(timed)
    for name in names:
        milliseconds(*timed[name])
    samples = np.empty((rounds, len(names), 2))
    for row in range(rounds):
        for column in range(len(names)) if row % 2 == 0 else reversed(range(len(names))):
            samples[row, column] = milliseconds(*timed[names[column]])
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_files(Path(name))
        timed = commands(Path(name))
        samples = measured(timed, arguments.rounds)
    processor, wall = summarise(samples[:, :, 0]), summarise(samples[:, :, 1])
    result: dict[str, Any] = {
        name: {
            "processor_ms": processor.timings[column].median,
            "processor_interval": processor.timings[column].interval,
            "ratio": processor.ratios[column],
            "ratio_interval": processor.ratio_intervals[column],
            "wall_ms": wall.timings[column].median,
            "wall_interval": wall.timings[column].interval,
        }
        for column, name in enumerate(timed)
    }
    for name, figures in result.items():
        low, high = figures["ratio_interval"]
        times = f"{figures['processor_ms']:.0f} ms of processor, {figures['wall_ms']:.0f} ms"
        print(f"{name}: {times}, {figures['ratio']:.2f} [{low:.2f}, {high:.2f}] of {REFERENCE}")
    document = {"environment": describe_environment(), "rounds": arguments.rounds, **result}
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
