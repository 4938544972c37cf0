"""Scores where data or settings are not what criteria usually meet."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunecli
from prunecli.criteria import hessian, magnitude
from prunecli.criteria.activation import activation
from prunecli.criteria.base import Calibration
from prunecli.criteria.gradient import fisher, taylor
from prunecli.criteria.independence import require_independent_samples
from prunecli.errors import MethodError
from prunecli.methods.retention import ratios_by_variation
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Plain, example
from tests.unit.recurrent import Words, hidden_group, tokens, words_groups


class _Steps(nn.Module):
    """Takes (steps, samples, features), as recurrent layers of torch do by default."""

    def __init__(self, kind: type[nn.RNNBase], *, last: bool = False) -> None:
        super().__init__()
        self.layer, self.decode, self.last = kind(3, 6), nn.Linear(6, 4), last

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layer(x)[0]
        return self.decode(outputs[-1] if self.last else outputs)


class _StepsLast(nn.Module):
    """Takes samples first and hands them to a network that does not."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


def _steps_first(samples: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(7, samples, 3, generator=generator),
        torch.randint(0, 4, (7, samples), generator=generator),
    )


@pytest.mark.parametrize("criterion", [fisher, taylor])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("samples", [1, 4])
def test_steps_are_not_taken_for_samples(criterion: Any, kind: type[nn.RNNBase], samples: int) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = _Steps(kind)
        groups = [hidden_group(model, "layer", ("decode", "weight"))]
        with pytest.raises(MethodError, match="samples have to come first") as caught:
            criterion(model, groups, Calibration(batches=[_steps_first(samples)]))
        assert "transposes" in str(caught.value) and "\n" not in str(caught.value)


def test_steps_are_not_taken_for_samples_where_only_the_last_is_read() -> None:
    torch.manual_seed(0)
    model = _Steps(nn.LSTM, last=True)
    groups = [hidden_group(model, "layer", ("decode", "weight"))]
    with pytest.raises(MethodError, match="samples have to come first"):
        fisher(model, groups, Calibration(batches=[_steps_first()[0]]))


def test_the_remedy_gives_the_scores_of_single_samples() -> None:
    torch.manual_seed(0)
    inner = _Steps(nn.GRU)
    model = _StepsLast(inner)
    inputs, labels = _steps_first()
    group = hidden_group(model, "inner.layer", ("inner.decode", "weight"))
    scores = fisher(model, [group], Calibration(batches=[(inputs.transpose(0, 1), labels.T)]))
    wanted = []
    for sample in range(4):
        inner.zero_grad()
        # The gates of units: columns of all weights that read them, times their gradients.
        F.cross_entropy(inner(inputs[:, sample : sample + 1])[:, 0], labels[:, sample]).backward()  # type: ignore[no-untyped-call]
        own = [inner.layer.weight_hh_l0, inner.decode.weight]
        wanted.append(sum((weight * weight.grad).sum(0).detach() for weight in own))
    (score,) = scores.values()
    assert isinstance(score, Tensor)
    assert torch.allclose(score.float(), torch.stack(wanted).square().mean(0), rtol=1e-4)  # type: ignore[arg-type]


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


