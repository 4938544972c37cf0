"""Criteria and repairs on networks that take a mapping, a tuple or a list of images, compared with one tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli.criteria.activation import activation
from prunecli.criteria.base import Calibration, Criterion
from prunecli.criteria.gradient import fisher, taylor
from prunecli.criteria.wanda import wanda
from prunecli.errors import MethodError, ModelError
from prunecli.inputs import Inputs, call
from prunecli.surgery.proof.comparing import TOLERANCE
from prunecli.surgery.proof.verify import verify
from prunecli.surgery.removal.compensate import compensate
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.trial import half_of

FORMS = ("mapping", "tuple", "list")


class _TwoInputs(nn.Module):
    """Scores from an image and a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(torch.relu(self.stem(image))))) * mask
        return self.head(torch.relu(self.second(x)).mean(dim=(2, 3)))


class _Packed(_TwoInputs):
    """The same with image and mask as one tensor of four channels."""

    def forward(self, packed: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(packed[:, :3], packed[:, 3:])


class _Listed(_TwoInputs):
    """The same with a list of such tensors, one per sample."""

    def forward(self, images: list[Tensor]) -> Tensor:  # type: ignore[override]
        packed = torch.stack(images)
        return super().forward(packed[:, :3], packed[:, 3:])


class _ByKeyword(_TwoInputs):
    """The same with layers called by keyword."""

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        x = torch.relu(self.norm(input=self.first(input=torch.relu(self.stem(input=image))))) * mask
        return self.head(input=torch.relu(self.second(input=x)).mean(dim=(2, 3)))


def _network(form: str) -> nn.Module:
    kinds = {"tensor": _Packed, "list": _Listed, "keyword": _ByKeyword}
    torch.manual_seed(0)
    return kinds.get(form, _TwoInputs)().eval()


def _inputs(form: str, packed: Tensor) -> Inputs:
    if form == "mapping":
        return {"image": packed[:, :3], "mask": packed[:, 3:]}
    if form in ("tuple", "keyword"):
        return packed[:, :3], packed[:, 3:]
    return list(packed) if form == "list" else packed


def _batch(form: str, packed: Tensor, labels: Tensor) -> Any:
    inputs = _inputs(form, packed)
    if isinstance(inputs, dict):
        return {**inputs, "labels": labels}
    return (*inputs, labels) if isinstance(inputs, tuple) else (inputs, labels)


def _samples() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(3, 4, 6, 6, generator=generator), torch.randint(5, (3,), generator=generator)) for _ in range(3)
    ]


def _scores(form: str, criterion: Criterion) -> dict[str, Tensor | str]:
    model = _network(form)
    example = _inputs(form, _samples()[0][0])
    calibration = Calibration(batches=[_batch(form, *pair) for pair in _samples()], example_inputs=example)
    return criterion(model, trace(model, example).groups, calibration)


@pytest.mark.parametrize("criterion", [taylor, fisher, activation, wanda])
@pytest.mark.parametrize("form", [*FORMS, "keyword"])
def test_scores_do_not_depend_on_the_form_of_the_inputs(form: str, criterion: Criterion) -> None:
    expected, scores = _scores("tensor", criterion), _scores(form, criterion)
    assert list(scores) == list(expected) == ["first", "second"]
    for name, values in expected.items():
        assert torch.allclose(scores[name], values, rtol=1e-5, atol=1e-8), name  # type: ignore[arg-type]


def _repaired(form: str) -> tuple[int, int, dict[str, Tensor]]:
    model = _network(form)
    batches = [_inputs(form, packed) for packed, _ in _samples()]
    traced = trace(model, batches[0])
    keep = half_of(traced.groups)
    pruned = _network(form)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, batches[0]) < TOLERANCE
    adjusted = compensate(model, pruned, traced.groups, keep, batches, "ls", intercept=False)
    measured = recalibrate_batchnorm(pruned, batches)
    call(pruned, batches[0])
    return adjusted, measured, pruned.state_dict()


@pytest.mark.parametrize("form", [*FORMS, "keyword"])
def test_repairs_do_not_depend_on_the_form_of_the_inputs(form: str) -> None:
    expected, repaired = _repaired("tensor"), _repaired(form)
    assert repaired[:2] == expected[:2] == (2, 1)
    for name, tensor in expected[2].items():
        assert torch.allclose(repaired[2][name], tensor, rtol=1e-4, atol=1e-6), name


def test_recalibration_on_single_samples_says_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    with pytest.raises(MethodError, match="choose a batch size that leaves no batch with a single sample"):
        recalibrate_batchnorm(model, [torch.randn(4, 3), torch.randn(1, 3)])
    assert not model[1].training
    assert model[1].momentum == 0.1


def test_other_errors_of_the_network_are_one_line_in_recalibration() -> None:
    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    with pytest.raises(MethodError, match="does not run on the calibration data: ValueError: not today; give batches"):
        recalibrate_batchnorm(Refusing(), [torch.randn(4, 4)])


def test_inputs_without_a_tensor_are_refused() -> None:
    with pytest.raises(ModelError, match="example_inputs contains no tensor"):
        trace(_network("tensor"), ("cat", 1))
