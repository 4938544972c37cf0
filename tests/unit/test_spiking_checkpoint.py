"""What decides how a spiking network runs survives saving, loading and other people's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Architecture
from prunecli.errors import ModelError
from prunecli.measure.neurons import spiking_neurons
from prunecli.models.loading import load_file, load_reference, save
from prunecli.surgery.proof.active_neurons import with_active_neurons
from tests.unit.test_spiking_models import images

NEURONS = {"neuron": "lif", "tau": 3.0, "v_threshold": 0.3, "v_reset": None, "decay_input": False, "alpha": 2.5}


def test_time_and_neurons_survive_saving(tmp_path: Path) -> None:
    loaded = load_reference("spiking:vgg5", width=0.125, num_classes=10, T=7, surrogate="erf", **NEURONS)
    assert loaded.manifest.architecture.kwargs | NEURONS == loaded.manifest.architecture.kwargs
    loaded.model.get_submodule("features.2").v_threshold = 0.25
    functional.set_step_mode(loaded.model, "s")
    save(tmp_path / "net.safetensors", loaded.model, loaded.manifest)
    again = load_file(tmp_path / "net.safetensors").model
    assert (again.T, again.step_mode, again.coding) == (7, "s", "direct")
    first, *others = spiking_neurons(again).values()
    assert first.v_threshold == 0.25
    for module in others:
        assert module.step_mode == "s" and module.v_reset is None and not module.decay_input
        assert (module.tau, module.v_threshold, module.surrogate_function.alpha) == (3.0, 0.3, 2.5)
        assert type(module.surrogate_function).__name__ == "Erf"
    with torch.no_grad():
        assert torch.equal(again(images()), loaded.model(images()))


def test_defaults_are_written_down_too() -> None:
    kwargs = load_reference("spiking:spikformer-1-32", num_classes=10).manifest.architecture.kwargs
    assert (kwargs["T"], kwargs["neuron"], kwargs["tau"], kwargs["surrogate"]) == (4, "lif", 2.0, "sigmoid")


def test_a_checkpoint_can_run_for_another_time_and_nothing_else_changes(tmp_path: Path) -> None:
    file = tmp_path / "net.safetensors"
    loaded = load_reference("spiking:vgg5", width=0.125, num_classes=10)
    save(file, loaded.model, loaded.manifest)
    longer = load_file(file, kwargs={"T": 9})
    assert longer.model.T == 9 and longer.manifest.architecture.kwargs["T"] == 9
    assert load_file(file, kwargs={"width": 0.125, "T": 4}).model.T == 4  # says what the manifest says
    for kwargs, said in (
        ({"width": 0.5}, "width cannot be set"),
        ({"tau": 3.0}, "tau cannot be set"),
        ({"T": 0}, "T has to be an integer"),
        ({"T": 10**9}, "T has to be an integer"),
    ):
        with pytest.raises(ModelError, match=said) as caught:
            load_file(file, kwargs=kwargs)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match=r"T=.* cannot be set"):
        plain = load_reference("cifar:resnet20")
        save(file, plain.model, plain.manifest)
        load_file(file, kwargs={"T": 4})


@pytest.mark.parametrize(
    "kwargs",
    [
        {"T": 10**6},
        {"T": True},
        {"dim": 10**9},
        {"tau": float("nan")},
        {"neuron": "../x"},
        {"cache_dir": "/"},
        {"tau": "2"},
    ],
)
def test_a_manifest_cannot_ask_for_anything(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Architecture(ref="spiking:vgg5", kwargs=kwargs)


class OriginalAttention(nn.Module):
    """Spiking self-attention as the paper writes it, token by token, with the authors' names."""

    def __init__(self, dim: int, heads: int, convolutional: bool) -> None:
        super().__init__()
        self.heads, self.kind = heads, "conv" if convolutional else "linear"
        for name in ("q", "k", "v", "proj"):
            bias = name == "proj" or not convolutional
            layer = nn.Conv1d(dim, dim, 1, bias=bias) if convolutional else nn.Linear(dim, dim)
            setattr(self, f"{name}_{self.kind}", layer)
            setattr(self, f"{name}_bn", nn.BatchNorm1d(dim))
            setattr(self, f"{name}_lif", neuron.LIFNode(step_mode="m", detach_reset=True))
        self.attn_lif = neuron.LIFNode(step_mode="m", v_threshold=0.5, detach_reset=True)

    def part(self, x: Tensor, name: str) -> Tensor:
        layer = getattr(self, f"{name}_{self.kind}")
        tokens = x.flatten(0, 1)  # (T N, C, L)
        made = layer(tokens) if self.kind == "conv" else layer(tokens.transpose(1, 2)).transpose(1, 2)
        out: Tensor = getattr(self, f"{name}_lif")(getattr(self, f"{name}_bn")(made).unflatten(0, x.shape[:2]))
        return out

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.part(x, n).unflatten(2, (self.heads, -1)).transpose(-1, -2) for n in "qkv")
        mixed = (q @ k.transpose(-1, -2) @ v * 0.125).transpose(-1, -2).flatten(2, 3)
        return self.part(self.attn_lif(mixed), "proj")


