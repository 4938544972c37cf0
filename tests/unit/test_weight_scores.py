"""Scores of single weights against plain loops, and masks by counting."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.criteria.base import Calibration, default_loss
from prunecli.criteria.weights.base import MaskableWeight
from prunecli.criteria.weights.grasp import grasp
from prunecli.criteria.weights.inputs import input_columns
from prunecli.criteria.weights.magnitude import magnitude
from prunecli.criteria.weights.maskable import find_maskable
from prunecli.criteria.weights.random import random_weights
from prunecli.criteria.weights.snip import snip
from prunecli.criteria.weights.sparsegpt import solve, sparsegpt
from prunecli.criteria.weights.synflow import synflow
from prunecli.criteria.weights.wanda import wanda_weights
from prunecli.errors import MethodError
from prunecli.measure.counts import count_macs
from prunecli.measure.effective import effective_macs
from prunecli.measure.sparse_kernels import crossing
from prunecli.methods.sparse import SparseRequest, mask_weights
from prunecli.methods.sparse_params import SparseParams
from prunecli.sparsity.choosing import Goal, keep_masks, lowest, lowest_in_rows, spread


class Tiny(nn.Module):
    """A convolution, a grouped one with stride and dilation, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
        self.c = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.a(x)))  # tanh has a second derivative, ReLU has none
        return self.c(torch.tanh(self.b(x)).mean((2, 3)))


