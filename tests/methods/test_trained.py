"""Methods that prune while a network trains: what their hook keeps is removed and verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.engine.hooks import Training
from prunecli.errors import MethodError, RecipeError
from prunecli.methods import registry
from prunecli.methods.params import StructuralParams
from prunecli.methods.ranking import Selection, select
from prunecli.methods.request import PruneRequest
from prunecli.methods.spec import MethodSpec
from prunecli.methods.trained import PruningHook, Removal, TrainedContext, remove_kept
from prunecli.pipeline.stages.prune import prune_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, PruneStage, Recipe
from tests.unit.networks import Plain, Residual, example
from tests.unit.test_schedule import _Silent


def _selection(model: nn.Module) -> Selection:
    return select(model, PruneRequest(method="l1", params=StructuralParams(), example_inputs=example()))


def _removal(selection: Selection, **options: Any) -> Removal:
    return Removal(method="ours", selection=selection, example_inputs=example(), **options)


@pytest.mark.parametrize("network", [Plain, Residual])
def test_what_is_not_kept_is_removed_and_verified(network: type[nn.Module]) -> None:
    model = network().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    selection = _selection(model)
    keep = {group.name: torch.arange(0, group.units, 2) for group in selection.groups}
    pruned = remove_kept(model, keep, _removal(selection))
    assert pruned.report.verify_error < 1e-9 and pruned.report.scope == "trained"
    assert pruned.report.achieved == pytest.approx(0.5)
    assert {edit.group for edit in pruned.report.edits} == set(keep)
    assert all(edit.keep_indices == list(range(0, edit.width_before, 2)) for edit in pruned.report.edits)
    assert pruned.report.params_after < pruned.report.params_before
    assert pruned.report.macs_after.total < pruned.report.macs_before.total
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_repairs_follow_a_removal() -> None:
    model = Plain().eval()
    selection = _selection(model)
    keep = {"body.3": torch.arange(8)}
    batches = [torch.randn(16, 3, 16, 16) for _ in range(2)]
    removal = _removal(selection, calibration=batches, compensation="ls", recalibrate=True)
    report = remove_kept(model, keep, removal).report
    assert report.compensated > 0 and report.recalibrated > 0


def test_groups_that_keep_everything_are_not_edited() -> None:
    model = Plain().eval()
    selection = _selection(model)
    everything = {group.name: torch.arange(group.units) for group in selection.groups}
    for keep in ({}, everything):
        pruned = remove_kept(model, keep, _removal(selection))
        assert pruned.report.edits == () and pruned.report.achieved == 0.0
        assert pruned.report.params_after == pruned.report.params_before
        with torch.no_grad():
            assert torch.equal(pruned.model(example()), model(example()))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"body.7": torch.arange(3)}, "ours: body.7 is not a group that may shrink"),
        ({"body.3": torch.arange(0)}, "ours: nothing is left of body.3; prune less"),
        ({"body.3": torch.ones(16, dtype=torch.bool)}, "ours: what stays of body.3 has to be sorted indices"),
        ({"body.3": torch.tensor([1, 0])}, "ours: what stays of body.3 has to be sorted indices"),
        ({"body.3": torch.tensor([0, 0, 1])}, "ours: what stays of body.3 has to be sorted indices"),
        ({"body.3": torch.tensor([-1, 0])}, "ours: what stays of body.3 has to be sorted indices"),
        ({"body.3": torch.tensor([0, 99])}, "ours: what stays of body.3 has to be sorted indices"),
        ({"body.3": torch.tensor(3)}, "ours: what stays of body.3 has to be sorted indices"),
    ],
)
def test_a_hook_that_keeps_the_impossible_is_refused(keep: Mapping[str, Tensor], message: str) -> None:
    model = Plain().eval()
    with pytest.raises(MethodError, match=message):
        remove_kept(model, keep, _removal(_selection(model)))


@dataclass(frozen=True)
class _SparseParams:
    """Parameters of `_Sparse`."""

    density: float = 0.25


class _Sparse(PruningHook):
    """Keeps the largest weights of every convolution after each step and removes no channel."""

    name = "sparse"

    def __init__(self, model: nn.Module, params: _SparseParams, context: TrainedContext) -> None:
        self._density = params.density
        self.epochs, self.groups = context.epochs, len(context.selection.groups)

    def begin(self, training: Training) -> None:
        self._weights = [module.weight for module in training.model.modules() if isinstance(module, nn.Conv2d)]

    def after_step(self) -> None:
        with torch.no_grad():
            for weight in self._weights:
                threshold = weight.abs().flatten().kthvalue(int(weight.numel() * (1 - self._density))).values
                weight.mul_(weight.abs() > threshold)


def _no_hook(model: nn.Module, params: Any, context: TrainedContext) -> Any:
    return context


def _stage(monkeypatch: pytest.MonkeyPatch, entry: str) -> PruneStage:
    spec = MethodSpec("sparse", "Keep few weights.", "", "trained", _SparseParams, f"{__name__}:{entry}")
    monkeypatch.setattr(registry, "all_methods", lambda: {"sparse": spec})
    return PruneStage(method="sparse", params={"density": 0.25}, epochs=1, lr=1e-2, latency_rounds=2)


def _space(**options: Any) -> Workspace:
    recipe = Recipe(model=ModelSection(ref="cifar:resnet20"), device="cpu", **options)
    return Workspace(recipe, _Silent())  # type: ignore[arg-type]


def test_a_method_that_changes_weights_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse.safetensors"
    outcome = prune_stage(_space(data=DataSection(name="digits")), _stage(monkeypatch, "_Sparse"), path)
    assert outcome.report.edits == () and outcome.report.method == "sparse"
    assert outcome.report.params_after == outcome.report.params_before
    restored = prunecli.load(path)
    convolutions = [module.weight for module in restored.modules() if isinstance(module, nn.Conv2d)]
    for weight in convolutions:
        assert float((weight != 0).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_what_a_trained_method_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse.safetensors"
    with pytest.raises(RecipeError, match="prunes while the network trains: name a data set with --data"):
        prune_stage(_space(), _stage(monkeypatch, "_Sparse"), path)
    message = "method sparse: its entry has to make a PruningHook, not a TrainedContext"
    with pytest.raises(MethodError, match=message):
        prune_stage(_space(data=DataSection(name="digits")), _stage(monkeypatch, "_no_hook"), path)
    assert not path.exists()
