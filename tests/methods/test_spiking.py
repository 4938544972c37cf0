"""`prune spike` on tiny spiking networks trained on digits, through the Python interface and the pipeline's loop."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import DataSet
from prunecli.engine.config import FitConfig
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.optimizer import carry_over, make_optimizer
from prunecli.engine.tasks.classification import Classification
from prunecli.methods.structural import Transition
from prunecli.models.catalog import build

CPU = torch.device("cpu")
CONFIG = FitConfig(epochs=8, lr=2e-3, optimizer="adamw", weight_decay=1e-4)
CRITERIA = ("rate", "rate+v", "entropy", "variance", "singular", "l1", "bn-scale", "random")


@pytest.fixture(scope="module")
def digits() -> tuple[DataSet, Preprocessing]:
    data = load_data("digits")
    return data, Preprocessing((1, 8, 8), data.mean, data.std)


def _batches(digits: tuple[DataSet, Preprocessing]) -> object:
    return training_batches(digits[0].training_split(), digits[1], Augmentation(flip=False), 64, seed=0)


@pytest.fixture(scope="module")
def trained(digits: tuple[DataSet, Preprocessing]) -> nn.Module:
    torch.manual_seed(0)
    model = build("spiking:vgg5", in_chans=1, image_size=8, width=0.25, v_threshold=0.5)
    fit(model, _batches(digits), None, CONFIG, CPU, task=Classification.with_classes(10))  # type: ignore[arg-type]
    return model


@pytest.fixture(scope="module")
def calibration(digits: tuple[DataSet, Preprocessing]) -> CalibrationBatches:
    return CalibrationBatches(digits[0].training_split(), digits[1], 256, 64, seed=0)


def _top1(model: nn.Module, digits: tuple[DataSet, Preprocessing]) -> float:
    return evaluate(model, evaluation_batches(digits[0].test, digits[1], 128), CPU).top1


def test_the_trained_network_is_good_enough_to_judge_by(
    trained: nn.Module, digits: tuple[DataSet, Preprocessing]
) -> None:
    assert _top1(trained, digits) > 90  # on another processor it ends elsewhere


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_verifies_saves_and_restores(
    trained: nn.Module,
    digits: tuple[DataSet, Preprocessing],
    calibration: CalibrationBatches,
    tmp_path: Path,
    criterion: str,
) -> None:
    image = torch.randn(1, 1, 8, 8)
    result = prunecli.prune(
        trained,
        "spike",
        example_inputs=image,
        data=calibration,
        ratio=0.3,
        criterion=criterion,
        compensate="ls",
        recalibrate=True,
    )
    assert result.report.verify_error == 0.0 and 0.2 < result.report.achieved < 0.4
    result.save(tmp_path / "pruned.safetensors")
    restored = prunecli.load(tmp_path / "pruned.safetensors")
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor)
    with torch.no_grad():
        assert torch.equal(restored(image), result.model.cpu()(image))
    assert _top1(result.model, digits) > 80


def test_channels_that_never_fire_go_first_and_cost_nothing(
    trained: nn.Module,
    digits: tuple[DataSet, Preprocessing],
    calibration: CalibrationBatches,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With eight channels silenced by hand a quarter of the layer goes for free; scores upside down do not do it."""
    from prunecli.criteria import spike

    silenced = copy.deepcopy(trained)
    norm = silenced.get_submodule("features.5")
    with torch.no_grad():
        norm.weight[3::4], norm.bias[3::4] = 0.0, 0.0  # type: ignore[index, operator]

    def pruned() -> nn.Module:
        how = {"layer_ratio": {"features.4": 0.25}, "round_to": 1}
        return prunecli.prune(silenced, "spike", example_inputs=torch.randn(1, 1, 8, 8), data=calibration, **how).model

    image = next(iter(calibration))
    with torch.no_grad():
        assert torch.equal(pruned()(image).argmax(1), silenced(image).argmax(1))
        gathered = spike._gather

        def inverted(*args: object) -> object:
            sums = gathered(*args)  # type: ignore[arg-type]
            for entry in sums.values():
                entry.total = -entry.total
            return sums

        monkeypatch.setattr(spike, "_gather", inverted)
        assert not torch.equal(pruned()(image).argmax(1), silenced(image).argmax(1))


@pytest.mark.slow
def test_progressive_pruning_while_training_carries_the_optimizer_on(
    trained: nn.Module, digits: tuple[DataSet, Preprocessing], calibration: CalibrationBatches
) -> None:
    config = FitConfig(epochs=1, lr=1e-3, optimizer="adamw", schedule="none")
    optimizers: list[torch.optim.Optimizer] = []
    moments: list[Tensor] = []

    def recover(transition: Transition) -> None:
        if not optimizers:
            optimizers.append(make_optimizer(transition.after, config))
        else:
            carry_over(optimizers[0], transition.before, transition.after, transition.kept)
            widths = [(entry["exp_avg"].shape, p.shape) for p, entry in optimizers[0].state.items()]
            assert widths and all(moment == parameter for moment, parameter in widths)
            moments.extend(entry["exp_avg"].clone() for entry in optimizers[0].state.values())
        fit(
            transition.after,
            _batches(digits),  # type: ignore[arg-type]
            None,
            config,
            CPU,
            task=Classification.with_classes(10),
            optimizer=optimizers[0],
        )

    result = prunecli.prune(
        trained,
        "spike",
        example_inputs=torch.randn(1, 1, 8, 8),
        data=calibration,
        ratio=0.5,
        schedule="ramp",
        steps=4,
        recover=recover,
    )
    assert moments and any(bool(moment.any()) for moment in moments)
    assert result.report.achieved == pytest.approx(0.5, abs=0.08)
    assert _top1(result.model, digits) > 90
