"""How many units stay where scores decide it, against loops, and through the whole flow of pruning."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor, nn

import prunecli
from prunecli.criteria.ablation import Unit
from prunecli.criteria.base import Calibration, default_loss
from prunecli.criteria.gradient import fisher
from prunecli.errors import MethodError
from prunecli.methods.allocation import Allocation
from prunecli.methods.retention import LossBound, ratios_by_variation
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Plain, example


def _data(batches: int = 3, size: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 3, 16, 16, generator=generator) for _ in range(batches)]


def _sure() -> nn.Module:
    """A network whose own predictions are clear, so that losing units costs something."""
    torch.manual_seed(1)
    model = Plain((8, 12, 8)).eval()
    with torch.no_grad():
        model.head.fc.weight *= 20  # type: ignore[union-attr,operator]
    return model


def _mean_loss(model: nn.Module, labels: list[Tensor]) -> float:
    with torch.no_grad():
        losses = [default_loss(model(x), own) for x, own in zip(_data(), labels, strict=True)]
    return float(sum(losses)) / 18


@pytest.mark.parametrize("epsilon", [0.02, 0.2])
def test_a_bound_on_the_loss_is_predicted_measured_and_kept(epsilon: float) -> None:
    model = _sure()
    with torch.no_grad():
        labels = [model(x).argmax(1) for x in _data()]
    data = list(zip(_data(), labels, strict=True))
    done = prunecli.prune(
        model,
        "fisher",
        example_inputs=example(),
        data=data,
        retention="epsilon",
        epsilon=epsilon,
        min_width=1,
        round_to=1,
        prune_stem=True,
        compensate="none",
        recalibrate=False,
    )
    scoring = done.report.scoring
    rise = _mean_loss(done.model, labels) - _mean_loss(model, labels)
    assert scoring["measured_rise"] == pytest.approx(rise, abs=2e-5) and rise <= epsilon
    assert scoring["loss_before"] == pytest.approx(_mean_loss(model, labels), abs=1e-5)
    assert 0 < done.report.achieved == done.report.requested
    assert done.manifest.history[-1].figures["scoring"]["epsilon"] == epsilon  # type: ignore[index,call-overload]


def test_a_larger_bound_removes_more() -> None:
    shares = []
    for epsilon in (0.01, 0.1, 1.0):
        done = prunecli.prune(
            _sure(), "taylor", example_inputs=example(), data=_data(), retention="epsilon", epsilon=epsilon,
            min_width=1, round_to=1, compensate="none", recalibrate=False,
        )  # fmt: skip
        shares.append(done.report.achieved)
    assert shares[0] < shares[1] < shares[2]


def test_predictions_are_sums_of_isotonic_rises() -> None:
    model = _sure()
    groups = [group for group in trace(model, example()).groups if group.name == "body.3"]
    calibration = Calibration(batches=_data())
    scores: Any = fisher(model, groups, calibration)
    bound = LossBound(model, groups, scores, calibration, "mean")
    rises = []
    for unit in range(12):
        first, second = bound._ablation.rises(Unit("body.3", unit))
        rises.append((first * 12 + second * 6) / 18)
    curve = IsotonicRegression(y_min=0.0).fit(scores["body.3"].numpy(), rises)
    for kept in ([0, 1, 2], [5], list(range(11))):
        gone = [unit for unit in range(12) if unit not in kept]
        wanted = sum(float(curve.predict([scores["body.3"][unit].item()])[0]) for unit in gone)
        allocation = Allocation({"body.3": torch.tensor(kept)}, {}, 0.5, 0.5)
        assert bound.predicted(allocation) == pytest.approx(wanted)
        pruned = Plain((8, 12, 8)).eval()
        pruned.load_state_dict(model.state_dict())
        with torch.no_grad():
            pruned.body[6].weight[:, gone] = 0  # type: ignore[index]
            labels = None
            after = sum(float(default_loss(pruned(x), labels)) for x in _data()) / 18
            before = sum(float(default_loss(model(x), labels)) for x in _data()) / 18
        assert bound.measured(allocation) == pytest.approx(after - before, abs=1e-5)


def test_where_the_prediction_was_too_low_less_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _sure()
    groups = trace(model, example()).groups
    calibration = Calibration(batches=_data())
    scores: Any = fisher(model, groups, calibration)
    bound = LossBound(model, groups, scores, calibration, "mean")

    def plan(ratio: float) -> Allocation:
        keep = {g.name: scores[g.name].argsort(descending=True)[: max(1, round(g.units * (1 - ratio)))] for g in groups}
        return Allocation({name: kept.sort().values for name, kept in keep.items()}, {}, ratio, ratio)

    monkeypatch.setattr(bound, "predicted", lambda allocation: 0.0)
    allocation = bound.reach(0.05, plan)
    assert 0 < allocation.requested < 1 and bound.measured(allocation) <= 0.05
    assert bound.measured(plan(1.0)) > 0.05


def _by_loop(scores: list[float]) -> int:
    mean = sum(scores) / len(scores)
    cv = (sum((value - mean) ** 2 for value in scores) / len(scores)) ** 0.5 / mean
    share = 0.7 if cv > 2.5 else 0.8 if cv > 1.5 else 0.9
    for kept in range(1, len(scores) + 1):
        if sum(sorted(scores, reverse=True)[:kept]) >= share * sum(scores) - 1e-9:
            return kept
    return len(scores)


def test_the_rule_of_variation_keeps_the_fewest_that_hold_its_share() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = set()
    for power in (1, 3, 10, 40):
        values = torch.rand(60, generator=generator, dtype=torch.float64) ** power
        (ratio,) = ratios_by_variation({"a": values}).values()
        assert round(60 * (1 - ratio)) == _by_loop(values.tolist())
        kept.add(round(60 * (1 - ratio)))
    assert len(kept) == 4
    assert ratios_by_variation({"a": torch.zeros(5), "b": torch.ones(10, dtype=torch.float64)}) == {
        "a": 0.0,
        "b": pytest.approx(0.1),
    }


def test_the_rule_of_variation_decides_in_the_flow() -> None:
    model = _sure()
    scores = fisher(model, trace(model, example()).groups, Calibration(batches=_data()))
    done = prunecli.prune(
        model, "fisher", example_inputs=example(), data=_data(), retention="cv-legacy", min_width=1, round_to=1
    )
    for edit in done.report.edits:
        assert edit.width_after == _by_loop(scores[edit.group].tolist())  # type: ignore[union-attr]
    assert done.report.scoring["retention"] == "cv-legacy" and done.report.requested == done.report.achieved


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.1}, "epsilon belongs to retention='epsilon'"),
        ({"retention": "epsilon"}, "retention='epsilon' needs epsilon, the rise"),
        ({"retention": "epsilon", "epsilon": 0.1, "ratio": 0.3}, "so does ratio=0.3; give one of them"),
        ({"retention": "cv-legacy", "macs": 0.5}, "so does macs; give one of them"),
        ({"retention": "cv-legacy", "layer_ratio": {"body.3": 0.5}}, "so does layer_ratio; give one"),
        ({"retention": "cv-legacy", "schedule": "linear"}, "decides once; leave out schedule='linear'"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MethodError) as caught:
        prunecli.prune(_sure(), "fisher", example_inputs=example(), data=_data(), **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_bound_that_nothing_keeps_is_said() -> None:
    model = _sure()
    with torch.no_grad():
        data = [(x, model(x)) for x in _data()]  # every unit's loss moves the outputs away from these
    with pytest.raises(MethodError, match="nothing would be removed at retention='epsilon'"):
        prunecli.prune(
            model, "fisher", example_inputs=example(), data=data, retention="epsilon", epsilon=1e-9, round_to=1
        )
