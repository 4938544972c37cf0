"""Pruning in steps: amounts, groups that are followed rather than traced again, and optimizers that go on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunecli
from prunecli.api import Transition
from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.optimizer import carry_over, make_optimizer
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import MethodError
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_structural
from prunecli.methods.request import PruneRequest
from prunecli.methods.schedule import amounts
from prunecli.methods.structural import prune_structural
from prunecli.pipeline.stages.prune import prune_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, PruneStage, Recipe
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.removal.slice import kept_positions, remove
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import RIGHT, Plain, example

CPU = torch.device("cpu")


def test_amounts_at_given_steps() -> None:
    assert amounts("once", 7, 0.5) == [0.5]
    assert amounts("linear", 5, 0.5) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert amounts("linear", 4, 0.5, 0.1) == pytest.approx([0.2, 0.3, 0.4, 0.5])
    # Zhu and Gupta: s_f + (s_i - s_f) (1 - t/n)^3
    assert amounts("cubic", 4, 0.8, 0.0) == pytest.approx([0.8 * (1 - (1 - t / 4) ** 3) for t in (1, 2, 3, 4)])
    ramp = amounts("ramp", 10, 0.5)
    assert ramp[:2] == [0, 0] and ramp[2] == pytest.approx(0.1)
    assert ramp[2:7] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5]) and ramp[7:] == [0.5] * 3
    assert amounts("ramp", 10, 0.05)[2] == 0.05  # never more than the end
    for kind in ("linear", "cubic", "ramp"):
        assert amounts(kind, 6, 0.4)[-1] == pytest.approx(0.4)


def _halved(groups: list[ChannelGroup], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randperm(g.units, generator=generator)[: max(1, g.units // 2)].sort().values for g in groups}


@pytest.mark.parametrize("network", RIGHT)
def test_groups_keep_their_names_when_a_smaller_network_is_traced_again(network: type[nn.Module]) -> None:
    model = network().eval()
    traced = trace(model, example())
    groups = list(traced.groups)
    keep = _halved(groups)
    smaller = copy.deepcopy(model)
    remove(smaller, groups, keep)
    assert traced.assumptions is not None
    retraced = trace(smaller, example(), assumptions=traced.assumptions.after_removal())
    again = {group.name: group.units for group in retraced.groups}
    assert again == {group.name: len(keep[group.name]) for group in groups if len(keep[group.name]) > 1}


@pytest.mark.parametrize("network", RIGHT)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_moments_are_sliced_bit_for_bit(network: type[nn.Module], kind: str) -> None:
    torch.manual_seed(0)
    model = network()
    optimizer = make_optimizer(model, FitConfig(epochs=1, lr=0.01, optimizer=kind))
    for _ in range(3):
        optimizer.zero_grad()
        model(example()).square().mean().backward()
        optimizer.step()
    groups = list(trace(model, example()).groups)
    keep = _halved(groups)
    smaller = copy.deepcopy(model)
    remove(smaller, groups, keep)
    kept = kept_positions(model, groups, keep)
    before = {name: dict(optimizer.state[p]) for name, p in model.named_parameters()}
    settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    carry_over(optimizer, model, smaller, kept)
    seen = 0
    for name, parameter in smaller.named_parameters():
        state = optimizer.state[parameter]
        assert state.keys() == before[name].keys()
        for key, value in before[name].items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                assert state[key] == value
                continue
            expected = value
            for dim, positions in kept.get(name, {}).items():
                expected = expected.movedim(dim, 0)[positions].movedim(0, dim)
            assert state[key].shape == parameter.shape and torch.equal(state[key], expected)
            seen += expected.numel() < value.numel()
    assert seen and len(optimizer.state) == len(list(smaller.parameters()))
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in smaller.parameters()}
    assert settings == [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    smaller(example()).square().mean().backward()
    optimizer.step()


def test_a_carried_optimizer_steps_like_one_that_saw_only_the_kept_channels() -> None:
    """Two networks whose dropped channels feed nothing: masked and sliced, the kept weights go the same way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[2].weight[:, 4:] = 0
        model[0].weight[4:] = 0
        model[0].bias[4:] = -1  # closed for good
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(seed))
        network(x).square().mean().backward()
        optimizer.step()

    for seed in range(3):
        step(model, optimizer, seed)
    smaller, rows = copy.deepcopy(model), torch.arange(4)
    smaller[0] = nn.Linear(6, 4)
    smaller[2] = nn.Linear(4, 3)
    with torch.no_grad():
        smaller[0].weight.copy_(model[0].weight[:4])
        smaller[0].bias.copy_(model[0].bias[:4])
        smaller[2].weight.copy_(model[2].weight[:, :4])
        smaller[2].bias.copy_(model[2].bias)
    carried = torch.optim.Adam(model.parameters(), lr=0.01)
    carried.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    carry_over(carried, model, smaller, {"0.weight": {0: rows}, "0.bias": {0: rows}, "2.weight": {1: rows}})
    for seed in range(3, 6):
        step(model, optimizer, seed)
        step(smaller, carried, seed)
    assert torch.allclose(smaller[0].weight, model[0].weight[:4], atol=1e-7)
    assert torch.allclose(smaller[2].weight, model[2].weight[:, :4], atol=1e-7)


