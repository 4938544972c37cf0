"""Counting, timing and memory."""

from __future__ import annotations

import time

import pytest
import timm
import torch
from torch import Tensor, nn

import prunecli
from prunecli.errors import ModelError
from prunecli.inputs import Inputs
from prunecli.measure.counts import count_macs, count_on_meta, module_macs, nonzero_count, parameter_count
from prunecli.measure.energy import profile
from prunecli.measure.latency import Execution, time_paired
from prunecli.measure.memory import peak_memory_bytes

IMAGE = torch.zeros(1, 3, 224, 224)


@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("resnet50", 4.089),
        ("vit_base_patch16_224", 17.564),
        ("swin_tiny_patch4_window7_224", 4.491),
        ("convnext_tiny", 4.456),
    ],
)
def test_macs_of_reference_networks(name: str, gmacs: float) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    counted = count_macs(model, IMAGE)
    assert counted.total / 1e9 == pytest.approx(gmacs, abs=5e-4)
    assert not counted.uncounted


def test_macs_of_an_lstm() -> None:
    assert count_macs(nn.LSTM(256, 512, 2), torch.zeros(32, 1, 256)).total / 1e9 == pytest.approx(0.1174, abs=5e-5)


def test_macs_of_clips_vision_tower() -> None:
    import open_clip

    tower = open_clip.create_model("ViT-B-32").visual
    assert count_macs(tower, IMAGE).total / 1e9 == pytest.approx(4.409, abs=5e-4)


def test_macs_of_segformer() -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=150))
    assert count_macs(model, torch.zeros(1, 3, 512, 512)).total / 1e9 == pytest.approx(8.388, abs=5e-4)


def test_fused_attention_is_counted() -> None:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
    tokens = 10
    expected = tokens * (4 * 64 * 64 + 2 * 64 * 128) + 2 * tokens * tokens * 64
    assert count_macs(layer, torch.zeros(1, tokens, 64)).total == expected


