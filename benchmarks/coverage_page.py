"""Writes docs/coverage.md from what `prune doctor --coverage` and `coverage_collections.py` measured.

prune doctor --coverage 'timm:*' --max-params 30 -o benchmarks/results/coverage_timm.json
prune doctor --coverage 'spiking:*' --max-params 70 -o benchmarks/results/coverage_spiking.json
python benchmarks/coverage_collections.py
python benchmarks/coverage_page.py benchmarks/results/coverage_*.json*
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from prunecli.studies.collections.index import COLLECTIONS
from prunecli.studies.shares import kind_of

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
HEAD = """# Coverage

Written by `benchmarks/coverage_page.py` from `benchmarks/results/coverage_*.json`, which
`prune doctor --coverage PATTERN --max-params 30 -o FILE` measured with random weights (seed 0), batch 1 and each
architecture's own input size.

For each architecture, half of the channels of every group are removed with `l1`, scope local, without rounding.
**right** means that the result equals the masked original in float64 (relative difference at most 1e-9, or 1e-4 for
networks that compute in float32 inside), that it is restored from its checkpoint bit by bit and computes the same bits,
and that it trains for one step if the dense network does. **refused** means that nothing was pruned; the reason is
given. **wrong** means that any of this failed. *Kept* is the share of the parameters that is left, *implied* what ratio
0.5 implies for the channels found. With every inner width halved, about a quarter of the parameters is left; where
clearly more is kept, layers were left alone, and the most common reason is given. The figures of timm's and
torchvision's architectures in this part are older than those of other packages below.
"""


COLLECTED = """## Networks of other packages

