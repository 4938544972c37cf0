"""Firing statistics, operations and energy of spiking networks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import Tensor, nn

from prunecli.errors import DataError, MethodError
from prunecli.measure.counts import count_macs
from prunecli.measure.energy import FORMULA, energy_nj, first_images, profile
from prunecli.measure.spikes import connection_sparsity, footprint_bytes
from prunecli.measure.synops import convolution_fan_out
from prunecli.methods.targets import Ruler
from prunecli.models.catalog import build
from prunecli.models.loading import load_reference, save
from prunecli.report.schema import read_report
from tests.conftest import Prune


def _with_active_neurons(ref: str, image: tuple[int, ...], **kwargs: Any) -> tuple[nn.Module, Tensor]:
    """A small network whose neurons fire, and images for it."""
    torch.manual_seed(0)
    model = build(ref, **kwargs)
    images = torch.rand(6, *image)
    _wake(model, images)
    return model.eval(), images


def _wake(model: nn.Module, images: Tensor) -> None:
    """Measures normalisations on images and widens their output."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 1.0, 2.5)
            nn.init.uniform_(module.bias, 0.0, 0.6)
            module.momentum = None
    with torch.no_grad():
        model.train()(images)
    model.eval()


class TwoSteps(nn.Sequential):
    """Layers in turn, over two steps; neurons among them remember."""

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        steps = torch.stack([x, x])
        for layer in self:
            steps = layer(steps)
        return steps.mean(0)


def _node() -> neuron.BaseNode:
    """Fires when what came in since the last spike is 1 or more."""
    return neuron.IFNode(v_threshold=1.0, v_reset=0.0, step_mode="m")


def _pairs(x: Tensor, weight: Tensor, stride: tuple[int, int], padding: int, dilation: int, groups: int) -> int:
    """Counts by going through every input and every weight that reads it."""
    n, _, height, width = x.shape
    out, per_group, kh, kw = weight.shape
    rows = (height + 2 * padding - dilation * (kh - 1) - 1) // stride[0] + 1
    columns = (width + 2 * padding - dilation * (kw - 1) - 1) // stride[1] + 1
    found = 0
    for image, o, r, c in itertools.product(range(n), range(out), range(rows), range(columns)):
        for i, a, b in itertools.product(range(per_group), range(kh), range(kw)):
            y, z = r * stride[0] + a * dilation - padding, c * stride[1] + b * dilation - padding
            inside = 0 <= y < height and 0 <= z < width
            channel = o // (out // groups) * per_group + i
            found += bool(inside and x[image, channel, y, z] != 0 and weight[o, i, a, b] != 0)
    return found


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [((1, 1), 1, 1, 1), ((2, 1), 0, 1, 1), ((3, 2), 2, 1, 2), ((1, 2), 1, 2, 4)],
)
def test_a_convolution_counts_what_a_loop_counts(
    stride: tuple[int, int], padding: int, dilation: int, groups: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, stride, padding, dilation, groups)
    conv.weight.data *= torch.rand_like(conv.weight) < 0.6
    spikes = (torch.rand(2, 4, 7, 6) < 0.4).float()
    (found,) = profile(nn.Sequential(conv), [spikes]).layers
    assert found.arriving == "spikes" and found.macs == 0
    assert found.acs * 2 == _pairs(spikes, conv.weight, stride, padding, dilation, groups)
    (real,) = profile(nn.Sequential(conv), [spikes * 0.3]).layers
    assert real.effective_macs == found.acs and real.acs == 0
    assert real.macs == int(conv.weight.count_nonzero()) * conv(spikes)[0, 0].numel()
    (sums,) = profile(nn.Sequential(conv), [2 * spikes]).layers
    assert (sums.arriving, sums.acs, sums.integer_acs) == ("integers", 0, 2 * found.acs)


