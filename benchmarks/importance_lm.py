"""Importance of recurrent units: criteria on character language models, and hybrid networks in three compositions.

    python benchmarks/importance_lm.py --text tinyshakespeare.txt -o benchmarks/results/importance_lm.json
    python benchmarks/importance_lm.py --table benchmarks/results/importance_lm.json

Five LSTMs with two layers of 128 units are trained for four epochs from different seeds. `prune compare --methods`
prunes each of them with every criterion to equally many parameters, as many as removing 25 or 50 % of every layer's
units leaves; with and without folding what is removed into the rest (`ls`), and before and after 40 training steps with
the batches of the seed. Criteria with second derivatives are slow, so all of them run at 50 % with `ls` alone. Figures
are bits per character on the validation text. A hybrid network of 128 LSTM and 128 spiking units is trained once, and
half of its units are kept in three compositions. `--work DIR` keeps networks and reports there, so that a run that was
stopped continues.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from prunecli.measure.environment import describe_environment

SEEDS = 5
HAP = "hap:max_probes=16"
FAST = f"l1,activation,taylor,fisher,obs,obs-greedy,{HAP}"
CURVED = ("obd", "gate-obd", "enhanced", "enhanced:fusion=simple", "enhanced:fusion=learned")
ALL = ",".join((FAST, *(f"{name}:max_probes=16" for name in CURVED)))
"""Second derivatives from 16 random vectors, which is the fewest."""
TRAINING = ("--set", "stages.0.optimizer=adamw", "--weight-decay", "0", "--clip-grad", "1", "--batch-size", "32")
RECOVERY = ("--optimizer", "adamw", "--lr", "0.002", "--weight-decay", "0", "--clip-grad", "1", "--recover", "40")
RATIOS = (0.5, 0.25)
FRACTIONS = (0.25, 0.5, 0.75)
CALIBRATION, JUDGED = 512, 512


def run(*words: object, folder: Path) -> None:
    """Runs the command line in `folder`; progress goes to this program's own."""
    command = [sys.executable, "-m", "prunecli", *map(str, words)]
    if subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL).returncode:
        raise SystemExit(" ".join(command))


def trained(text: Path, folder: Path) -> list[str]:
    """Names of the dense networks, one for each seed."""
    names = [f"lstm-{seed}.safetensors" for seed in range(SEEDS)]
    for seed, name in enumerate(names):
        if not (folder / name).is_file():
            run("train", "lm:lstm", "--model-kwargs", "units=128", "--data", f"text:{text}", "--epochs", 4, "--lr",
                0.002, *TRAINING, "--seed", seed, "-o", name, "--resume", folder=folder)  # fmt: skip
    return names


def contest(names: list[str], text: Path, ratio: float, compensate: str, methods: str, folder: Path) -> dict[str, Any]:
    """The report of one comparison; one that is there is not made again."""
    out = folder / f"contest-{ratio}-{compensate}.json"
    if not out.is_file():
        run("compare", *names, "--methods", methods, "--ratio", ratio, "--seeds", SEEDS, "--compensate", compensate,
            *RECOVERY, "--data", f"text:{text}", "--calibration-images", CALIBRATION, "--images", JUDGED,
            "-o", out.name, "--resume", folder=folder)  # fmt: skip
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def hybrid(text: Path, folder: Path) -> dict[str, Any]:
    """Bits per character of a hybrid network, dense and with half of its units in three compositions."""
    name, data = "hybrid.safetensors", ("--data", f"text:{text}")
    if not (folder / name).is_file():
        arguments = [("--model-kwargs", pair) for pair in ("units=256", "layers=1", "embedding=64", "cell=lstm")]
        run("train", "lm:hybrid", *(word for pair in arguments for word in pair), *data, "--epochs", 2, "--lr", 0.005,
            *TRAINING, "-o", name, "--resume", folder=folder)  # fmt: skip
    figures = {"dense": evaluated(name, data, folder)}
    for fraction in FRACTIONS:
        pruned, restored = f"hybrid-{fraction}.safetensors", f"hybrid-{fraction}-restored.safetensors"
        run("hybrid", name, *data, "--keep-fraction", 0.5, "--snn-fraction", fraction, "--calibration-images",
            CALIBRATION, "-o", pruned, "--force", folder=folder)  # fmt: skip
        run(
            "finetune", pruned, *data, "--epochs", 1, "--lr", 0.002, *TRAINING, "-o", restored, "--force", folder=folder
        )
        figures[str(fraction)] = {
            "selected": evaluated(pruned, data, folder),
            "restored": evaluated(restored, data, folder),
        }
    return figures


def evaluated(name: str, data: tuple[str, str], folder: Path) -> dict[str, float]:
    """Bits per character on the test text, parameters, and the share of steps in which spiking units fire."""
    out = folder / f"{name}.json"
    run("eval", name, *data, "--measure", "accuracy", "--measure", "params", "--measure", "spikes", "-o", out.name,
        "--force", folder=folder)  # fmt: skip
    metrics = json.loads(out.read_text())["metrics"]
    return {
        key: metrics[key] for key in ("bits_per_character", "params", "firing_rate") if metrics.get(key) is not None
    }


def tables(result: dict[str, Any]) -> str:
    """Markdown tables of a result."""
    lines = []
    for ratio in map(str, RATIOS):
        raw, folded = result["contests"][f"{ratio}-none"], result["contests"][f"{ratio}-ls"]
        dense = [one["score"] for one in raw["dense"]]
        lines += [
            f"\n{100 * float(ratio):g} % of the units of every layer, or as many parameters; dense: "
            f"{sum(dense) / len(dense):.2f}\n",
            "| criterion | removed | removed, 40 steps | with `ls` | with `ls`, 40 steps |",
            "|---|---|---|---|---|",
        ]
        after = {row["label"]: row for row in raw["methods"]}
        for row in sorted(folded["methods"], key=lambda row: row["before"]["mean"]):
            spreads = [one and one[key] for one in (after.get(row["label"]), row) for key in ("before", "after")]
            cells = " | ".join(f"{one['mean']:.2f} ± {one['deviation']:.2f}" if one else "" for one in spreads)
            lines.append(f"| `{row['label']}` | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Runs everything, or prints the tables of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--without-hybrid", action="store_true")
    parser.add_argument("--table", type=Path)
    parser.add_argument("-o", "--out", type=Path)
    arguments = parser.parse_args()
    if arguments.table is not None:
        print(tables(json.loads(arguments.table.read_text())))
        return
    folder = arguments.work or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    text = arguments.text.resolve()
    names = trained(text, folder)
    contests = {
        f"{ratio}-{compensate}": contest(
            names, text, ratio, compensate, ALL if (ratio, compensate) == (RATIOS[0], "ls") else FAST, folder
        )
        for compensate in ("ls", "none")
        for ratio in RATIOS
    }
    result = {
        "contests": contests,
        "hybrid": {} if arguments.without_hybrid else hybrid(text, folder),
        "environment": describe_environment(),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(tables(result))


if __name__ == "__main__":
    main()