def test_state_of_another_shape_begins_again() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight] = {"rows": torch.ones(4)}
    smaller = nn.Sequential(nn.Linear(4, 2))
    carry_over(optimizer, model, smaller, {"0.weight": {0: torch.arange(2)}})
    assert smaller[0].weight not in optimizer.state


def test_steps_compose_and_the_last_ratio_is_that_of_the_dense_network() -> None:
    model = Plain((32, 64, 128)).eval()
    result = prunecli.prune(model, "l1", example_inputs=example(), ratio=0.5, schedule="cubic", steps=3, scope="local")
    assert result.report.steps == 3 and result.report.achieved == 0.5 and result.report.verify_error < 1e-9
    for name, layer in (("body.3", model.body[3]), ("body.6", model.body[6])):
        edits = [edit for edit in result.manifest.edits if edit.group == name]
        assert len(edits) >= 2 and edits[0].width_before == layer.out_channels
        kept = torch.arange(layer.out_channels)
        for edit in edits:  # indices of a later step refer to what the earlier one left
            assert edit.width_before == len(kept)
            kept = kept[edit.keep_indices]
        assert len(kept) == layer.out_channels // 2
        after = result.model.get_submodule(name)
        assert torch.equal(after.bias, layer.bias[kept])


def test_a_step_sees_the_scores_of_the_network_as_it_is() -> None:
    """Training between the steps makes other channels weak, and those go."""
    model = Plain((16, 32, 32)).eval()
    weak = torch.zeros(32, dtype=torch.bool)
    weak[[1, 5, 9, 13]] = True

    def recover(transition: Transition) -> None:
        assert transition.steps == 2
        if transition.step == 1:
            kept = transition.kept["body.3.weight"][0]
            with torch.no_grad():
                transition.after.body[3].weight[weak[kept]] *= 1e-6
                transition.after.body[6].weight[:, weak[kept]] *= 1e-6

    params = StructuralParams(ratio=0.5, schedule="linear", steps=2, scope="local")
    request = PruneRequest(method="l1", params=params, example_inputs=example(), recover=recover, recalibrate=False)
    outcome = prune_structural(model, request).report
    kept = torch.arange(32)
    for edit in (edit for edit in outcome.edits if edit.group == "body.3"):
        kept = kept[edit.keep_indices]
    assert len(kept) == 16 and not weak[kept].any()


def test_a_ramp_trains_before_it_prunes_and_never_touches_the_original() -> None:
    model = Plain((16, 32, 32))
    before = copy.deepcopy(model.state_dict())
    optimizer: torch.optim.Optimizer | None = None
    widths: list[int] = []
    batches = [(example(), torch.tensor([1, 2]))] * 2

    def recover(transition: Transition) -> None:
        nonlocal optimizer
        config = FitConfig(epochs=1, lr=0.01, schedule="constant")
        if optimizer is None:
            optimizer = make_optimizer(transition.after, config)
        else:
            carry_over(optimizer, transition.before, transition.after, transition.kept)
        fit(transition.after, batches, None, config, CPU, task=Classification.with_classes(10), optimizer=optimizer)
        widths.append(transition.after.body[3].out_channels)

    result = prunecli.prune(
        model, "l1", example_inputs=example(), ratio=0.5, schedule="ramp", steps=10, scope="local", recover=recover
    )
    assert widths[:2] == [32, 32] and widths[-4:] == [16] * 4 and sorted(widths, reverse=True) == widths
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    momenta = [state["momentum_buffer"] for state in optimizer.state.values()]  # type: ignore[union-attr]
    assert momenta and all(float(buffer.abs().max()) > 0 for buffer in momenta)
    with torch.no_grad():
        assert torch.isfinite(F.log_softmax(result.model(example()), 1)).all()


