"""Files as trainers leave them: what is taken is said, in the manifest too; pickles are led to a way that works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunecli.checkpoint.io import read_manifest, read_tensors
from prunecli.models.catalog import build
from tests.conftest import Prune
from tests.processes import Processes

State = dict[str, Tensor]
ARCH = ("--arch", "cifar:resnet20")
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 8, 3, padding=1))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""


def _state(seed: int, **arguments: Any) -> State:
    torch.manual_seed(seed)
    return dict(build("cifar:resnet20", **arguments).state_dict())


def _under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _dtypes(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return {name: file.get_slice(name).get_dtype() for name in file.keys()}


def test_a_lightning_checkpoint_with_an_average_in_half_precision(prune: Prune, tmp_path: Path) -> None:
    """Everything at once: the average is taken, said and recorded, the rest named, and each tensor keeps its type."""

    def half(state: State) -> State:  # norms stay in single precision
        return {name: tensor.bfloat16() if tensor.dim() > 1 else tensor for name, tensor in state.items()}

    raw, average = half(_state(0, num_classes=5)), half(_state(1, num_classes=5))
    beside = {"criterion.weight": torch.ones(5), "train_acc.total": torch.tensor(3.0), "mean": torch.zeros(1, 3, 1, 1)}
    state = {**_under("net.", raw), **_under("ema_net.module.", average), **beside}
    moments = {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": []}
    content = {"state_dict": state, "optimizer_states": [moments], "hyper_parameters": {"lr": 0.1}, "epoch": 3,
               "pytorch-lightning_version": "2.5.1", "loops": {"fit_loop": {"state_dict": {}}}}  # fmt: skip
    torch.save(content, tmp_path / "last.ckpt")
    words = ("--ratio", "0.3", "--latency-rounds", "2", "-o", "a.safetensors", "--json")
    done = prune("l1", "last.ckpt", *ARCH, *words)
    assert done.code == 0, done.err
    assert "took the weights under 'ema_net.' (an average, 116 tensors); 'net.': --strip-prefix net." in done.err
    assert "left out 1 tensor of a loss, 'criterion.weight'" in done.err
    assert "left out 2 tensors, by their names no part of the network: 'train_acc.total', 'mean'" in done.err
    assert "it takes normalised ones" in done.err and done.json["verify_error"] < 1e-9
    manifest = read_manifest(tmp_path / "a.safetensors")
    assert manifest is not None
    assert manifest.history[0].parent_weights == {"strip_prefix": "ema_net.", "aside": ["net."]}
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["linear.bias"], average["linear.bias"])
    types = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
    stored = {name: types[kind] for name, kind in _dtypes(tmp_path / "a.safetensors").items()}
    assert stored == {name: tensor.dtype for name, tensor in average.items()}
    shown = prune("inspect", "a.safetensors").out
    assert "its strip_prefix\tema_net." in shown and re.search(r"stored as\tbfloat16 \S+k, float32 1\.\S+k", shown), (
        shown
    )
    plain = prune("export", "a.safetensors", "--to", "safetensors-plain", "-o", "plain.safetensors")
    assert plain.code == 0 and "single precision" not in plain.err
    assert _dtypes(tmp_path / "plain.safetensors") == _dtypes(tmp_path / "a.safetensors")


def test_what_is_not_known_is_asked_and_the_remedy_works(prune: Prune, tmp_path: Path) -> None:
    first, second = _state(0), _state(1)
    save_file({**_under("student.", first), **_under("teacher.", second)}, tmp_path / "both.safetensors")
    done = prune("inspect", "both.safetensors", *ARCH)
    assert done.code == 2 and "that fit cifar:resnet20: under 'student.', 'teacher.'" in done.err
    remedy = re.search(r"for instance (--strip-prefix \S+)", done.err)
    assert remedy is not None
    done = prune("inspect", "both.safetensors", *ARCH, *remedy[1].split())
    assert done.code == 0 and "left out 116 tensors of both.safetensors that are not under student." in done.err
    save_file({**_under("backbone.", first), "head.weight": torch.ones(3, 10)}, tmp_path / "head.safetensors")
    done = prune("inspect", "head.safetensors", *ARCH)
    assert done.code == 2 and "leaves out 1 others, first 'head.weight'" in done.err
    remedy = re.search(r"(--strip-prefix \S+)", done.err)
    assert remedy is not None and prune("inspect", "head.safetensors", *ARCH, *remedy[1].split()).code == 0
    lacking = {name: tensor for name, tensor in first.items() if not name.startswith("layer3.2.")}
    save_file({**_under("model.", lacking), "train_acc.total": torch.ones(1)}, tmp_path / "part.safetensors")
    done = prune("inspect", "part.safetensors", *ARCH)
    assert done.code == 2 and "tensors are missing, first 'layer3.2.conv1.weight'" in done.err
    assert "cifar:resnet20 (" not in done.err, "it is no guess at what was named"
    save_file({"odd.weight": torch.ones(3, 2)}, tmp_path / "odd.safetensors")
    done = prune("inspect", "odd.safetensors", *ARCH)
    assert done.code == 2 and "do not fit cifar:resnet20" in done.err and "nearest" not in done.err


def test_a_pickle_of_the_script_that_wrote_it(prune: Prune, processes: Processes, tmp_path: Path) -> None:
    """`torch.save(model)` at the end of a script: its class is `__main__.Net`, which nobody can import."""
    made = processes.run(
        (), tmp_path, code=f"{NET}\nimport __main__\n__main__.Net = Net\ntorch.save(nn.DataParallel(Net()), 'whole.pt')"
    )
    assert made.code == 0, made.err
    done = prune("l1", "whole.pt", "--ratio", "0.5")
    assert done.code == 2 and "'__main__.Net'" in done.err and "%" not in done.err
    named = re.search(r"put the class into a file of this folder, (\S+), and give (--arch \S+)", done.err)
    assert named is not None
    (tmp_path / named[1]).write_text(NET)
    words = ("--example-shape", "1x3x16x16", "--ratio", "0.5", "--latency-rounds", "2", "-o", "a.safetensors")
    assert prune("l1", "whole.pt", *named[2].split(), *words).code == 0


def test_a_pickle_of_a_changed_network_of_a_package(prune: Prune, tmp_path: Path) -> None:
    model: Any = build("cifar:resnet20")
    model.linear = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    torch.save(model, tmp_path / "whole.pt")
    done = prune("l1", "whole.pt", "--ratio", "0.5")
    why = r"nearest: cifar:resnet20 \(\d\d% alike: 2 of its 116 tensors are missing, first 'linear\."
    assert done.code == 2 and re.search(why, done.err), done.err
    named = re.search(r"builds it so into a file of this folder, (\S+), and give --arch (\S+):FUNCTION", done.err)
    assert named is not None
    code = (
        "from prunecli.models.catalog import build\nfrom torch import nn\n\ndef make():\n"
        "    model = build('cifar:resnet20')\n"
        "    model.linear = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))\n    return model\n"
    )
    (tmp_path / named[1]).write_text(code)
    done = prune("inspect", "whole.pt", "--arch", f"{named[2]}:make")
    assert "Give --example-shape" in done.err and "the weights do not fit" not in done.err


def test_a_pickle_of_a_network_of_transformers(prune: Prune, processes: Processes, tmp_path: Path) -> None:
    processes.preload("transformers.models.vit.modeling_vit")
    small = (
        "hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=8"
    )
    made = processes.run(
        (),
        tmp_path,
        code="import torch, transformers\n"
        f"model = transformers.ViTForImageClassification(transformers.ViTConfig({small})).half()\n"
        "torch.save({'model': torch.nn.DataParallel(model)}, 'my vit.pt')",
    )
    assert made.code == 0, made.err
    done = prune("l1", "my vit.pt", "--ratio", "0.5")
    assert done.code == 2 and "%" not in done.err
    led = re.search(r"which runs what it holds: (python .*), then give (.*)$", done.err, re.MULTILINE)
    assert led is not None
    program, option, code = shlex.split(led[1])
    assert (program, option) == ("python", "-c")
    assert processes.run((), tmp_path, code=code).code == 0
    (folder,) = shlex.split(led[2])
    done = prune("l1", folder, "--ratio", "0.5", "--latency-rounds", "2", "-o", "a.safetensors")
    assert done.code == 0, done.err
    assert set(_dtypes(tmp_path / "a.safetensors").values()) == {"F16"}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
@pytest.mark.parametrize("words", [
    ("wanda", "--data", "digits", "--ratio", "0.3"),
    ("taylor", "--data", "digits", "--ratio", "0.3", "--compensate", "reconstruct"),
    ("l1", "--ratio", "0.3", "--offload", "disk"),
    ("magnitude", "--sparsity", "0.5"),
    ("finetune", "--data", "digits", "--epochs", "1"),
], ids=lambda words: words[0])  # fmt: skip
def test_half_precision_stays(words: tuple[str, ...], dtype: torch.dtype, prune: Prune, tmp_path: Path) -> None:
    """Norms in single precision, too."""
    state = _state(0, num_classes=10, in_chans=1)
    mixed = {name: tensor.to(dtype) if tensor.dim() > 1 else tensor for name, tensor in state.items()}
    save_file(mixed, tmp_path / "w.safetensors")
    verb, *rest = words
    done = prune(verb, "w.safetensors", *ARCH, *rest, "-o", "a.safetensors")
    assert done.code == 0, done.err
    before, after = _dtypes(tmp_path / "w.safetensors"), _dtypes(tmp_path / "a.safetensors")
    assert {name: after[name] for name in before} == before
