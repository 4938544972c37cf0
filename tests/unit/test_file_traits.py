"""Files as people have them: wrapped, prefixed, averaged, renamed, pickled whole; and every remedy followed."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunecli
from prunecli.errors import ModelError
from prunecli.models.catalog import build
from prunecli.models.loading import LoadedModel, load_file

State = dict[str, Tensor]
REF = "cifar:resnet20"


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(build(REF).state_dict())


def _scaled(state: State) -> State:
    return {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def _under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _load(tmp_path: Path, content: Any, name: str = "x.pt", **how: Any) -> LoadedModel:
    torch.save(content, tmp_path / name)
    return load_file(tmp_path / name, **how)


def _is(loaded: LoadedModel, state: State) -> bool:
    ours = loaded.model.state_dict()
    return all(torch.equal(ours[name], tensor) for name, tensor in state.items())


WRAPPED: dict[str, Callable[[State], Any]] = {
    "state dict": lambda s: s,
    "network": lambda s: {"network": s, "epoch": 3},
    "weights": lambda s: {"weights": s},
    "deep": lambda s: {"checkpoint": {"model": {"state_dict": s}}},
    "unknown name": lambda s: {"my_resnet": s, "optimizer": {"state": {0: {"momentum": torch.ones(3)}}}},
    "student alone": lambda s: {"student": s, "config": {"lr": 0.1}},
    "net.": lambda s: _under("net.", s),
    "backbone.": lambda s: {"state_dict": _under("backbone.", s)},
    "encoder.": lambda s: _under("encoder.", s),
    "module.base_encoder.": lambda s: _under("module.base_encoder.", s),
    "module.module.": lambda s: _under("module.module.", s),
    "_orig_mod.": lambda s: _under("_orig_mod.", s),
    "criterion": lambda s: {**_under("model.", s), "criterion.weight": torch.ones(10)},
    "thop": lambda s: {**s, "total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)},
    "args": lambda s: {
        "state_dict": s,
        "args": Namespace(lr=0.1, T=7, arch="resnet20"),
        "best_acc1": torch.tensor(9.0),
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrappers_and_prefixes(kind: str, state: State, tmp_path: Path) -> None:
    loaded = _load(tmp_path, WRAPPED[kind](state))
    assert loaded.manifest.architecture.ref == REF and _is(loaded, state)


def test_what_is_left_out_is_said(state: State, tmp_path: Path) -> None:
    notes = _load(tmp_path, WRAPPED["criterion"](state)).notes
    assert any("left out 1 tensor of a loss, 'criterion.weight'" in note for note in notes)
    assert any("begin with 'net.', which is left out" in note for note in _load(tmp_path, WRAPPED["net."](state)).notes)


AVERAGED: dict[str, Callable[[State, State], Any]] = {
    "ema": lambda s, e: {"model": s, "ema": e},
    "params_ema": lambda s, e: {"params": s, "params_ema": e},
    "ema_state_dict": lambda s, e: {"state_dict": s, "ema_state_dict": e},
    "state_dict_ema": lambda s, e: {"state_dict": s, "state_dict_ema": _under("module.", e)},
    "averaged_model": lambda s, e: {
        "model": s,
        "averaged_model": {**_under("module.", e), "n_averaged": torch.tensor(4)},
    },
}


@pytest.mark.parametrize("kind", AVERAGED)
def test_averages_are_taken_and_said(kind: str, state: State, tmp_path: Path) -> None:
    averaged = _scaled(state)
    content = AVERAGED[kind](state, averaged)
    loaded = _load(tmp_path, content)
    assert _is(loaded, averaged)
    note = next(note for note in loaded.notes if "took the weights under" in note)
    assert f"{kind!r}" in note and "an average" in note
    other = re.search(r"--weights-key (\S+)", note)
    assert other is not None
    assert _is(load_file(tmp_path / "x.pt", weights_key=other[1]), state)
    assert _is(load_file(tmp_path / "x.pt", weights_key=kind), averaged)


def test_torchs_own_averaged_model(state: State, tmp_path: Path) -> None:
    model = build(REF)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(model)
    loaded = _load(tmp_path, {"model": model.state_dict(), "ema_model": averaged.state_dict()})
    assert any("'ema_model'" in note for note in loaded.notes)


def test_an_average_of_some_tensors_or_none_is_not_taken(state: State, tmp_path: Path) -> None:
    parameters = {name: tensor * 2 for name, tensor in state.items() if name.endswith(("weight", "bias"))}
    loaded = _load(tmp_path, {"model": state, "ema": parameters})
    assert _is(loaded, state)
    note = next(note for note in loaded.notes if "was left aside" in note)
    assert re.search(r"'ema' in x\.pt has \d+ of \d+ tensors and was left aside; --weights-key ema", note)
    filled = load_file(tmp_path / "x.pt", weights_key="ema")
    assert _is(filled, {**state, **parameters})
    assert any("that 'ema' of x.pt does not have are those of 'model'" in note for note in filled.notes)
    loaded = _load(tmp_path, {"model": state, "ema": {}})
    assert _is(loaded, state) and "'ema' in x.pt is empty and was left aside" in loaded.notes
    with pytest.raises(ModelError, match="'ema' is empty; leave --weights-key out, or name another key"):
        load_file(tmp_path / "x.pt", weights_key="ema")


def test_several_networks_are_asked_for(state: State, tmp_path: Path) -> None:
    content = {"student": state, "teacher": _scaled(state), "optimizer": {}}
    with pytest.raises(
        ModelError, match=r"holds several sets of weights: student \(\d+ tensors\), teacher .*"
    ) as caught:
        _load(tmp_path, content)
    remedy = re.search(r"choose with --weights-key, for instance (\w+)", str(caught.value))
    assert remedy is not None and _is(load_file(tmp_path / "x.pt", weights_key=remedy[1]), state)
    assert _is(load_file(tmp_path / "x.pt", weights_key="teacher"), _scaled(state))
    with pytest.raises(ModelError, match="unknown key of weights 'techer': did you mean 'teacher'"):
        load_file(tmp_path / "x.pt", weights_key="techer")


def test_the_prefix_that_fits_is_suggested(state: State, tmp_path: Path) -> None:
    content = {**_under("module.base_encoder.", state), **_under("module.momentum.", {"queue": torch.ones(3, 4)})}
    with pytest.raises(ModelError, match=r"no known architecture has these weights") as caught:
        _load(tmp_path, content)
    remedy = re.search(r"lie weights like cifar:resnet20's \(100%\): --strip-prefix (\S+)", str(caught.value))
    assert remedy is not None
    loaded = load_file(tmp_path / "x.pt", strip_prefix=remedy[1])
    assert _is(loaded, state) and any("left out 1 tensors of x.pt" in note for note in loaded.notes)
    with pytest.raises(ModelError, match=r"--strip-prefix model\.: no name begins with it; names begin with"):
        load_file(tmp_path / "x.pt", strip_prefix="model.")


def test_options_for_other_files(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"--weights-key is for files of torch\.save; a safetensors file has one set"):
        load_file(tmp_path / "x.safetensors", weights_key="ema")
    with pytest.raises(ModelError, match=r"holds no tensors \(its keys: 'epoch', 'lr'\)"):
        _load(tmp_path, {"epoch": 3, "lr": 0.1})


FLAT: dict[str, tuple[str, Callable[[State, State], State]]] = {
    "ema_net. beside net.": ("net.", lambda s, e: {**_under("net.", s), **_under("ema_net.", e)}),
    "an average with its wrapper": ("model.", lambda s, e: {**_under("model.", s), **_under("modelEMA.module.", e)}),
    "below a prefix of all": ("net.", lambda s, e: {**_under("m.net.", s), **_under("m.swa_net.", e)}),
    "an average beside the top": (".", lambda s, e: {**s, **_under("ema.", e), "val_acc.total": torch.ones(1)}),
    "of everything": (
        "net.",
        lambda s, e: {
            **_under("net.", s),
            "train_acc.total": torch.ones(1),
            **_under("ema.module.net.", e),
            "ema.module.train_acc.total": torch.ones(1),
        },
    ),
}


@pytest.mark.parametrize("kind", FLAT)
def test_averages_among_the_names_are_taken_and_said(kind: str, state: State, tmp_path: Path) -> None:
    prefix, made = FLAT[kind]
    averaged = _scaled(state)
    save_file({name: tensor.clone() for name, tensor in made(state, averaged).items()}, tmp_path / "x.safetensors")
    loaded = load_file(tmp_path / "x.safetensors", REF)
    assert _is(loaded, averaged)
    note = next(note for note in loaded.notes if "took the weights under" in note)
    other = re.search(r"an average, 116 tensors\); .*: --strip-prefix (\S+)", note)
    assert other is not None and other[1].endswith(prefix), note
    raw = load_file(tmp_path / "x.safetensors", REF, strip_prefix=other[1])
    assert _is(raw, state)
    assert loaded.chosen is not None and loaded.chosen.aside == (other[1],)
    assert raw.chosen is not None and raw.chosen.prefix == other[1]
    again = load_file(tmp_path / "x.safetensors", REF, strip_prefix=loaded.chosen.prefix)
    assert _is(again, averaged), "what a manifest records gives the same weights"


@pytest.mark.parametrize(
    ("beside", "told"),
    [
        ({"train_acc.total": 1, "val_f1.count": 1, "confmat.matrix": 1}, "left out 3 tensors"),
        ({"class_weights": 3, "queue_ptr": 1, "perceptual_loss.conv.weight": 3}, "left out 3 tensors"),
        ({"img_mean": 3, "std": 3}, "what normalised images before the network is left out"),
        ({"ema_model.conv1.weight": 0}, "the average under 'ema_model.' lacks 115 tensors of the network"),
        ({"teacher.conv1.weight": 3}, "took the weights under 'model.' (116 tensors); 'teacher.'"),
    ],
    ids=str,
)
def test_what_lies_beside_is_named(beside: dict[str, int], told: str, state: State, tmp_path: Path) -> None:
    more = {name: torch.ones(size) if size else state["conv1.weight"].clone() for name, size in beside.items()}
    loaded = _load(tmp_path, {**_under("model.", state), **more}, arch=REF)
    assert _is(loaded, state) and any(told in note for note in loaded.notes), loaded.notes


@pytest.mark.parametrize(
    "name",
    ["head.weight", "model2.conv1.weight", "logit_scale", "weight", "average_pool.weight", "f.weight", "mean_net.a"],
)
def test_what_may_belong_to_the_network_is_not_left_out(name: str, state: State, tmp_path: Path) -> None:
    content = {**_under("model.", state), name: torch.ones(3, 3)}
    with pytest.raises(ModelError, match=rf"--strip-prefix model\. leaves out 1 others, first '{re.escape(name)}'"):
        _load(tmp_path, content, arch=REF)
    assert _is(load_file(tmp_path / "x.pt", REF, strip_prefix="model."), state)


def test_a_part_of_a_network_is_not_loaded(state: State, tmp_path: Path) -> None:
    part = {name: tensor for name, tensor in state.items() if not name.startswith("layer2.1.")}
    for content in (
        part,
        {**_under("net.", part), **_under("ema_net.", part)},
        {"state_dict": part, "model_ema": part},
    ):
        with pytest.raises(ModelError, match=r"10 of its 116 tensors are missing, first 'layer2\.1\.conv1\.weight'"):
            _load(tmp_path, content, arch=REF)


def test_several_networks_among_the_names_are_asked_for(state: State, tmp_path: Path) -> None:
    for first, second in (("student.", "teacher."), ("encoder_q.", "encoder_k."), ("online.", "target.")):
        content = {**_under(first, state), **_under(second, _scaled(state)), "queue": torch.ones(3)}
        with pytest.raises(ModelError, match="that fit cifar:resnet20: under ") as caught:
            _load(tmp_path, content, arch=REF)
        remedy = re.search(r"for instance --strip-prefix (\S+)", str(caught.value))
        assert remedy is not None and _is(load_file(tmp_path / "x.pt", REF, strip_prefix=remedy[1]), state)
        assert _is(load_file(tmp_path / "x.pt", REF, strip_prefix=second), _scaled(state))


def test_a_list_of_averages_without_names(state: State, tmp_path: Path) -> None:
    """As torch_ema saves them."""
    model = build(REF)
    model.load_state_dict(state)
    shadow = [parameter.detach() * 2 for parameter in model.parameters()]
    content = {"model": state, "ema": {"decay": 0.9, "shadow_params": shadow}, "loss_history": [torch.ones(1)] * 3}
    loaded = _load(tmp_path, content, arch=REF)
    (note,) = [note for note in loaded.notes if "without names" in note]
    key = re.search(r"--weights-key (\S+)", note)
    assert _is(loaded, state) and key is not None and key[1] == "ema.shadow_params"
    named = load_file(tmp_path / "x.pt", REF, weights_key=key[1])
    assert _is(named, {**state, **{name: 2 * tensor for name, tensor in model.named_parameters()}})
    assert named.chosen is not None and (named.chosen.key, named.chosen.aside) == ("ema.shadow_params", ("model",))
    with pytest.raises(ModelError, match=r"62 tensors without names, whose shapes are not those"):
        _load(tmp_path, {"model": state, "ema": {"shadow": [*shadow, *shadow[:3]]}}, arch=REF, weights_key="ema.shadow")
    with pytest.raises(ModelError, match=r"59 tensors without names; copy them into the network"):
        _load(tmp_path, {"ema": shadow})


def test_averages_of_lightnings_callbacks(state: State, tmp_path: Path) -> None:
    averaged, raw = _under("model.", _scaled(state)), _under("model.", state)
    content = {"state_dict": raw, "callbacks": {"EMA{'decay': 0.9}": {"ema": averaged}, "Other": {"state": raw}}}
    loaded = _load(tmp_path, content, arch=REF)
    assert _is(loaded, _scaled(state)) and any("an average" in note for note in loaded.notes)
    loaded = _load(tmp_path, {"state_dict": averaged, "current_model_state": raw}, arch=REF)
    note = next(note for note in loaded.notes if "took the weights under 'state_dict'" in note)
    assert _is(loaded, _scaled(state)) and "an average" in note and "--weights-key current_model_state" in note


def test_python_reads_the_same_and_says_it(state: State, tmp_path: Path) -> None:
    half = {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in state.items()}
    torch.save({**_under("net.", half), **_under("ema_net.", _scaled(half))}, tmp_path / "x.pt")
    with pytest.warns(UserWarning, match=r"an average, 116 tensors\); 'net\.': strip_prefix=\"net\.\""):
        model = prunecli.load(tmp_path / "x.pt", arch=REF)
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in _scaled(half).items())
    assert {name: tensor.dtype for name, tensor in found.items()} == {name: t.dtype for name, t in half.items()}
    with pytest.warns(UserWarning, match="are not under net"):
        assert torch.equal(
            prunecli.load(tmp_path / "x.pt", arch=REF, strip_prefix="net.").conv1.weight, half["conv1.weight"]
        )
    with pytest.raises(ModelError, match=r"for instance strip_prefix=\"a\.\""):
        torch.save({**_under("a.", half), **_under("b.", half)}, tmp_path / "y.pt")
        prunecli.load(tmp_path / "y.pt", arch=REF)


TWINS = {"efficientnet_b0": "timm:efficientnet_b0", "tf_efficientnet_b0": "timm:tf_efficientnet_b0"}


@pytest.mark.parametrize("name", ["efficientnet_b0", pytest.param("tf_efficientnet_b0", marks=pytest.mark.slow)])
def test_equal_keys_and_other_arithmetic_are_asked_for(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(image)
    with pytest.raises(ModelError, match="which compute different things with them; say which it is") as caught:
        _load(tmp_path, model.state_dict())
    assert {f"timm:{twin}" for twin in TWINS} <= set(re.findall(r"--arch (\S+)", str(caught.value)))
    for how in (
        {"arch": TWINS[name]},
        {"name": f"{name}_ns-1234.pth"},
        {"content": {"state_dict": model.state_dict(), "arch": name}},
        {"content": {"state_dict": model.state_dict(), "args": Namespace(model=name)}},
        {"content": model},
    ):
        chosen: dict[str, Any] = {"content": model.state_dict(), **how}
        loaded = _load(tmp_path, **chosen)
        assert loaded.manifest.architecture.ref == TWINS[name], how
        with torch.no_grad():
            torch.testing.assert_close(loaded.model(image), expected)


def test_candidates_that_compute_the_same_are_one(tmp_path: Path) -> None:
    loaded = _load(tmp_path, timm.create_model("vit_tiny_patch16_224").state_dict())
    assert loaded.manifest.architecture.ref.startswith("timm:")
    assert loaded.notes[0].endswith(" by its keys and shapes")


def test_the_method_chooses_the_spiking_one(tmp_path: Path) -> None:
    state = build("spiking:sew_resnet18").state_dict()
    with pytest.raises(ModelError, match=r"--arch spiking:sew_resnet18"):
        _load(tmp_path, state)
    assert load_file(tmp_path / "x.pt", prefer="spiking").manifest.architecture.ref == "spiking:sew_resnet18"
    assert _load(tmp_path, state, "sew_resnet18.pth").manifest.architecture.ref == "spiking:sew_resnet18"


SPIKING: dict[str, dict[str, Any]] = {
    "spiking:spikformer-4-384": {"dim": 32, "depth": 1, "num_heads": 4, "patch_size": 2},
    "spiking:qkformer-4-384": {"dim": 96},
    "spiking:sdt-2-512": {"dim": 32, "depth": 1},
    "spiking:vgg5": {"width": 0.125, "pool": "avg"},
    "spiking:resnet19": {"width": 0.0625},
    "spiking:sew_resnet18": {},
}


def _exists(ref: str) -> str:
    from prunecli.models.spiking import names

    family = ref.partition(":")[2].partition("-")[0]
    return ref if ref.partition(":")[2] in names() else f"spiking:{next(n for n in names() if n.startswith(family))}"


@pytest.mark.parametrize("ref", SPIKING)
def test_facts_of_a_pickled_spiking_network_are_read(ref: str, tmp_path: Path) -> None:
    ref, own = _exists(ref), SPIKING[ref]
    torch.manual_seed(0)
    facts: dict[str, Any] = {"T": 1, "tau": 1.5, "v_threshold": 0.25, "v_reset": None, "decay_input": False}
    model = build(ref, num_classes=10, **own, **facts).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(parameter)  # so that its neurons fire
    if "spikformer" in ref:  # its shapes tell the rest
        loaded = _load(tmp_path, model)
        assert loaded.manifest.architecture.kwargs["patch_size"] == 2
    else:
        loaded = _load(tmp_path, model, arch=ref, kwargs={n: own[n] for n in ("width", "dim", "depth") if n in own})
    built = loaded.manifest.architecture.kwargs
    assert {name: built[name] for name in facts} == facts
    assert any("read from the file: " in note and "T = 1" in note for note in loaded.notes)
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(image)
        assert float(expected.std()) > 0
        torch.testing.assert_close(loaded.model(image), expected)


def test_neurons_with_settings_of_their_own_keep_them(tmp_path: Path) -> None:
    model = build("spiking:vgg5", width=0.125).eval()
    neurons = [module for module in model.modules() if hasattr(module, "v_threshold")]
    neurons[1].v_threshold = 0.5
    loaded = _load(tmp_path, model, arch="spiking:vgg5", kwargs={"width": 0.125})
    assert [m.v_threshold for m in loaded.model.modules() if hasattr(m, "v_threshold")][1] == 0.5


def test_settings_that_the_architecture_does_not_have_are_refused(tmp_path: Path) -> None:
    model = build(REF).eval()
    model.layer1[0].conv1.dilation = (2, 2)  # type: ignore[index]
    with pytest.raises(ModelError, match=r"layer1\.0\.conv1: dilation is \(2, 2\), not \(1, 1\)"):
        _load(tmp_path, model)
    changed = deepcopy(build(REF))
    changed.bn1.eps = 1e-3  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"bn1: eps is 0\.001, not 1e-05"):
        _load(tmp_path, changed)


@pytest.mark.parametrize("ref", ["spiking:vgg5", "spiking:resnet19"])
def test_what_a_state_dict_does_not_say_is_listed(ref: str, tmp_path: Path) -> None:
    state = build(ref, width=0.0625).state_dict()
    loaded = _load(tmp_path, state, arch=ref, kwargs={"width": 0.0625})
    assert any(
        note.startswith("assumed T = 4, neuron = lif, tau = 2, v_threshold = 1: weights do not say")
        for note in loaded.notes
    )
    loaded = _load(tmp_path, {"state_dict": state, "args": {"T": 2, "tau": 3.0}}, arch=ref, kwargs={"width": 0.0625})
    assert (loaded.manifest.architecture.kwargs["T"], loaded.manifest.architecture.kwargs["tau"]) == (2, 3.0)
    loaded = _load(tmp_path, state, arch=ref, kwargs={"width": 0.0625, "T": 3, "tau": 2.5})
    assert loaded.model.T == 3 and not any("T = " in note for note in loaded.notes)


def test_a_finetuned_mae(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", global_pool="avg", num_classes=7).eval()
    loaded = _load(tmp_path, {"model": model.state_dict()}, arch="timm:vit_tiny_patch16_224")
    assert loaded.manifest.architecture.kwargs == {"num_classes": 7, "global_pool": "avg"}
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(image), model(image))


def test_another_image_size_is_read_from_the_positions(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=160)
    loaded = _load(tmp_path, model.state_dict(), arch="timm:vit_tiny_patch16_224")
    assert loaded.manifest.architecture.kwargs["img_size"] == 160 and loaded.fixed_size == (160, 160)
    loaded = _load(tmp_path, model.state_dict())
    assert loaded.fixed_size == (160, 160)


def test_a_head_in_a_sequence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18").eval()
    plain = dict(model.state_dict())
    model.fc = nn.Sequential(nn.Dropout(0.1), model.fc)
    loaded = _load(tmp_path, model.state_dict(), arch="timm:resnet18")
    assert _is(loaded, plain) and any(
        "fc.1, a classifier in a sequence, is read as fc" in note for note in loaded.notes
    )
    model.fc = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    with pytest.raises(ModelError, match="the weights do not fit timm:resnet18"):
        _load(tmp_path, model.state_dict(), arch="timm:resnet18")


_MMPRETRAIN_VIT = (
    (r"^(cls_token|pos_embed|norm\.|patch_embed|blocks)", r"backbone.\1"),
    (r"patch_embed\.proj\.", "patch_embed.projection."),
    (r"blocks\.(\d+)\.norm([12])\.", r"layers.\1.ln\2."),
    (r"blocks\.(\d+)\.attn\.", r"layers.\1.attn."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"layers.\1.ffn.layers.0.0."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"layers.\1.ffn.layers.1."),
    (r"^backbone\.norm\.", "backbone.ln1."),
    (r"^head\.", "head.layers.head."),
)


@pytest.mark.slow
def test_names_of_mmpretrain(tmp_path: Path) -> None:
    plain = dict(timm.create_model("vit_tiny_patch16_224").state_dict())
    renamed = {}
    for name, tensor in plain.items():
        new = name
        for pattern, replacement in _MMPRETRAIN_VIT:
            new = re.sub(pattern, replacement, new)
        renamed[new] = tensor
    assert _is(_load(tmp_path, {"state_dict": renamed}), plain)
    plain = dict(timm.create_model("resnet18").state_dict())
    renamed = {f"head.{name}" if name.startswith("fc.") else f"backbone.{name}": t for name, t in plain.items()}
    assert _is(_load(tmp_path, {"state_dict": renamed}, "resnet18_8xb32.pth"), plain)


@pytest.mark.slow
def test_openais_clip_with_its_three_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quick = build("open_clip:ViT-B-32-quickgelu").half()
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}
    state = {**quick.state_dict(), **{name: torch.tensor(number) for name, number in numbers.items()}}
    for arch in (None, "open_clip:ViT-B-32-quickgelu"):
        loaded = _load(tmp_path, state, arch=arch)
        assert loaded.manifest.architecture.ref == "open_clip:ViT-B-32-quickgelu"
    for name in numbers:
        del state[name]
    with pytest.raises(ModelError, match=r"--arch open_clip:ViT-B-32 |--arch open_clip:ViT-B-32-quickgelu"):
        _load(tmp_path, state)
    assert "quickgelu" in _load(tmp_path, state, "ViT-B-32-quickgelu.pt").manifest.architecture.ref


def test_an_architecture_that_does_not_fit_names_the_tensor_and_the_nearest(state: State, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"do not fit cifar:resnet32: .* are missing, first .*; nearest .*cifar:resnet20"
    ):
        _load(tmp_path, state, arch="cifar:resnet32")
    with pytest.raises(ModelError, match=r"do not fit open_clip:tiny"):
        _load(tmp_path, state, arch="open_clip:tiny")
    assert _is(_load(tmp_path, state, arch="cifar:resnet20"), state)


def test_a_module_of_one_package_is_not_taken_for_another(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has the weights of timm:resnet18, but its modules have other settings"):
        _load(tmp_path, timm.create_model("resnet18", global_pool="max"), arch="timm:resnet18")
    model = timm.create_model("resnet18")
    model.maxpool = nn.Identity()
    with pytest.raises(ModelError, match="maxpool: its class is Identity, not MaxPool2d"):
        _load(tmp_path, model, arch="timm:resnet18")
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based.model import spiking_resnet

    spiking = spiking_resnet.spiking_resnet18(spiking_neuron=neuron.IFNode, num_classes=7)
    with pytest.raises(ModelError, match=r"compute different things|other settings"):
        _load(tmp_path, spiking)


def test_what_lies_beside_a_prefix_or_in_a_head_is_not_dropped(tmp_path: Path) -> None:
    model = build(REF)
    with pytest.raises(ModelError, match="no known architecture"):
        _load(tmp_path, nn.Sequential(nn.Softmax(1), model))
    assert _load(tmp_path, nn.Sequential(nn.Identity(), model)).manifest.architecture.ref == REF
    headed = timm.create_model("resnet18")
    headed.fc = nn.Sequential(headed.fc, nn.Sigmoid())
    with pytest.raises(ModelError, match="the weights do not fit timm:resnet18"):
        _load(tmp_path, headed, arch="timm:resnet18")


def test_two_networks_are_not_mixed(tmp_path: Path) -> None:
    small, large = (timm.create_model(name).state_dict() for name in ("resnet18", "resnet34"))
    content = {"student": small, "teacher": large}
    loaded = _load(tmp_path, content, arch="timm:resnet18", weights_key="student")
    assert _is(loaded, dict(small)) and not any("do not have" in note for note in loaded.notes)
    with pytest.raises(ModelError, match="are missing"):
        load_file(tmp_path / "x.pt", "timm:resnet34", weights_key="student")


@pytest.mark.parametrize(
    "beside",
    [{"args": {"T": 6.0, "tau": 1.5}}, {"args": {"T": "6", "tau": "1.5"}}, {"config": {"model": {"T": 6, "tau": 1.5}}}],
)
def test_settings_in_other_forms_are_read(beside: dict[str, Any], tmp_path: Path) -> None:
    content = {"state_dict": build("spiking:vgg5", width=0.125).state_dict(), **beside}
    built = _load(tmp_path, content, arch="spiking:vgg5", kwargs={"width": 0.125}).manifest.architecture.kwargs
    assert (built["T"], built["tau"]) == (6, 1.5)
    content["args"] = {"tau": 0.99}  # of an average
    assert _load(tmp_path, content, arch="spiking:vgg5", kwargs={"width": 0.125, "T": 2}).model.T == 2


_MMSEGMENTATION = (
    (r"patch_embeddings\.proj\.", "0.projection."),
    (r"patch_embeddings\.layer_norm\.", "0.norm."),
    (r"blocks\.(\d+)\.layernorm_before\.", r"1.\1.norm1."),
    (r"blocks\.(\d+)\.layernorm_after\.", r"1.\1.norm2."),
    (r"blocks\.(\d+)\.attention\.o_proj\.", r"1.\1.attn.attn.out_proj."),
    (r"blocks\.(\d+)\.attention\.sequence_reduction\.sequence_reduction\.", r"1.\1.attn.sr."),
    (r"blocks\.(\d+)\.attention\.sequence_reduction\.layer_norm\.", r"1.\1.attn.norm."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"1.\1.ffn.layers.0."),
    (r"blocks\.(\d+)\.mlp\.dwconv\.dwconv\.", r"1.\1.ffn.layers.1."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"1.\1.ffn.layers.4."),
    (r"^layer_norm\.", "2."),
)


def test_the_encoder_of_mmsegmentations_segformer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = {n: t for n, t in build("segformer:b0", num_classes=5).state_dict().items() if n.startswith("segformer.")}
    renamed: State = {}
    for name, tensor in plain.items():
        stage, rest = re.fullmatch(r"segformer\.stages\.(\d)\.(.+)", name).groups()  # type: ignore[union-attr]
        packed = re.fullmatch(r"blocks\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)", rest)
        if packed is not None:
            key = f"backbone.layers.{stage}.1.{packed[1]}.attn.attn.in_proj_{packed[3]}"
            parts = [plain[name.replace(f".{packed[2]}_proj.", f".{part}_proj.")] for part in "qkv"]
            renamed[key] = torch.cat(parts)
            continue
        for pattern, replacement in _MMSEGMENTATION:
            rest = re.sub(pattern, replacement, rest)
        convolution = re.search(r"ffn\.layers\.[04]\.weight", rest) is not None
        renamed[f"backbone.layers.{stage}.{rest}"] = tensor[:, :, None, None] if convolution else tensor
    content = {"state_dict": {**renamed, "decode_head.convs.0.conv.weight": torch.zeros(256, 32, 1, 1)}}
    with pytest.raises(ModelError, match=r"is mmsegmentation's SegFormer.*--strip-prefix backbone\."):
        _load(tmp_path, content)
    loaded = load_file(tmp_path / "x.pt", strip_prefix="backbone.", num_classes=5)
    assert loaded.manifest.architecture.ref == "segformer:b0" and _is(loaded, plain)
    assert any("the decoder has new weights" in note for note in loaded.notes)
