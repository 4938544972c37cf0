"""`prune unstructured`: joint masks of weights and neurons, through real processes and the hook itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import prunecli
from prunecli.engine.hooks import Batch
from prunecli.errors import MethodError, ModelError, VerificationError
from prunecli.measure.neurons import spiking_neurons
from prunecli.methods.params import StructuralParams
from prunecli.methods.ranking import select
from prunecli.methods.request import PruneRequest
from prunecli.methods.step_loss import StepLoss
from prunecli.methods.trained import Removal, TrainedContext, remove_kept
from prunecli.methods.unstructured import Unstructured
from prunecli.methods.unstructured_params import UnstructuredParams
from prunecli.models.catalog import build
from prunecli.models.loading import load_file
from prunecli.sparsity.connections import count_connections, wiring_of
from prunecli.sparsity.dead import alive_units
from prunecli.sparsity.spike_masks import mask_spikes, masked_spikes
from tests.faults.processes import FEW_DIGITS, Ended, Processes

Run = Callable[..., Ended]
ON_DIGITS = ("--data", FEW_DIGITS, "--batch-size", "64")
NETWORK = ("spiking:vgg5", "--model-kwargs", "width=0.125", "--model-kwargs", "image_size=8")
TARGET = "0.04"
"""Below what is left after the first epoch, so that the threshold of the masks moves."""
MASKING = ("--epochs", "2", "--finetune-epochs", "1", "--optimizer", "adamw", "--lr", "0.003", "--latency-rounds", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(processes: Processes, spiking_ready: None, folder: Path) -> Run:
    return lambda *words, **options: processes.run(words, folder, **options)


@pytest.fixture(scope="module")
def dense(run: Run) -> str:
    words = ("--epochs", "8", "--optimizer", "adamw", "--lr", "0.005", "-o", "dense.safetensors")
    done = run("train", *NETWORK, *ON_DIGITS, *words)
    assert done.code == 0, done.err
    return "dense.safetensors"


@pytest.fixture(scope="module")
def masked(run: Run, dense: str) -> str:
    done = run("unstructured", dense, *ON_DIGITS, *MASKING, "--connections", TARGET, "-o", "masked.safetensors")
    assert done.code == 0 and "connections kept" in done.out and "validation hard" in done.out, done.err
    return "masked.safetensors"


def test_a_target_is_reached_and_every_zero_stays(run: Run, masked: str, folder: Path) -> None:
    words = ("--epochs", "2", "--optimizer", "sgd", "--lr", "0.05", "--weight-decay", "0.1", "-o", "again.safetensors")
    assert run("finetune", masked, *ON_DIGITS, *words).code == 0
    before, after = (load_file(folder / name) for name in (masked, "again.safetensors"))
    assert before.manifest.masks is not None and before.manifest.masks == after.manifest.masks
    x = torch.rand(1, 1, 8, 8)
    whole = wiring_of(before.model, x)
    for network in (before.model, after.model):
        left = sum(count_connections(network, x, whole, spikes=masked_spikes(network)).values())
        assert 0.5 * float(TARGET) < left / sum(whole.edges.values()) <= float(TARGET)
    for name in before.manifest.masks.weights:
        first, second = before.model.get_parameter(name), after.model.get_parameter(name)
        assert bool((second[first == 0] == 0).all()) and bool((second[first != 0] != first[first != 0]).all())
    for name, mask in masked_spikes(before.model).items():
        assert torch.equal(masked_spikes(after.model)[name], mask) and 0 < mask.float().mean() < 1
    _neurons_stay_silent(after.model, 50 * x)


def _neurons_stay_silent(model: nn.Module, x: Tensor) -> None:
    fired: dict[str, Tensor] = {}
    for name, neuron in spiking_neurons(model).items():
        neuron.register_forward_hook(lambda m, a, out, name=name: fired.update({name: out.flatten(0, 1).amax(dim=0)}))
    with torch.no_grad():
        model(x)
    for name, mask in masked_spikes(model).items():
        assert not fired[name][~mask].any()
    assert any(fired[name].any() for name in fired)


def test_what_was_masked_before_stays_masked(run: Run, masked: str, folder: Path) -> None:
    words = ("--epochs", "1", "--optimizer", "adamw", "--lr", "0.003", "--latency-rounds", "2", "--weight-layers", "0")
    done = run("unstructured", masked, *ON_DIGITS, *words, "-o", "twice.safetensors")
    assert done.code == 0, done.err
    first, second = (load_file(folder / name) for name in (masked, "twice.safetensors"))
    assert first.manifest.masks is not None and second.manifest.masks is not None
    assert set(first.manifest.masks.weights) == set(second.manifest.masks.weights)
    for name in first.manifest.masks.weights:
        zeros = first.model.get_parameter(name) == 0
        assert not second.model.get_parameter(name)[zeros].any()
    for name, mask in masked_spikes(first.model).items():
        assert not masked_spikes(second.model)[name][~mask].any()


def test_layers_that_are_kept_and_their_neurons_are_not_masked() -> None:
    model, x = _network()
    generator = torch.Generator().manual_seed(0)
    context = TrainedContext(
        _selection(model, x), x, generator, 2, kept=lambda name: "f" if name == "features.4" else None
    )
    masks = Unstructured(model, UnstructuredParams(), context).masks()
    assert "features.4.weight" not in masks.weights and "features.6" not in masks.spikes
    assert "features.0.weight" in masks.weights and "features.2" in masks.spikes
    everything = TrainedContext(_selection(_network()[0], x), x, generator, 2, kept=lambda name: "*")
    with pytest.raises(MethodError, match="--keep leaves nothing to mask"):
        Unstructured(_network()[0], UnstructuredParams(), everything)


def test_a_spiking_transformer_with_masked_spikes_is_pruned() -> None:
    model = build("spiking:spikformer-1-32", num_classes=4, in_chans=1, patch_size=2).eval()
    x = 10 * torch.rand(2, 1, 8, 8)
    for name, shape in wiring_of(model, x).shapes.items():
        mask_spikes(model.get_submodule(name), torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.7)
    before = {name: mask.shape for name, mask in masked_spikes(model).items()}
    result = prunecli.prune(model, "l1", example_inputs=x, ratio=0.5)
    assert sum(before[name] != mask.shape for name, mask in masked_spikes(result.model).items()) > 3


def test_other_input_sizes_than_that_of_the_masks_are_one_line() -> None:
    model = build("spiking:resnet19", num_classes=4, in_chans=1, width=0.0625).eval()
    mask_spikes(model.get_submodule("sn1"), torch.ones(8, 8, 8, dtype=torch.bool))
    model(torch.rand(1, 1, 8, 8))
    with pytest.raises(ModelError, match=r"masked by position for an output of \(8, 8, 8\), not \(8, 16, 16\)"):
        model(torch.rand(1, 1, 16, 16))


MOMENTS = ("fit:step@9", "fit:step@14")


@pytest.mark.parametrize("fault", MOMENTS)
def test_a_killed_run_is_resumed_to_the_same_bytes(run: Run, dense: str, masked: str, folder: Path, fault: str) -> None:
    out = f"{fault.replace(':', '-')}.safetensors"
    words = ("unstructured", dense, *ON_DIGITS, *MASKING, "--connections", TARGET, "--save-every", "0", "-o", out)
    assert run(*words, fault=fault).code == -9
    assert not (folder / out).exists()
    done = run(*words, "--resume")
    assert done.code == 0, done.err
    assert _same(folder / out, folder / masked)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*(f"fit:step@{step}" for step in (1, 2, 4, 6, 7, 11, 12, 13, 16)), "stage:trained"])
def test_a_run_killed_anywhere_is_resumed_to_the_same_bytes(
    run: Run, dense: str, masked: str, folder: Path, fault: str
) -> None:
    test_a_killed_run_is_resumed_to_the_same_bytes(run, dense, masked, folder, fault)


def _same(path: Path, other: Path) -> bool:
    """Whether two checkpoints have the same tensors; their commands name other files."""
    first, second = load_file(path), load_file(other)
    state, expected = first.model.state_dict(), second.model.state_dict()
    equal = all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    return equal and first.manifest.history[-1].figures == second.manifest.history[-1].figures


def test_old_names_of_options_give_the_same_plan(run: Run, dense: str) -> None:
    shared = ("unstructured", dense, *ON_DIGITS, "--epochs", "2", "--dry-run", "--json")
    old = run(
        *shared,
        *("--TET", "--TET_phi", "0.8", "--TET_lambda", "0.1", "--criterion", "MSE", "--not_prune_neuron"),
        *("--prune_optimizer", "sgd", "--prune_lr", "0.02", "--prune_weight_decay", "0.1", "--penalty_lmbda", "2"),
        *("--temp_scheduler", "5", "500", "0", "2", "--mask_init_factor", "[0,", "0,", "0.1,", "0]"),
        *("--accumulate_step=2", "--finetune_lr", "0.01", "--epoch_finetune", "3", "--finetune_lr_scheduler", "Cosine"),
        *("--weight_prune_layers", "[0,", "1]", "--learning_rate", "0.05", "--scheduler", "step", "--save_latest"),
    )
    new = run(
        *shared,
        *("--tet", "--tet-level", "0.8", "--tet-weight", "0.1", "--loss", "mse", "--no-mask-neurons"),
        *("--mask-optimizer", "sgd", "--mask-lr", "0.02", "--mask-weight-decay", "0.1", "--penalty", "2"),
        *("--temperatures", "5,500,0,2", "--mask-init", "0,0,0.1,0"),
        *("--accumulate", "2", "--finetune-lr", "0.01", "--finetune-epochs", "3", "--finetune-schedule", "cosine"),
        *("--weight-layers", "0,1", "--lr", "0.05", "--lr-schedule", "step", "--finetuned", "latest"),
    )
    assert old.code == new.code == 0, old.err + new.err
    assert old.out == new.out
    assert "TET_phi" not in run("unstructured", "--help").out
    shared = ("sca", dense, *ON_DIGITS, "--epochs", "2", "--dry-run", "--json")
    old = run(*shared, "--pruning_nodes", "[0,", "1]", "--learning_rate", "0.05", "--scheduler", "Cosine")
    new = run(*shared, "--pruning-nodes", "0,1", "--lr", "0.05", "--lr-schedule", "cosine")
    assert old.code == new.code == 0 and old.out == new.out, old.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--no-mask-weights", "--no-mask-neurons"), "--no-mask-weights and --no-mask-neurons leave nothing to learn"),
        (
            ("--weight-layers", "9"),
            "--weight-layers 9: there is no such layer; the network has 5 layers with",
        ),
        (
            ("--neuron-layers", "nowhere.*"),
            "--neuron-layers nowhere.*: there is no such layer; the network has 4 layers",
        ),
        (("--temperatures", "10,5"), "--temperatures falls from 10 to 5"),
        (("--temperatures", "5,x"), "give numbers with commas"),
        (("--connections", "1.5"), "has to be less than 1"),
        (("--connections", "0.00000001"), "what layers keep at least is a share of"),
        (("--mask-init", "0,0"), "--mask-init has 2 values; give 4"),
        (("--finetune-epochs", "1", "--finetune-schedule", "nope"), "schedule 'nope'"),
        (("--compensate", "ls"), "--compensate ls would fill masked weights; leave it out"),
        (("--penalty", "inf"), "--penalty has to be a finite number"),
        (("--connections", "0.1", "--synops", "0.1"), "--connections and --synops are two targets; give one of them"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    run: Run, dense: str, folder: Path, words: tuple[str, ...], message: str
) -> None:
    before = set(folder.iterdir())
    done = run("unstructured", dense, *ON_DIGITS, "--epochs", "1", "-o", "bad.safetensors", *words)
    assert done.code == 2 and message in done.err and len(done.err.strip().splitlines()) == 1, done.err
    assert {path for path in folder.iterdir() if not path.name.startswith(".")} - before == set()


def _network() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = build("spiking:vgg5", num_classes=4, in_chans=1, image_size=8, width=0.125, v_threshold=0.05).eval()
    return model, 10 * torch.rand(3, 1, 8, 8)


@pytest.mark.parametrize("kind", ["ce", "mse"])
def test_the_loss_of_every_step_is_that_of_its_formula(kind: str) -> None:
    model, x = _network()
    settings = UnstructuredParams(loss=kind, tet=True, tet_weight=0.2, tet_level=0.7)  # type: ignore[arg-type]
    loss, labels = StepLoss(model, x, settings), torch.tensor([0, 3, 1])
    loss.begin()
    scores = model.train()(x)
    value = loss(torch.zeros(()), Batch(x, labels, scores))
    loss.end()
    steps = model.eval().train().scores_over_time(x)  # type: ignore[operator]
    assert steps.shape[0] == 4
    one_hot = functional.one_hot(labels, 4).float()
    losses = [
        functional.cross_entropy(step, labels) if kind == "ce" else ((step - one_hot) ** 2).mean() for step in steps
    ]
    expected = 0.8 * sum(losses) / 4 + 0.2 * ((steps - 0.7) ** 2).mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_tet_needs_scores_by_step() -> None:
    with pytest.raises(MethodError, match="--tet needs a network that answers at every step"):
        StepLoss(nn.Sequential(nn.Linear(4, 3)), torch.rand(2, 4), UnstructuredParams(tet=True))


def _selection(model: nn.Module, x: Tensor) -> Any:
    return select(model, PruneRequest(method="unstructured", params=StructuralParams(), example_inputs=x))


def test_dead_channels_are_found_and_removed_without_a_difference() -> None:
    model, x = _network()
    convolutions = [model.get_submodule(name) for name in ("features.4", "features.7")]
    with torch.no_grad():
        convolutions[1].weight[:, 2] = 0  # type: ignore[union-attr, index, operator]
    spikes = {name: torch.rand(shape) < 0.7 for name, shape in wiring_of(model, x).shapes.items()}
    spikes["features.6"][5] = False
    for name, mask in spikes.items():
        mask_spikes(model.get_submodule(name), mask)
    keep = alive_units(model, _selection(model, x).groups, spikes)
    gone = set(range(16)) - set(keep["features.4"].tolist())
    assert gone == {2, 5}
    removal = Removal(method="unstructured", selection=_selection(model, x), example_inputs=x, dead=True)
    pruned = remove_kept(model, keep, removal).model
    with torch.no_grad():
        assert torch.allclose(model(x), pruned(x), atol=1e-6) and bool(model(x).any())


def test_removing_a_living_channel_as_dead_is_noticed() -> None:
    model, x = _network()
    selection = _selection(model, x)
    keep: Mapping[str, Tensor] = {"features.4": torch.arange(8)}
    remove_kept(model, keep, Removal(method="m", selection=selection, example_inputs=x))  # equals the masked network
    with pytest.raises(VerificationError, match="removing channels that seemed dead changes the network's output"):
        remove_kept(model, keep, Removal(method="m", selection=selection, example_inputs=x, dead=True))


def test_weights_of_any_network_are_masked_and_neurons_only_where_there_are_some() -> None:
    torch.manual_seed(0)
    model, x = build("cifar:resnet20", num_classes=4), torch.rand(2, 3, 16, 16)
    context = TrainedContext(_selection(model, x), x, torch.Generator().manual_seed(0), 2)
    hook = Unstructured(model, UnstructuredParams(), context)
    assert len(hook.masks().weights) == 20 and hook.masks().spikes == {}
    with pytest.raises(MethodError, match="the network has no spiking neurons; leave it out to mask weights alone"):
        Unstructured(build("cifar:resnet20"), UnstructuredParams(neuron_layers=("0",)), context)
