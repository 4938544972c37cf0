"""torch-pruning's result on an architecture, next to ours: run in a process of its own with a time limit."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any, Literal

PeerStatus = Literal["right", "under-pruned", "wrong", "crashed", "timeout"]
LIMIT_S = 60.0
_POINTS = 0.03


@dataclass(frozen=True)
class Peer:
    """The result of torch-pruning on one architecture.

    Attributes:
        status: "right": the result runs, and keeps at most 3 points more of the parameters than it has to.
            "under-pruned": it runs and keeps more. "wrong": it runs and computes something else than the masked
            original. "crashed": pruning or running the result failed. "timeout": it took too long.
        kept: Share of the parameters that is left; None if there is no result.
        masked: Whether the result was compared with the masked original, which needs a network without normalisation
            over channels and without attention.
        seconds: Wall time of pruning, or until it failed; None if it was ended.
        reason: Why it is not right.
    """

    status: PeerStatus
    kept: float | None = None
    masked: bool = False
    seconds: float | None = None
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def try_torch_pruning(ref: str, implied: float | None, *, limit_s: float = LIMIT_S) -> Peer:
    """Prunes half of the channels of an architecture with torch-pruning.

    Args:
        ref: "source:name".
        implied: Share of the parameters that ought to be left; None if that is not known.
        limit_s: Seconds after which the process is killed; starting it counts.
    """
    command = [sys.executable, "-W", "ignore", "-m", "prunecli.studies.torch_pruning", ref]
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Peer("timeout", reason=f"took more than {limit_s:g} s")
    try:
        outcome = json.loads(finished.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        last_line = (finished.stderr.strip().splitlines() or [f"exit code {finished.returncode}"])[-1]
        return Peer("crashed", reason=f"the process died: {last_line}")
    if outcome["status"] == "ran":
        enough = implied is None or outcome["kept"] <= implied + _POINTS
        outcome["status"] = "right" if enough else "under-pruned"
        if not enough:
            outcome["reason"] = f"keeps {outcome['kept']:.1%} of the parameters where {implied:.1%} are implied"
    return Peer(**outcome)