def test_a_transposed_convolution_reads_every_input_with_what_it_writes() -> None:
    conv = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1, bias=False)
    conv.weight.data.fill_(1.0)
    x = torch.zeros(1, 2, 4, 4)
    for channel, row, column in itertools.product(range(2), range(4), range(4)):
        x.zero_()[0, channel, row, column] = 1
        written = float(conv(x).detach().sum())
        (found,) = profile(nn.Sequential(conv), [x]).layers
        assert found.acs == written


def test_a_linear_layer_counts_pairs_and_leaves_masked_weights_out() -> None:
    linear = nn.Linear(5, 3)
    linear.weight.data[:, 1] = 0
    linear.weight.data[0, 2] = 0
    x = torch.tensor([[1.0, 1, 1, 0, 0], [0, 1, 0, 0, 1]])
    (found,) = profile(nn.Sequential(linear), [x]).layers
    assert found.acs == ((3 + 2) + 3) / 2 and found.dense == 3 + 2 + 3 + 3


def test_a_count_goes_on_where_float32_stops() -> None:
    spikes = torch.ones(2**24 + 1, 1)
    (found,) = profile(nn.Sequential(nn.Linear(1, 1)), [spikes]).layers
    assert found.acs == 1.0


def test_fan_out_is_counted_once_and_exactly_for_a_wide_layer() -> None:
    weight = torch.ones(512, 256, 3, 3)
    fan_out = convolution_fan_out(weight, (256, 4, 4), [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    assert float(fan_out[0, 1, 1]) == 512 * 9 and float(fan_out[0, 0, 0]) == 512 * 4


def _known() -> TwoSteps:
    """Three inputs to three neurons that fire if their input is at least 1, and two readers."""
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False)
    first.weight.data = torch.eye(3)
    second.weight.data = torch.tensor([[1.0, 1, 1], [1, 0, 1]])
    return TwoSteps(first, _node(), second)


def test_a_network_with_known_spikes() -> None:
    model = _known()
    # Over two steps: the first neuron fires twice, the second in the second step only, the third never.
    found = profile(model, [torch.tensor([[1.0, 0.5, 0.0]])])
    assert found.timesteps == 2 and found.images == 1
    (figures,) = found.neurons
    assert figures.channel_rates == (1.0, 0.5, 0.0) and figures.rate == 0.5
    assert figures.silent == (2,) and figures.saturated == (0,)
    assert found.firing_rate == 0.5 and found.activation_sparsity == 0.5
    first, second = found.layers
    assert (first.arriving, first.macs, first.effective_macs) == ("real", 2 * 3, 2 * 2)
    assert (second.arriving, second.acs) == ("spikes", 2 * 2 + 1 * 1)
    assert found.synops == 5 and found.energy_nj == pytest.approx((4.6 * 6 + 0.9 * 5) / 1000)
    assert "4.6 pJ" in FORMULA and "0.9 pJ" in FORMULA
    assert connection_sparsity(model) == 7 / 15 and footprint_bytes(model) == 4 * 15


def test_a_sum_of_spikes_is_counted_both_ways() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nodes = nn.ModuleList([_node(), _node()])
            self.read = nn.Linear(2, 2, bias=False)
            nn.init.ones_(self.read.weight)

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self)
            spikes = self.nodes[0](x.unsqueeze(0))
            return self.read(spikes + self.nodes[1](spikes))[0]

    model = Block()
    last = profile(model, [torch.tensor([[1.0, 0.0], [1.0, 1.0]])]).layers[-1]
    # Inputs of the last layer: (2, 0) and (2, 2).
    assert last.arriving == "integers"
    assert (last.macs, last.acs, last.effective_macs) == (4, 0, (2 + 4) / 2)
    assert (last.integer_macs, last.integer_acs) == (0, (4 + 8) / 2)


