"""Writes docs/coverage.md from what `prune doctor --coverage` measured.

prune doctor --coverage 'timm:*' --max-params 30 -o benchmarks/results/coverage_timm.json
prune doctor --coverage 'torchvision:*' --max-params 30 -o benchmarks/results/coverage_torchvision.json
prune doctor --coverage 'spiking:*' --max-params 70 -o benchmarks/results/coverage_spiking.json
python benchmarks/coverage_page.py benchmarks/results/coverage_*.json
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

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
clearly more is kept, layers were left alone, and the most common reason is given.
"""


def main(paths: list[str]) -> None:
    """Merges the files and writes the page."""
    versions: dict[str, str] = {}
    notes: list[str] = []
    entries: dict[str, dict[str, Any]] = {}
    for path in paths:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        versions = document["versions"]
        if "note" in document:
            notes.append(f"`{Path(path).name}`: {document['note']}.\n")
        entries.update({entry["ref"]: entry for entry in document["architectures"]})
    lines = [HEAD, *notes]
    counts = Counter(entry["status"] for entry in entries.values())
    tried = [entry for entry in entries.values() if entry["status"] != "too large"]
    lines.append("Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) + ".\n")
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
        figures = f"{entry['kept']:.1%} | {entry['implied']:.1%}" if entry["groups"] else " | "
        reason = entry["reason"].replace("|", "\\|")[:160]
        lines.append(f"| {entry['ref']} | {entry['status']} | {figures} | {reason} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
