"""Architectures: by name, by their weights, and back from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file as read_tensors
from torch import nn

import prunecli
from prunecli.errors import MethodError, ModelError
from prunecli.inputs import input_channels
from prunecli.models.catalog import _Unfilled, build, input_spec, source_names, split_reference
from prunecli.models.index import SOURCES, known_references
from prunecli.models.loading import load_file, load_reference, restore, save
from prunecli.models.recognition import architecture_for, identify, recognise
from prunecli.models.source import OpeningSource
from tests.unit.networks import Plain, example

HERE = Path("weights.pth")


def test_known_references_are_the_installed_models() -> None:
    known = set(known_references())
    listed = [source for source in SOURCES.built_in if not isinstance(SOURCES.load(source), OpeningSource)]
    installed = {f"{source}:{name}" for source in listed for name in source_names(source) if "@" not in name}
    assert known <= installed, "write fingerprints.tsv again"
    assert len(installed - known) < 0.05 * len(installed)


def test_what_stands_in_memory_keeps_no_network_from_being_built() -> None:
    """Numbers out of bounds, which `trunc_normal_` draws again, do not stay as they are."""
    with _Unfilled():
        one, other, last = (nn.Parameter(torch.full((2,), 9.0), requires_grad=False) for _ in range(3))
        assert one.normal_(0.5, 0.1).tolist() == [0.5, 0.5]
        assert other.normal_(std=0.1).tolist() == [0.0, 0.0]
        assert last.uniform_(2, 3).tolist() == [2.0, 2.0]
        for bounds in ((-2.0, 2.0), (-0.002, 0.002), (0.01, 0.02)):
            values = nn.init.trunc_normal_(nn.Parameter(torch.full((5,), 9.0)), 0.0, 0.02, *bounds)
            assert bool(((values >= bounds[0]) & (values <= bounds[1])).all())


def test_cifar_networks_have_the_published_sizes() -> None:
    sizes = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}
    for name, millions in sizes.items():
        params = sum(p.numel() for p in build(f"cifar:{name}").parameters())
        assert params / 1e6 == pytest.approx(millions, abs=0.05)
    assert build("cifar:vgg16_bn")(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("resnet50", "timm:resnet50 or torchvision:resnet50"),
        ("tim:resnet50", "did you mean 'timm'"),
        ("timm:resnet5", "did you mean"),
        ("cifar:vgg16", "cifar:vgg16_bn"),
        ("nonsense", "source:name"),
    ],
)
def test_a_wrong_reference_gets_the_nearest(ref: str, hint: str) -> None:
    with pytest.raises(ModelError, match=hint):
        split_reference(ref)


@pytest.mark.parametrize(
    ("ref", "kwargs"),
    [
        ("cifar:resnet32", {"num_classes": 100}),
        ("cifar:vgg16_bn", {"num_classes": 7, "in_chans": 1}),
        ("timm:mobilenetv3_small_100", {"num_classes": 12}),
        ("timm:vit_tiny_patch16_224", {"num_classes": 5}),
        ("timm:convnext_atto", {}),
        ("torchvision:resnet18", {"num_classes": 3}),
        ("torchvision:squeezenet1_1", {"num_classes": 4}),
        ("torchvision:regnet_y_400mf", {"num_classes": 3}),  # not built on the meta device
    ],
)
def test_class_count_and_channels_are_read_from_the_weights(ref: str, kwargs: dict[str, int]) -> None:
    state = build(ref, **kwargs).state_dict()
    assert architecture_for(ref, state, HERE).kwargs == kwargs
    identified = identify(state, HERE.with_stem(ref.partition(":")[2]))
    assert ref in (identified.architecture.ref, *identified.also)
    assert identified.architecture.kwargs == kwargs


def test_weights_of_nothing_known_name_the_three_nearest() -> None:
    state = build("cifar:resnet20").state_dict()
    del state["layer3.2.conv2.weight"]
    with pytest.raises(ModelError, match=r"nearest: cifar:resnet20 .*, .*, .*--arch"):
        identify(state, HERE)


def test_weights_that_do_not_fit_name_the_tensor() -> None:
    state = build("cifar:resnet20").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(8, 16, 3, 3)
    with pytest.raises(ModelError, match=r"'layer1.0.conv1.weight' is \[8, 16, 3, 3\]"):
        architecture_for("cifar:resnet20", state, HERE)


def test_live_models_are_recognised() -> None:
    assert recognise(timm.create_model("resnet18", num_classes=4)).ref == "timm:resnet18"
    assert recognise(torchvision.models.resnet18(num_classes=4)).ref == "torchvision:resnet18"
    assert recognise(build("cifar:resnet20", in_chans=1)).kwargs == {"in_chans": 1}
    assert recognise(Plain()).ref == ""


def test_pixels_that_are_folded_into_channels_are_no_channels_of_the_image() -> None:
    assert input_channels(timm.create_model("tresnet_m")) == 3 == input_channels(timm.create_model("resnet18"))


def test_input_specs_say_how_images_are_prepared() -> None:
    for ref, size in (("timm:resnet18", (224, 224)), ("torchvision:resnet18", (224, 224)), ("cifar:resnet20", None)):
        image_size, normalisation = input_spec(ref, build(ref))
        assert image_size == size and normalisation.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "ref",
    [
        "cifar:resnet20",
        "timm:mobilenetv3_small_100",
        pytest.param("timm:convnext_atto", marks=pytest.mark.slow),
        "torchvision:squeezenet1_1",
    ],
)
def test_restore_is_bit_exact(ref: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = 32 if ref.startswith("cifar") else 64
    model = build(ref, num_classes=5).eval()
    next(model.parameters()).requires_grad_(False)
    image = torch.randn(2, 3, size, size)
    result = prunecli.prune(model, "l1", ratio=0.5, example_inputs=image)
    result.save(tmp_path / "x.safetensors")
    back = prunecli.load(tmp_path / "x.safetensors")
    assert torch.equal(back(image), result.model.eval()(image))
    assert [(n, p.requires_grad) for n, p in back.named_parameters()] == [
        (n, p.requires_grad) for n, p in result.model.named_parameters()
    ]
    again = prunecli.prune(back, "l2", ratio=0.3, example_inputs=image)
    again.save(tmp_path / "y.safetensors")
    assert torch.equal(prunecli.load(tmp_path / "y.safetensors")(image), again.model.eval()(image))
    assert [step.settings["method"] for step in again.manifest.history] == ["l1", "l2"]


def test_a_model_of_ones_own_is_saved_and_loaded(tmp_path: Path) -> None:
    result = prunecli.prune(Plain(), example_inputs=example())
    result.save(tmp_path / "x.safetensors")
    back = prunecli.load(tmp_path / "x.safetensors", model=Plain())
    assert torch.equal(back(example()), result.model.eval()(example()))
    again = prunecli.prune(back, "l2", ratio=0.5, example_inputs=example())
    again.save(tmp_path / "y.safetensors")
    twice = prunecli.load(tmp_path / "y.safetensors", model=Plain())
    assert torch.equal(twice(example()), again.model.eval()(example()))
    with pytest.raises(ModelError, match="model of your own"):
        prunecli.load(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="architecture does not have"):
        prunecli.load(tmp_path / "x.safetensors", model=nn.Linear(3, 4))
    with pytest.raises(ModelError, match=r"prunecli\.load\(path, model="):
        load_file(tmp_path / "x.safetensors")


def test_the_interface_names_what_is_wrong() -> None:
    model, x = Plain(), example()
    with pytest.raises(MethodError, match="unknown method 'l3'"):
        prunecli.prune(model, "l3", example_inputs=x)
    with pytest.raises(MethodError, match=r"unknown parameter of l1 'ratoi': did you mean 'ratio'"):
        prunecli.prune(model, "l1", example_inputs=x, ratoi=0.5)
    for ratio in (0, 1, float("nan"), -0.1):
        with pytest.raises(MethodError, match=f"ratio={ratio}: has to be"):
            prunecli.prune(model, "l1", example_inputs=x, ratio=ratio)
    with pytest.raises(MethodError, match="recalibrate=True needs data: give calibration batches as data="):
        prunecli.prune(model, "l1", example_inputs=x, recalibrate=True)
    with pytest.raises(MethodError, match="unknown compensation"):
        prunecli.prune(model, "l1", example_inputs=x, compensate="magic")
    with pytest.raises(ModelError, match="no such file"):
        prunecli.load("missing.safetensors")
    with pytest.raises(ModelError, match="contains no tensor; it must be a tensor"):
        prunecli.prune(model, example_inputs=(1, 3, 16, 16))  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="nothing would be removed"):
        prunecli.prune(nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 4)), example_inputs=torch.randn(1, 3))
    with pytest.raises(ModelError, match=r"name it x\.safetensors"):
        prunecli.prune(model, example_inputs=x).save("x.pt")


def test_recalibration_through_the_interface_uses_the_data() -> None:
    model = Plain().eval()
    batches = [(torch.randn(8, 3, 16, 16) + 3, torch.zeros(8))] * 2
    plain = prunecli.prune(model, example_inputs=example())
    measured = prunecli.prune(model, example_inputs=example(), data=batches, recalibrate=True)
    assert measured.report.recalibrated == 3 and plain.report.recalibrated == 0
    assert len(repr(measured)) < 300 and "verify_error" in repr(measured)
    assert not torch.equal(measured.model.body[1].running_mean, plain.model.body[1].running_mean)


def test_a_trained_reference_saves_without_edits(tmp_path: Path) -> None:
    loaded = load_reference("cifar:resnet20", num_classes=4)
    save(tmp_path / "x.safetensors", loaded.model, loaded.manifest)
    model, manifest = restore(tmp_path / "x.safetensors")
    assert manifest.attributes == {} and model.linear.out_features == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_in_half_precision_leaves_in_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = {  # norms stay in single precision, as in mixed files
        name: tensor.to(dtype) if tensor.dim() > 1 else tensor
        for name, tensor in build("cifar:resnet20", pretrained=False).state_dict().items()
    }
    torch.save(weights, tmp_path / "w.pt")
    loaded = load_file(tmp_path / "w.pt", "cifar:resnet20")
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    result = prunecli.prune(loaded.model, ratio=0.3, example_inputs=torch.randn(1, 3, 32, 32))
    model, manifest = result.model, result.manifest
    for path in (tmp_path / "a.safetensors", tmp_path / "b.safetensors"):
        save(path, model, manifest)
        dtypes = {name: tensor.dtype for name, tensor in read_tensors(path).items()}
        assert dtypes == {name: tensor.dtype for name, tensor in weights.items()}
        assert {p.dtype for p in prunecli.load(path).parameters() if p.dim() > 1} == {dtype}
        again = load_file(path)
        for name, tensor in again.model.state_dict().items():  # kept weights lose nothing on the way
            assert torch.equal(tensor, model.state_dict()[name]), name
        model, manifest = again.model, again.manifest


def test_what_would_overflow_in_half_precision_is_saved_as_it_is(tmp_path: Path) -> None:
    weights = build("cifar:resnet20", pretrained=False).half().state_dict()
    torch.save(weights, tmp_path / "w.pt")
    loaded = load_file(tmp_path / "w.pt", "cifar:resnet20")
    loaded.model.bn1.running_var.fill_(1e6)  # type: ignore[union-attr, operator]
    save(tmp_path / "x.safetensors", loaded.model, loaded.manifest)
    stored = read_tensors(tmp_path / "x.safetensors")
    assert stored["bn1.running_var"].dtype == torch.float32 and float(stored["bn1.running_var"][0]) == 1e6
    assert stored["bn1.weight"].dtype == torch.float16


class _Counting(Plain):
    """Keeps something that is no tensor in its state dict."""

    def __init__(self, state: object = 0) -> None:
        super().__init__()
        self.seen = state

    def get_extra_state(self) -> object:
        return {"seen": self.seen}

    def set_extra_state(self, state: object) -> None:
        self.seen = state["seen"]  # type: ignore[index]


def test_states_that_are_no_tensors_are_saved_and_restored(tmp_path: Path) -> None:
    result = prunecli.prune(_Counting([7, "a"]), example_inputs=example())
    result.save(tmp_path / "x.safetensors")
    back = prunecli.load(tmp_path / "x.safetensors", model=_Counting())
    assert back.seen == [7, "a"]
    assert torch.equal(back(example()), result.model.eval()(example()))
    with pytest.raises(ModelError, match="does not take"):
        prunecli.load(tmp_path / "x.safetensors", model=Plain())
    odd = prunecli.prune(_Counting(torch.device("cpu")), example_inputs=example())
    with pytest.raises(ModelError, match=r"get_extra_state.*save the network with torch.save"):
        odd.save(tmp_path / "y.safetensors")


@pytest.mark.parametrize("name", ["regnet_y_400mf", "mobilenet_v2"])
def test_weights_are_recognised_without_filling_networks_with_random_numbers(name: str, tmp_path: Path) -> None:
    model = torchvision.models.get_model(name, num_classes=3)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    before = torch.get_rng_state()
    loaded = load_file(tmp_path / "weights.pt")
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.manifest.architecture.ref == f"torchvision:{name}"
    assert all(torch.equal(tensor, loaded.model.state_dict()[key]) for key, tensor in model.state_dict().items())


class _Bounded(nn.Module):
    """Its numbers have to be within bounds that do not include their mean, and one of them is read."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(50))
        nn.init.trunc_normal_(self.weight, mean=0.0, std=1.0, a=0.5, b=2.0)
        self.fixed = torch.empty(50).normal_(generator=torch.Generator().manual_seed(0))


def test_what_is_drawn_beside_parameters_is_what_it_was() -> None:
    expected = _Bounded()
    with _Unfilled():
        found = _Bounded()
    assert torch.equal(found.fixed, expected.fixed)
    assert bool(((found.weight >= 0.5) & (found.weight <= 2)).all())
