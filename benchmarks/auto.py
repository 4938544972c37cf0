"""`prune auto` against single settings that have the same minutes.

    PRUNE_DATA=DATA python benchmarks/auto.py -o auto.json --minutes 30 --seeds 0 1 2
    PRUNE_DATA=DATA python benchmarks/auto.py -o auto.json --trials 24 --seeds 0 1 2
    python benchmarks/auto.py --table auto.json

Each single setting is one criterion, one way to share and one repair, so that all of its minutes go into amounts and
finetuning: `prune auto --methods M --scope S --compensate R`. Which of them is best is known afterwards only, so the
comparison is with somebody who guessed right. All commands of one network and seed run side by side with one thread
each, so that they have the same share of the machine; on a machine that is busy with other work, `--trials` counts
networks instead of minutes, and repeats exactly.

Two networks: the published ResNet-20 on a tenth of CIFAR-10's images that are there, and a small ViT that is trained on
a part of MNIST first. One epoch of finetuning; at most one point of top-1 may be lost. The ResNet has seen all training
images of CIFAR-10, validation images included, so its drop is judged on test images; the ViT's on validation images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from prunecli.data.catalog import load_data
from prunecli.measure.environment import describe_environment

SINGLE = {
    "l2, global, reconstruct": ("l2", "global", "reconstruct"),
    "taylor, global, reconstruct": ("taylor", "global", "reconstruct"),
    "l1, local, ls": ("l1", "local", "ls"),
}
_VIT = "timm:vit_tiny_patch16_224"
_VIT_SIZES = ("img_size=28", "patch_size=7", "embed_dim=96", "depth=4", "num_heads=4")


def part_of(name: str, train: int, test: int, path: Path) -> None:
    """Writes the first images of a data set as an archive."""
    data = load_data(name, Path(os.environ["PRUNE_DATA"]), download=False)
    assert data.train is not None
    arrays = {}
    for split, count, kind in ((data.train, train, "train"), (data.test, test, "test")):
        indices = np.sort(np.random.default_rng(0).permutation(len(split.labels))[:count])
        images = np.stack([np.asarray(split.image(int(index))) for index in indices])  # type: ignore[attr-defined]
        arrays |= {f"x_{kind}": images, f"y_{kind}": split.labels[indices]}
    np.savez(path, **arrays)


def networks(folder: Path) -> dict[str, list[str]]:
    """The words that name each network and its data, the ViT trained first."""
    part_of("cifar10", 2000, 2000, folder / "cifar.npz")
    part_of("mnist", 6000, 2000, folder / "mnist.npz")
    words = [*_prune("train"), _VIT, *(word for size in _VIT_SIZES for word in ("--model-kwargs", size))]
    words += ["--data", f"npz:{folder / 'mnist.npz'}", "--image-size", "28", "--epochs", "12", "--optimizer", "adamw"]
    words += [
        "--lr",
        "0.001",
        "--warmup-epochs",
        "2",
        "--weight-decay",
        "0.05",
        "--threads",
        "1",
        "-q",
        "-o",
        str(folder / "vit.safetensors"),
    ]
    subprocess.run(words, check=True)
    weights = Path(os.environ["PRUNE_DATA"]) / "weights" / "resnet20-12fca82f.th"
    resnet = [str(weights), "--arch", "cifar:resnet20", "--data", f"npz:{folder / 'cifar.npz'}", "--split", "test"]
    vit = [str(folder / "vit.safetensors"), "--data", f"npz:{folder / 'mnist.npz'}"]
    return {"ResNet-20, CIFAR-10": resnet, "ViT, MNIST": [*vit, "--optimizer", "adamw", "--lr", "0.0005"]}


def compared(words: list[str], budget: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """What `auto` and every single setting come to, side by side."""
    shared = [*words, "--macs", "min", "--max-drop", "1", "--epochs", "1", *budget]
    shared += ["--images", "500", "--calibration-images", "256", "--seed", str(seed), "--threads", "1", "--json"]
    commands = {"auto": shared}
    for name, (method, scope, repair) in SINGLE.items():
        commands[name] = [*shared, "--methods", method, "--scope", scope, "--compensate", repair]
    running = {}
    for number, (name, command) in enumerate(commands.items()):
        out = folder / f"{seed}-{number}.safetensors"
        running[name] = subprocess.Popen(
            [*_prune("auto"), *command, "--force", "-o", str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    rows = {}
    for name, process in running.items():
        text, _ = process.communicate()
        report = json.loads(text)
        if "error" in report:
            rows[name] = {"error": report["error"]["message"]}
            continue
        winner = next((trial for trial in report["trials"] if trial["number"] == report["winner"]), None)
        rows[name] = {
            "networks": len(report["trials"]),
            "finetuned": sum(trial["after"] is not None for trial in report["trials"]),
            "macs_share": winner["macs_share"] if winner else 1.0,
            "setting": f"{winner['criterion']}, {winner['scope']}, {winner['compensate']}" if winner else None,
            "claims": report["claims"],
        }
    return rows


def _prune(verb: str) -> list[str]:
    return [sys.executable, "-m", "prunecli", verb]


def show(path: Path) -> None:
    """Prints the rows as Markdown; without a network within the drop, all of the dense one is left."""
    result = json.loads(path.read_text())
    print("| | | MACs left | networks tried | finetuned | drop, 95 % interval | setting |")
    print("|---|---|---:|---:|---:|---:|---|")
    for network, seeds in result["rows"].items():
        for seed, rows in seeds.items():
            for name, row in rows.items():
                if "error" in row:
                    print(f"| {network}, seed {seed} | {name} | - | | | {row['error']} | |")
                    continue
                last = row["claims"][-1] if row["claims"] else None
                drop = f"{last['drop']:.2f} ({last['interval'][0]:.2f} to {last['interval'][1]:.2f})" if last else "-"
                cells = (f"{100 * row['macs_share']:.1f} %", row["networks"], row["finetuned"], drop, row["setting"])
                print(f"| {network}, seed {seed} | {name} | " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    """Runs everything, or prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", help="a part of the name of the networks to run")
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table is not None:
        show(given.table)
        return
    budget = ["--trials", str(given.trials)] if given.trials else ["--budget", f"{given.minutes:g}"]
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for network, words in networks(Path(name)).items():
            for seed in given.seeds if given.only is None or given.only in network else ():
                rows.setdefault(network, {})[str(seed)] = compared(words, budget, seed, Path(name))
                result = {"budget": " ".join(budget), "rows": rows, "environment": describe_environment("cpu")}
                given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
