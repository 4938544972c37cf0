"""Classes as prompts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo
from torch import Tensor
from torch.nn import functional

from prunecli.cli.output import Output
from prunecli.data.prompts import class_texts, templates
from prunecli.data.splits import ArraySplit, DataSet
from prunecli.errors import DataError, ModelError
from prunecli.models import from_open_clip
from prunecli.models.catalog import build
from prunecli.models.loading import load_reference, restore, save
from prunecli.models.prompt_classifier import prompt_classifier
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe


def data(classes: tuple[str, ...] = ("0 - zero", "polar_bear", "cat"), name: str = "cifar10") -> DataSet:
    split = ArraySplit(np.zeros((3, 8, 8), np.uint8), np.arange(3))
    return DataSet(name, classes, 3, (8, 8), (0.5,) * 3, (0.5,) * 3, False, None, split)


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_names_and_templates_built_in_and_from_files(tmp_path: Path) -> None:
    assert class_texts(data()) == ("0 - zero", "polar bear", "cat")
    assert class_texts(data(name="mnist")) == ("0", "polar bear", "cat")
    assert class_texts(data(("dog - husky", "dog - poodle"), "folder:dogs")) == ("dog - husky", "dog - poodle")
    assert all("{}" in template for name in ("cifar10", "mnist", "folder:x") for template in templates(data(name=name)))
    (tmp_path / "names.txt").write_text("zero\n\nbear\ncat\n")
    (tmp_path / "names.json").write_text(json.dumps(["zero", "bear", "cat"]))
    (tmp_path / "wordings.json").write_text(json.dumps({"cifar10": ["a {c} here", "one {}"]}))
    for name in ("names.txt", "names.json"):
        assert class_texts(data(), str(tmp_path / name)) == ("zero", "bear", "cat")
    assert templates(data(), str(tmp_path / "wordings.json")) == ("a {} here", "one {}")


@pytest.mark.parametrize(
    ("content", "suffix", "said"),
    [
        ("a\nb\n", "txt", "has 2 class names and cifar10 has 3 classes"),
        ("[1, 2, 3]", "json", "does not hold a list of class names"),
        ("{", "json", "not a readable JSON file"),
        ("", "txt", "does not hold a list"),
    ],
)
def test_files_of_names_that_do_not_fit(content: str, suffix: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / f"names.{suffix}"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        class_texts(data(), str(path))


def test_a_template_without_a_place_for_the_class(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a {}\nno place\n")
    with pytest.raises(DataError, match=r"'no place' has no \{c\} or \{\} for the class"):
        templates(data(), str(tmp_path / "t.txt"))


def test_imagenet_is_known_by_its_folders_not_by_how_many_there_are() -> None:
    """The 1,000 names and 80 templates that published figures are measured with."""
    imagenet = data(tuple(ImageNetInfo().label_names()), "folder:imagenet")
    assert class_texts(imagenet)[0] == "tench" and len(class_texts(imagenet)) == 1000
    assert len(templates(imagenet)) == 80 and "a bad photo of a {}." in templates(imagenet)
    parts = data(tuple(f"part_{number}" for number in range(1000)), "folder:parts")
    assert class_texts(parts)[0] == "part 0" and templates(parts) == ("a photo of a {}.", "{}")
    captions = dataclasses.replace(parts, task="retrieval")
    assert class_texts(captions)[0] == "part_0" and templates(captions) == ("{}",)
    with pytest.raises(DataError, match="has captions in place of classes; leave out --templates"):
        templates(captions, "t.txt")


def test_braces_of_a_template_are_text() -> None:
    """Only {} is the place of a class."""
    towers = build("open_clip:tiny", dim=32, depth=1).eval()
    odd = ("a {} or {}.", "a {photo} of {}", "100 {% of a {}")
    classifier = prompt_classifier("open_clip:tiny", towers, ("cat", "dog"), odd).eval()
    with torch.no_grad():
        features = classifier.class_features(torch.device("cpu"))
        tokens = from_open_clip.tokenizer("tiny", towers)(["a cat or cat.", "a {photo} of cat", "100 {% of a cat"])
        mean = towers.encode_text(tokens, normalize=True).mean(0)  # type: ignore[operator]
    assert torch.allclose(features[:, 0], mean / mean.norm(), atol=1e-5)


def test_scores_are_likeness_to_the_mean_of_prompts_and_follow_the_weights() -> None:
    torch.manual_seed(0)
    towers = build("open_clip:tiny", dim=32, depth=1).eval()
    wordings = ("a photo of {}", "{}")
    classifier = prompt_classifier("open_clip:tiny", towers, ("cat", "dog"), wordings).eval()
    from open_clip import SimpleTokenizer

    tokens = SimpleTokenizer(context_length=16)
    with torch.no_grad():
        classes = []
        for name in ("cat", "dog"):
            features = towers.encode_text(tokens([t.replace("{}", name) for t in wordings]), normalize=True).mean(0)  # type: ignore[operator]
            classes.append(features / features.norm())
        seen = towers.encode_image(images(), normalize=True)  # type: ignore[operator]
        expected = towers.logit_scale.exp() * seen @ torch.stack(classes).T  # type: ignore[operator, union-attr]
        assert torch.allclose(classifier(images()), expected, atol=1e-4)
        before = classifier(images())
        towers.text_projection.mul_(-1)  # type: ignore[operator, union-attr]
        classifier.train().eval()
        assert torch.allclose(classifier(images()), -before, atol=1e-4)
    classifier.train()
    classifier(images()).sum().backward()
    assert towers.token_embedding.weight.grad is not None  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="cifar:resnet20 has no text tower"):
        prompt_classifier("cifar:resnet20", build("cifar:resnet20"), ("a",), ("{}",))


def test_both_towers_come_back_bit_by_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    loaded = load_reference("open_clip:tiny", dim=32, depth=1)
    save(tmp_path / "net.safetensors", loaded.model, loaded.manifest)
    again, _ = restore(tmp_path / "net.safetensors")
    for (name, tensor), (other, copy) in zip(
        loaded.model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(tensor, copy)
    with torch.no_grad():
        assert torch.equal(again(images())[0], loaded.model(images())[0])
    assert loaded.fixed_size == (32, 32)


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("tiny", {"dim": 30}, "heads have to divide the width"),
        ("tiny", {"dimm": 30}, "did you mean 'dim'"),
        ("ViT-B-16", {"depth": 3}, "unknown argument 'depth'"),
    ],
)
def test_arguments_of_towers(name: str, kwargs: dict[str, int], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build(f"open_clip:{name}", meta=True, **kwargs)


def test_criteria_take_gradients_of_scores_of_prompts(tmp_path: Path) -> None:
    """Features are no class scores, even where there are as many of them as classes."""
    torch.manual_seed(0)
    loaded = load_reference("open_clip:tiny", dim=32, depth=1)
    save(tmp_path / "clip.safetensors", loaded.model, loaded.manifest)
    recipe = Recipe(model=ModelSection(weights=str(tmp_path / "clip.safetensors")), data=DataSection(name="digits"))
    space = Workspace(recipe, Output("quiet"))
    x, labels = images(4), torch.tensor([3, 1, 4, 1])
    with torch.no_grad():
        expected = functional.cross_entropy(space.judging.classifier().eval()(x), labels, reduction="sum")
        loss = space.judging.loss()(space.model().model.eval()(x), labels)
    assert torch.allclose(loss, expected, rtol=1e-5)
