"""Finding and removing channels compared with torch-pruning: time and memory, latency gained, architectures covered.

    python benchmarks/surgery.py time -o surgery_time.json [--rounds 5]
    python benchmarks/surgery.py speed -o surgery_speed.json [--rounds 30]
    python benchmarks/surgery.py coverage -o surgery_coverage.json [--limit 60]

Everything is at ratio 0.5, with the same share of every width, ranked by L1 norm, random weights from seed 0, one
thread. torch-pruning gets the help described in `prunecli.studies.torch_pruning`.

time: whole calls in interleaved rounds. Ours traces, tries the removal of every group, removes and verifies in float64;
its phases are listed separately. Memory is the peak of torch's CPU allocator above the level before the call, from the
profiler's allocation events of one more call; it repeats exactly, and excludes Python objects and memory that libraries
allocate without torch. `transformers:bert` is compared with one forward and backward pass at the example input instead.

speed: latency of one image against the dense network in interleaved rounds, 95 % bootstrap intervals.

coverage: which architectures are pruned correctly. Ours are checked by `prune doctor --coverage`: equal to the masked
network in float64, restored bit by bit, trainable. torch-pruning's results only have to run on a batch of two, with
at most 3 percentage points more parameters than ours.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from prunecli.inputs import Inputs, doubled_batch
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import summarise, time_paired
from prunecli.methods.outcome import Pruned
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.methods.structural import prune_structural
from prunecli.models.catalog import input_spec
from prunecli.models.loading import load_reference
from prunecli.studies.coverage import cover
from prunecli.studies.torch_pruning import prune_uniform

RATIO = 0.5
TIMED = (
    "timm:resnet50 timm:densenet121 timm:mobilenetv3_large_100 timm:regnety_008 timm:convnext_tiny timm:vgg16_bn"
).split()
BERT = "transformers:bert"
FASTER = {
    "timm:resnet50": 224,
    "timm:vit_small_patch16_224": 224,
    "timm:convnext_tiny": 224,
    "segformer:b0": 512,
    "segformer:b2": 512,
}
TIMM = (
    "resnet50 resnext50_32x4d seresnet50 densenet121 vgg16_bn mobilenetv3_large_100 efficientnet_b0 regnety_008 "
    "convnext_tiny convnextv2_tiny inception_v4 hrnet_w18_small ghostnet_100 res2net50_26w_4s cspresnet50 nfnet_l0 "
    "repvgg_a2 vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 "
    "eva02_tiny_patch14_224 cait_xxs24_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 pvt_v2_b1 "
    "mvitv2_tiny mixer_s32_224 poolformer_s12 efficientformer_l1 mobilevit_xs xcit_nano_12_p16_224 coatnet_0_rw_224 "
    "maxvit_tiny_tf_224 fastvit_t8 edgenext_small levit_128s"
).split()
COVERED = [
    *(f"timm:{name}" for name in TIMM),
    *(f"torchvision:{name}" for name in ("resnet50", "vit_b_32", "swin_t", "deeplabv3_resnet50")),
    "segformer:b0",
    "segformer:b2",
]
CLASSES = {"timm": 1000, "torchvision": 1000, "segformer": 150}
POINTS = 0.03


def classes_of(ref: str) -> int:
    """Outputs of an architecture as the catalogue builds it."""
    return 21 if "deeplab" in ref else CLASSES[ref.partition(":")[0]]


def ready(ref: str, size: int | None = None) -> tuple[nn.Module, Tensor]:
    """A network with random weights and one random image, by default in the size that coverage uses."""
    torch.manual_seed(0)
    model = load_reference(ref).model
    shape = (size, size) if size else input_spec(ref, model)[0] or (64, 64)
    return model, torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))


def ours(model: nn.Module, example: Inputs, **params: Any) -> Pruned:
    """Pruned by this project."""
    settings = StructuralParams(ratio=RATIO, scope="local", **params)
    return prune_structural(model, PruneRequest(method="l1", params=settings, example_inputs=example))


def peak_bytes(function: Callable[[], object]) -> int:
    """Peak of torch's CPU allocator during the call, in bytes above the level before it."""
    gc.collect()  # otherwise leftovers of an earlier call would be freed during this one
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        held = function()
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    del held
    return int(max(0, np.cumsum(changes).max()))


