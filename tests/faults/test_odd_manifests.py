"""Manifests that are whole but say odd things: every command that uses them answers, or refuses in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunecli.checkpoint.io import read_checkpoint, write_checkpoint
from prunecli.checkpoint.manifest import InputNormalisation, Step, UsedData
from tests.faults.conftest import Undisturbed
from tests.faults.processes import FEW_DIGITS, Processes

ODD: dict[str, dict[str, Any]] = {
    "settings of no method": {"history": [Step(stage="prune", settings={"a": 1})]},
    "settings of another kind": {"history": [Step(stage="prune", settings={"method": 3, "params": [1]})]},
    "an unknown method": {"history": [Step(stage="prune", settings={"method": "x", "params": {}})]},
    "data without a name": {"history": [Step(stage="train", data=UsedData(name=""))]},
    "a rate that is no number": {"history": [Step(stage="train", settings={"optimizer": "sgd", "lr": "fast"})]},
    "escape codes": {"history": [Step(stage="train", command="\x1b[2J\x1b[31mred", data=UsedData(name="\x1b[2J"))]},
    "no normalisation": {"normalisation": None},
    "normalisation of other channels": {"normalisation": InputNormalisation(mean=(0.5,) * 7, std=(0.5,) * 7)},
    "a pool without end": {"attributes": {"conv1": {"stride": [9, 9], "padding": [40000, 40000]}}},
    "a stride of nothing": {"attributes": {"conv1": {"stride": [0, 0]}}},
    "other groups": {"attributes": {"conv1": {"groups": 7}}},
}
COMMANDS = (
    "inspect odd.safetensors",
    "inspect odd.safetensors --verify",
    f"eval odd.safetensors --data {FEW_DIGITS} --measure accuracy --measure macs",
    f"finetune odd.safetensors --data {FEW_DIGITS} --epochs 1 -o out.safetensors",
)


@pytest.mark.parametrize("shape", [(), (1,), (1, 8), (1, 8, 8, 8), (3, 8, 8), (1, 8000, 8000)])
def test_odd_shapes(processes: Processes, undisturbed: Undisturbed, tmp_path: Path, shape: tuple[int, ...]) -> None:
    _try(processes, undisturbed, tmp_path, {}, shape)


@pytest.mark.parametrize("name", ODD)
def test_odd_manifests(processes: Processes, undisturbed: Undisturbed, tmp_path: Path, name: str) -> None:
    _try(processes, undisturbed, tmp_path, ODD[name], None)


def _try(
    processes: Processes, undisturbed: Undisturbed, place: Path, changes: dict[str, Any], shape: tuple[int, ...] | None
) -> None:
    manifest, tensors = read_checkpoint(undisturbed.result("train") / "x.safetensors")
    if shape is not None:
        changes = {"architecture": manifest.architecture.model_copy(update={"input_shape": shape})}
    write_checkpoint(place / "odd.safetensors", tensors, manifest.model_copy(update={"aliases": {}, **changes}))
    for command in COMMANDS:
        done = processes.run(command.split(), place, memory_limit=2 << 30)
        assert done.code in (0, 1, 2), (command, done.code)
        assert "this is a bug" not in done.err and "Traceback" not in done.err, (command, done.err)
        assert "\x1b" not in done.out + done.err, command
        errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(errors) == (done.code != 0), (command, done.err)