def test_products_of_attention() -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor) -> Tensor:
            k, v = q.roll(1, 0), q.roll(1, 1)
            return (v @ k.transpose(-2, -1)) @ q

    q = torch.tensor([[[1.0, 0, 1], [1, 1, 0]]])
    found = profile(nn.Sequential(Attention()), [q])
    first, second = found.layers
    assert [layer.name for layer in found.layers] == ["0, product 1", "0, product 2"]
    scores = q.roll(1, 1) @ q.transpose(-2, -1)  # one image: rolling the batch changes nothing
    assert first.acs == float(scores.sum()) and first.macs == 0
    assert second.arriving == "integers" and second.macs == 2 * 2 * 3
    assert second.integer_acs == float(((scores != 0).float() @ q).sum()) and second.integer_macs == 0


def test_two_integers_have_to_be_multiplied() -> None:
    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x

    (found,) = profile(Square(), [torch.full((1, 2, 2), 2.0)]).layers
    assert (found.arriving, found.macs, found.integer_macs, found.integer_acs) == ("integers", 8, 8, 0)


def test_a_layer_reads_what_it_reads_in_any_batch() -> None:
    linear = nn.Linear(2, 3)
    (found,) = profile(nn.Sequential(linear), [torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])]).layers
    assert (found.arriving, found.macs, found.integer_acs) == ("integers", 6, (6 + 6) / 2)


def test_nothing_is_carried_over_between_batches_of_a_network_that_does_not_reset_itself() -> None:
    model = nn.Sequential(_node())
    half = torch.full((1, 1, 1), 0.6)  # two in a row would fire
    assert profile(model, [half, half]).firing_rate == 0


REFERENCES = [
    ("spiking:vgg5", (1, 16, 16), {"in_chans": 1, "image_size": 16, "width": 0.125}),
    ("spiking:spikformer-1-32", (1, 16, 16), {"in_chans": 1}),
    ("spiking:sdt-2-64", (3, 16, 16), {"depth": 1, "dim": 32, "num_heads": 2, "num_classes": 10}),
]


@pytest.mark.parametrize(("ref", "image", "kwargs"), REFERENCES)
def test_everything_that_macs_count_is_seen_and_steps_multiply(
    ref: str, image: tuple[int, ...], kwargs: dict[str, Any]
) -> None:
    model, images = _with_active_neurons(ref, image, **kwargs)
    found = profile(model, [images])
    assert found.uncounted == () and found.firing_rate > 0.02
    assert found.total("dense") == count_macs(model, images[:1]).total
    assert found.timesteps == 4
    model.T = 8  # type: ignore[assignment]
    longer = profile(model, [images])
    assert longer.timesteps == 8 and longer.total("dense") == 2 * found.total("dense")
    assert longer.synops > 1.5 * found.synops


@pytest.mark.parametrize(("ref", "image", "kwargs"), REFERENCES)
def test_spikingjelly_counts_the_same_where_its_rules_are_ours(
    ref: str, image: tuple[int, ...], kwargs: dict[str, Any]
) -> None:
    """It has no rule for zero weights, and reads the second product of self-attention in a way of its own."""
    model, images = _with_active_neurons(ref, image, **kwargs)
    counter = SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        model(images)
    found = profile(model, [images])
    theirs = counter.get_total() - counter.get_counts()["Global"].get(torch.ops.aten.bmm.default, 0)
    ours = sum(layer.acs for layer in found.layers if "product" not in layer.name) * len(images)
    assert ours == pytest.approx(theirs, rel=1e-12)


def test_statistics_do_not_depend_on_the_batches() -> None:
    model, images = _with_active_neurons(*REFERENCES[1][:2], **REFERENCES[1][2])
    whole, parts = profile(model, [images]), profile(model, [(images[:1], None), (images[1:], None)])
    assert whole.layers == parts.layers and whole.neurons == parts.neurons
    assert whole.activation_sparsity == parts.activation_sparsity


def test_a_profile_leaves_the_network_as_it_was() -> None:
    model, images = _with_active_neurons(*REFERENCES[0][:2], **REFERENCES[0][2])
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    profile(model, [images])
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_bounded_number_of_images() -> None:
    def batches() -> Iterator[tuple[Tensor, None]]:
        yield torch.zeros(3, 1), None
        yield torch.zeros(3, 1), None
        raise AssertionError("nobody needs more")

    assert [len(batch) for batch in first_images(batches(), 5)] == [3, 2]
    with pytest.raises(DataError, match="there are no images to measure spikes on"):
        profile(nn.Linear(1, 1), [])


