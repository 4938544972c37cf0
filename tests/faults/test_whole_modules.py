"""Whole pickled models open without their classes: the state dict is the one they would have given."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from prunecli.checkpoint.foreign_files import ForeignWeights, read_foreign
from prunecli.errors import ModelError
from prunecli.models.loading import load_file
from prunecli.models.recognition import identify
from tests.conftest import Prune


def _open_clip() -> nn.Module:
    import open_clip

    logging.disable(logging.WARNING)  # it warns that the weights are random
    try:
        vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}
        text = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 2}
        model: nn.Module = open_clip.CLIP(64, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text))
    finally:
        logging.disable(logging.NOTSET)
    return model


def _spiking() -> nn.Module:
    from spikingjelly.activation_based import layer, neuron

    return nn.Sequential(
        layer.Conv2d(3, 4, 3), layer.BatchNorm2d(4), neuron.LIFNode(), layer.Flatten(), neuron.ParametricLIFNode()
    )


def _sew_resnet() -> nn.Module:
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based.model import sew_resnet

    model: nn.Module = sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=3)
    return model


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "torchvision resnet18": lambda: torchvision.models.resnet18(num_classes=3),
    "torchvision mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=3),
    "torchvision squeezenet1_1": lambda: torchvision.models.squeezenet1_1(num_classes=3),
    "torchvision shufflenet_v2_x0_5": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=3),
    "torchvision googlenet": lambda: torchvision.models.googlenet(num_classes=3, init_weights=False),
    "timm vit_tiny": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=3),
    "timm convnext_atto": lambda: timm.create_model("convnext_atto", num_classes=3),
    "timm mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050", num_classes=3),
    "timm efficientformerv2_s0": lambda: timm.create_model("efficientformerv2_s0", num_classes=3),
    "timm levit_128s": lambda: timm.create_model("levit_128s", num_classes=3),
    "open_clip": _open_clip,
    "spikingjelly layers": _spiking,
    "spikingjelly sew_resnet18": _sew_resnet,
    "LSTM": lambda: nn.LSTM(3, 4, 2),
    "transformer layer": lambda: nn.TransformerEncoderLayer(8, 2),
    "tied": _tied,
    "DataParallel": lambda: nn.DataParallel(torchvision.models.squeezenet1_1(num_classes=3)),
    "average": lambda: torch.optim.swa_utils.AveragedModel(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(3, 2))),  # type: ignore[dict-item, return-value]
    "torch.fx": lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))),
}


@functools.lru_cache(maxsize=1)
def _model(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]()


def _inner(model: nn.Module) -> nn.Module:
    """What is inside a wrapper."""
    for name in ("module", "_orig_mod"):
        model = getattr(model, name, model)
    return model


def _assert_equal(found: ForeignWeights, model: nn.Module) -> None:
    wanted = model.state_dict()
    assert list(found.tensors) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found.tensors[name], tensor) and found.tensors[name].dtype == tensor.dtype, name


LARGE = ("torchvision googlenet", "timm efficientformerv2_s0", "timm levit_128s", "spikingjelly sew_resnet18")
LEGACY = ("torchvision resnet18", "open_clip", "spikingjelly layers", "LSTM", "tied", "DataParallel", "average")


def _formats() -> Iterator[Any]:
    """Each model in one of the two formats, both where they differ most; the rest takes longer."""
    for name in MODELS:
        yield pytest.param(name, False, marks=pytest.mark.slow if name in LARGE else (), id=f"{name}-zip")
        yield pytest.param(name, True, marks=() if name in LEGACY else pytest.mark.slow, id=f"{name}-legacy")


@pytest.mark.parametrize(("name", "legacy"), _formats())
def test_a_whole_model_is_its_state_dict(name: str, legacy: bool, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _model(name)
        for place, wrapped in enumerate((model, {"model": model, "epoch": 3}, {"what": model, "x": [1]})):
            path = tmp_path / f"{place}.pt"
            torch.save(wrapped, path, _use_new_zipfile_serialization=not legacy)
            found = read_foreign(path)
            _assert_equal(found, _inner(model))
            kind = type(_inner(model))
            if name != "torch.fx":  # it makes a class for every model
                assert found.class_path == f"{kind.__module__}.{kind.__qualname__}"


def test_buffers_that_are_not_saved_are_left_out(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_buffer("mask", torch.ones(2), persistent=False)
    model.register_buffer("nothing", None)
    model.register_parameter("none", None)
    model.register_buffer("kept", torch.ones(2))
    torch.save(model, tmp_path / "x.pt")
    _assert_equal(read_foreign(tmp_path / "x.pt"), model)


class _Colour(enum.Enum):
    RED = 1


class _Config(dict):  # type: ignore[type-arg]
    """As yacs and others have it: a dictionary with attributes."""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_what_trainers_put_beside_the_weights_does_no_harm(legacy: bool, tmp_path: Path) -> None:
    state = nn.Linear(3, 2).state_dict()
    config = _Config(lr=1)
    config.frozen = True  # type: ignore[attr-defined]
    beside = {
        "args": argparse.Namespace(lr=1e-3, out=Path("x")),
        "config": config,
        "metrics": collections.defaultdict(list, loss=[1.0]),
        "best": np.float64(3),
        "array": np.ones(3),
        "colour": {_Colour.RED: _Colour.RED},
        "queue": collections.deque([1], maxlen=3),
        "bytes": [b"abc", bytearray(b"xyz")],
        "types": [torch.float32, nn.Linear, torch.nn.functional.relu, torch.tanh, torch.device("cpu"), torch.Size([2])],
        "numbers": [1j, 10**30, -1, 2**40, {1, 2}, collections.Counter("aab")],
        "optimizer": torch.optim.AdamW(nn.Linear(3, 2).parameters()).state_dict(),
    }
    torch.save({**beside, "state_dict": state}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    found = read_foreign(tmp_path / "x.pt")
    assert found.class_path is None and set(found.tensors) == {"weight", "bias"}
    assert all(torch.equal(found.tensors[name], state[name]) for name in state)


def test_attributes_and_layouts_of_tensors(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter._is_hf_initialized = True  # type: ignore[attr-defined]
    buffer = torch.ones(3)
    buffer.own = 1  # type: ignore[attr-defined]
    image = torch.randn(4, 3, 2, 2)
    tensors = {
        "parameter": parameter,
        "buffer": buffer,
        "channels last": image.to(memory_format=torch.channels_last),
        "transposed": image.flatten(1).t(),
        "part": image[1:],
        "empty": torch.zeros(0, 3),
        "number": torch.tensor(3),
        **{str(dtype): torch.ones(4).to(dtype) for dtype in (torch.bfloat16, torch.float64, torch.bool, torch.uint16)},
    }
    torch.save(tensors, tmp_path / "x.pt")
    found = read_foreign(tmp_path / "x.pt").tensors
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor.detach()) and found[name].dtype == tensor.dtype, name


def test_the_class_chooses_between_sources_that_fit(tmp_path: Path) -> None:
    for source, model in (("timm", timm.create_model("resnet18")), ("torchvision", torchvision.models.resnet18())):
        torch.save(model, tmp_path / "x.pt")
        loaded = load_file(tmp_path / "x.pt")
        assert loaded.manifest.architecture.ref == f"{source}:resnet18"
        assert "resnet.ResNet" in loaded.notes[0]
        _assert_equal(read_foreign(tmp_path / "x.pt"), loaded.model)


def test_a_class_that_nothing_fits_is_named(tmp_path: Path, prune: Prune) -> None:
    torch.save(_spiking(), tmp_path / "x.pt")
    done = prune("l1", "x.pt")
    assert done.code == 2 and done.err.count("\n") == 1
    assert "pickles a 'torch.nn.modules.container.Sequential'" in done.err and "--arch source:name" in done.err
    with pytest.raises(ModelError, match=r"pickles a 'a\.B'"):
        identify({"w": torch.ones(2)}, tmp_path / "x.pt", ForeignWeights({}, "a.B"))


class _Odd(nn.Module):
    def __init__(self, inside: Any) -> None:
        super().__init__()
        self._buffers["odd"] = inside


@pytest.mark.parametrize(
    ("inside", "cause"),
    [
        (np.ones(2), "'odd' in it is a 'numpy._core.multiarray._reconstruct', not a tensor"),
        ("text", "'odd' in it is a 'str', not a tensor"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
    ],
)
def test_what_is_no_dense_tensor_is_named(inside: Any, cause: str, tmp_path: Path) -> None:
    stream = io.BytesIO()
    torch.save(_Odd(inside), stream)
    (tmp_path / "x.pt").write_bytes(stream.getvalue())
    with pytest.raises(ModelError, match=cause):
        read_foreign(tmp_path / "x.pt")