def test_an_operator_nobody_counts_is_a_lower_bound() -> None:
    class Spectral(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.fft(x).real

    counted = count_macs(Spectral(), torch.zeros(1, 8))
    assert any("fft" in name for name in counted.uncounted)


def test_macs_agree_with_fvcore_on_a_convolutional_network() -> None:
    from fvcore.nn import FlopCountAnalysis

    model = timm.create_model("resnet18").eval()
    by_operator = FlopCountAnalysis(model, IMAGE).unsupported_ops_warnings(False).by_operator()
    assert by_operator["conv"] + by_operator["linear"] == count_macs(model, IMAGE).total


def test_module_macs_add_up() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    counted = module_macs(model, torch.zeros(1, 3, 6, 6))
    assert counted["0"] == 4 * 4 * 8 * 27 and counted["2"] == 4 * 4 * 4 * 8
    assert counted[""] == counted["0"] + counted["2"]


def test_models_that_look_at_values_are_counted_for_real() -> None:
    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if float(x.sum()) >= 0 else x

    assert count_macs(Looking(), torch.zeros(1, 4)).total == 16


def test_models_on_the_meta_device_are_counted_even_if_they_create_tensors() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.tied = nn.Linear(4, 4)
            self.tied.weight = self.fc.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.tied(self.fc(x)) + torch.arange(4).to("cpu")

    with torch.device("meta"):
        model = Shifted()
    for inputs in (torch.zeros(1, 4), torch.zeros(1, 4, device="meta")):
        assert count_macs(model, inputs).total == module_macs(model, inputs)[""] == 32
        assert peak_memory_bytes(model, inputs) == peak_memory_bytes(Shifted(), torch.zeros(1, 4))
    assert all(parameter.is_meta for parameter in model.parameters())


class _Positional(nn.Module):
    """Takes `inputs` of any form: a tensor, two arguments, named arguments, or a list of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor | list[Tensor], scale: Tensor | None = None) -> Tensor | list[Tensor]:
        if isinstance(images, list):
            return [self.conv(image[None])[0] for image in images]
        return self.conv(images) if scale is None else self.conv(images) * scale


_IMAGES = torch.full((2, 3, 6, 6), 0.5)


@pytest.mark.parametrize(
    ("inputs", "batch"),
    [
        (_IMAGES, (_IMAGES, torch.zeros(2))),
        ((_IMAGES, torch.ones(1)), ((_IMAGES, torch.ones(1)), torch.zeros(2))),
        ({"images": _IMAGES, "scale": torch.ones(())}, {"images": _IMAGES, "scale": torch.ones(()), "labels": [0, 1]}),
        ([_IMAGES[0], _IMAGES[1]], ([_IMAGES[0], _IMAGES[1]], [{"labels": 0}, {"labels": 1}])),
    ],
    ids=["tensor", "tuple", "mapping", "list"],
)
def test_inputs_may_be_a_tensor_a_tuple_a_mapping_or_a_list(inputs: Inputs, batch: object) -> None:
    model = _Positional()
    macs = 2 * 4 * 4 * 8 * 27
    assert count_macs(model, inputs).total == module_macs(model, inputs)[""] == macs
    assert peak_memory_bytes(model, inputs) >= 4 * (parameter_count(model) + _IMAGES.numel())
    assert time_paired([model, model], [inputs, inputs], rounds=3).timings[1].runs == 3
    figures = profile(model, [batch, batch], images=3)
    assert figures.images == 3 and figures.total("macs") == macs / 2


def test_a_batch_of_positional_arguments_alone_is_profiled_by_example() -> None:
    inputs = (_IMAGES, torch.ones(()))
    assert profile(_Positional(), [inputs], like=inputs).total("macs") == 4 * 4 * 8 * 27


def test_tied_and_zero_parameters() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    nn.init.ones_(model[0].weight)
    model[0].weight.data[0] = 0
    assert (parameter_count(model), nonzero_count(model)) == (16, 12)


def test_counting_leaves_the_model_alone() -> None:
    model = nn.Conv2d(3, 4, 3).train()
    count_macs(model, torch.zeros(1, 3, 8, 8))
    assert model.training and model.weight.device.type == "cpu" and model.weight.requires_grad


def test_peak_memory_repeats_and_covers_weights_and_activations() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.Conv2d(64, 4, 1))
    image = torch.zeros(1, 3, 32, 32)
    first = peak_memory_bytes(model, image)
    weights = 4 * parameter_count(model)
    assert first == peak_memory_bytes(model, image)
    assert first >= weights + 4 * (64 * 32 * 32)
    assert peak_memory_bytes(model.requires_grad_(False), image) == first
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert peak_memory_bytes(model, torch.zeros(4, 3, 32, 32)) > first


class _Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return x


def test_paired_ratio_and_interval() -> None:
    x = torch.zeros(1)
    timing = time_paired([_Sleeper(0.004), _Sleeper(0.012), _Sleeper(0.004)], [x, x, x], rounds=30)
    assert timing.ratios[0] == 1
    assert 2 < timing.ratios[1] < 4
    low, high = timing.ratio_intervals[1]
    assert low <= timing.ratios[1] <= high and low > 1.5
    assert timing.timings[0].runs == 30 and timing.timings[0].median >= 4


def test_a_model_against_itself_is_about_one() -> None:
    model = nn.Conv2d(3, 32, 3)
    image = torch.zeros(1, 3, 64, 64)
    low, high = time_paired([model, model], [image, image], rounds=40).ratio_intervals[1]
    assert low < 1.15 and high > 0.87


def test_a_parameter_given_to_a_module_is_counted() -> None:
    class Query(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.layer = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.token.expand(1, -1, -1)) + self.layer(x)

    assert count_macs(Query(), torch.randn(1, 1, 8)).total == 2 * 8 * 4
    assert module_macs(Query(), torch.randn(1, 1, 8))["layer"] == 2 * 8 * 4


class _Awkward(nn.Module):
    """Creates a tensor on the CPU while it runs, which fails on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        shift = torch.tensor(x.tolist()).sum() * 0
        return self.last(torch.relu(self.second(torch.relu(self.first(x) + shift))))  # type: ignore[no-any-return]


def test_what_fails_on_the_meta_device_runs_once_with_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = _Awkward(), []
    hook = model.first.register_forward_pre_hook(lambda module, _: seen.append(module.weight.data_ptr()))
    assert count_on_meta(model, torch.randn(2, 8)) is None
    seen.clear()
    assert count_macs(model, torch.randn(2, 8)).total == 2 * (8 * 32 + 32 * 32 + 32 * 4)
    hook.remove()
    assert seen[-1] == model.first.weight.data_ptr()  # not a copy
    assert float(model.calls) == 0 and model.training and model.first.weight.requires_grad
    monkeypatch.setattr("prunecli.measure.counts.cpu_copy", None)
    assert count_macs(nn.Linear(8, 4), torch.randn(2, 8)).total == 64  # does not run for real


def test_targets_of_macs_for_networks_that_fail_on_the_meta_device() -> None:
    class Shifted(_Awkward):
        def forward(self, x: Tensor) -> Tensor:
            shifted = x + torch.ones(len(x), 1)  # on the CPU wherever the network is
            return self.last(torch.relu(self.second(torch.relu(self.first(shifted)))))  # type: ignore[no-any-return]

    result = prunecli.prune(Shifted().eval(), macs=0.5, example_inputs=torch.randn(2, 8), prune_stem=True)
    assert result.report.target is not None and result.report.target.achieved == pytest.approx(0.5, abs=0.1)


def test_a_candidate_that_does_not_run_costs_its_groups_only() -> None:
    class Checking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.first(x))
            if hidden.shape[1] < 8:  # the trial keeps about half, and so does not meet this
                raise ValueError("too narrow")
            return self.last(torch.relu(self.second(hidden)))  # type: ignore[no-any-return]

    result = prunecli.prune(Checking().eval(), macs=0.5, example_inputs=torch.randn(2, 8), prune_stem=True)
    assert result.model.first.out_features >= 8  # type: ignore[union-attr]
    assert result.model.second.out_features < 32  # type: ignore[union-attr]


