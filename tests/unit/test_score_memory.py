"""Shared scores: the same as without, computed once, and again where something that decides them differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli.criteria.base import Calibration
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_method, get_structural
from prunecli.methods.request import PruneRequest
from prunecli.methods.score_memory import ScoreMemory
from prunecli.methods.structural import prune_structural


def network(seed: int = 0) -> nn.Module:
    """Three convolutions and a classifier."""
    torch.manual_seed(seed)
    layers = [part for a, b in ((3, 8), (8, 8), (8, 8)) for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


def request(method: str, memory: ScoreMemory | None, **params: Any) -> PruneRequest:
    """A request with a few batches of noise."""
    torch.manual_seed(1)
    batches = [(torch.rand(4, 3, 8, 8), torch.arange(4)) for _ in range(2)]
    return PruneRequest(
        method=method,
        params=get_method(method).params_class(**{"ratio": 0.5, "round_to": 1, **params}),
        example_inputs=torch.zeros(2, 3, 8, 8),
        calibration=batches,
        memory=memory,
    )


@pytest.mark.parametrize("method", ["taylor", "hap", "random", "activation", "l1"])
def test_the_same_network_comes_out(method: str, tmp_path: Path) -> None:
    memory = ScoreMemory(tmp_path, {"seed": 0})
    for ratio in (0.25, 0.5, 0.75):
        alone = prune_structural(network(), request(method, None, ratio=ratio))
        shared = prune_structural(network(), request(method, memory, ratio=ratio))
        assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), shared.model.parameters(), strict=True))
        assert alone.report.scoring == shared.report.scoring
    assert len(list(tmp_path.iterdir())) == 1


class Counted:
    """A criterion that counts how often it is asked, and looks at an option if it is told to."""

    def __init__(self, option: str | None = None) -> None:
        self.asked, self._option = 0, option

    def __call__(self, model: nn.Module, groups: Sequence[Any], calibration: Calibration) -> dict[str, Tensor | str]:
        self.asked += 1
        factor = calibration.options[self._option] if self._option is not None else 1.0
        drawn = torch.rand(8, generator=calibration.generator, dtype=torch.float64)
        calibration.found["asked"] = self.asked
        return {"a": factor * drawn, "b": "cannot be ranked"}


def calibration(seed: int = 0, **options: Any) -> Calibration:
    """Without data."""
    return Calibration(torch.Generator().manual_seed(seed), options=options, example_inputs=torch.zeros(1, 3, 8, 8))


def test_what_differs_is_computed_again(tmp_path: Path) -> None:
    counted = Counted()
    ask = ScoreMemory(tmp_path, {"data": "x"}).remembering("own", counted)
    first, again = calibration(ratio=0.3), calibration(ratio=0.5)
    one, two = ask(network(), (), first), ask(network(), (), again)
    assert counted.asked == 1 and list(two) == ["a", "b"] and two["b"] == "cannot be ranked"
    assert isinstance(one["a"], Tensor) and torch.equal(one["a"], two["a"]) and two["a"].dtype == torch.float64  # type: ignore[arg-type, union-attr]
    assert torch.equal(first.generator.get_state(), again.generator.get_state()) and again.found == {"asked": 1}
    ask(network(1), (), calibration())
    ask(network(), (), calibration(seed=1))
    ask(network(), (), replace(calibration(), batches=[torch.zeros(1)]))
    ask(network(), (), replace(calibration(), example_inputs=torch.ones(1, 3, 8, 8)))
    ScoreMemory(tmp_path, {"data": "y"}).remembering("own", counted)(network(), (), calibration())
    ScoreMemory(tmp_path, {"data": "x"}).remembering("other", counted)(network(), (), calibration())
    assert counted.asked == 7


def test_a_criterion_that_looks_at_the_ratio_is_asked_at_each(tmp_path: Path) -> None:
    counted = Counted("ratio")
    ask = ScoreMemory(tmp_path, {}).remembering("own", counted)
    values = [ask(network(), (), calibration(ratio=ratio, other=ratio))["a"] for ratio in (0.3, 0.5, 0.3)]
    assert counted.asked == 2
    assert torch.equal(values[0], values[2]) and not torch.equal(values[0], values[1])  # type: ignore[arg-type]
    assert torch.equal(ask(network(), (), calibration(ratio=0.3, other=9))["a"], values[0]) and counted.asked == 2  # type: ignore[arg-type]


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    counted = Counted()
    ask = ScoreMemory(tmp_path, {}).remembering("own", counted)
    ask(network(), (), calibration())
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    ask(network(), (), calibration())
    assert counted.asked == 2
    assert (
        get_structural("l1").load()
        is PruneRequest(method="l1", params=StructuralParams(), example_inputs=torch.zeros(1)).criterion()
    )
