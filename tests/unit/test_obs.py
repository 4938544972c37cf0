"""What other channels cannot make up for, against least squares and loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunecli.criteria import hessian, obs, surgeon
from prunecli.criteria.base import Calibration
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.tracing.trace import trace
from tests.unit.importance import NoBias, images
from tests.unit.networks import Flattened, Grouped, Transposed, example
from tests.unit.recurrent import Words, tokens, words_groups


def _words() -> tuple[Any, list[ChannelGroup], list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(7)
    model = Words().double().eval()
    return model, words_groups(model), tokens(2)


def _read(model: nn.Module, module: str, data: Any) -> Tensor:
    """Everything a layer took in, channels last, shape (rows, channels)."""
    kept: list[Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(lambda _, args: kept.append(args[0].detach()))
    with torch.no_grad():
        for inputs, _ in data:
            model(inputs)
    hook.remove()
    values = torch.cat(kept).double()
    return values.movedim(1, -1).flatten(0, -2) if values.dim() == 4 else values.flatten(0, -2)


def _least_squares(rows: Tensor, weight: Tensor, gone: list[int], centred: bool, ridge: float = 0.01) -> float:
    """Error of W x without some columns, the others fitted anew, as a share of E|W x|^2: one solve, no inverse."""
    rows = rows - rows.mean(0) if centred else rows
    count = len(rows)
    strength = ridge * float((rows.square().sum(0) / count).mean())
    kept = [column for column in range(rows.shape[1]) if column not in gone]
    # The ridge is written as further rows, which hold the columns where they are.
    held = (strength * count) ** 0.5 * torch.eye(rows.shape[1], dtype=torch.float64)
    stacked = torch.cat([rows, held])
    target = stacked @ weight.T
    fitted = torch.linalg.lstsq(stacked[:, kept], target).solution
    error = (target - stacked[:, kept] @ fitted).square().sum() / count
    return float(error / ((rows @ weight.T).square().sum() / count))


def test_obs_is_the_least_squares_error_without_the_unit() -> None:
    torch.manual_seed(2)
    model, data = Flattened().eval(), images(2, 40)
    groups = [group for group in trace(model, example()).groups if group.name in ("a", "fc1")]
    scores = obs.obs(model, groups, Calibration(batches=data))
    for group, reader in zip(groups, ("fc1", "fc2"), strict=True):  # units of 16 columns, and of one
        rows, weight = _read(model, reader, data), model.get_submodule(reader).weight.detach().double()
        consumer = next(member for member in group.members if member.role == "consumer")
        expected = [_least_squares(rows, weight, consumer.index[unit].tolist(), True) for unit in range(group.units)]
        assert scores[group.name].tolist() == pytest.approx(expected, rel=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("taps", [True, False])
def test_taps_of_convolutions_are_columns_of_their_own(taps: bool) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()
    ).eval()
    generator = torch.Generator().manual_seed(0)
    data = [functional.avg_pool2d(torch.randn(20, 3, 10, 10, generator=generator), 3, 1) for _ in range(2)]
    group = next(group for group in trace(model, data[0][:1], prune_stem=True).groups if group.name == "0")
    score = obs.obs(model, [group], Calibration(batches=data, options={"taps": taps}))["0"]
    hidden = torch.cat([model[1](model[0](batch)).detach() for batch in data]).double()
    if taps:
        rows = functional.unfold(hidden, 3, padding=1, stride=2).movedim(1, -1).flatten(0, 1)
        weight, gone = model[2].weight.detach().double().flatten(1), [list(range(9 * u, 9 * u + 9)) for u in range(6)]
        expected = [_least_squares(rows, weight, columns, True) for columns in gone]
        assert score.tolist() == pytest.approx(expected, rel=1e-5)  # type: ignore[union-attr]
    else:
        rows = hidden.movedim(1, -1).flatten(0, 2)
        weight = model[2].weight.detach().double().movedim(1, -1).reshape(-1, 6)
        expected = [_least_squares(rows, weight, [unit], True) for unit in range(6)]
        assert score.tolist() == pytest.approx(expected, rel=1e-5)  # type: ignore[union-attr]


def test_obs_of_recurrent_units_counts_every_reader() -> None:
    model, groups, data = _words()
    scores = obs.obs(model, groups[1:], Calibration(batches=data))
    stepwise: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for inputs, _ in data:
            first = model.first(model.embed(inputs).transpose(0, 1))[0]  # type: ignore[operator]
            second = model.second(first)[0]  # type: ignore[operator]
            for name, outputs in (("first", first), ("second", second)):
                before = torch.cat([torch.zeros_like(outputs[:1]), outputs[:-1]])
                stepwise.setdefault(f"{name}.own", []).append(before.flatten(0, 1))
                stepwise.setdefault(f"{name}.next", []).append(outputs.flatten(0, 1))
    weights = {
        "first": (model.first.weight_hh_l0, model.second.weight_ih_l0),
        "second": (model.second.weight_hh_l0, model.decode.weight),
    }
    for name, own in weights.items():
        rows = [torch.cat(stepwise[f"{name}.{reader}"]) for reader in ("own", "next")]
        expected = [
            sum(_least_squares(x, w.detach(), [unit], True) for x, w in zip(rows, own, strict=True))  # type: ignore[operator]
            for unit in range(len(scores[name]))
        ]
        assert scores[name].tolist() == pytest.approx(expected, rel=1e-6)  # type: ignore[union-attr]


def test_greedy_obs_removes_the_cheapest_and_counts_again() -> None:
    torch.manual_seed(4)
    model, data = NoBias().eval(), images(2, 60)
    index = torch.arange(7)[:, None]
    group = ChannelGroup("a", 7, 7, tuple(Member(name, "weight", 1, index, "consumer") for name in "bc"))
    found = obs.obs_greedy(model, [group], Calibration(batches=data))["a"]
    rows = _read(model, "b", data)
    gone: list[int] = []
    spent, last = 0.0, 0.0
    for unit in found.argsort().tolist():  # type: ignore[union-attr]
        totals = {
            other: sum(
                _least_squares(rows, layer.weight.detach().double(), [*gone, other], layer.bias is not None)
                for layer in (model.b, model.c)
            )
            for other in range(7)
            if other not in gone
        }
        assert unit == min(totals, key=lambda other: totals[other])
        last = max(totals[unit] - spent, last)
        assert float(found[unit]) == pytest.approx(last, rel=1e-6)  # type: ignore[arg-type]
        gone.append(unit)
        spent = totals[unit]


def test_greedy_obs_of_units_at_several_columns_and_their_order_is_strict() -> None:
    model, data = Flattened().eval(), images(2, 40)
    group = next(group for group in trace(model, example()).groups if group.name == "a")
    scores = obs.obs_greedy(model, [group], Calibration(batches=data))["a"]
    assert len(set(scores.tolist())) == group.units  # type: ignore[union-attr]
    rows, weight = _read(model, "fc1", data), model.fc1.weight.detach().double()
    order = scores.argsort().tolist()  # type: ignore[union-attr]
    consumer = next(member for member in group.members if member.role == "consumer")
    half = [column for unit in order[:8] for column in consumer.index[unit].tolist()]
    total = sum(sorted(scores.tolist())[:8])  # type: ignore[union-attr]
    assert total >= _least_squares(rows, weight, half, True) * (1 - 1e-6)


@pytest.mark.parametrize(("network", "name", "reader"), [(Grouped, "a", "g"), (Transposed, "a", "up")])
def test_obs_of_grouped_and_transposed_readers(network: type[nn.Module], name: str, reader: str) -> None:
    torch.manual_seed(3)
    model, data = network().eval(), images(1, 8)
    group = next(group for group in trace(model, example()).groups if group.name == name)
    score = obs.obs(model, [group], Calibration(batches=data))[name]
    rows, layer = _read(model, reader, data), model.get_submodule(reader)
    member = next(member for member in group.members if member.module == reader and member.role == "consumer")
    blocks = layer.groups if member.dim == 1 else 1
    weight = layer.weight.detach().double()
    by_block = rows - rows.mean(0)
    strength = 0.01 * float(by_block.square().mean(0).mean())
    cost, total = torch.zeros(group.units, dtype=torch.float64), 0.0
    for block in range(blocks):
        own = weight.chunk(blocks)[block].movedim(member.dim, -1).flatten(0, -2)
        x = by_block.chunk(blocks, dim=1)[block]
        second = x.T @ x / len(x)
        inverse = torch.linalg.inv(second + strength * torch.eye(len(second), dtype=torch.float64))
        total += float((own @ second @ own.T).trace())
        for unit, columns in enumerate(member.index.tolist()):
            rows_of = inverse[columns][:, columns]
            cost[unit] += (own[:, columns] @ torch.linalg.inv(rows_of) @ own[:, columns].T).trace()
    assert score.tolist() == pytest.approx((cost / total).tolist(), rel=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize("together", [1, 20, 4096])
def test_removals_that_are_subtracted_together_are_those_one_by_one(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    model, data = Flattened().eval(), images(2, 40)
    groups = [group for group in trace(model, example()).groups if group.name in ("a", "fc1")]
    wanted = obs.obs_greedy(model, groups, Calibration(batches=data))
    monkeypatch.setattr(surgeon, "_TOGETHER", together)
    found = obs.obs_greedy(model, groups, Calibration(batches=data))
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-8) for name in wanted)  # type: ignore[arg-type]


def test_wide_readers_pool_places_and_wider_ones_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model, data = Flattened().eval(), images(1, 40)
    group = next(group for group in trace(model, example()).groups if group.name == "a")
    monkeypatch.setattr(surgeon, "WIDEST", 100)
    score = obs.obs(model, [group], Calibration(batches=data))["a"]
    rows, weight = _read(model, "fc1", data).unflatten(1, (16, 16)), model.fc1.weight.detach().double()
    flat = rows.movedim(1, -1).flatten(0, 1)
    flat = flat - flat.mean(0)
    second = flat.T @ flat / len(flat)
    inverse = torch.linalg.inv(second + 0.01 * second.diagonal().mean() * torch.eye(16, dtype=torch.float64))
    by_place = weight.unflatten(1, (16, 16))
    total = sum(float((by_place[..., p] @ second @ by_place[..., p].T).trace()) for p in range(16))
    expected = by_place.square().sum((0, 2)) / inverse.diagonal() / total
    assert score.tolist() == pytest.approx(expected.tolist(), rel=1e-6)  # type: ignore[union-attr]
    monkeypatch.setattr(surgeon, "WIDEST", 10)
    assert "more than" in obs.obs(model, [group], Calibration(batches=data))["a"]  # type: ignore[operator]


def test_a_covariance_of_parts_is_that_of_the_whole() -> None:
    rows = torch.randn(90, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 1e6
    parts = surgeon.Covariance()
    for part in rows.split(37):
        parts.add(part)
    assert torch.allclose(parts.second(centred=True), torch.cov(rows.T, correction=0), rtol=1e-6)
    assert torch.allclose(parts.second(centred=False), rows.T @ rows / 90, rtol=1e-12)


def test_groups_without_a_writer_or_a_reader_say_so() -> None:
    model, data = NoBias().eval(), images(2)
    index = torch.arange(7)[:, None]
    read, written = Member("b", "weight", 1, index, "consumer"), Member("a", "weight", 0, index, "producer")
    alone = ChannelGroup("r", 7, 7, (read,))
    assert "no layer writes it" in hessian.hap(model, [alone], Calibration(batches=data))["r"]  # type: ignore[operator]
    unread = ChannelGroup("w", 7, 7, (written,))
    assert "can be watched" in obs.obs(model, [unread], Calibration(batches=data))["w"]  # type: ignore[operator]
    with torch.no_grad():
        model.b.weight.zero_()
    assert "give zero" in obs.obs(model, [alone], Calibration(batches=data))["r"]  # type: ignore[operator]
