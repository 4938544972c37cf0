"""Time of `prune --help` and of one completion compared with `python -c pass`, in interleaved rounds of processes.

python benchmarks/startup.py -o startup.json [--rounds 20]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import summarise

PRUNE = str(Path(sys.executable).with_name("prune"))
ASK = {"_PRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "prune\nl1\n--arch\ncifar\n:\nres", "COMP_CWORD": "5"}
COMMANDS: dict[str, tuple[list[str], dict[str, str]]] = {
    "python -c pass": ([sys.executable, "-c", "pass"], {}),
    "prune --help": ([PRUNE, "--help"], {}),
    "completion": ([PRUNE], ASK),
    "python -c 'import torch'": ([sys.executable, "-c", "import torch"], {}),
}


def milliseconds(command: list[str], extra: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, env={**os.environ, **extra}, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    names = list(COMMANDS)
    for name in names:
        milliseconds(*COMMANDS[name])
    samples = np.empty((arguments.rounds, len(names)))
    for row in range(arguments.rounds):
        for column in range(len(names)) if row % 2 == 0 else reversed(range(len(names))):
            samples[row, column] = milliseconds(*COMMANDS[names[column]])
    timing = summarise(samples)
    result = {
        name: {"ms": timing.timings[column].median, "interval": timing.timings[column].interval}
        for column, name in enumerate(names)
    }
    print(json.dumps(result, indent=2))
    document = {"environment": describe_environment(), "rounds": arguments.rounds, **result}
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