class OriginalMlp(nn.Module):
    def __init__(self, dim: int, hidden: int, convolutional: bool) -> None:
        super().__init__()
        self.kind = "conv" if convolutional else "linear"
        for name, a, b in (("fc1", dim, hidden), ("fc2", hidden, dim)):
            setattr(self, f"{name}_{self.kind}", nn.Conv2d(a, b, 1) if convolutional else nn.Linear(a, b))
            setattr(self, f"{name}_bn", nn.BatchNorm2d(b) if convolutional else nn.BatchNorm1d(b))
            setattr(self, f"{name}_lif", neuron.LIFNode(step_mode="m", detach_reset=True))

    def forward(self, x: Tensor) -> Tensor:
        for name in ("fc1", "fc2"):
            layer, norm = getattr(self, f"{name}_{self.kind}"), getattr(self, f"{name}_bn")
            tokens = x.flatten(0, 1)
            if self.kind == "conv":
                made = norm(layer(tokens.unsqueeze(-1))).squeeze(-1)
            else:
                made = norm(layer(tokens.transpose(1, 2)).transpose(1, 2))
            x = getattr(self, f"{name}_lif")(made.unflatten(0, x.shape[:2]))
        return x


class OriginalSpikformer(nn.Module):
    def __init__(self, dim: int, heads: int, depth: int, convolutional: bool) -> None:
        super().__init__()
        self.pools = (True,) * 4 if convolutional else (False, False, True, True)
        stem = nn.Module()
        widths = (3, dim // 8, dim // 4, dim // 2, dim)
        for stage, name in enumerate(("", "1", "2", "3")):
            stem.add_module(f"proj_conv{name}", nn.Conv2d(widths[stage], widths[stage + 1], 3, padding=1, bias=False))
            stem.add_module(f"proj_bn{name}", nn.BatchNorm2d(widths[stage + 1]))
            stem.add_module(f"proj_lif{name}", neuron.LIFNode(step_mode="m", detach_reset=True))
        stem.rpe_conv, stem.rpe_bn = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        stem.rpe_lif = neuron.LIFNode(step_mode="m", detach_reset=True)
        self.patch_embed = stem
        self.block = nn.ModuleList()
        for _ in range(depth):
            block = nn.Module()
            block.norm1, block.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
            block.attn, block.mlp = (
                OriginalAttention(dim, heads, convolutional),
                OriginalMlp(dim, 4 * dim, convolutional),
            )
            self.block.append(block)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        functional.reset_net(self)
        x, stem = x.unsqueeze(0).repeat(4, 1, 1, 1, 1), self.patch_embed

        def stage(x: Tensor, a: str, number: str) -> Tensor:
            made = getattr(stem, f"{a}_bn{number}")(getattr(stem, f"{a}_conv{number}")(x.flatten(0, 1)))
            out: Tensor = getattr(stem, f"{a}_lif{number}")(made.unflatten(0, x.shape[:2]))
            return out

        for name, pool in zip(("", "1", "2", "3"), self.pools, strict=True):
            x = stage(x, "proj", name)
            if pool:
                x = F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, x.shape[:2])
        x = (stage(x, "rpe", "") + x).flatten(3)
        for block in self.block:
            x = x + block.attn(x)
            x = x + block.mlp(x)
        return self.head(x.mean(-1).mean(0))