def measure_time(arguments: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for ref in arguments.models or [*TIMED, BERT]:
        results[ref] = time_bert(arguments.rounds) if ref == BERT else time_architecture(ref, arguments.rounds)
        print(ref, json.dumps(results[ref]), flush=True)
        write(arguments, results)
    return results


def time_architecture(ref: str, rounds: int) -> dict[str, Any]:
    model, example = ready(ref)
    classes = classes_of(ref)
    phases: list[dict[str, float]] = []

    def theirs() -> nn.Module:
        return prune_uniform(model, example, RATIO, classes, round_to=8)

    def mine() -> nn.Module:
        outcome = ours(model, example)
        phases.append(outcome.report.seconds)
        return outcome.model

    memory = {"torch_pruning": peak_bytes(theirs), "ours": peak_bytes(mine)}  # these calls also warm up
    again = {"torch_pruning": peak_bytes(theirs), "ours": peak_bytes(mine)}
    phases.clear()
    samples = np.empty((rounds, 2))
    for row in range(rounds):
        for column in (0, 1) if row % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (theirs, mine)[column]()
            samples[row, column] = time.perf_counter() - start
    paired = summarise(samples)
    unproved = samples.copy()
    unproved[:, 1] -= [phase["verify"] for phase in phases]
    without = summarise(unproved)
    return {
        "torch_pruning_s": paired.timings[0].median,
        "torch_pruning_interval": paired.timings[0].interval,
        "ours_s": paired.timings[1].median,
        "ours_interval": paired.timings[1].interval,
        "ratio": paired.ratios[1],
        "ratio_interval": paired.ratio_intervals[1],
        "ratio_without_verify": without.ratios[1],
        "ratio_without_verify_interval": without.ratio_intervals[1],
        "ours_by_phase_s": {key: float(np.median([phase[key] for phase in phases])) for key in phases[0]},
        "seconds_by_round": samples.tolist(),
        "peak_bytes": memory,
        "peak_bytes_again": again,
    }


def time_bert(rounds: int) -> dict[str, Any]:
    """Pruning a BERT of 30 million parameters, in passes forward and backward."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 2048}
    model = BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=8)).eval()
    tokens = torch.randint(0, 8192, (1, 128), generator=torch.Generator().manual_seed(0))
    example = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    phases: list[dict[str, float]] = []

    def passes() -> None:
        model.train()
        model(**example).logits.square().sum().backward()
        model.zero_grad(set_to_none=True)
        model.eval()

    def mine() -> None:
        phases.append(ours(model, example).report.seconds)

    mine(), passes()  # warm
    phases.clear()
    samples = np.empty((rounds, 2))
    for row in range(rounds):
        for column in (0, 1) if row % 2 == 0 else (1, 0):
            start = time.perf_counter()
            (passes, mine)[column]()
            samples[row, column] = time.perf_counter() - start
    paired = summarise(samples)
    return {
        "params": parameter_count(model),
        "forward_backward_s": paired.timings[0].median,
        "ours_s": paired.timings[1].median,
        "ratio": paired.ratios[1],
        "ratio_interval": paired.ratio_intervals[1],
        "ours_by_phase_s": {key: float(np.median([phase[key] for phase in phases])) for key in phases[0]},
        "seconds_by_round": samples.tolist(),
    }


def measure_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for ref in arguments.models or FASTER:
        dense, example = ready(ref, FASTER[ref])
        variants: dict[str, nn.Module] = {"prune": ours(dense, example).model}
        failed: dict[str, str] = {}
        if ref.startswith("segformer:"):
            variants["prune, prune_stem"] = ours(dense, example, prune_stem=True).model
        try:
            variants["torch-pruning"] = prune_uniform(dense, example, RATIO, classes_of(ref), round_to=8)
            with torch.no_grad():
                variants["torch-pruning"](example)
        except Exception as error:  # any error is a result
            variants.pop("torch-pruning", None)
            failed["torch-pruning"] = f"{type(error).__name__}: {error}"
        timing = time_paired(
            [dense, *variants.values()], [example] * (1 + len(variants)), rounds=arguments.rounds, device="cpu"
        )
        macs, params = count_macs(dense, example).total, parameter_count(dense)
        results[ref] = {
            "image": FASTER[ref],
            "dense_ms": timing.timings[0].median,
            "dense_macs": macs,
            "dense_params": params,
            "failed": failed,
            "pruned": {
                name: {
                    "macs_ratio": count_macs(model, example).total / macs,
                    "params_ratio": parameter_count(model) / params,
                    "latency_ratio": timing.ratios[column],
                    "speed_up": 1 / timing.ratios[column],
                    "speed_up_interval": [1 / bound for bound in reversed(timing.ratio_intervals[column])],
                }
                for column, (name, model) in enumerate(variants.items(), start=1)
            },
        }
        print(ref, json.dumps(results[ref]), flush=True)
        write(arguments, results)
    return results


def measure_coverage(arguments: argparse.Namespace) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for ref in arguments.models or COVERED:
        mine = bounded(cover_ours, ref, 300)
        theirs = bounded(cover_torch_pruning, ref, arguments.limit)
        if theirs["status"] == "ran":
            enough = mine["status"] != "right" or theirs["kept"] <= mine["kept"] + POINTS
            theirs["status"] = "right" if enough else "under-pruned"
        rows.append({"ref": ref, "ours": mine, "torch_pruning": theirs})
        print(json.dumps(rows[-1]), flush=True)
    counts = {side: {} for side in ("ours", "torch_pruning")}
    for row in rows:
        for side, count in counts.items():
            count[row[side]["status"]] = count.get(row[side]["status"], 0) + 1
    print(json.dumps(counts))
    return {"limit_s": arguments.limit, "counts": counts, "rows": rows}


def cover_ours(ref: str) -> dict[str, Any]:
    return next(iter(cover([ref]))).to_dict()


def cover_torch_pruning(ref: str) -> dict[str, Any]:
    """Prunes and runs; the status "ran" is replaced later, depending on the remaining parameters."""
    start = time.perf_counter()
    model, example = ready(ref)
    try:
        pruned = prune_uniform(model, example, RATIO, classes_of(ref))
    except Exception as error:
        return {"status": "crashed", "reason": f"pruning: {type(error).__name__}: {str(error)[:300]}"}
    kept = parameter_count(pruned) / parameter_count(model)
    seconds = time.perf_counter() - start
    try:
        with torch.no_grad():
            pruned(doubled_batch(example))
    except Exception as error:
        return {"status": "crashed", "reason": f"forward: {type(error).__name__}: {str(error)[:300]}", "kept": kept}
    return {"status": "ran", "kept": round(kept, 4), "seconds": round(seconds, 2)}


def bounded(function: Callable[[str], dict[str, Any]], ref: str, limit: float) -> dict[str, Any]:
    """A function's result for an architecture, from a separate process that is killed after `limit` seconds."""
    context = multiprocessing.get_context("fork")
    ours_end, other_end = context.Pipe(duplex=False)

    def work(end: Connection) -> None:
        torch.set_num_threads(1)
        end.send(function(ref))

    process = context.Process(target=work, args=(other_end,))
    process.start()
    other_end.close()
    try:
        result = ours_end.recv() if ours_end.poll(limit) else {"status": "hung", "reason": f"over {limit:g} s"}
    except EOFError:
        result = {"status": "crashed", "reason": "the process died"}
    process.kill()
    process.join()
    return dict(result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("time", "speed", "coverage"))
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, help="default: 5 of time, 30 of speed")
    parser.add_argument("--limit", type=float, default=60, help="seconds torch-pruning has per architecture")
    parser.add_argument("--models", nargs="+", help="only these architectures")
    arguments = parser.parse_args()
    arguments.rounds = arguments.rounds or (5 if arguments.what == "time" else 30)
    torch.set_num_threads(1)
    measure = {"time": measure_time, "speed": measure_speed, "coverage": measure_coverage}[arguments.what]
    write(arguments, measure(arguments))


def write(arguments: argparse.Namespace, results: dict[str, Any]) -> None:
    """Writes the results so far."""
    document: dict[str, Any] = {"environment": describe_environment(), "ratio": RATIO, "seed": 0}
    if arguments.what != "coverage":
        document["rounds"] = arguments.rounds
    arguments.out.write_text(json.dumps(document | results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
