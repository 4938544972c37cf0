"""What each of several processes holds while they train a network: whole copies, or parts of it (`sharding: fsdp2`).

    python benchmarks/sharding.py -o benchmarks/results/sharding.json [--rounds 3] [--processes 2] [--depth 12]

Two networks built at random, a Llama decoder and a ViT of 12 blocks each, are trained by `fit` with AdamW for 4 steps
of 4 samples for all processes together. Rounds take turns between whole copies and parts, each in processes of its own
with one thread. After the first step a hook adds up the bytes of parameters, gradients and optimizer states that this
process has; these are exact. The highest resident memory is that of the steps after the first, as the kernel counts it
(VmHWM, set back before), less what was resident before the network was built: so activations count, and whatever is
whole for a while. Seconds are those of the processor in the busier process and on the clock, for the same steps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from prunecli import ranks
from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.hooks import Hook, Training
from prunecli.engine.tasks.base import Labels, Task
from prunecli.engine.tasks.index import task_of
from prunecli.measure.environment import describe_environment
from prunecli.models.catalog import build

STEPS, SAMPLES, WORDS, LENGTH = 4, 4, 8000, 32
CPU = torch.device("cpu")


def decoder(depth: int, width: int = 768) -> nn.Module:
    return build(
        "hf:LlamaForCausalLM", num_classes=WORDS, hidden_size=width, intermediate_size=2048, num_hidden_layers=depth,
        num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=LENGTH,
    )  # fmt: skip


def transformer(depth: int, width: int = 768) -> nn.Module:
    return build("timm:vit_base_patch16_224", num_classes=1000, img_size=64, depth=depth, embed_dim=width)


NETWORKS = {"a Llama decoder": decoder, "a ViT": transformer}


class Samples:
    """Random batches in memory, of which every process takes its share."""

    def __init__(self, name: str) -> None:
        self._generator, self._tokens = torch.Generator().manual_seed(0), name == "a Llama decoder"

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        share = ranks.own_share(range(SAMPLES))
        for _ in range(STEPS):
            if self._tokens:
                tokens = torch.randint(WORDS, (SAMPLES, LENGTH + 1), generator=self._generator)
                yield tokens[share, :-1], tokens[share, 1:]
            else:
                images = torch.randn(SAMPLES, 3, 64, 64, generator=self._generator)
                yield images[share], torch.randint(1000, (SAMPLES,), generator=self._generator)[share]


class Watch(Hook):
    """Adds up what this process holds, and resets the peak of its memory after the first step."""

    name = "watch"
    works_sharded = True

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.start = (0.0, 0.0)

    def begin(self, training: Training) -> None:
        self._training, self._steps = training, 0

    def after_step(self) -> None:
        self._steps += 1
        if self._steps > 1:
            return
        parameters = list(self._training.model.parameters())
        states = [value for state in self._training.optimizer.state.values() for value in state.values()]
        self.held = {
            "parameters": _bytes(parameters),
            "gradients": _bytes([each.grad for each in parameters if each.grad is not None]),
            "optimizer states": _bytes([value for value in states if isinstance(value, Tensor)]),
        }
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.start = time.perf_counter(), time.process_time()

    def epoch_end(self, epoch: int) -> None:
        self.seconds = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        self.peak = memory("VmHWM")


def _bytes(tensors: Sequence[Tensor]) -> int:
    own = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def memory(what: str) -> int:
    """Bytes that the kernel counts for this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(what))


def task(name: str) -> Task:
    kind, classes = ("word-language", WORDS) if name == "a Llama decoder" else ("classification", 1000)
    return task_of(Labels("random data", kind, tuple(map(str, range(classes)))))


def work(number: int, size: int, store: str, name: str, sharding: Any, depth: int, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=size)
    NETWORKS[name](1, 12)  # what is imported on the way does not count
    before = memory("VmRSS")
    torch.manual_seed(0)
    network = NETWORKS[name](depth)
    watch = Watch()
    config = FitConfig(epochs=1, lr=1e-4, optimizer="adamw", schedule="constant", sharding=sharding)
    fit(network, Samples(name), None, config, CPU, task=task(name), hooks=[watch])
    own = {
        **watch.held,
        "highest resident": watch.peak - before,
        "seconds on the clock": watch.seconds[0],
        "seconds of the processor": watch.seconds[1],
    }
    everywhere = ranks.gathered(own)
    if number == 0:
        largest = {key: max(each[key] for each in everywhere) for key in own}
        largest["numbers"] = sum(each.numel() for each in network.parameters())
        Path(output).write_text(json.dumps(largest), encoding="utf-8")
    ranks.wait_for_all()
    dist.destroy_process_group()


def figures(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Medians of the process that has most, and ratios within rounds."""
    kinds = rounds[0]["none"].keys() - {"numbers"}
    found: dict[str, Any] = {"parameters": rounds[0]["none"]["numbers"]}
    for kind in sorted(kinds):
        ratios = sorted(each["fsdp2"][kind] / each["none"][kind] for each in rounds)
        found[kind] = {
            **{mode: statistics.median(each[mode][kind] for each in rounds) for mode in ("none", "fsdp2")},
            "ratio": {"median": statistics.median(ratios), "all": ratios},
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--depth", type=int, default=12)
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "environment": describe_environment(),
        "processes": arguments.processes,
        "rounds": arguments.rounds,
        "steps": STEPS,
        "samples_in_a_step": SAMPLES,
        "networks": {},
    }
    for name in NETWORKS:
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(arguments.rounds):
            done: dict[str, dict[str, float]] = {}
            for mode in ("none", "fsdp2") if number % 2 == 0 else ("fsdp2", "none"):
                with tempfile.TemporaryDirectory() as folder:
                    output = f"{folder}/found.json"
                    given = (arguments.processes, f"{folder}/store", name, mode, arguments.depth, output)
                    multiprocessing.spawn(work, given, nprocs=arguments.processes)
                    done[mode] = json.loads(Path(output).read_text(encoding="utf-8"))
            rounds.append(done)
        document["networks"][name] = figures(rounds)
        print(name, json.dumps(document["networks"][name], indent=2))
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