class _Case(nn.Module):
    """A network given by a function of a linear layer and the input."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.layer, self.function = nn.Linear(3, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.layer, x)


def _similarities(layer: nn.Module, x: Tensor) -> Tensor:
    rows = F.normalize(layer(x), dim=1)
    return rows @ rows.T


def _spikes(layer: nn.Module, x: Tensor) -> Tensor:
    """A threshold that equals a value, which rounding in another order does not reach."""
    rounding = 1e-7 * (len(x) == 1) if x.dtype == torch.float32 else 0.0
    return (layer(x) * 0 + 1 - rounding >= 1).to(x)


@pytest.mark.parametrize(
    ("function", "inputs"),
    [
        (lambda layer, x: layer(x), _drawn(5, 3)),
        (lambda layer, x: layer(x).mean(), _drawn(5, 3)),
        (lambda layer, x: layer(x) + torch.randn(4), _drawn(5, 3)),
        (lambda layer, x: list(layer(x)), _drawn(5, 3)),
        (lambda layer, x: layer(x).transpose(0, 1), _drawn(5, 7, 3)),
        (lambda layer, x: layer(x).flatten(0, 1), _drawn(5, 7, 3)),
        (lambda layer, x: layer(x).transpose(0, 1).flatten(0, 1), _drawn(5, 7, 3)),
        (lambda layer, x: {"logits": layer(x)}, _drawn(5, 3)),
        (_similarities, _drawn(5, 3)),
        (_spikes, _drawn(5, 3)),
        (lambda layer, x: layer(torch.stack([part.mean(0) for part in x])), [_drawn(2, 3), _drawn(5, 3)]),
    ],
)
def test_networks_with_samples_first_pass(function: Any, inputs: Any) -> None:
    require_independent_samples(_Case(function).eval(), inputs)


def test_a_network_that_looks_at_the_whole_batch_does_not_pass() -> None:
    with pytest.raises(MethodError, match="alone than in its batch of 5"):
        require_independent_samples(_Case(lambda layer, x: layer(x - x.mean(0))).eval(), _drawn(5, 3))


def test_recurrent_networks_with_samples_first_are_scored() -> None:
    torch.manual_seed(0)
    model = Words(nn.LSTM)
    scores = fisher(model, words_groups(model), Calibration(batches=tokens()))
    assert all(isinstance(score, Tensor) for score in scores.values())


@pytest.mark.parametrize("silent", [3, 5, 6])
def test_units_without_curvature_have_no_relative_error(silent: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        model[0].bias[:silent] = -100.0
    group = ChannelGroup(
        "0",
        6,
        6,
        (
            Member("0", "weight", 0, torch.arange(6)[:, None], "producer"),
            Member("2", "weight", 1, torch.arange(6)[:, None], "consumer"),
        ),
    )
    found: dict[str, Any] = {}
    hessian.hap(model, [group], Calibration(batches=[_drawn(8, 3)], found=found))
    json.dumps(found, allow_nan=False)
    estimate = hessian.hap_estimate(model, [group], Calibration(batches=[_drawn(8, 3)]))
    alive = [
        float(error / mean.abs())
        for mean, error in zip(estimate.means["0"], estimate.standard_errors["0"], strict=True)
        if mean != 0
    ]
    assert len(alive) == 6 - silent
    if alive:
        middle = sorted(alive)[(len(alive) - 1) // 2]
        assert found["relative_standard_error"] == pytest.approx(middle, abs=1e-4)
    else:
        assert "relative_standard_error" not in found


def _two_layers() -> tuple[nn.Module, ChannelGroup]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    plain = torch.arange(8)[:, None]
    members = (Member("0", "weight", 0, plain, "producer"), Member("2", "weight", 1, plain, "consumer"))
    return model, ChannelGroup("0", 8, 8, members)


@pytest.mark.parametrize("batches", [2, 3, 4])
def test_halves_of_estimates_share_no_data_in_any_round(batches: int) -> None:
    """Every batch has inputs in a column of its own, so the curvature of that column's weights names the batch."""
    model, _ = _two_layers()
    data = [torch.zeros(4, 8).index_fill(1, torch.tensor([batch]), 1.0 + batch) for batch in range(batches)]
    weight = model[0].weight
    draws = hessian.curvature_draws(model, {"0.weight": weight}, Calibration(batches=data), "hap")
    seen: dict[int, set[int]] = {0: set(), 1: set()}
    for draw in itertools.islice(draws, 4 * batches):
        seen[draw.half] |= set(draw.values["0.weight"].abs().sum(0).nonzero().flatten().tolist())
    assert seen == {0: set(range(0, batches, 2)), 1: set(range(1, batches, 2))}


def test_probes_cannot_make_halves_agree_whose_data_differs() -> None:
    """In one half of the data half of the units matter, in the other the others; the probes' limit ends it."""
    model, group = _two_layers()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8))
    places = torch.arange(8)
    data = [torch.diag((places % 2 == batch).float() * (1 + places)) for batch in range(2)]
    found: dict[str, Any] = {}
    options = {"min_probes": 16, "max_probes": 60, "stability": 0.9}
    hessian.hap(model, [group], Calibration(batches=data, options=options, found=found))
    assert found["probes"] == 60 and found["reliability"] < 0.5


def _images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(6, 3, 16, 16, generator=generator) for _ in range(2)]


def _pruned(method: str, **settings: Any) -> Any:
    torch.manual_seed(1)
    model = Plain((8, 12, 8)).eval()
    return prunecli.prune(model, method, example_inputs=example(), min_width=1, round_to=1, **settings)


@pytest.mark.parametrize("method", ["l1", "l2", "activation"])
def test_scores_without_gradients_decide_how_much_goes(method: str) -> None:
    data = {"data": _images()} if method == "activation" else {}
    done = _pruned(method, retention="cv-legacy", recalibrate=False, compensate="none", **data)
    widths = {edit.group: edit.width_after for edit in done.report.edits}
    torch.manual_seed(1)
    model = Plain((8, 12, 8)).eval()
    scored = magnitude.l1 if method == "l1" else magnitude.l2 if method == "l2" else activation
    scores = scored(model, trace(model, example()).groups, Calibration(batches=_images()))
    ratios = ratios_by_variation({name: scores[name] for name in widths})  # type: ignore[misc]
    assert widths and widths == {name: round(len(scores[name]) * (1 - ratio)) for name, ratio in ratios.items()}
    bounded = _pruned(method, retention="epsilon", epsilon=0.05, recalibrate=False, compensate="none", data=_images())
    assert bounded.report.scoring["measured_rise"] <= 0.05 and bounded.report.achieved > 0


@pytest.mark.parametrize("method", ["l1", "l2"])
def test_a_bound_on_the_loss_without_data_is_refused(method: str) -> None:
    with pytest.raises(MethodError, match="retention='epsilon' measures the loss") as caught:
        _pruned(method, retention="epsilon", epsilon=0.05, recalibrate=False, compensate="none")
    assert "\n" not in str(caught.value)
