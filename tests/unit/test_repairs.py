"""Repairs are compared on samples that they did not use, and the nearest to the dense network is kept."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import prunecli
from prunecli.methods.likeness import Judge, divided
from prunecli.methods.repair import Repair
from prunecli.methods.repair_trials import Compensator, Removal, best_repair
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace

EXAMPLE = torch.zeros(1, 3, 8, 8)


class Network(nn.Module):
    """Classes of images, with or without normalisations."""

    def __init__(self, normalised: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=not normalised),
            nn.BatchNorm2d(8) if normalised else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, bias=not normalised),
            nn.BatchNorm2d(16) if normalised else nn.Identity(),
            nn.ReLU(),
        )
        self.last = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x).mean((2, 3)))


def _batches(count: int, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 8, 8, generator=generator) + 0.3 for _ in range(count)]


def _network(normalised: bool = True) -> Network:
    torch.manual_seed(0)
    model = Network(normalised)
    for batch in _batches(8):  # statistics as in training
        model(batch)
    return model.eval()


def _removal(model: nn.Module) -> tuple[Removal, nn.Module]:
    groups = trace(model, EXAMPLE, prune_stem=True).groups
    keep = {group.name: torch.arange(group.units // 2) for group in groups}
    pruned = copy.deepcopy(model)
    remove(pruned, groups, keep)
    return Removal(model, groups, keep, 0), pruned


def _kinds(trials: Any) -> list[tuple[str, bool]]:
    return [(trial.compensation, trial.recalibrated) for trial in trials]


def test_the_repair_with_the_least_difference_is_kept() -> None:
    model, batches = _network(), _batches(8)
    removal, cut = _removal(model)
    after = copy.deepcopy(cut)
    found = best_repair(removal, after, batches, "auto", None)
    kinds = ("none", "bias", "ls", "reconstruct")
    assert _kinds(found.trials) == [(kind, again) for kind in kinds for again in (False, True)]
    assert found.best.difference == min(trial.difference for trial in found.trials)
    assert sum(trial.chosen for trial in found.trials) == 1
    # The network has the weights of that repair, made without the samples that were held out.
    fitted, held_out = divided(batches)
    expected = copy.deepcopy(cut)
    compensator = Compensator(removal, fitted, [found.best.compensation])
    compensator(expected, found.best.compensation, recalibrated=found.best.recalibrated)
    if not found.best.recalibrated:
        assert all(torch.equal(*pair) for pair in zip(expected.parameters(), after.parameters(), strict=True))
    assert Judge(model, held_out)(after) == (found.best.difference, found.best.agreement)


@pytest.mark.parametrize(
    ("compensation", "recalibrate", "normalised", "expected"),
    [
        ("auto", False, True, [("none", False), ("bias", False), ("ls", False), ("reconstruct", False)]),
        ("ls", None, True, [("ls", False), ("ls", True)]),
        ("auto", None, False, [("none", False), ("bias", False), ("ls", False), ("reconstruct", False)]),
        ("none", None, False, [("none", False)]),
    ],
)
def test_what_is_said_is_not_tried_otherwise(
    compensation: Any, recalibrate: bool | None, normalised: bool, expected: list[tuple[str, bool]]
) -> None:
    removal, cut = _removal(_network(normalised))
    assert _kinds(best_repair(removal, cut, _batches(4), compensation, recalibrate).trials) == expected


def test_with_many_samples_the_best_is_made_with_all_of_them() -> None:
    model = _network()
    removal, cut = _removal(model)
    batches = _batches(30)
    after = copy.deepcopy(cut)
    repair = Repair(batches, "auto", None)
    repair(model, after, removal.groups, removal.keep)
    best = next(trial for trial in repair.trials if trial.chosen)
    assert _kinds(repair.trials) == _kinds(best_repair(removal, copy.deepcopy(cut), batches[:24], "auto", None).trials)
    expected = copy.deepcopy(cut)
    plain = Repair(batches, best.compensation, best.recalibrated)
    plain(model, expected, removal.groups, removal.keep)
    state = after.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())
    assert (repair.compensated, repair.recalibrated) == (plain.compensated, plain.recalibrated)


def test_samples_are_held_out_by_their_number() -> None:
    sizes = [64, 64, 64, 64, 64, 64, 16]
    batches = [torch.zeros(size, 2) for size in sizes]
    fitted, held_out = divided(batches)
    assert [len(batch) for batch in held_out] == [64, 64, 16] and len(fitted) + len(held_out) == len(batches)
    assert [len(part[0]) for part in divided([torch.zeros(9, 2)])] == [7, 2]
    assert [len(part[0]) for part in divided([torch.zeros(1, 2)])] == [1, 1]


class Returns(nn.Module):
    """Returns its input times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_differences_are_divergences_of_scores_and_relative_errors_of_anything_else() -> None:
    scores = [torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    difference, agreement = Judge(Returns(1.0), scores)(Returns(-0.5))
    whole = torch.cat(scores).double()
    expected = functional.kl_div(
        (-0.5 * whole).log_softmax(1), whole.log_softmax(1), log_target=True, reduction="batchmean"
    )
    assert difference == pytest.approx(float(expected))
    assert agreement == pytest.approx(float((whole.argmax(1) == whole.argmin(1)).double().mean()))
    maps = [score.reshape(6, 2, 2) for score in scores]
    difference, agreement = Judge(Returns(1.0), maps)(Returns(0.9))
    variance = sum(float((one - one.mean()).square().sum()) for one in maps)
    assert difference == pytest.approx(0.01 * float(whole.square().sum()) / variance) and agreement is None
    assert Judge(Returns(1.0), scores)(Returns(float("nan")))[0] == float("inf")


def test_the_python_interface_compares_repairs_too() -> None:
    model = _network()
    result = prunecli.prune(
        model, "l1", example_inputs=EXAMPLE, data=_batches(6), ratio=0.5, compensate="auto", recalibrate=None
    )
    assert len(result.report.repairs) == 8
    said = list(result.report.to_dict()["repairs"])
    assert [trial["chosen"] for trial in said].count(True) == 1
    assert result.manifest.history[-1].figures["repairs"] == said


class Lists(nn.Module):
    """Returns as many rows as are greater than a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Network()

    def forward(self, x: Tensor) -> list[Tensor]:
        scores = self.body(x)
        return [scores[scores[:, 0] > scores[:, 1]]]


def test_outputs_of_any_size_are_not_compared() -> None:
    model = Lists().eval()
    model.body = _network()
    removal, cut = _removal(model.body)
    wrapped, expected = Lists().eval(), copy.deepcopy(cut)
    wrapped.body = cut  # type: ignore[assignment]
    groups = [dataclasses.replace(g, members=tuple(_below("body", m) for m in g.members)) for g in removal.groups]
    repair = Repair(_batches(6), "auto", None)
    repair(model, wrapped, groups, removal.keep)
    plain = Repair(_batches(6), "ls", True)
    plain(model.body, expected, removal.groups, removal.keep)
    state = cut.state_dict()
    assert repair.trials == () and repair.recalibrated == 2
    assert all(torch.equal(tensor, state[name]) for name, tensor in expected.state_dict().items())


def _below(name: str, member: Any) -> Any:
    return dataclasses.replace(member, module=f"{name}.{member.module}")