@pytest.mark.parametrize("convolutional", [False, True])
def test_the_original_spikformers_weights_load(tmp_path: Path, convolutional: bool) -> None:
    torch.manual_seed(0)
    theirs = OriginalSpikformer(64, 4, 2, convolutional)
    theirs.train()
    for _ in range(2):
        theirs(images(8))  # so that statistics, and with them the biases, play a part
    theirs.eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(("linear.bias", "conv.bias")):
                parameter.normal_()
    torch.save({"model": theirs.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    size = 64 if convolutional else 32
    loaded = load_file(tmp_path / "model.pt", kwargs={"num_heads": 4})
    kwargs = loaded.manifest.architecture.kwargs
    assert kwargs["pool"] == "after" and any("assumed" in note for note in loaded.notes)
    functional.reset_net(theirs)
    firing = with_active_neurons(theirs, theirs, images(2, size))
    assert firing is not None
    ours = spiking_neurons(loaded.model)
    for name, module in spiking_neurons(firing[0]).items():
        for counterpart in _counterparts(name):
            if name.endswith(("attn.k_lif", "attn.v_lif")):
                module.v_threshold = (
                    firing[0].get_submodule(name.replace("k_lif", "q_lif").replace("v_lif", "q_lif")).v_threshold
                )
            ours[counterpart].v_threshold = module.v_threshold
    with torch.no_grad():
        expected = firing[0](images(2, size))
        assert float(expected.std()) > 1e-3
        torch.testing.assert_close(loaded.model(images(2, size)), expected, rtol=1e-4, atol=1e-5)


def _counterparts(name: str) -> list[str]:
    parts = name.split(".")
    if parts[0] == "patch_embed":
        stage = parts[1].removeprefix("proj_lif")
        return (
            ["patch_embed.positional_encoding.neuron"] if "rpe" in name else [f"patch_embed.stages.{stage or 0}.neuron"]
        )
    ours = {"q_lif": "qkv_lif", "k_lif": "qkv_lif", "v_lif": "qkv_lif", "fc1_lif": "neuron1", "fc2_lif": "neuron2"}
    return [f"blocks.{parts[1]}.{parts[2]}.{ours.get(parts[3], parts[3])}"]


def test_spikingjellys_weights_load_with_widths_that_no_name_has(tmp_path: Path) -> None:
    from spikingjelly.activation_based.model.spikformer import Spikformer

    torch.manual_seed(0)
    theirs = Spikformer(embed_dims=48, num_heads=8, depths=3, patch_size=4, num_classes=7, in_channels=2, mlp_ratio=2.0)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    loaded = load_file(tmp_path / "model.pt")
    kwargs = loaded.manifest.architecture.kwargs
    assert (kwargs["dim"], kwargs["depth"], kwargs["mlp_ratio"]) == (48, 3, 2.0)
    assert (kwargs["num_classes"], kwargs["in_chans"]) == (7, 2)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_an_incomplete_original_names_what_is_missing(tmp_path: Path) -> None:
    state = OriginalSpikformer(64, 4, 1, False).state_dict()
    del state["block.0.attn.k_bn.weight"]
    torch.save({**state, "block.0.attn.k_bn.weight.extra": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(ModelError, match="has Spikformer's names") as caught:
        load_file(tmp_path / "model.pt")
    assert "\n" not in str(caught.value)
