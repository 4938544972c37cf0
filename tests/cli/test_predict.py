"""`prune predict`, beside what timm and torchvision say when they are asked directly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
import torchvision.transforms.v2
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from tests.processes import Processes

_CLASSES = 7
_TURNED = 6
"""In EXIF: the image has to be turned by a quarter to the right."""


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Something with structure: a different colour in every corner, and stripes."""
    rows, columns = np.mgrid[0:150, 0:240]
    waves = 60 * np.sin(columns / 7) + 40 * np.sin(rows / 11)
    channels = [columns * 0.8 + waves, rows * 1.3 + waves, 255 - columns - waves / 2]
    return Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A network of timm whose scores differ much between images, and its weights in a file."""
    torch.manual_seed(3)
    network = timm.create_model("resnet10t", num_classes=_CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    nn.init.normal_(network.get_classifier().weight, std=2.0)
    path = tmp_path_factory.mktemp("classifier") / "resnet.pt"
    torch.save(network.state_dict(), path)
    return path, network.eval()


def _by_hand(network: nn.Module, image: Image.Image) -> list[float]:
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.no_grad():
        found: list[float] = network(transform(image.convert("RGB"))[None]).softmax(dim=1)[0].tolist()
    return found


def _images(folder: Path, photo: Image.Image) -> dict[str, Image.Image]:
    """Files of many kinds, and the picture that a viewer shows of each."""
    folder.mkdir()
    shown = {"colour.png": photo, "grey.png": photo.convert("L"), "tiny.png": photo.resize((9, 5))}
    for name, image in shown.items():
        image.save(folder / name)
    palette = photo.quantize(40)
    palette.save(folder / "palette.gif")
    wide = np.asarray(photo.convert("L")).astype(np.uint16) * 256 + 17
    Image.fromarray(wide).save(folder / "sixteen.png")
    (folder / "sub").mkdir()
    exif = Image.Exif()
    exif[0x0112] = _TURNED
    photo.transpose(Image.Transpose.ROTATE_90).save(folder / "sub" / "colour.png", exif=exif)
    layered = photo.convert("RGBA")
    layered.putalpha(Image.fromarray(np.where(np.asarray(photo.convert("L")) > 128, 255, 0).astype(np.uint8)))
    layered.save(folder / "layered.png")
    white = Image.new("RGB", photo.size, (255, 255, 255))
    white.paste(photo, mask=layered.getchannel("A"))
    return shown | {
        "palette.gif": palette.convert("RGB"),
        "sixteen.png": photo.convert("L"),
        "layered.png": white,
        "sub/colour.png": photo,
    }


def test_classes_are_those_of_timm_for_every_kind_of_file(
    processes: Processes, tmp_path: Path, photo: Image.Image, classifier: tuple[Path, nn.Module]
) -> None:
    weights, network = classifier
    shown = _images(tmp_path / "images", photo)
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "images" / "phone.heic").write_bytes(b"a format that is not read")
    (tmp_path / "images" / "notes.txt").write_text("no image either")
    (tmp_path / "names.txt").write_text("\n".join(f"kind {number}" for number in range(_CLASSES)))
    command = ["predict", str(weights), "images", "--arch", "timm:resnet10t", "--classes", "names.txt", "--json"]
    ended = processes.run(command, cwd=tmp_path)
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert [Path(row["image"]) for row in document["images"]] == [Path("images", name) for name in sorted(shown)]
    first = set()
    for row in document["images"]:
        expected = _by_hand(network, shown[str(Path(row["image"]).relative_to("images"))])
        order = sorted(range(_CLASSES), key=lambda number: -expected[number])[:5]
        assert [entry["number"] for entry in row["classes"]] == order
        assert [entry["class"] for entry in row["classes"]] == [f"kind {number}" for number in order]
        assert [entry["probability"] for entry in row["classes"]] == pytest.approx(
            [expected[n] for n in order], abs=1e-4
        )
        first.add(round(expected[order[0]], 3))
    assert len(first) > 4, "else the files need not have been told apart"
    assert [entry["image"] for entry in document["skipped"]] == ["images/broken.jpg", "images/phone.heic"]
    assert "broken.jpg: left out" in ended.err and "EXIF data say, unlike in `prune eval`: 1" in ended.err


def _prepared(photo: Image.Image, height: int, width: int) -> torch.Tensor:
    """Resized and normalised, shape (1, 3, height, width)."""
    functional = torchvision.transforms.v2.functional
    pixels = functional.resize(functional.pil_to_tensor(photo), [height, width], antialias=True) / 255
    normalised: torch.Tensor = functional.normalize(pixels, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return normalised[None]


def _settle(network: nn.Module, pixels: torch.Tensor) -> None:
    """Gives a network without training statistics of an image, so that its scores differ from place to place."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.cat([pixels, pixels.flip(-1)]))
    network.eval()