def test_energy_of_a_network_without_spikes_is_that_of_its_macs() -> None:
    assert energy_nj(1000) == pytest.approx(4.6)


def test_a_target_on_spikes_says_what_it_lacks() -> None:
    model, images = _with_active_neurons(*REFERENCES[0][:2], **REFERENCES[0][2])
    with pytest.raises(MethodError, match=r"--synops counts spikes and needs images: name a data set with --data"):
        Ruler("synops", model, images, None)
    with pytest.raises(MethodError, match=r"the network has no spiking neurons; use --macs"):
        Ruler("energy", nn.Linear(2, 2), torch.zeros(1, 2), [torch.zeros(1, 2)])
    with pytest.raises(MethodError, match=r"no spike reaches any layer"):
        Ruler("synops", build("spiking:vgg5", image_size=8), images, [torch.zeros(2, 3, 8, 8)])


@pytest.mark.parametrize("kind", ["synops", "energy"])
def test_a_target_on_spikes_is_reached(kind: str) -> None:
    import prunecli

    model, images = _with_active_neurons(*REFERENCES[1][:2], **REFERENCES[1][2])
    settings: dict[str, Any] = {kind: 0.4, "round_to": 1, "min_width": 1}
    result = prunecli.prune(model, "l1", data=[images], recalibrate=True, example_inputs=images[:1], **settings)
    assert result.report.target is not None and result.report.target.achieved is not None
    ratio = profile(result.model, [images]), profile(model, [images])
    figure = "synops" if kind == "synops" else "energy_nj"
    assert getattr(ratio[0], figure) / getattr(ratio[1], figure) == pytest.approx(result.report.target.achieved)
    assert abs(result.report.target.achieved - 0.4) < 0.02


