"""Spiking networks on the command line, in processes of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunecli.models.catalog import build
from prunecli.models.loading import load_reference, save
from tests.conftest import Prune
from tests.faults.processes import FEW_DIGITS

pytestmark = pytest.mark.usefixtures("spiking_ready")
SMALL = ("--model-kwargs", "patch_size=1", "--model-kwargs", "T=2", "--model-kwargs", "v_threshold=0.5")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spikformer weights as torch.save leaves them, with nothing that says what they are."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save({"model": build("spiking:spikformer-1-32", num_classes=10).state_dict()}, path)
    return path


def test_spike_needs_a_ratio_and_a_file_and_nothing_else(prune: Prune, foreign: Path) -> None:
    done = prune("spike", "--ratio", "0.3", foreign, "--json", "-o", "pruned.safetensors")
    assert done.code == 0, done.err
    assert "recognised as spiking:spikformer-1-32" in done.err and "assumed num_heads = 2" in done.err
    assert "ranked by criterion bn-scale" in done.err
    assert done.json["verify_error"] == 0.0 and 0.2 < done.json["achieved"] < 0.4
    shown = prune("inspect", "pruned.safetensors", "--manifest").json["architecture"]["kwargs"]
    assert (shown["T"], shown["neuron"], shown["tau"], shown["v_threshold"]) == (4, "lif", 2.0, 1.0)


def test_the_whole_flow(prune: Prune) -> None:
    few = ("--data", FEW_DIGITS)
    how = ("--epochs", "4", "--lr", "0.005", "--batch-size", "16", "--set", "stages.0.optimizer=adamw")
    done = prune("train", "spiking:spikformer-1-32", *SMALL, *few, *how, "-o", "base.safetensors")
    assert done.code == 0, done.err
    done = prune("spike", "base.safetensors", "--ratio", "0.4", "--criterion", "rate", "--heads", *few, "-o",
                 "p.safetensors", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["verify_error"] == 0.0
    score = done.json["score"]
    best = next(repair for repair in done.json["repairs"] if repair["chosen"])
    assert (done.json["recalibrated"] > 0) == best["recalibrated"] and best["difference"] < 1
    done = prune("finetune", "p.safetensors", *few, "--epochs", "1", "-o", "f.safetensors")
    assert done.code == 0, done.err
    for name in ("base", "p", "f"):
        done = prune("eval", f"{name}.safetensors", *few, "--latency-rounds", "3", "-o", f"{name}.json")
        assert done.code == 0, done.err
        assert "time steps\t2" in done.out and "firing rate\t" in done.out
        shown = f"\ntop-1\t{score['before' if name == 'base' else 'after']:.2f} % ["
        assert (shown in done.out) or name == "f"
    done = prune("compare", "base.json", "p.json", "f.json", "--json", "--fail-if", "params_ratio > 0.9")
    assert done.code == 0, done.err
    assert done.json["candidates"][0]["synops_ratio"] is not None
    done = prune("eval", "f.safetensors", *few, "--model-kwargs", "T=5", "--measure", "macs", "--json")
    assert done.code == 0, done.err
    assert done.json["model"]["arguments"]["T"] == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("spike", "plain.safetensors", "--ratio", "0.3"), "the network has no spiking neurons; choose another method"),
        (("spike", "spiking:spikformer-1-32", "--model-kwargs", "T=0"), "T has to be an integer from 1"),
        (
            ("spike", "spiking:spikformer-1-32", "--model-kwargs", "T=2000"),
            "T has to be an integer from 1 to 1,024",
        ),
        (("spike", "spiking:spikformer-1-32", "--model-kwargs", "T=four"), "T has to be an integer from 1"),
        (("spike", "spiking:vgg5", "--model-kwargs", "width=wide"), "width has to be a number from 0.001"),
        (("spike", "spiking:vgg5", "--model-kwargs", "v_reset=2"), "v_reset 2 is not below v_threshold 1"),
        (("spike", "spiking:vgg5", "--criterion", "entropy"), "--criterion entropy needs images"),
        (("spike", "spiking:qkformer-3-64", "--model-kwargs", "dim=30"), "dim 30: QKFormer"),
        (("spike", "spiking:spikformer-1-32", "--model-kwargs", "T"), "--model-kwargs T: write it as KEY=VALUE"),
        (("spike", "spiking:spikformer-1-32", "--model-kwargs", "tua=3"), "unknown argument 'tua': did you mean"),
        (("spike", "spiking:spikformer-1-32", "--ratio", "1"), "--ratio"),
        (("spike", "spiking:spikformer-1-32", "--criterion", "rates"), "--criterion"),
        (("spike", "spiking:spikformr-1-32"), "did you mean"),
        (("eval", "plain.safetensors", "--model-kwargs", "T=4"), "T= cannot be set"),
    ],
)
def test_the_wrong_thing_is_one_line(prune: Prune, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    if "plain.safetensors" in words:
        loaded = load_reference("cifar:resnet20")
        save(tmp_path / "plain.safetensors", loaded.model, loaded.manifest)
    done = prune(*words)
    assert done.code == 2, done.err
    errors = [line for line in done.err.splitlines() if not line.startswith(("warning", "recognised", "assumed"))]
    assert len(errors) == 1 and said in errors[0], done.err


def test_no_head_is_ever_emptied(prune: Prune, foreign: Path) -> None:
    """The most that can be asked for leaves one unit of each, and says which layers were held."""
    done = prune("spike", foreign, "--ratio", "0.99", "--max-ratio", "1", "--min-width", "1", "--round-to", "1",
                 "--scope", "local", "--json", "-o", "p.safetensors")  # fmt: skip
    assert done.code == 0, done.err
    held = {entry["name"]: entry["reason"] for entry in done.json["untouched"]}
    assert "held at its smallest width" in held["blocks.0.attn.qkv_conv_bn.0"]
    assert done.json["verify_error"] == 0.0