def test_masks_are_those_of_torchvision(processes: Processes, tmp_path: Path, photo: Image.Image) -> None:
    torch.manual_seed(0)
    network = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=21).eval()
    pixels = _prepared(photo, 64, 96)
    _settle(network, pixels)
    torch.save(network.state_dict(), tmp_path / "masks.pt")
    photo.save(tmp_path / "photo.png")
    command = ["predict", "masks.pt", "photo.png", "--arch", "torchvision:lraspp_mobilenet_v3_large"]
    command += ["--num-classes", "21", "--image-size", "64x96"]
    ended = processes.run([*command, "--out", "drawn", "--json"], cwd=tmp_path)
    assert ended.code == 0, ended.err
    (row,) = json.loads(ended.out)["images"]
    with torch.no_grad():
        small = network(pixels)["out"].argmax(dim=1)[:, None].float()
    whole = nn.functional.interpolate(small, size=(150, 240), mode="nearest-exact")[0, 0].long()
    shares = torch.bincount(whole.flatten(), minlength=21) / whole.numel()
    names = torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT.meta["categories"]
    found = {entry["class"]: entry["share"] for entry in row["pixels"]}
    assert len(found) > 10
    assert found == pytest.approx({names[n]: float(shares[n]) for n in range(21) if shares[n]}, abs=2e-3)
    drawn = Image.open(tmp_path / "drawn" / "photo.png")
    assert drawn.width == 480 and drawn.height > 300, "twice as large, so that words fit, with a legend below"


def test_boxes_are_those_of_torchvision_in_pixels_of_the_image(
    processes: Processes, tmp_path: Path, photo: Image.Image
) -> None:
    torch.manual_seed(1)
    network = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=91
    ).eval()
    torch.save(network.state_dict(), tmp_path / "boxes.pt")
    photo.save(tmp_path / "photo.png")
    with torch.no_grad():
        (expected,) = network([torchvision.transforms.functional.to_tensor(photo)])
    least = float(expected["scores"][7])
    command = ["predict", "boxes.pt", "photo.png", "--arch", "torchvision:ssdlite320_mobilenet_v3_large"]
    ended = processes.run([*command, "--score", str(least - 1e-6), "--json", "-o", "drawn"], cwd=tmp_path)
    assert ended.code == 0, ended.err
    (row,) = json.loads(ended.out)["images"]
    names = torchvision.models.detection.SSDLite320_MobileNet_V3_Large_Weights.DEFAULT.meta["categories"]
    assert len(row["objects"]) >= 8
    for entry, box, label, score in zip(
        row["objects"], *(expected[k] for k in ("boxes", "labels", "scores")), strict=False
    ):
        assert entry["class"] == names[int(label)]
        assert entry["score"] == pytest.approx(float(score), abs=1e-5)
        assert entry["box"] == pytest.approx(box.tolist(), abs=0.05)
    assert (tmp_path / "drawn" / "photo.png").is_file()


