"""What exports of networks at ratio 0.5 differ from PyTorch by, and how fast each runtime is beside it, in turns.

    python benchmarks/export.py -o benchmarks/results/export.json [--rounds 15] [--networks ViT-S ResNet-50]
    python benchmarks/export.py --table benchmarks/results/export.json

The weights are random, because times do not depend on them. Dense and pruned network run in PyTorch, ONNX Runtime and
OpenVINO, all six in turns, on one sample and one thread. Errors are those of batches of one and three samples. Rows of
other networks in a file that exists are kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import prunecli
from prunecli.checkpoint.manifest import Architecture, Manifest
from prunecli.cli.output import Output
from prunecli.exporting.agreement import agreement
from prunecli.exporting.base import ExportRequest
from prunecli.exporting.index import FORMATS, RUNTIMES
from prunecli.measure.environment import describe_environment, library_versions
from prunecli.measure.latency import time_paired
from prunecli.models.loading import LoadedModel
from prunecli.pipeline.export_inputs import batch_of, decides_by_numbers, samples_for
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe

NETWORKS = {
    "ResNet-50": ("timm:resnet50", {}, None),
    "ViT-S": ("timm:vit_small_patch16_224", {}, None),
    "SegFormer-B0": ("segformer:b0", {}, "256"),
    "spiking VGG-9": ("spiking:vgg9", {"T": 4, "v_threshold": 0.1}, None),
}
"""Reference, arguments and size of images; None: the network's own."""
_LIBRARIES = ("onnx", "onnxruntime", "onnxscript", "openvino")


def measure(out: Path, rounds: int, names: list[str]) -> None:
    """Networks, dense and pruned, in every runtime."""
    environment = {**describe_environment(), **library_versions(_LIBRARIES)}
    document: dict[str, Any] = {"environment": environment, "ratio": 0.5, "rounds": rounds, "rows": []}
    if out.exists():
        rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
        document["rows"] = [row for row in rows if row["network"] not in names]
    for label in names:
        ref, kwargs, size = NETWORKS[label]
        recipe = Recipe(model=ModelSection(ref=ref, kwargs=kwargs), data=DataSection(image_size=size))
        space = Workspace(recipe, Output("quiet"))
        samples = samples_for(space)
        dense = space.model().model.eval()
        pruned = prunecli.prune(dense, "l1", example_inputs=samples[0], ratio=0.5, scope="local").model.eval()
        rows, timed = [], []
        for kind, network in (("dense", dense), ("pruned", pruned)):
            rows.append({"network": label, "which": kind, "runtime": "PyTorch"})
            timed.append(network)
            for runtime in RUNTIMES:
                row, run = _exported(network, runtime, samples, decides_by_numbers(space))
                rows.append({"network": label, "which": kind, "runtime": RUNTIMES[runtime], **row})
                timed.append(run)
        timing = time_paired(timed, [batch_of(samples, 1)] * len(timed), rounds=rounds)
        zipped = zip(rows, timing.timings, timing.ratios, timing.ratio_intervals, strict=True)
        for row, one, ratio, interval in zipped:
            document["rows"].append({**row, "ms": one.median, "ratio": ratio, "interval": interval})
            print(json.dumps(document["rows"][-1]), flush=True)
        out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _exported(network: torch.nn.Module, runtime: str, samples: list[Any], decides: bool) -> tuple[dict[str, Any], Any]:
    """One export: its error, its bytes, how long it took, and what runs it."""
    kind = FORMATS.load(runtime)
    loaded = LoadedModel(network, Manifest(architecture=Architecture(ref="")), path=Path("network"))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{kind.suffix}"
        start = time.perf_counter()
        kind.write(ExportRequest(loaded, batch_of(samples, 2)), path)
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in path.parent.iterdir())
        run = kind.opened(path)
        assert run is not None
        found = agreement(network, run, [batch_of(samples[::-1], 1), batch_of(samples, 3)], decides=decides)
    assert found.telling, "random weights that say nothing would show no error"
    return {"error": found.largest, "relative": found.relative, "moved": found.moved, "bytes": size, "s": seconds}, run


def table(path: Path) -> None:
    """Prints the table of docs/export.md."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    by_key = {(row["network"], row["which"], row["runtime"]): row for row in rows}
    columns = ("network", "runtime", "largest error, of the largest output", "dense", "pruned", "pruned to dense")
    print(f"| {' | '.join(columns)} | pruned, to PyTorch |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for network in dict.fromkeys(row["network"] for row in rows):
        for runtime in ("PyTorch", *RUNTIMES.values()):
            dense, pruned = (by_key[network, which, runtime] for which in ("dense", "pruned"))
            eager = by_key[network, "pruned", "PyTorch"]["ratio"]
            error = f"{pruned['error']:.1e}, {pruned['relative']:.0e}" if "error" in pruned else "-"
            cells = [f"{row['ms']:.1f} ms" for row in (dense, pruned)]
            cells += [f"x{pruned['ratio'] / dense['ratio']:.2f}", f"x{pruned['ratio'] / eager:.2f}"]
            print(f"| {network} | {runtime} | {error} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if arguments.table:
        table(arguments.table)
    else:
        measure(arguments.out, arguments.rounds, arguments.networks)


if __name__ == "__main__":
    main()