def test_targets_hold_at_the_end_of_a_schedule() -> None:
    model = Plain((32, 128, 256, 128)).eval()
    result = prunecli.prune(model, "l1", example_inputs=example(), macs=0.5, schedule="linear", steps=3)
    assert result.report.macs_after.total / result.report.macs_before.total == pytest.approx(0.5, abs=0.02)
    ratios = {"body.3": 0.5}
    named = prunecli.prune(model, "l1", example_inputs=example(), layer_ratio=ratios, schedule="linear", steps=2)
    assert [edit.width_after for edit in named.report.edits] == [96, 64]


def test_steps_without_a_schedule_are_not_ignored() -> None:
    for params in ({"steps": 3}, {"initial_ratio": 0.2}):
        with pytest.raises(MethodError, match=r"belong to a schedule; add schedule='linear', cubic or ramp"):
            prunecli.prune(Plain(), "l1", example_inputs=example(), **params)


class _Silent:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    warn = note

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Any]:
        yield lambda done, text: None

    @contextmanager
    def phase(self, name: str, *, undisturbed: bool = False) -> Iterator[Any]:
        yield lambda done, total, counted: None


def test_a_stage_trains_after_every_step_with_one_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[torch.optim.Optimizer] = []
    steps_done: list[int] = []

    def watched(*arguments: Any, **named: Any) -> Any:
        result = fit(*arguments, **named)
        used.append(named["optimizer"])
        steps_done.append(int(next(iter(used[-1].state.values()))["step"]))
        return result

    monkeypatch.setattr("prunecli.pipeline.progressive.fit", watched)
    stage = PruneStage(
        method="taylor",
        params=asdict(StructuralParams(ratio=0.5, schedule="linear", steps=2)),
        epochs=1,
        lr=1e-3,
        optimizer="adamw",
        calibration_images=64,
        latency_rounds=2,
    )
    recipe = Recipe(model=ModelSection(ref="cifar:resnet20"), data=DataSection(name="digits"), device="cpu")
    space = Workspace(recipe, _Silent())  # type: ignore[arg-type]
    outcome = prune_stage(space, stage, tmp_path / "p.safetensors")
    assert used[0] is used[1] and steps_done == [11, 22]  # Adam counts on: 1293 images in batches of 128
    assert outcome.report.achieved == pytest.approx(0.5, abs=0.03) and outcome.report.steps == 2
    step = prunecli.load(tmp_path / "p.safetensors")._prunecli_manifest.history[-1]
    assert (step.settings["epochs"], step.settings["lr"], step.settings["optimizer"]) == (1, 1e-3, "adamw")


@pytest.mark.parametrize("network", RIGHT)
@pytest.mark.parametrize("scope", ["global", "isomorphic"])
def test_figures_of_several_steps_are_those_of_the_network(network: type[nn.Module], scope: str) -> None:
    """Also where a group can shrink no further after a step: the ratios requested and achieved count all of them."""
    model = network().eval()
    dense = {group.name: group.channels for group in trace(model, example()).groups}
    result = prunecli.prune(
        model, "l1", example_inputs=example(), ratio=0.5, schedule="linear", steps=3, scope=scope, min_width=2
    )
    left = dict(dense)
    for edit in result.report.edits:
        left[edit.group] = edit.width_after
    assert result.report.requested == 0.5
    assert result.report.achieved == pytest.approx(1 - sum(left.values()) / sum(dense.values()), abs=1e-6)
    assert result.report.achieved == pytest.approx(0.5, abs=0.13)


def test_what_scores_found_is_reported_after_a_resume_too() -> None:
    """The last step is not scored again, so its figures have to be part of the state."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
    x = torch.randn(8, 6)
    states: list[tuple[int, Any]] = []

    def request(**changes: Any) -> PruneRequest:
        params: Any = get_structural("hap").params_class(
            ratio=0.5, schedule="linear", steps=2, min_width=1, min_probes=4, max_probes=8
        )
        data = [(x, torch.arange(8) % 3)] * 2
        return PruneRequest(method="hap", params=params, example_inputs=x, calibration=data, **changes)

    whole = prune_structural(model, request(recover=lambda step: states.append((step.step, step.state()))))
    assert whole.report.scoring["probes"] >= 4
    resumed = prune_structural(model, request(recover=lambda _: None, resume=states[-1]))
    assert resumed.report.scoring == whole.report.scoring
    assert [edit.keep_indices for edit in resumed.report.edits] == [edit.keep_indices for edit in whole.report.edits]
