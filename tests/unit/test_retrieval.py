"""Recalls against plain loops, and features of prompts that come from the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from prunecli.data.catalog import load_data
from prunecli.data.prompts import class_texts
from prunecli.engine.tasks.base import Labels
from prunecli.engine.tasks.retrieval import RANKS, Recalls, Retrieval
from prunecli.errors import DataError
from prunecli.models import text_features
from prunecli.models.loading import load_reference
from prunecli.models.prompt_classifier import PromptClassifier, prompt_classifier
from prunecli.models.text_features import features_folder

CPU = torch.device("cpu")


def _by_loops(scores: Tensor, described: list[int]) -> tuple[list[float], list[float]]:
    """Recalls from the whole matrix of images by captions."""
    images, captions = scores.shape
    by_caption, by_image = [], []
    for rank in RANKS:
        hits = 0
        for caption in range(captions):
            best = sorted(range(images), key=lambda image: -float(scores[image, caption]))[:rank]
            hits += described[caption] in best
        by_caption.append(100 * hits / captions)
        hits = 0
        for image in range(images):
            best = sorted(range(captions), key=lambda caption: -float(scores[image, caption]))[:rank]
            hits += image in [described[caption] for caption in best]
        by_image.append(100 * hits / images)
    return by_caption, by_image


def _in_batches(scores: Tensor, described: list[int], order: list[int], batch: int) -> Recalls:
    meter = Retrieval(Labels("captions", "retrieval", (), tuple(described))).meter(CPU)
    for start in range(0, len(order), batch):
        chosen = torch.tensor(order[start : start + batch])
        meter.update(scores[chosen], chosen)
    return meter.compute()


@pytest.mark.parametrize(("images", "batch"), [(40, 7), (40, 64), (8, 3), (1, 1)])
def test_recalls_are_those_of_the_whole_matrix(images: int, batch: int) -> None:
    """Whatever the batches and their order; with fewer images than ranks, too."""
    generator = torch.Generator().manual_seed(images)
    described = sorted(torch.randint(images, (3 * images,), generator=generator).tolist())
    scores = torch.randn(images, len(described), generator=generator)
    scores[described, torch.arange(len(described))] += 2.0
    by_caption, by_image = _by_loops(scores, described)
    order = torch.randperm(images, generator=generator).tolist()
    recalls = _in_batches(scores, described, order, batch)
    assert recalls.image == pytest.approx(by_caption) and recalls.text == pytest.approx(by_image)
    assert (recalls.images, recalls.captions) == (images, len(described))
    if images > RANKS[-1]:
        assert 5 < recalls.image[0] < recalls.image[2] < 100  # not trivial


def test_captions_of_images_that_could_not_be_read_are_not_asked() -> None:
    """An image that is left out takes its captions with it."""
    described = [0, 0, 1, 2]
    scores = torch.tensor([[9.0, 8, 1, 1], [0, 0, 5, 0], [1, 1, 1, 7]])
    recalls = _in_batches(scores, described, [0, 2], 1)
    assert recalls == Recalls((100.0,) * 3, (100.0,) * 3, images=2, captions=3)
    assert _in_batches(scores, described, [], 1).images == 0


def test_images_without_classes(tmp_path: Path) -> None:
    """All images of a folder and those in it, in order; no other files."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z.png", "b/a.jpg", "b/c/d.PNG"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    data = load_data(f"images:{tmp_path}")
    assert data.test.files == ("b/a.jpg", "b/c/d.PNG", "z.png")  # type: ignore[attr-defined]
    assert (data.task, data.num_classes, data.train) == ("unlabelled", 0, None)
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    assert class_texts(data, str(names)) == ("cat", "dog")
    with pytest.raises(DataError, match="no such folder; give the path of a folder with images"):
        load_data("images:nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images in it or in its sub-folders"):
        load_data(f"images:{tmp_path / 'empty'}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("PRUNE_CACHE", str(tmp_path / "cache"))
    return features_folder()


def _classifier(texts: tuple[str, ...] = ("cat", "dog"), seed: int = 0) -> PromptClassifier:
    torch.manual_seed(seed)
    model = load_reference("open_clip:tiny", depth=1).model
    return prompt_classifier("open_clip:tiny", model, texts, ("a photo of a {}.", "{}"), remember=True).eval()


def test_features_of_prompts_are_read_from_the_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run does not run the text tower, and other weights or prompts are other features."""
    first = _classifier().class_features(CPU)
    (file,) = cache.iterdir()
    before = file.read_bytes()
    again = _classifier()
    with monkeypatch.context() as patched:
        patched.setattr(PromptClassifier, "_computed", lambda self, device: pytest.fail("computed again"))
        assert torch.equal(again.class_features(CPU), first)
    assert not torch.equal(_classifier(seed=1).class_features(CPU), first)
    _classifier(("cat", "hound")).class_features(CPU)
    assert len(list(cache.iterdir())) == 3 and file.read_bytes() == before


def test_the_image_tower_does_not_matter(cache: Path) -> None:
    """Pruned and unpruned networks share the features of their prompts."""
    one, other = _classifier(), _classifier()
    with torch.no_grad():
        other.towers.visual.conv1.weight.add_(1.0)  # type: ignore[union-attr, operator]
    assert torch.equal(one.class_features(CPU), other.class_features(CPU))
    assert len(list(cache.iterdir())) == 1


def test_a_damaged_or_impossible_cache_does_no_harm(cache: Path) -> None:
    """Features are made again, and a folder that takes no file is no error."""
    first = _classifier().class_features(CPU)
    (file,) = cache.iterdir()
    file.write_bytes(b"not a file of features")
    assert torch.equal(_classifier().class_features(CPU), first)
    assert len(file.read_bytes()) > 100  # written again
    file.unlink()
    cache.rmdir()
    cache.write_text("a file where the folder should be")
    assert torch.equal(_classifier().class_features(CPU), first)


def test_training_does_not_use_the_disk(cache: Path) -> None:
    """Weights that change every step would fill it."""
    model = load_reference("open_clip:tiny", depth=1).model
    prompt_classifier("open_clip:tiny", model, ("cat", "dog"), ("{}",)).eval().class_features(CPU)
    assert not cache.exists()
    assert text_features.features_folder() == cache