def test_macs_of_a_network_in_half_precision() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 4))
    expected = count_macs(network, torch.randn(1, 3, 8, 8))
    assert count_macs(network.half(), torch.randn(1, 3, 8, 8)) == expected
    with pytest.raises(ModelError, match="MACs cannot be counted"):
        count_macs(network, torch.randn(1, 5, 8, 8))


def test_layout_changes_no_network_that_is_timed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    seen: list[bool] = []
    model[2].register_forward_pre_hook(
        lambda _, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    before = model[0].weight.stride()
    inputs = torch.randn(2, 3, 12, 12)
    time_paired([model, model], [inputs, inputs], rounds=2, execution=Execution(channels_last=True))
    assert seen and all(seen)
    seen.clear()
    time_paired([model], [inputs], rounds=2)
    assert seen and not any(seen)
    assert model[0].weight.stride() == before


@pytest.mark.slow
def test_compiled_networks_are_timed_for_their_own_shapes() -> None:
    networks = [nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3)).eval() for width in (16, 8)]
    inputs = torch.randn(2, 3, 12, 12)
    timing = time_paired(networks, [inputs, inputs], rounds=3, execution=Execution(compiled=True))
    assert len(timing.timings) == 2 and all(one.median > 0 for one in timing.timings)


@pytest.mark.slow
def test_what_cannot_be_compiled_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent")
    torch._inductor.config.cpp.cxx, before = ("/nonexistent",), torch._inductor.config.cpp.cxx
    try:
        with pytest.raises(ModelError, match=r"^the network cannot be compiled[^\n]*leave --compile out$"):
            time_paired([nn.Conv2d(3, 5, 3)], [torch.randn(1, 3, 9, 7)], rounds=2, execution=Execution(compiled=True))
    finally:
        torch._inductor.config.cpp.cxx = before
