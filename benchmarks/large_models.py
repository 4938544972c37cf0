"""Peak memory of pruning against the size of the network, with weights on the disk and in memory.

python benchmarks/large_models.py -o results/large_models.json    # decoders and ViTs of 0.1 to 1 billion
python benchmarks/large_models.py --sizes 0.1 --kinds decoder --ways disk
python benchmarks/large_models.py --sizes 0.1 --kinds decoder --methods wanda wanda+ls taylor -o more.json

Networks are made at random, in bfloat16, and saved: decoders as `save_pretrained` does, in shards of 100 MB; vision
transformers of timm in one file. Each is pruned by `prune l1 --ratio 0.3` in a process of its own, proof and writing
included; or by --methods, of decoders; wanda and taylor read sequences of 64 words, and wanda+ls repairs with them.
Peak memory is what the kernel has counted for that process (VmHWM): everything resident, libraries and mapped files
included. The rows of 0 billions are what libraries take: a network of 0.1 million parameters. Those from --limited on
(in billions) run under a limit of private memory (RLIMIT_DATA): what the libraries reserve, and 1.3 times the
weights, which are mapped once while they are loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

RATIO = "0.3"
ALLOWED = 1.3
"""Times the weights."""
DECODERS = {
    0.0: (64, 2, 128, 256),
    0.03: (512, 8, 1024, 8000),
    0.1: (768, 12, 2048, 16000),
    0.3: (1024, 20, 2816, 32000),
    1.0: (2048, 16, 8192, 32000),
}
"""Width, layers, width inside a block and vocabulary, by billions of parameters."""
METHODS = {"l1": "none", "l2": "none", "wanda": "none", "wanda+ls": "ls", "taylor": "none"}
"""How each compensates."""
WORDS = 64
"""Words in a sequence."""
ON_DATA = ("wanda", "wanda+ls", "taylor")
VITS = {0.0: (64, 2, 1), 0.1: (768, 14, 12), 0.3: (1024, 24, 16), 1.0: (1664, 30, 16)}
"""Width, layers and heads."""


def make(kind: str, size: float, folder: Path) -> None:
    """Writes a random network."""
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    if kind == "decoder":
        from transformers import LlamaConfig, LlamaForCausalLM

        width, layers, inside, words = DECODERS[size]
        heads = max(2, width // 64)
        config = LlamaConfig(
            hidden_size=width, num_hidden_layers=layers, intermediate_size=inside, num_attention_heads=heads,
            num_key_value_heads=heads // 2, vocab_size=words, tie_word_embeddings=False,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="100MB")
        write_words(folder)
        return
    import timm
    from safetensors.torch import save_file

    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", **vit_arguments(size), num_classes=1000)
    model.to_empty(device="cpu")
    with torch.no_grad():  # timm's own initialisation takes minutes
        for name, parameter in model.named_parameters():
            matrix = parameter.dim() > 1
            _ = parameter.normal_(std=0.02) if matrix else parameter.fill_(float(name.endswith("weight")))
    folder.mkdir(parents=True)
    save_file(model.state_dict(), folder / "vit.safetensors")


def write_words(folder: Path) -> None:
    """Writes a tokenizer and a text of random words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"w{number}" for number in range(200)]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    draws = random.Random(0)
    lines = [" ".join(draws.choices(words, k=16)) for _ in range(2000)]
    (folder / "text.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def vit_arguments(size: float) -> dict[str, int]:
    """Arguments of timm's network."""
    width, layers, heads = VITS[size]
    return {"embed_dim": width, "depth": layers, "num_heads": heads, "img_size": 64}


def command(kind: str, size: float, folder: Path, way: str, method: str) -> list[str]:
    """The command line that prunes it."""
    network = [f"hf:{folder}"]
    if kind == "vit":
        said = [word for name, value in vit_arguments(size).items() for word in ("--model-kwargs", f"{name}={value}")]
        network = [str(folder / "vit.safetensors"), "--arch", "timm:vit_base_patch16_224", *said]
    offload = ["--offload", "disk"] if way == "disk" else ["--latency-rounds", "2"]
    data: list[str] = []
    if method in ON_DATA:
        sequences = max(8, DECODERS[size][2] * 5 // 4 // WORDS)  # a layer's units need as many words
        data = ["--data", f"text:{folder / 'text.txt'}", "--calibration-images", str(sequences), "--batch-size=4"]
        data += [f"--bptt={WORDS}", "--compensate", METHODS[method], "--no-recalibrate"]
    out = ["-o", str(folder / "pruned.safetensors"), "--force", "--json"]
    return [method.partition("+")[0], *network, "--ratio", RATIO, *data, *offload, *out]


def memory() -> dict[str, int]:
    """Bytes by the kernel's names."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith(" kB")}


def child(arguments: list[str]) -> int:
    """Prunes in this process, and says on stderr what memory that took."""
    from prunecli.cli.app import run

    highest = {"RssAnon": 0, "VmData": 0}

    def watch() -> None:
        while True:
            now = memory()
            for name in highest:
                highest[name] = max(highest[name], now[name])
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    start = time.process_time()
    code = run(arguments)
    figures = {"peak": memory()["VmHWM"], **highest, "cpu_seconds": round(time.process_time() - start, 1)}
    print(f"\nMEASURED {json.dumps(figures)}", file=sys.stderr)
    return code


def measured(arguments: list[str], limit: int | None = None) -> dict[str, Any]:
    """Runs `child` in a new process, under a limit of private memory if there is one."""

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        capture_output=True,
        text=True,
        preexec_fn=limited,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    found: dict[str, Any] = {"code": done.returncode}
    figures = [line for line in lines if line.startswith("MEASURED ")]
    if figures:
        found |= json.loads(figures[0].removeprefix("MEASURED "))
    report = json.loads(done.stdout) if done.stdout.strip() else {}
    if done.returncode == 0:
        found |= {"params_after": report["params_after"], "verify_error": report["verify_error"]}
    else:
        found["error"] = report.get("error") or (lines[-1] if lines else "")
    return found


def measure(
    kind: str, size: float, way: str, method: str, libraries: dict[str, int], folder: Path, *, limited: bool = False
) -> dict[str, Any]:
    """Memory of one network."""
    subprocess.run([sys.executable, __file__, "--make", kind, str(size), str(folder)], check=True, capture_output=True)
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors") if f.name != "pruned.safetensors")
    row: dict[str, Any] = {"kind": kind, "billions": size, "way": way, "method": method, "weights": weights}
    limit = libraries["VmData"] + int(ALLOWED * weights) if limited else None
    row |= {"limit": limit, **measured(command(kind, size, folder, way, method), limit)}
    if libraries and row["code"] == 0:
        row["peak_by_weights"] = round(row["peak"] / weights, 3)
        row["beyond_libraries_by_weights"] = round((row["peak"] - libraries["peak"]) / weights, 3)
    return row


def main() -> None:
    """Measures all sizes, and writes a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 0.3, 1.0])
    parser.add_argument("--kinds", nargs="+", default=["decoder", "vit"])
    parser.add_argument("--ways", nargs="+", default=["disk", "memory"])
    parser.add_argument("--methods", nargs="+", default=["l1"], choices=METHODS)
    parser.add_argument("--limited", type=float, default=1.0, help="billions from which on memory is limited")
    parser.add_argument("--scratch", type=Path, default=None, help="folder on a disk with a few GB free")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for kind in given.kinds:
        with tempfile.TemporaryDirectory(dir=given.scratch) as base:
            libraries = measure(kind, 0.0, "disk", "l1", {}, Path(base) / "small")
        rows.append(libraries)
        for size in given.sizes:
            for method, way in product(given.methods, given.ways):
                with tempfile.TemporaryDirectory(dir=given.scratch) as base:
                    folder = Path(base) / "network"
                    row = measure(kind, size, way, method, libraries, folder, limited=size >= given.limited)
                rows.append(row)
                print(json.dumps(row), flush=True)
                if given.out is not None:
                    write(given.out, rows)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes what has been measured so far."""
    import torch

    about = {"python": platform.python_version(), "torch": torch.__version__, "cpus": os.cpu_count(), "ratio": RATIO}
    path.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2:]))
    if sys.argv[1:2] == ["--make"]:
        make(sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
