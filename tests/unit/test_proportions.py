"""Images of other proportions than a network's are prepared as the library that published it prepares them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.data.preparation import Preprocessing, prepared
from prunecli.data.splits import FileSplit
from prunecli.models import from_open_clip, from_timm
from prunecli.models.hugging_face.folder import image_settings


@pytest.fixture(params=[(300, 170), (150, 290)], ids=["wide", "tall"])
def image(request: pytest.FixtureRequest) -> Image.Image:
    """A smooth image, which resizing in another library does not change by much."""
    width, height = request.param
    across, down = np.meshgrid(np.linspace(0, 6, width), np.linspace(0, 4, height))
    channels = [np.sin(across + shift) * np.cos(down * (1 + shift)) for shift in range(3)]
    return Image.fromarray(((np.stack(channels, -1) + 1) * 127.5).astype(np.uint8))


def _ours(image: Image.Image, folder: Path, size: tuple[int, int], used: InputNormalisation) -> Tensor:
    image.save(folder / "image.png")
    split = FileSplit(folder, ("image.png",), np.array([0]))
    given = Preprocessing((3, *size), used.mean, used.std, used.interpolation, used.crop_pct, used.crop_mode)
    pixels: Tensor = prepared(split, given, None)[0][0]
    return pixels


@pytest.mark.parametrize(
    "name",
    ["ViTImageProcessor", "SiglipImageProcessor", "CLIPImageProcessor", "ConvNextImageProcessor", "DeiTImageProcessor"],
)
def test_as_a_processor_of_transformers(name: str, image: Image.Image, tmp_path: Path) -> None:
    processor: Any = getattr(transformers, name)()
    processor.save_pretrained(tmp_path)
    settings = image_settings(tmp_path, SimpleNamespace(image_size=224))
    assert settings.size is not None
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = _ours(image, tmp_path, theirs.shape[1:], settings.normalisation)
    assert (ours - theirs).abs().max() < 0.08  # cut one pixel further on at most


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("ViTFeatureExtractor", {"size": 64}),
        ("BeitFeatureExtractor", {"size": 64, "do_center_crop": False}),
        ("DeiTFeatureExtractor", {"size": 80, "crop_size": 64, "do_center_crop": True}),
        ("CLIPFeatureExtractor", {"size": 64, "crop_size": 64, "do_center_crop": True}),
    ],
)
def test_as_older_files_say(kind: str, said: dict[str, Any], image: Image.Image, tmp_path: Path) -> None:
    common = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2, "do_resize": True, "do_normalize": True}
    content = {"feature_extractor_type": kind, **common, **said}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    processor: Any = getattr(transformers, kind.replace("FeatureExtractor", "ImageProcessor")).from_pretrained(tmp_path)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    settings = image_settings(tmp_path, SimpleNamespace())
    assert settings.size == theirs.shape[1:]
    assert (_ours(image, tmp_path, settings.size, settings.normalisation) - theirs).abs().max() < 0.12


def test_what_is_prepared_otherwise_is_said(tmp_path: Path) -> None:
    said = {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True, "size": 64}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    (note,) = image_settings(tmp_path, SimpleNamespace()).notes
    assert "gives blue before red" in note


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "resnet18", "convnext_tiny"])
def test_as_timm_prepares_for_a_network(name: str, image: Image.Image, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    size, used = from_timm.input_spec(name, model)
    assert size is not None and used is not None
    config = timm.data.resolve_model_data_config(model)
    theirs: Any = timm.data.create_transform(**config, is_training=False)
    assert torch.equal(_ours(image, tmp_path, size, used), theirs(image))


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP@webli", "ViT-B-32@openai", "tiny"])
def test_as_open_clip_prepares_for_a_network(name: str, image: Image.Image, tmp_path: Path) -> None:
    size, used = from_open_clip.input_spec(name, SimpleNamespace(visual=SimpleNamespace(image_size=64)))  # type: ignore[arg-type]
    assert size is not None and used is not None
    mode = {"center": "shortest", "squash": "squash", "border": "longest"}[used.crop_mode]
    assert mode == {"ViT-B-16-SigLIP@webli": "squash"}.get(name, "shortest")
    theirs = open_clip.image_transform(
        64, is_train=False, mean=used.mean, std=used.std, resize_mode=mode, interpolation=used.interpolation
    )
    assert (_ours(image, tmp_path, size, used) - theirs(image)).abs().max() < 0.03
