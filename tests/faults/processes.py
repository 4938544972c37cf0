"""Runs that are killed and resumed."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.processes import Ended, Processes, Sent, when

__all__ = ["Ended", "Processes", "Sent", "when"]


def sha256(path: Path) -> str:
    """Hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


FEW_DIGITS = f"npz:{Path(__file__).parent / 'few_digits.npz'}"
"""400 training images of scikit-learn's digits, six batches of 64 when a tenth is held out, and 100 test images."""

TRAIN = (
    f"train cifar:resnet20 --data {FEW_DIGITS} --epochs 3 --lr 0.05 --batch-size 64 -o x.safetensors --save-every 0"
).split()
PROGRESSIVE = (
    f"l1 dense.safetensors --data {FEW_DIGITS} --ratio 0.4 --schedule linear --steps 2 --epochs 1 --batch-size 64 "
    "--calibration-images 64 --latency-rounds 2 -o x.safetensors --save-every 0"
).split()
FINETUNE = (
    f"finetune dense.safetensors --data {FEW_DIGITS} --epochs 2 --batch-size 64 --teacher dense.safetensors "
    "--mixup 0.2 -o x.safetensors --save-every 0"
).split()
RECIPE = f"""\
version: 1
model: {{ref: "cifar:resnet20"}}
data: {{name: "{FEW_DIGITS}", batch_size: 64}}
save_every: 0
stages:
  - {{stage: train, epochs: 2, lr: 0.05}}
  - {{stage: eval, measure: [accuracy, params]}}
  - {{stage: prune, method: taylor, params: {{ratio: 0.4}}, calibration_images: 64, latency_rounds: 2}}
  - {{stage: finetune, epochs: 2, lr: 0.01, teacher: parent}}
  - {{stage: eval, measure: [accuracy, params]}}
"""
RUN = "run recipe.yaml --output out".split()
FAULTS = (
    "fit:step fit:epoch state:begin state:tensors state:manifest state:renamed state:pruned stage:trained file:staged "
    "file:synced file:renamed stage:saved"
).split()
"""Every point in a training stage; pruning has "stage:pruned" in place of "stage:trained"."""


def killed_and_resumed(
    processes: Processes, words: Sequence[str], cwd: Path, *, fault: str | None = None, after: float | None = None
) -> dict[str, Any]:
    """Kills a run at a point or a moment, resumes it until it is done, and says what came of it.

    Returns:
        "killed": whether the kill came before the end; "tries": how often it was resumed; "code", "err": of the last
        try; "seconds": of the first.
    """
    signals = [Sent(signal.SIGKILL, after)] if after is not None else []
    first = processes.run(words, cwd, fault=fault, signals=signals)
    last = processes.run([*words, "--resume"], cwd)
    return {
        "killed": first.code == -signal.SIGKILL,
        "code": last.code,
        "err": last.err,
        "seconds": first.seconds,
    }