Written from `benchmarks/results/coverage_collections.jsonl`; `python benchmarks/coverage_collections.py` measures it:
classes of transformers, diffusers, monai, segmentation_models_pytorch (`smp`) and nnU-Net's networks in small sizes,
ultralytics' as they are up to 30 million parameters, torchvision's up to 100 million (`--max-params 100`). Each one has
a process of its own and 60 s of processor time for pruning and another 60 s for the checks. **too slow** means that it
was ended before it was pruned.
The *checks* run on the pruned network and on the original: restored into a newly built network with the same bits; a
second input of another batch size, length or image size gives outputs of the same shapes, which equal those of the
masked original; training mode gives the same shapes; the same parameters get gradients; `torch.export` works and
computes the same. What the original cannot do is not counted. Failing one of them is **wrong**.
"""
_SHOWN = 160


def main(paths: list[str]) -> None:
    """Merges the files and writes the page."""
    versions: dict[str, str] = {}
    notes: list[str] = []
    entries: dict[str, dict[str, Any]] = {}
    collected: dict[str, dict[str, Any]] = {}
    for path in paths:
        text = Path(path).read_text(encoding="utf-8")
        if path.endswith(".jsonl"):
            collected.update({entry["ref"]: entry for entry in map(json.loads, text.splitlines())})
            continue
        document = json.loads(text)
        versions = document["versions"]
        if "note" in document:
            notes.append(f"`{Path(path).name}`: {document['note']}.\n")
        entries.update({entry["ref"]: entry for entry in document["architectures"]})
    lines = [HEAD, *notes, *_catalogue(entries, versions)]
    if collected:
        lines += ["", COLLECTED, *_collections(collected)]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _catalogue(entries: dict[str, dict[str, Any]], versions: dict[str, str]) -> list[str]:
    """Counts and the table of the sources that `prune` itself brings."""
    counts = Counter(entry["status"] for entry in entries.values())
    tried = [entry for entry in entries.values() if entry["status"] != "too large"]
    lines = ["Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + ".\n"]
    lines.append(
        f"**{len(tried)} architectures tried: {counts['right']} right, {counts['refused']} refused, "
        f"{counts['wrong']} wrong.** {counts['too large']} were too large and not tried.\n"
    )
    peers = Counter(entry["peer"]["status"] for entry in tried if "peer" in entry)
    if peers:
        listed = ", ".join(f"{number} {status}" for status, number in peers.most_common())
        lines.append(f"torch-pruning on {peers.total()} of them (`--peer`): {listed}.\n")
    off = [entry for entry in tried if entry["status"] == "right" and abs(entry["kept"] - entry["implied"]) > 0.03]
    lines.append(f"Right, but more than 3 points from what the ratio implies: {len(off)}.\n")
    lines.append("| architecture | result | kept | implied | why not more |")
    lines.append("|---|---|---:|---:|---|")
    for entry in sorted(tried, key=lambda entry: entry["ref"]):
        lines.append(f"| {entry['ref']} | {entry['status']} | {_shares(entry)} | {_cell(entry['reason'])} |")
    return lines


def _collections(entries: dict[str, dict[str, Any]]) -> list[str]:
    """Counts by package, kinds of reasons, and the table."""
    versions = sorted({f"{name} {number}" for entry in entries.values() for name, number in entry["versions"].items()})
    known = sum(len(COLLECTIONS.load(name).names()) for name in COLLECTIONS.built_in)
    lines = [f"{len(entries)} of {known} networks have a result. Versions: " + ", ".join(versions) + ".\n"]
    lines += ["| package | networks | right | refused | wrong | too slow | too large | median kept | seconds, all |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    packages = sorted({ref.partition(":")[0] for ref in entries})
    for package in packages:
        own = [entry for ref, entry in entries.items() if ref.startswith(f"{package}:")]
        counts = Counter(entry["status"] for entry in own)
        kept = [entry["kept"] for entry in own if entry["status"] == "right"]
        numbers = " | ".join(str(counts[status]) for status in ("right", "refused", "wrong", "too slow", "too large"))
        seconds = sum(entry["processor_s"] for entry in own)
        middle = f"{median(kept):.1%}" if kept else ""
        lines.append(f"| {package} | {len(own)} | {numbers} | {middle} | {seconds:.0f} |")
    lines += _kinds(entries)
    lines += ["", "| network | result | kept | implied | processor s | checks | why not more |"]
    lines += ["|---|---|---:|---:|---:|---:|---|"]
    for ref, entry in sorted(entries.items()):
        if entry["status"] == "too large":
            continue
        asked = [check for check in entry["checks"].values() if check["passed"] is not None]
        checks = f"{sum(check['passed'] for check in asked)} of {len(asked)}" if asked else ""
        figures = f"{_shares(entry)} | {entry['processor_s']:.1f} | {checks}"
        lines.append(f"| {ref} | {entry['status']} | {figures} | {_cell(entry['reason'])} |")
    return lines


def _kinds(entries: dict[str, dict[str, Any]]) -> list[str]:
    """Why layers keep their width, and why networks are refused or wrong, counted by kind."""
    held: dict[str, list[float]] = {}
    for entry in entries.values():
        for kind, share in entry["held_by"].items():
            held.setdefault(kind, []).append(share)
    lines = ["", "| why layers keep their width | networks | of their parameters, on average |", "|---|---:|---:|"]
    for kind, shares in sorted(held.items(), key=lambda item: -sum(item[1])):
        lines.append(f"| {_cell(kind)} | {len(shares)} | {sum(shares) / len(shares):.1%} |")
    failed = [entry for entry in entries.values() if entry["status"] in ("refused", "wrong")]
    refusals = Counter((entry["status"], kind_of(entry["reason"])) for entry in failed)
    lines += ["", "| result | reason | networks |", "|---|---|---:|"]
    lines += [f"| {status} | {_cell(kind)} | {count} |" for (status, kind), count in refusals.most_common()]
    missing = Counter(
        (name, kind_of(check["detail"]))
        for entry in entries.values()
        for name, check in entry["checks"].items()
        if check["passed"] is None
    )
    if missing:
        lines += ["", "| check that the original does not pass | reason | networks |", "|---|---|---:|"]
        lines += [f"| {name} | {_cell(kind)} | {count} |" for (name, kind), count in missing.most_common()]
    return lines


def _shares(entry: dict[str, Any]) -> str:
    return f"{entry['kept']:.1%} | {entry['implied']:.1%}" if entry["groups"] else " | "


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:_SHOWN]


if __name__ == "__main__":
    main(sys.argv[1:])
