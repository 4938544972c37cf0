"""Time and memory of loading a folder of transformers, and of pruning it: 1 GB in float32, and the same in bfloat16.

python benchmarks/loading.py -o loading.json [--repeats 3] [--gigabytes 1]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

FORMATS = {"float32": 4, "bfloat16": 2}
ACTIONS = ("load", "prune")
WIDTH, INNER, VOCABULARY = 1024, 2816, 32000
HEADS, KEYS = 16, 4
SHARD = "200MB"


def resident() -> dict[str, int]:
    """Bytes of this process in memory: its own, those of files it has mapped, and both."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {key: int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile", "VmRSS")}


class Peak:
    """The largest `resident()` inside a block, above that before it."""

    def __enter__(self) -> Peak:
        self.base, self.over = resident(), dict.fromkeys(resident(), 0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            for key, value in resident().items():
                self.over[key] = max(self.over[key], value - self.base[key])


def make(folder: Path, gigabytes: float) -> None:
    """Writes a random Llama of about that size in float32, and the same network in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    block = WIDTH * WIDTH * 2 + 2 * WIDTH * WIDTH * KEYS // HEADS + 3 * WIDTH * INNER
    layers = round((gigabytes * 2**30 / 4 - 2 * VOCABULARY * WIDTH) / block)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
    )
    model: Any = LlamaForCausalLM(config)
    for name in FORMATS:
        model.to(getattr(torch, name)).save_pretrained(folder / name, max_shard_size=SHARD)


def measure(action: str, folder: Path) -> dict[str, float]:
    """Time and peak memory of one action; libraries are imported before."""
    from transformers import LlamaForCausalLM  # noqa: F401 - so that it is not measured

    from prunecli.cli.app import run
    from prunecli.models.loading import load_reference

    result = folder.parent / "pruned.safetensors"
    command = ["l1", f"hf:{folder}", "--ratio", "0.3", "--bptt", "32", "--latency-rounds", "2", "-o", str(result)]
    with Peak() as peak:
        start = time.perf_counter()
        kept = load_reference(f"hf:{folder}") if action == "load" else run([*command, "--force", "--quiet"])
        seconds = time.perf_counter() - start
    if kept not in (0, None) and action == "prune":
        raise SystemExit(f"prune ended with {kept}")
    return {"seconds": seconds, **peak.over}


def measured_apart(action: str, folder: Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", action, "--folder", str(folder)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--measure", choices=ACTIONS)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder)))
        return
    from prunecli.measure.environment import describe_environment

    result: dict[str, Any] = {"environment": describe_environment(), "repeats": arguments.repeats}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(
            [sys.executable, "-c", f"from loading import make, Path; make(Path({name!r}), {arguments.gigabytes})"],
            cwd=Path(__file__).parent,
            check=True,
        )
        for kind in FORMATS:
            size = sum(file.stat().st_size for file in (folder / kind).glob("*.safetensors"))
            result[kind] = {"bytes": size}
            for action in ACTIONS:
                runs = [measured_apart(action, folder / kind) for _ in range(arguments.repeats)]
                times = {key: [run[key] / size for run in runs] for key in ("RssAnon", "RssFile", "VmRSS")}
                result[kind][action] = {"seconds": [run["seconds"] for run in runs], "times_its_size": times}
                print(kind, action, json.dumps(result[kind][action]), flush=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