def _tiny() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = Tiny().double().eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2.0)
    return model, [(torch.randn(n, 2, 6, 6, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (5, 3)]


def _weights(model: nn.Module, example: Tensor) -> list[MaskableWeight]:
    return find_maskable(model, example, lambda name: None).weights


def _calibration(batches: list[tuple[Tensor, Tensor]]) -> Calibration:
    return Calibration(batches=batches, example_inputs=batches[0][0][:1])


def _loss(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    return torch.stack([default_loss(model(inputs), labels) for inputs, labels in batches]).sum()


def test_every_layer_is_found_and_magnitudes_are_those_of_the_weights() -> None:
    model, batches = _tiny()
    weights = _weights(model, batches[0][0])
    assert [weight.name for weight in weights] == ["a.weight", "b.weight", "c.weight"]
    scores = magnitude(model, weights, _calibration(batches))
    assert all(torch.equal(scores[weight.name], weight.parameter.abs()) for weight in weights)


def test_random_scores_depend_on_the_seed_alone() -> None:
    model, batches = _tiny()
    weights = _weights(model, batches[0][0])
    drawn = [
        random_weights(model, weights, Calibration(generator=torch.Generator().manual_seed(seed))) for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0]["b.weight"], drawn[1]["b.weight"])
    assert not torch.equal(drawn[0]["b.weight"], drawn[2]["b.weight"])


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 6, 3, groups=2),
        nn.Conv2d(4, 6, (3, 2)),
        nn.Conv3d(2, 4, 2, groups=2),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.Linear(5, 7),
    ],
)
def test_blocks_have_an_output_in_every_row_and_channels_last(layer: nn.Module) -> None:
    weight = MaskableWeight("weight", ("",), layer, layer.weight)
    blocks = weight.blocks(layer.weight.detach())
    assert torch.equal(weight.restored(blocks), layer.weight)
    groups = weight.groups
    assert blocks.shape[0] == groups and blocks.shape[2] % weight.inputs == 0
    full = layer.weight.detach().flatten(2) if layer.weight.dim() > 2 else layer.weight.detach().unsqueeze(2)
    for group in range(groups):
        for output in range(blocks.shape[1]):
            for column in range(blocks.shape[2]):
                position, channel = divmod(column, weight.inputs)
                if weight.transposed:
                    expected = full[group * weight.inputs + channel, output, position]
                else:
                    expected = full[group * blocks.shape[1] + output, channel, position]
                assert blocks[group, output, column] == expected


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, groups=2, padding=1), (2, 4, 7)),
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2), (3, 4, 6, 6)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 5)),
        (nn.Conv2d(2, 3, 4, padding="same"), (2, 2, 5, 5)),
        (nn.Conv3d(2, 4, 2, stride=2), (1, 2, 4, 4, 4)),
        (nn.Conv2d(2, 3, 3), (2, 5, 5)),
        (nn.Linear(5, 7), (2, 3, 5)),
    ],
)
def test_unfolded_inputs_times_weights_are_the_layers_output(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = layer.double()
    values = torch.randn(shape, dtype=torch.float64)
    if len(shape) < layer.weight.dim():
        values = values[:2]
    weight = MaskableWeight("weight", ("",), layer, layer.weight)
    columns = torch.cat(list(input_columns(layer, values)), dim=1)
    with torch.no_grad():
        products = columns @ weight.blocks(layer.weight).transpose(1, 2)  # (groups, positions, outputs)
        layer.bias.zero_()
        output = layer(values)
    output = (
        output if isinstance(layer, nn.Linear) else output.unsqueeze(0) if len(shape) < layer.weight.dim() else output
    )
    flat = (
        output.reshape(-1, output.shape[-1]) if isinstance(layer, nn.Linear) else output.movedim(1, -1).flatten(0, -2)
    )
    torch.testing.assert_close(products.permute(1, 0, 2).flatten(1), flat)


def test_wanda_is_the_weight_times_the_norm_of_its_stored_inputs() -> None:
    model, batches = _tiny()
    weights = _weights(model, batches[0][0])
    scores = wanda_weights(model, weights, _calibration(batches))
    seen: dict[str, list[Tensor]] = {}
    for name in ("a", "b", "c"):
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.setdefault(name, []).append(args[0])
        )
    with torch.no_grad():
        for inputs, _ in batches:
            model(inputs)
    linear = torch.cat(seen["c"]).square().sum(0).sqrt()
    torch.testing.assert_close(scores["c.weight"], model.c.weight.abs() * linear)
    for name in ("a", "b"):
        layer = model.get_submodule(name)
        unfolded = F.unfold(torch.cat(seen[name]), layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        norms = unfolded.square().sum((0, 2)).sqrt().reshape(layer.groups, *layer.weight.shape[1:])
        rows = layer.out_channels // layer.groups
        for output in range(layer.out_channels):
            expected = layer.weight[output].abs() * norms[output // rows]
            torch.testing.assert_close(scores[f"{name}.weight"][output], expected)


def test_wanda_adds_up_both_uses_of_a_tied_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    inputs = torch.randn(6, 4)
    weights = _weights(model, inputs)
    assert len(weights) == 1 and weights[0].modules == ("0", "1")
    scores = wanda_weights(model, weights, Calibration(batches=[inputs]))["0.weight"]
    with torch.no_grad():
        norms = (inputs.square().sum(0) + model[0](inputs).square().sum(0)).sqrt()
    torch.testing.assert_close(scores, (model[0].weight.abs() * norms).double())


def test_snip_is_the_derivative_by_a_gate_on_each_weight() -> None:
    model, batches = _tiny()
    scores = snip(model, _weights(model, batches[0][0]), _calibration(batches))
    step = 1e-6
    for name, score in scores.items():
        weight = model.get_parameter(name).data.flatten()
        for index in range(0, len(weight), 5):  # one weight at a time, by finite differences
            value = weight[index].item()
            sides = []
            for factor in (1 + step, 1 - step):
                weight[index] = factor * value
                with torch.no_grad():
                    sides.append(_loss(model, batches).item())
            weight[index] = value
            derivative = abs(sides[0] - sides[1]) / (2 * step)
            assert score.flatten()[index].item() == pytest.approx(derivative, rel=1e-4, abs=1e-8)


def test_grasp_is_the_weight_times_the_hessian_times_the_gradient() -> None:
    model, batches = _tiny()
    names = ["b.weight", "c.weight"]  # few enough for their whole Hessian
    weights = [weight for weight in _weights(model, batches[0][0]) if weight.name in names]
    scores = grasp(model, weights, _calibration(batches))
    shapes = [model.get_parameter(name).shape for name in names]
    start = torch.cat([model.get_parameter(name).detach().flatten() for name in names])

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        outputs = [(torch.func.functional_call(model, values, (inputs,)), labels) for inputs, labels in batches]
        return torch.stack([default_loss(output, labels) for output, labels in outputs]).sum()

    hessian = torch.func.hessian(loss)(start)
    gradient = torch.func.grad(loss)(start)
    expected = start * (hessian @ gradient)
    torch.testing.assert_close(torch.cat([scores[name].flatten() for name in names]), expected)
    # Without the weights that go first gradients grow most: -w (Hg) is half the change of |g|^2.
    index = int(expected.argmin())
    smaller = start.clone()
    smaller[index] *= 1 - 1e-5
    change = (torch.func.grad(loss)(smaller).square().sum() - gradient.square().sum()) / 2 / 1e-5
    assert change.item() == pytest.approx(-expected[index].item(), rel=1e-2) and change > 0


def test_gradient_scores_need_labels() -> None:
    model, batches = _tiny()
    for score in (snip, grasp):
        with pytest.raises(MethodError, match="needs labels"):
            score(model, _weights(model, batches[0][0]), Calibration(batches=[batches[0][0]]))


def _mlp() -> nn.Sequential:
    torch.manual_seed(1)
    layers = [nn.Linear(3, 4), nn.GELU(), nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)]
    return nn.Sequential(*layers).eval()


def _path_flows(matrices: list[Tensor]) -> list[Tensor]:
    """The sum over all paths through each weight of the product of magnitudes, path by path."""
    a, b, c = (matrix.abs() for matrix in matrices)
    flows = [torch.zeros_like(matrix) for matrix in (a, b, c)]
    for i in range(a.shape[1]):
        for j in range(a.shape[0]):
            for k in range(b.shape[0]):
                for m in range(c.shape[0]):
                    path = a[j, i] * b[k, j] * c[m, k]
                    flows[0][j, i] += path
                    flows[1][k, j] += path
                    flows[2][m, k] += path
    return flows


def test_synflow_is_the_sum_over_paths() -> None:
    model = _mlp()
    weights = _weights(model, torch.randn(1, 3))
    scores = synflow(model, weights, Calibration(example_inputs=torch.randn(1, 3)))
    expected = _path_flows([weight.parameter.detach().double() for weight in weights])
    for score, flow in zip(scores.values(), expected, strict=True):
        torch.testing.assert_close(score, flow)
    totals = [score.sum().item() for score in scores.values()]
    assert totals == pytest.approx([totals[0]] * 3)  # flow is conserved


def test_synflow_ranks_again_in_a_hundred_rounds() -> None:
    model = _mlp()
    reference = [model[index].weight.detach().clone().double() for index in (0, 3, 5)]
    total = sum(matrix.numel() for matrix in reference)
    for part in range(1, 101):
        flows = [
            flow.masked_fill(matrix == 0, -1) for flow, matrix in zip(_path_flows(reference), reference, strict=True)
        ]
        scores = torch.cat([flow.flatten() for flow in flows])
        count = int((1 - 0.6 ** (part / 100)) * total + 0.5)
        gone = set(sorted(range(total), key=lambda index: (scores[index].item(), index))[:count])
        start = 0
        for matrix in reference:
            for index in range(matrix.numel()):
                if start + index in gone:
                    matrix.view(-1)[index] = 0
            start += matrix.numel()
    request = SparseRequest(method="synflow", params=SparseParams(sparsity=0.4), example_inputs=torch.randn(1, 3))
    once = copy.deepcopy(model)
    mask_weights(model, request)
    for index, matrix in zip((0, 3, 5), reference, strict=True):
        assert torch.equal(model[index].weight != 0, matrix != 0)
    weights = _weights(once, torch.randn(1, 3))
    scores = synflow(once, weights, Calibration(example_inputs=torch.randn(1, 3)))
    masks = keep_masks({weight.name: weight.scored(scores[weight.name]) for weight in weights}, Goal(0.4), "global")
    assert any(bool((masks[f"{index}.weight"][0] != (model[index].weight != 0)).any()) for index in (0, 3, 5))


def test_rounds_of_synflow_keep_the_same_factor_each(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    def watched(scores: dict[str, Tensor], goal: Goal, scope: str) -> dict[str, Tensor]:
        shares.append(goal.share)
        return keep_masks(scores, goal, scope)  # type: ignore[arg-type]

    monkeypatch.setattr("prunecli.methods.sparse.keep_masks", watched)
    params = SparseParams(sparsity=0.9)
    mask_weights(_mlp(), SparseRequest(method="synflow", params=params, example_inputs=torch.randn(1, 3)))
    left = [1.0, *(1 - share for share in shares)]
    assert len(shares) == 100 and shares[-1] == 0.9
    assert [b / a for a, b in itertools.pairwise(left)] == pytest.approx([0.1**0.01] * 100)


class _Rectified(nn.Module):
    """An activation that is no module of torch."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


def test_synflow_treats_batch_normalisations_as_scales() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), _Rectified(), nn.Conv2d(3, 2, 1)).eval()
    model[1].running_mean.fill_(50.0)
    model[1].running_var.fill_(4.0)
    model[1].weight.data = torch.tensor([1.0, -2.0, 3.0])
    example = torch.randn(1, 2, 1, 1)
    scores = synflow(model, _weights(model, example), Calibration(example_inputs=example))
    first, second = (model[index].weight.detach().double().abs().flatten(1) for index in (0, 3))
    scale = torch.tensor([1.0, 2.0, 3.0]).double() / (4 + 1e-5) ** 0.5
    expected = first * (second.sum(0) * scale).unsqueeze(1)
    torch.testing.assert_close(scores["0.weight"].flatten(1), expected)


def _by_inverse(weights: Tensor, hessian: Tensor, masks: Callable[[int, Tensor, Tensor], Tensor | None]) -> Tensor:
    """Optimal brain surgery column by column, row by row, with the inverse computed anew for what is left."""
    weights, (rows, columns) = weights.clone(), weights.shape
    gone = torch.zeros(rows, columns, dtype=torch.bool)
    for column in range(columns):
        inverse = torch.linalg.inv(hessian[column:, column:])
        decided = masks(column, weights, hessian)
        if decided is not None:
            gone[:, column : column + decided.shape[1]] = decided
        for row in range(rows):
            if gone[row, column]:
                weights[row, column:] -= weights[row, column] / inverse[0, 0] * inverse[0]
    return weights.masked_fill(gone, 0.0)


def _errors(weights: Tensor, hessian: Tensor, start: int, stop: int) -> Tensor:
    """w^2 / [H^-1]_00 of every column, with H of the columns from it on."""
    inverses = [torch.linalg.inv(hessian[column:, column:])[0, 0] for column in range(start, stop)]
    return weights[:, start:stop].square() / torch.stack(inverses)


def _problem(columns: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(4, columns, generator=generator, dtype=torch.float64)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(50, columns, generator=generator, dtype=torch.float64) @ mixing
    hessian = inputs.T @ inputs
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(columns, dtype=torch.float64)
    return weights, hessian, damped


def test_sparsegpt_against_the_inverse_of_what_is_left() -> None:
    weights, hessian, damped = _problem()

    def masks(column: int, current: Tensor, hessian: Tensor) -> Tensor | None:
        return lowest(_errors(current, hessian, 0, 10).flatten(), 24).view(4, 10) if column == 0 else None

    solved, keep = solve(weights[None], hessian[None], Goal(0.6))
    torch.testing.assert_close(solved[0], _by_inverse(weights, damped, masks))
    assert int((~keep).sum()) == 24 and torch.equal(keep, solved != 0)


def test_sparsegpt_in_blocks_and_with_a_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, hessian, damped = _problem(12)

    def pattern(column: int, current: Tensor, hessian: Tensor) -> Tensor | None:
        if column % 4:
            return None
        return lowest_in_rows(_errors(current, hessian, column, column + 4), torch.full((4,), 2))

    solved, keep = solve(weights[None], hessian[None], Goal(0.5, (2, 4)))
    torch.testing.assert_close(solved[0], _by_inverse(weights, damped, pattern))
    assert bool((keep.reshape(-1, 4).sum(1) == 2).all())

    def blocks(column: int, current: Tensor, hessian: Tensor) -> Tensor | None:
        if column % 5:
            return None
        stop, counts = min(column + 5, 12), {0: 10, 5: 10, 10: 4}
        errors = _errors(current, hessian, column, stop)
        return lowest(errors.flatten(), counts[column]).view(errors.shape)

    monkeypatch.setattr("prunecli.criteria.weights.sparsegpt._BLOCK", 5)
    solved, keep = solve(weights[None], hessian[None], Goal(0.5))
    torch.testing.assert_close(solved[0], _by_inverse(weights, damped, blocks))
    assert int((~keep).sum()) == 24


def test_sparsegpt_leaves_smaller_errors_than_magnitude_and_wanda() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(400, 4, 8, 8) @ torch.randn(8, 8)
    inputs[:, 1:] += inputs[:, :-1]
    for layer in (nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(4, 16, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4)):
        with torch.no_grad():
            target = layer(inputs)
            errors = {}
            for method in ("sparsegpt", "magnitude", "wanda-weights"):
                model = nn.Sequential(copy.deepcopy(layer))
                request = SparseRequest(
                    method=method, params=SparseParams(), example_inputs=inputs[:1], calibration=[inputs]
                )
                pruning = mask_weights(model, request)
                assert pruning.sparsity == 0.5
                errors[method] = float((model(inputs) - target).square().mean())
        assert errors["sparsegpt"] < min(0.8 * errors["magnitude"], errors["wanda-weights"]), errors


def test_sparsegpt_sees_what_masked_layers_in_front_give() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(3)))
    inputs = torch.randn(64, 16)
    sequential, at_once = copy.deepcopy(model), copy.deepcopy(model)
    sparsegpt(sequential, _weights(sequential, inputs), Calibration(batches=[inputs]), Goal(0.5))
    for name in ("0", "1", "2"):  # each from the inputs that the dense network gives it
        layer = nn.Sequential(at_once[int(name)])
        with torch.no_grad():
            given = model[: int(name)](inputs)
        sparsegpt(layer, _weights(layer, given), Calibration(batches=[given]), Goal(0.5))
    assert torch.equal(sequential[0].weight, at_once[0].weight)
    assert not torch.equal(sequential[2].weight, at_once[2].weight)


def test_amounts_are_spread_in_whole_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        room = torch.randint(0, 20, (7,), generator=generator)
        amount = int(torch.randint(0, int(room.sum()) + 1, (1,), generator=generator))
        parts = spread(amount, room)
        assert int(parts.sum()) == amount and bool(((parts >= 0) & (parts <= room)).all())
        exact = amount * room / max(int(room.sum()), 1)
        assert bool(((parts - exact).abs() < 1).all())


def test_ties_are_broken_by_position() -> None:
    scores = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 2.0])
    assert lowest(scores, 3).tolist() == [True, True, False, False, True, False]
    assert lowest(scores, 0).sum() == 0 and lowest(scores, 6).all()
    rows = lowest_in_rows(scores.expand(2, 6), torch.tensor([1, 4]))
    assert rows.tolist() == [[False, True, False, False, False, False], [True, True, True, False, True, False]]


@pytest.mark.parametrize("scope", ["global", "layer", "row"])
@pytest.mark.parametrize("share", [0.013, 0.3, 0.5, 0.9, 0.999])
def test_sparsity_is_exact_whatever_the_scores(scope: str, share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {
        "ties": torch.randint(0, 3, (1, 10, 30), generator=generator).double(),
        "groups": torch.randn(4, 5, 9, generator=generator).double(),
        "same": torch.zeros(1, 7, 11).double(),
    }
    masks = keep_masks(scores, Goal(share), scope)  # type: ignore[arg-type]
    sizes = {name: values.numel() for name, values in scores.items()}
    gone = {name: int((~mask).sum()) for name, mask in masks.items()}
    if scope == "global":
        assert sum(gone.values()) == min(int(share * sum(sizes.values()) + 0.5), sum(sizes.values()) - 3)
    else:
        assert gone == {name: min(int(share * size + 0.5), size - 1) for name, size in sizes.items()}
    assert all(mask.any() for mask in masks.values())  # no layer loses everything
    if scope == "row":
        for name, mask in masks.items():
            by_row = (~mask).flatten(0, 1).sum(1)
            assert int(by_row.max() - by_row.min()) <= 1, name


def test_what_is_masked_goes_first_and_counts() -> None:
    scores = torch.arange(12.0).double().reshape(1, 2, 6)
    scores[0, 1, 3:] = -torch.inf
    for scope in ("global", "layer", "row"):
        mask = keep_masks({"w": scores}, Goal(0.5), scope)["w"]  # type: ignore[arg-type]
        assert not bool(mask[0, 1, 3:].any()) and int((~mask).sum()) == 6
    assert keep_masks({"w": scores}, Goal(0.1), "layer")["w"].sum() == 9  # never fewer zeros than there are


def test_patterns_by_counting() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2)
    )
    example = torch.randn(1, 3, 12, 12)
    original = copy.deepcopy(model)
    pruning = mask_weights(
        model, SparseRequest(method="magnitude", params=SparseParams(pattern="2:4"), example_inputs=example)
    )
    assert [weight.name for weight in pruning.weights] == ["1.weight", "3.weight"]
    assert pruning.reasons == {"0": "its 3 inputs are not a multiple of 4", "2": "its 1 inputs are not a multiple of 4"}
    for weight, old, dim in ((model[1].weight, original[1].weight, 1), (model[3].weight, original[3].weight, 0)):
        runs = weight.movedim(dim, -1).reshape(-1, 4)
        before = old.movedim(dim, -1).reshape(-1, 4)
        for run, given in zip(runs.tolist(), before.tolist(), strict=True):
            kept = [index for index in range(4) if run[index] != 0]
            assert kept == sorted(sorted(range(4), key=lambda index: -abs(given[index]))[:2])


def test_effective_macs_are_those_of_the_weights_that_are_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 5)).eval()
    example = torch.randn(1, 2, 4, 4)
    total = count_macs(model, example).total
    assert effective_macs(model, example, total) == total == 72 * 16 + 320
    with torch.no_grad():
        model[0].weight.view(-1)[:30] = 0
        model[2].weight.view(-1)[:100] = 0
    assert effective_macs(model, example, total) == 42 * 16 + 220


def test_the_break_even_lies_between_measured_points() -> None:
    assert crossing((0.5, 0.8, 0.9), (2.0, 1.5, 0.5)) == pytest.approx(0.85)
    assert crossing((0.5, 0.8, 0.9), (2.0, 1.5, 1.1)) is None
    assert crossing((0.5, 0.8, 0.9), (0.9, 0.5, 0.2)) == 0.5
    assert crossing((0.5, 0.8, 0.9), (0.9, 1.5, 0.5)) == pytest.approx(0.85)  # from there on it stays faster
