"""Prunes half of networks of other packages: transformers, ultralytics, torchvision, diffusers, monai, nnU-Net, smp.

    pip install transformers ultralytics diffusers monai segmentation_models_pytorch dynamic_network_architectures
    python benchmarks/coverage_collections.py                      # everything that is installed, about two hours
    python benchmarks/coverage_collections.py 'transformers:*' -o mine.jsonl
    python benchmarks/coverage_page.py benchmarks/results/coverage_*.json*

Each network has a process of its own, with a limit of processor time for tracing, pruning and verifying, and the same
limit again for the checks. Results are appended as JSON lines, one a network; those that are there already are not
tried again, so an interrupted run continues where it was. `--again` tries them again; of two lines for the same network
the last one counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunecli.errors import ModelError
from prunecli.measure.environment import library_versions
from prunecli.studies.candidates import matching
from prunecli.studies.collections.index import COLLECTIONS
from prunecli.studies.coverage import Coverage, attempt

RESULTS = Path(__file__).parent / "results" / "coverage_collections.jsonl"
LIMIT_S = 60
MAX_PARAMS = 30
_WALL = 6
"""Wall time that a process may take, as a multiple of its processor time."""


def main() -> None:
    """Tries every network that matches and has no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="for instance 'monai:*'; default: everything")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    parser.add_argument("--limit", type=int, default=LIMIT_S, help="seconds of processor time (default: %(default)s)")
    parser.add_argument("--max-params", type=float, default=MAX_PARAMS, help="millions (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    parser.add_argument("--one", metavar="REF", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        _one(arguments.one, arguments.limit, arguments.max_params)
        return
    known = set() if arguments.again else {line["ref"] for line in _lines(arguments.out)}
    refs = [ref for ref in _references(arguments.patterns) if ref not in known]
    counts: Counter[str] = Counter()
    for number, ref in enumerate(refs, 1):
        entry = _tried(ref, arguments.limit, arguments.max_params)
        counts[entry["status"]] += 1
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        kept = f"{entry['kept']:.1%}" if entry["groups"] else ""
        print(f"{number}/{len(refs)}  {ref}  {entry['status']}  {kept}  {entry['reason'][:120]}", flush=True)
    print(", ".join(f"{count} {status}" for status, count in counts.items()) or "nothing to do")


def _references(patterns: list[str]) -> Iterator[str]:
    for pattern in patterns or [f"{name}:*" for name in COLLECTIONS.names]:
        try:
            yield from matching(pattern)
        except ModelError as error:
            print(error, file=sys.stderr)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _tried(ref: str, limit_s: int, max_params: float) -> dict[str, Any]:
    """The last result that the process printed, and whether it was ended before the next one."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", ref, "--limit", str(limit_s)]
    command += ["--max-params", str(max_params)]
    start, wall_s = time.perf_counter(), _WALL * limit_s
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    slow, died = "", ""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        try:
            code = subprocess.run(
                command, stdout=out, stderr=err, timeout=wall_s, check=False, env=environment
            ).returncode
            if code == -signal.SIGXCPU:
                slow = f"took more than {limit_s} s of processor time"
            elif code:
                err.seek(0)
                died = f"the process ended with code {code}: {(err.read().strip().splitlines() or [''])[-1][:200]}"
        except subprocess.TimeoutExpired:
            slow = f"took more than {wall_s} s"
        out.seek(0)
        results = [json.loads(line) for line in out if line.startswith('{"ref"')]
    if not results:
        seconds = round(time.perf_counter() - start, 1)
        results = [Coverage(ref, "wrong" if died else "too slow", seconds=seconds, reason=died or slow).to_dict()]
    elif slow or died:
        results[-1]["checks"]["the rest"] = {"passed": False if died else None, "detail": died or slow}
        if died:
            results[-1] |= {"status": "wrong", "reason": died}
    package = COLLECTIONS.load(ref.partition(":")[0]).PACKAGE
    return results[-1] | {"versions": library_versions(("prunecli", "torch", package))}


def _one(ref: str, limit_s: int, max_params: float) -> None:
    """Prints what is known of one network after pruning and after each check."""
    import torch

    torch.set_num_threads(1)
    collection, _, name = ref.partition(":")
    COLLECTIONS.load(collection).network(name)  # imports the package, which is not to count
    _allow(limit_s)
    for number, entry in enumerate(attempt(ref, max_params=max_params, export=True)):
        print("\n" + json.dumps(entry.to_dict()), flush=True)
        if number == 0:
            _allow(limit_s)


def _allow(seconds: int) -> None:
    """Ends this process after so many further seconds of processor time."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + seconds + 1, hard))


if __name__ == "__main__":
    main()