def test_the_picture_has_a_bar_for_each_layer_of_neurons(tmp_path: Path) -> None:
    from prunecli.pipeline.firing import neuron_rates
    from prunecli.report.plots import firing_figure, firing_plot

    rates = neuron_rates(profile(_known(), [torch.tensor([[1.0, 0.5, 0.0]])])) * 2
    axes = firing_figure(rates, "known").axes[0]
    assert [bar.get_width() for bar in axes.patches] == [50.0, 50.0]
    assert [text.get_text() for text in axes.texts] == ["1 silent, 1 always on of 3"] * 2
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "1"]
    assert firing_plot(rates, "known").startswith(b"\x89PNG\r\n")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A spiking network, and the same with half of every weight tensor of its blocks set to zero."""
    torch.manual_seed(0)
    loaded = load_reference("spiking:spikformer-1-32", num_classes=10, in_chans=1)
    _wake(loaded.model, torch.rand(8, 1, 16, 16))
    folder = tmp_path_factory.mktemp("energy")
    dense, masked = folder / "dense.safetensors", folder / "masked.safetensors"
    save(dense, loaded.model, loaded.manifest)
    for name, module in loaded.model.named_modules():
        if name.startswith("blocks") and isinstance(module, nn.Conv1d):
            module.weight.data[:, ::2] = 0
    save(masked, loaded.model, loaded.manifest)
    return dense, masked


DIGITS = ("--data", "digits", "--image-size", "16")


@pytest.mark.usefixtures("spiking_ready")
def test_eval_reports_and_compare_judges(prune: Prune, checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    measured = ("--measure", "spikes", "--measure", "energy", "--measure", "macs", "--energy-images", "32")
    for name, path in zip(("a.json", "b.json"), checkpoints, strict=True):
        done = prune("eval", path, *DIGITS, *measured, "-o", name, "--json")
        assert done.code == 0, done.err
        report = read_report(tmp_path / name)
        metrics, layers, neurons = report.metrics, report.layers, report.neurons
        assert layers is not None and neurons is not None
        assert metrics.timesteps == 4 and metrics.energy_images == 32 and report.energy_formula == FORMULA
        assert metrics.energy_nj == pytest.approx(sum(layer.energy_nj for layer in layers))
        assert metrics.accumulated == pytest.approx(sum(layer.acs for layer in layers))
        assert metrics.silent_channels == sum(len(neuron.silent) for neuron in neurons)
        assert done.json["metrics"]["synops"] == metrics.synops
    done = prune("compare", "a.json", "b.json", "--json", "--fail-if", "synops_ratio < 1 and energy_ratio < 1")
    assert done.code == 3, done.err
    candidate = done.json["candidates"][0] if "candidates" in done.json else done.json["comparison"]["candidates"][0]
    assert candidate["macs_ratio"] == 1 and candidate["energy_ratio"] < 0.9
    assert candidate["connection_sparsity_rise"] > 0.1
    shown = prune("eval", checkpoints[0], *DIGITS, *measured[:4], "--energy-images", "8")
    assert "4.6 pJ x MACs + 0.9 pJ x ACs" in shown.out and "time steps" in shown.out
    assert "blocks.0.attn, product 2" in shown.out and "blocks.0.mlp.neuron1" in shown.out


@pytest.mark.usefixtures("spiking_ready")
def test_inspect_shows_and_draws_firing_rates(prune: Prune, checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    path = checkpoints[0]
    done = prune("inspect", path, *DIGITS, "--images", "16", "--plot", "rates.png", "--json")
    assert done.code == 0, done.err
    firing = done.json["firing"]
    assert (firing["images"], firing["timesteps"], firing["data"]) == (16, 4, "digits")
    assert {"blocks.0.attn.qkv_lif", "patch_embed.stages.0.neuron"} <= {entry["name"] for entry in firing["neurons"]}
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    again = prune("inspect", path, *DIGITS, "--plot", "rates.png")
    assert again.code == 2 and "rates.png: exists; add --force" in again.err
    without = prune("inspect", path, "--image-size", "16")
    assert without.code == 0 and "name a data set: --data NAME" in without.err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("inspect", "cifar:resnet20", "--plot", "x.png"), "cifar:resnet20 has no spiking neurons, so there are no"),
        (("inspect", "spiking:vgg5", "--plot", "x.gif"), "--plot x.gif: a picture ends in .png, .svg, .pdf"),
        (("inspect", "spiking:vgg5", "--plot", "x.png"), "no data set: name one with --data"),
        (("inspect", "spiking:vgg5", "--images", "0"), "--images has to be at least 1"),
        (("l1", "spiking:vgg5", "--synops", "0.5"), "--synops needs images: name a data set with --data"),
        (("l1", "cifar:resnet20", "--energy", "0.5"), "--energy counts spikes, and the network has no spiking neurons"),
        (("l1", "cifar:resnet20", "--synops", "0.5", "--energy", "0.5"), "each in its own way; give one of them"),
    ],
)
def test_what_cannot_be_is_one_line(prune: Prune, words: tuple[str, ...], line: str) -> None:
    done = prune(*words)
    errors = [text for text in done.err.splitlines() if text.startswith("error: ")]
    assert done.code in (1, 2) and len(errors) == 1 and line in errors[0]


def test_networks_without_spikes_and_without_data(prune: Prune, tmp_path: Path) -> None:
    done = prune("eval", "cifar:resnet20", "--measure", "spikes", "--measure", "energy", "--measure", "macs", "--json")
    metrics = done.json["metrics"]
    assert "has no spiking neurons, so no firing rates" in done.err
    assert metrics["energy_nj"] == pytest.approx(4.6e-3 * metrics["macs"]) and "firing_rate" not in metrics
    done = prune("eval", "spiking:vgg5", "--measure", "energy", "--json")
    assert "no data set, so no firing rates and no energy of spikes" in done.err
    assert done.json["metrics"]["timesteps"] == 4 and "energy_nj" not in done.json["metrics"]
