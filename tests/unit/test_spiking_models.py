"""Networks of `spiking:...`: what they compute, over time, and what they forget."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.model import qkformer, sew_resnet, spike_driven_transformer, spikformer
from torch import Tensor, nn

from prunecli.errors import ModelError
from prunecli.measure.neurons import leave_to_caller, reset_itself, spiking_neurons
from prunecli.models.catalog import build, source_names
from prunecli.models.index import known_references
from prunecli.surgery.proof.active_neurons import with_active_neurons

SMALL: list[tuple[str, dict[str, Any]]] = [
    ("spikformer-1-32", {}),
    ("spikformer-1-32", {"pool": "after", "patch_size": 2}),
    ("qkformer-3-64", {}),
    ("sdt-2-64", {}),
    ("vgg5", {"width": 0.125}),
    ("vgg9", {"width": 0.125, "neuron": "plif", "pool": "avg"}),
    ("6conv2fc", {"width": 0.0625, "neuron": "if", "v_reset": None}),
    ("resnet19", {"width": 0.125}),
    ("sew_resnet18", {"stem": "cifar"}),
]


def images(count: int = 2, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def made(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(f"spiking:{name}", num_classes=10, **kwargs).eval()


def firing(name: str, **kwargs: Any) -> nn.Module:
    model = made(name, **kwargs)
    pair = with_active_neurons(model, model, images())
    assert pair is not None
    return pair[0]


def test_every_name_is_built_and_known() -> None:
    for name in source_names("spiking"):
        assert spiking_neurons(build(f"spiking:{name}", meta=True))
        assert f"spiking:{name}" in known_references()


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        (
            "spikformer-2-64",
            lambda: spikformer.Spikformer(embed_dims=64, num_heads=4, depths=2, patch_size=4, num_classes=10),
        ),
        (
            "qkformer-3-64",
            lambda: qkformer.QKFormer(num_classes=10, embed_dims=64, num_heads=(2, 2, 2), depths=(1, 1, 1)),
        ),
        (
            "sdt-2-64",
            lambda: spike_driven_transformer.SpikeDrivenTransformer(
                num_classes=10, embed_dims=64, num_heads=4, depths=2, pooling_stat="0011"
            ),
        ),
        (
            "sew_resnet18",
            lambda: sew_resnet.sew_resnet18(num_classes=10, cnf="ADD", spiking_neuron=neuron.LIFNode, step_mode="m"),
        ),
    ],
)
def test_the_same_as_spikingjellys_own(name: str, theirs: Any) -> None:
    ours, other = made(name), theirs().eval()
    functional.set_step_mode(other, "m")
    other.load_state_dict(ours.state_dict())
    pair = with_active_neurons(ours, other, images())
    assert pair is not None
    frames = images().unsqueeze(0).repeat(4, 1, 1, 1, 1)
    with torch.no_grad():
        scores = pair[0](images())
        reference = pair[1](frames)
    reference = reference.mean(0) if reference.dim() == 3 else reference
    assert float(scores.std()) > 0.01
    torch.testing.assert_close(scores, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "kwargs"), SMALL)
def test_images_are_repeated_and_frames_bring_their_own_time(name: str, kwargs: dict[str, Any]) -> None:
    model = firing(name, **kwargs)
    with torch.no_grad():
        shown = model(images())
        frames = images().unsqueeze(1).repeat(1, model.T, 1, 1, 1)
        torch.testing.assert_close(model(frames), shown, rtol=0, atol=0)
        longer = model(frames.repeat(1, 2, 1, 1, 1))
    assert shown.shape == (2, 10)
    assert not torch.equal(longer, shown)


@pytest.mark.parametrize(
    ("name", "kwargs"), [entry for entry in SMALL if "former" not in entry[0] and "sdt" not in entry[0]]
)
def test_step_by_step_is_the_same_as_all_steps_at_once(name: str, kwargs: dict[str, Any]) -> None:
    model = firing(name, **kwargs)
    with torch.no_grad():
        at_once = model.scores_over_time(images())  # type: ignore[operator]
        functional.set_step_mode(model, "s")
        one_by_one = model.scores_over_time(images())  # type: ignore[operator]
    assert len(at_once) == model.T and float(at_once.std(0).max()) > 0
    torch.testing.assert_close(one_by_one, at_once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["spikformer-1-32", "qkformer-3-64", "sdt-2-64"])
def test_transformers_run_step_by_step_in_runs_of_one(name: str) -> None:
    model = firing(name)
    with torch.no_grad():
        at_once = model.scores_over_time(images())  # type: ignore[operator]
        steps = model.encode(images())  # type: ignore[operator]
        one_by_one = torch.cat([model.simulate(step.unsqueeze(0)) for step in steps])  # type: ignore[operator]
    torch.testing.assert_close(one_by_one, at_once, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="step_mode"):
        functional.set_step_mode(model, "s")


@pytest.mark.parametrize(("name", "kwargs"), SMALL)
def test_nothing_is_remembered(name: str, kwargs: dict[str, Any]) -> None:
    model = firing(name, **kwargs)
    with torch.no_grad():
        first = model(images())
        model(images(3) * 5)
        assert torch.equal(model(images()), first)
        left = model.simulate(model.encode(images()))  # type: ignore[operator]
        again = model.simulate(model.encode(images()))  # type: ignore[operator]
    assert not torch.equal(left, again)  # what is forgotten would have made a difference
    with pytest.raises(ValueError, match="expected images"):
        model(images()[0])
    with torch.no_grad():
        assert torch.equal(model(images()), first)
    model.train()
    model(images()).sum().backward()
    copy.deepcopy(model)  # potentials with a graph behind them cannot be copied


def test_a_network_of_ones_own_is_reset_by_hooks_even_after_an_error() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(2), nn.Linear(3 * 64, 32), neuron.LIFNode(step_mode="m", v_threshold=0.05))
    frames = torch.randn(4, 2, 3, 8, 8)
    with torch.no_grad():
        first, second = net(frames), net(frames)
        assert not torch.equal(first, second)
        reset_itself(net)
        assert torch.equal(net(frames), first) and torch.equal(net(frames), first)
        with pytest.raises(RuntimeError):
            net(frames[..., :4])
        assert torch.equal(net(frames), first)
        copied = copy.deepcopy(net)
        assert torch.equal(copied(frames), copied(frames))
        leave_to_caller(copied)
        assert not torch.equal(copied(frames), copied(frames))


def test_poisson_coding_is_drawn_alike_for_every_image_when_it_is_judged() -> None:
    model = made("vgg5", width=0.125, coding="poisson", T=64)
    x = torch.rand(3, 3, 32, 32)
    steps = model.encode(x)  # type: ignore[operator]
    assert set(steps.unique().tolist()) == {0.0, 1.0}
    assert float((steps.mean(0) - x).abs().mean()) < 0.06
    assert torch.equal(model.encode(x[1:2])[:, 0], steps[:, 1])  # type: ignore[operator]
    assert torch.equal(model.double().encode(x.double()).float(), steps)  # type: ignore[operator]
    model.float().train()
    assert not torch.equal(model.encode(x), model.encode(x))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("vgg5", {"T": 0}, "T = 0 steps"),
        ("vgg5", {"neuron": "lifo"}, "unknown neuron"),
        ("vgg5", {"surrogate": "atom"}, "unknown surrogate"),
        ("vgg5", {"coding": "poison"}, "unknown coding"),
        ("vgg5", {"tau": 1.0}, "tau has to be over 1"),
        ("vgg5", {"dept": 3}, "unknown argument 'dept'"),
        ("vgg9", {"image_size": 8}, "too small"),
        ("spikformer-2-64", {"num_heads": 5}, "5 heads do not divide a width of 64"),
        ("spikformer-2-64", {"patch_size": 3}, "patch_size 3"),
        ("sew_resnet18", {"stem": "mnist"}, "unknown stem"),
    ],
)
def test_wrong_arguments_are_one_line(name: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(f"spiking:{name}", **kwargs)
    assert said in str(caught.value) and "\n" not in str(caught.value)