@pytest.fixture(scope="module")
def pruned(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network, trained and then pruned, and some of the images that it knows."""
    folder = tmp_path_factory.mktemp("pruned")
    train = ["train", "cifar:resnet20", "--data", "digits", "--epochs", "2", "--lr", "0.1", "-o", "dense.safetensors"]
    assert processes.run(train, cwd=folder).code == 0
    prune = ["l1", "dense.safetensors", "--ratio", "0.3", "--data", "digits", "-o", "pruned.safetensors"]
    assert processes.run(prune, cwd=folder).code == 0
    from sklearn.datasets import load_digits

    (folder / "images").mkdir()
    digits = load_digits().images[:20]
    for index, digit in enumerate(digits):
        Image.fromarray((digit * 255 / 16).astype(np.uint8)).save(folder / "images" / f"{index:02d}.png")
    return folder


def _run(processes: Processes, folder: Path, *more: str) -> Any:
    return processes.run(["predict", "pruned.safetensors", "images", *more], cwd=folder)


def test_the_dense_parent_is_shown_beside(processes: Processes, pruned: Path) -> None:
    alone = {}
    for name in ("pruned", "dense"):
        ended = processes.run(["predict", f"{name}.safetensors", "images", "--json"], cwd=pruned)
        assert ended.code == 0, ended.err
        document = json.loads(ended.out)
        assert document["class_names"].startswith("digits")
        alone[name] = [row["classes"][0] for row in document["images"]]
    ended = _run(processes, pruned, "--beside", "--json")
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["beside"]["model"] == "dense.safetensors"
    assert [row["classes"][0] for row in document["images"]] == alone["pruned"]
    assert [row["beside"]["classes"][0] for row in document["images"]] == alone["dense"]
    same = [a["number"] == b["number"] for a, b in zip(alone["pruned"], alone["dense"], strict=True)]
    assert [row["agree"] for row in document["images"]] == same
    assert document["beside"]["images_that_agree"] == sum(same)
    table = _run(processes, pruned, "--beside", "-q")
    lines = [line.split("\t") for line in table.out.splitlines()]
    assert lines[0] == ["image", "class", "%", "class (beside)", "% (beside)", "same"]
    assert [line[-1] == "yes" for line in lines[1:]] == same
    assert table.err == ""


def test_a_network_of_any_size_beside_gets_the_images_of_the_first(
    processes: Processes, pruned: Path, tmp_path: Path
) -> None:
    weights = load_file(str(pruned / "dense.safetensors"))
    torch.save(weights, tmp_path / "plain.pt")
    ended = _run(processes, pruned, "--beside", str(tmp_path / "plain.pt"), "--json")
    assert ended.code == 0, ended.err
    plain = [row["beside"]["classes"] for row in json.loads(ended.out)["images"]]
    ended = _run(processes, pruned, "--beside", "--json")
    known = [row["beside"]["classes"] for row in json.loads(ended.out)["images"]]
    for first, second in zip(plain, known, strict=True):
        assert [entry["number"] for entry in first] == [entry["number"] for entry in second]
        assert [entry["probability"] for entry in first] == pytest.approx([entry["probability"] for entry in second])


def test_a_parent_that_is_gone_is_named(processes: Processes, pruned: Path, tmp_path: Path) -> None:
    shutil.copytree(pruned / "images", tmp_path / "images")
    shutil.copy(pruned / "pruned.safetensors", tmp_path)
    ended = _run(processes, tmp_path, "--beside")
    assert ended.code == 2 and "dense.safetensors: the parent is not in this folder" in ended.err
    assert "--beside the file it was pruned from" in ended.err
    shutil.copy(pruned / "pruned.safetensors", tmp_path / "dense.safetensors")
    ended = _run(processes, tmp_path, "--beside")
    assert ended.code == 2 and "has changed since" in ended.err, "another file of that name is not the parent"
    other = ["--beside", "timm:resnet10t", "--json"]
    ended = _run(processes, tmp_path, *other)
    assert ended.code == 2 and "has 10 classes and timm:resnet10t has 1000" in json.loads(ended.out)["error"]["message"]


def test_pictures_never_replace_anything_unasked(processes: Processes, pruned: Path, tmp_path: Path) -> None:
    shutil.copy(pruned / "pruned.safetensors", tmp_path)
    for folder, kind in (("images", "png"), ("images/sub", "png"), ("images/sub", "bmp")):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.open(pruned / "images" / "00.png").save(tmp_path / folder / f"a.{kind}")
    out = ["--out", "images/drawn"]
    ended = _run(processes, tmp_path, *out, "--json")
    assert ended.code == 0, ended.err
    drawn = sorted(path.relative_to(tmp_path) for path in (tmp_path / "images" / "drawn").rglob("*.png"))
    assert drawn == [Path("images/drawn", name) for name in ("a.png", "sub/a-2.png", "sub/a.png")]
    rows = json.loads(ended.out)["images"]
    assert [row["image"] for row in rows] == ["images/a.png", "images/sub/a.bmp", "images/sub/a.png"]
    assert sorted(row["picture"] for row in rows) == [str(path) for path in drawn]
    ended = _run(processes, tmp_path, *out)
    assert ended.code == 2 and "drawn/a.png: exists; add --force" in ended.err
    ended = _run(processes, tmp_path, *out, "--force")
    assert ended.code == 0 and "drew 3 pictures" in ended.err, "pictures drawn before are no images"
    before = (tmp_path / "images" / "sub" / "a.png").read_bytes()
    ended = _run(processes, tmp_path, "--out", ".", "--force")
    assert ended.code == 2
    ended = processes.run(
        ["predict", "pruned.safetensors", "images/sub/a.png", "-o", "images/sub", "--force"], cwd=tmp_path
    )
    assert ended.code == 2 and "is one of the images" in ended.err
    assert (tmp_path / "images" / "sub" / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    "words,message",
    [
        (["pruned.safetensors", "nowhere"], "nowhere: no such file or folder"),
        (["pruned.safetensors"], "Missing argument 'IMAGES...'"),
        (["pruned.safetensors", "images", "--top", "0"], "--top has to be at least 1"),
        (["pruned.safetensors", "images", "--score", "2"], "--score has to be between 0 and 1"),
        (["pruned.safetensors", "images", "--score", "0.5"], "--score is for boxes"),
        (["pruned.safetensors", "images", "--data", "cifar10", "--data-root", "/nowhere"], "cifar"),
        (["lm:lstm", "images"], "reads texts"),
        (["open_clip:tiny", "images"], "--classes FILE"),
        (["timm:resnet10t", "images", "--model-kwargs", "num_classes=0"], "no classifier"),
        (["pruned.safetensors", "pruned.safetensors"], "no image can be read: pruned.safetensors"),
    ],
)
def test_bad_input_is_one_line(processes: Processes, pruned: Path, words: list[str], message: str) -> None:
    ended = processes.run(["predict", *words], cwd=pruned)
    assert ended.code == 2 and ended.out == ""
    assert message in ended.err.splitlines()[-1] and "Traceback" not in ended.err


def test_too_few_names_are_refused(processes: Processes, pruned: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    ended = _run(processes, pruned, "--classes", str(tmp_path / "names.txt"))
    assert ended.code == 2 and "has 10 classes and" in ended.err and "names 2" in ended.err


def test_classes_of_a_text_tower_are_texts(
    processes: Processes, tiny_clip: Path, tmp_path: Path, photo: Image.Image
) -> None:
    photo.save(tmp_path / "photo.png")
    (tmp_path / "texts.txt").write_text("a cat\na dog\nstripes\n")
    ended = processes.run(["predict", str(tiny_clip), "photo.png", "--classes", "texts.txt", "--json"], cwd=tmp_path)
    assert ended.code == 0, ended.err
    (row,) = json.loads(ended.out)["images"]
    assert {entry["class"] for entry in row["classes"]} == {"a cat", "a dog", "stripes"}
    assert sum(entry["probability"] for entry in row["classes"]) == pytest.approx(1, abs=1e-5)
