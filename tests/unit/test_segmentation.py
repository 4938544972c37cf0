"""Semantic segmentation: masks on disk, joint transforms, loss and figures, frozen backbones, the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import accuracy_score, jaccard_score
from torch import Tensor, nn

from prunecli.data.catalog import load_data
from prunecli.data.label_map import VOID
from prunecli.data.loader import CalibrationBatches, evaluation_batches, training_batches
from prunecli.data.mask_labels import MaskReading
from prunecli.data.masks import MaskSplit
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import DataSet, hold_out
from prunecli.engine.config import FitConfig
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import FitResult, fit
from prunecli.engine.freezing import FreezeBackbone
from prunecli.engine.hooks import Training
from prunecli.engine.tasks.classification import Classification
from prunecli.engine.tasks.segmentation import Segmentation, SegmentationAccuracy
from prunecli.errors import DataError, RecipeError
from prunecli.models.catalog import build
from prunecli.recipe.sizes import parse_size
from tests.conftest import Prune

CPU = torch.device("cpu")
SHADES = np.array([20, 120, 220, 255], dtype=np.uint8)
"""How bright the pixels of class 0, 1 and 2, and of the void, are."""


def _mask(seed: int, size: tuple[int, int] = (24, 32)) -> NDArray[np.uint8]:
    """Class 0 on top of class 1 with a rectangle of class 2 and a corner of void; the border line varies."""
    generator = np.random.default_rng(seed)
    mask = np.zeros(size, dtype=np.uint8)
    mask[generator.integers(8, 14) :] = 1
    mask[4:12, 6 : 6 + generator.integers(8, 16)] = 2
    mask[:4, -4:] = 3
    return mask


def _write(images: Path, masks: Path, names: list[str], numbers: tuple[int, ...], suffix: str = ".png") -> None:
    """Pairs in which class 0, 1, 2 and the void are written as `numbers`."""
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        mask = _mask(seed)
        Image.fromarray(np.repeat(SHADES[mask][..., None], 3, axis=2)).save(images / f"{name}{suffix}")
        Image.fromarray(np.array(numbers, dtype=np.uint8)[mask]).save(masks / f"{name}.png")


def _names(count: int) -> list[str]:
    return [f"frame{number:02d}" for number in range(count)]


PLAIN = (0, 1, 2, 255)


def _flat(root: Path) -> None:
    _write(root / "images", root / "masks", _names(10), PLAIN)


def _inside(root: Path) -> None:
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        _write(root / "images" / part, root / "masks" / part, _names(count), PLAIN)


def _around(root: Path) -> None:
    for part, count in (("train", 5), ("valid", 3)):
        _write(root / part / "images", root / part / "masks", _names(count), PLAIN)


def _camvid(root: Path) -> None:
    for part, count in (("train", 5), ("val", 2), ("test", 3)):
        _write(root / part, root / f"{part}annot", _names(count), (0, 1, 2, 11))


def _ade20k(root: Path) -> None:
    for part, count in (("training", 5), ("validation", 3)):
        _write(root / "images" / part, root / "annotations" / part, _names(count), (1, 2, 3, 0), ".jpg")


def _voc(root: Path) -> None:
    _write(root / "JPEGImages", root / "SegmentationClass", _names(8), PLAIN, ".jpg")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(_names(8)[:5]))
    (lists / "val.txt").write_text("\n".join(_names(8)[5:]))
    (lists / "test.txt").write_text("2008_000006\n")  # as in the official set: without a mask


LAYOUTS = [
    (_flat, 3, (8, 0, 2)),
    (_inside, 3, (5, 2, 3)),
    (_around, 3, (5, 0, 3)),
    (_camvid, 11, (5, 2, 3)),
    (_ade20k, 150, (5, 0, 3)),
    (_voc, 21, (5, 0, 3)),
]


def _count(split: object) -> int:
    return len(split.images) if isinstance(split, MaskSplit) else 0


@pytest.mark.parametrize(("write", "classes", "counts"), LAYOUTS)
def test_every_layout_gives_the_same_masks(
    write: Callable[[Path], None], classes: int, counts: tuple[int, int, int], tmp_path: Path
) -> None:
    write(tmp_path / "set")
    named = {11: "camvid", 150: "ade20k", 21: "voc"}.get(classes)
    data = load_data("segmentation:set", tmp_path, masks=MaskReading(named))
    assert (data.num_classes, data.task, data.image_size) == (classes, "segmentation", (24, 32))
    assert (_count(data.train), _count(data.validation), _count(data.test)) == counts
    assert isinstance(data.train, MaskSplit)
    image, mask = data.train.pair(0)
    number = int(data.train.images[0].stem.removeprefix("frame"))
    expected = np.array([0, 1, 2, VOID], dtype=np.uint8)[_mask(number)]
    assert np.array_equal(mask, expected) and image.mode == "RGB"


def test_both_spellings_read_the_same_set(tmp_path: Path) -> None:
    _inside(tmp_path / "set")
    short, long = load_data("segmentation:set", tmp_path), load_data("segmentation", tmp_path / "set")
    assert long.train is not None and short.train is not None
    assert long.train.fingerprint() == short.train.fingerprint() != short.test.fingerprint()
    assert load_data(long.name).test.fingerprint() == short.test.fingerprint()  # the name in a manifest is enough


def test_a_flat_folder_is_always_divided_alike(tmp_path: Path) -> None:
    _flat(tmp_path)
    first, second = load_data("segmentation", tmp_path), load_data("segmentation", tmp_path)
    assert isinstance(first.train, MaskSplit) and isinstance(first.test, MaskSplit)
    assert not set(first.train.images) & set(first.test.images)
    assert first.test.fingerprint() == second.test.fingerprint()


def test_held_out_images_are_not_trained_on(tmp_path: Path) -> None:
    _around(tmp_path)
    data = hold_out(load_data("segmentation", tmp_path), 0.4)
    assert isinstance(data.train, MaskSplit) and isinstance(data.validation, MaskSplit)
    assert (_count(data.train), _count(data.validation)) == (3, 2)
    assert not set(data.train.images) & set(data.validation.images)


def test_names_come_from_classes_txt_and_a_void_number_may_be_a_class(tmp_path: Path) -> None:
    _camvid(tmp_path)
    names = [f"thing {number}" for number in range(12)]
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    data = load_data("segmentation", tmp_path)
    assert data.class_names == tuple(names) and isinstance(data.test, MaskSplit)
    assert 11 in data.test.mask(0) and VOID not in data.test.mask(0)


def test_palette_images_and_name_endings(tmp_path: Path) -> None:
    _inside(tmp_path)
    for mask in (tmp_path / "masks" / "train").iterdir():
        opened = Image.open(mask)
        opened.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
        opened.save(mask.with_name(f"{mask.stem}_mask.png"))
        mask.unlink()
    data = load_data("segmentation", tmp_path)
    assert isinstance(data.train, MaskSplit)
    assert np.array_equal(data.train.mask(0), np.array([0, 1, 2, VOID])[_mask(0)])


def _without_a_mask(root: Path) -> None:
    (root / "masks" / "val" / "frame01.png").unlink()


def _too_high(root: Path) -> None:
    (root / "classes.txt").write_text("a\nb\n")


def _other_size(root: Path) -> None:
    Image.fromarray(_mask(0, (20, 32)) % 3).save(root / "masks" / "test" / "frame00.png")


def _coloured(root: Path) -> None:
    Image.new("RGB", (32, 24), (1, 2, 3)).save(root / "masks" / "test" / "frame00.png")


def _damaged(root: Path) -> None:
    (root / "masks" / "test" / "frame00.png").write_bytes(b"\x89PNG nothing more")


def _no_evaluation(root: Path) -> None:
    for kind in ("images", "masks"):
        for part in ("val", "test"):
            (root / kind / part).rename(root / f"{kind}-{part}")


def _binary_as_bytes(root: Path) -> None:
    for mask in (root / "masks").rglob("*.png"):
        Image.fromarray(np.where(_mask(0) > 0, 255, 0).astype(np.uint8)).save(mask)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_mask, r"images/val/frame01\.png: has no mask; expected .*masks/val/frame01\.png"),
        (_too_high, r"masks/.*\.png: holds the number 2, which is not one of 2 classes"),
        (_other_size, r"images/test/frame00\.png: is 32x24 and its mask .*masks/test/frame00\.png is 32x20"),
        (_coloured, r"masks/test/frame00\.png: has colours, and other masks hold class numbers"),
        (_damaged, r"masks/test/frame00\.png: not a readable image"),
        (_no_evaluation, "has training images but neither val nor test"),
        (_binary_as_bytes, r"not 0 and 255"),
    ],
)
def test_wrong_data_is_named(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    _inside(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        data = load_data("segmentation", tmp_path)
        assert isinstance(data.test, MaskSplit)
        data.test.pair(0)
    assert len(str(caught.value).splitlines()) == 1


def _binary_set(root: Path, classes: str, *numbers: tuple[int, int]) -> None:
    """Plain folders with a mask for each pair: the number of its upper half and that of its lower half."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for place, (upper, lower) in enumerate(numbers):
        Image.new("RGB", (6, 4)).save(root / "images" / f"{place}.png")
        mask = np.repeat([upper, upper, lower, lower], 6).reshape(4, 6).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{place}.png")
    (root / "classes.txt").write_text(classes)


def _rows(data: DataSet) -> list[list[int]]:
    """The first and the last number of every mask."""
    splits = [split for split in (data.train, data.test) if isinstance(split, MaskSplit)]
    return sorted(
        [int(split.mask(index)[row, 0]) for row in (0, -1)] for split in splits for index in range(len(split.images))
    )


def test_255_is_the_second_of_two_named_classes_where_masks_hold_nothing_else(tmp_path: Path) -> None:
    _binary_set(tmp_path / "a", "ground\nboat\n", (0, 255), (0, 0), (255, 0), (0, 255), (255, 255))
    data = load_data("segmentation:a", tmp_path)
    assert data.class_names == ("ground", "boat")
    assert _rows(data) == [[0, 0], [0, 1], [0, 1], [1, 0], [1, 1]]
    assert len(data.notes) == 1 and "hold 0 and 255 alone, read as the classes ground and boat" in data.notes[0]
    # Neither void nor an object, for whoever looked at a part of the masks only.
    Image.fromarray(np.full((4, 6), 1, dtype=np.uint8)).save(tmp_path / "a" / "masks" / "0.png")
    assert isinstance(data.train, MaskSplit) and isinstance(data.test, MaskSplit)
    with pytest.raises(DataError, match=r"0\.png: holds the number 1, which is not one of 2 classes"):
        _rows(data)


def test_255_stays_void_beside_other_class_numbers(tmp_path: Path) -> None:
    _binary_set(tmp_path / "a", "ground\nboat\n", (0, 255), (1, 255), (0, 1), (0, 1), (0, 0))
    data = load_data("segmentation:a", tmp_path)
    assert _rows(data) == [[0, 0], [0, 1], [0, 1], [0, VOID], [1, VOID]] and data.notes == ()
    _binary_set(tmp_path / "b", "ground\nboat\n", (0, 255), (0, 1), (0, 1), (0, 1), (0, 0))
    data = load_data("segmentation:b", tmp_path)
    assert _rows(data)[-1] == [0, VOID]
    assert len(data.notes) == 1 and "255 counts as void, although 0.png holds 0 and 255 alone; 1.png" in data.notes[0]


def test_masks_of_0_and_255_are_refused_for_more_than_two_classes(tmp_path: Path) -> None:
    _binary_set(tmp_path / "a", "sky\nground\nboat\n", (0, 255), (0, 0), (255, 0), (0, 255), (255, 255))
    with pytest.raises(DataError, match=r"hold 0 and 255 alone and its classes are 3, .* two names into classes\.txt"):
        load_data("segmentation:a", tmp_path)
    _binary_set(tmp_path / "b", "sky\nground\nboat\n", (0, 255), (0, 0), (255, 0), (0, 255), (2, 255))
    assert _rows(load_data("segmentation:b", tmp_path))[-1] == [VOID, 0]


@pytest.mark.parametrize(
    ("name", "message"), [("segmentation:nowhere", "no such folder"), ("segmentation", "no images")]
)
def test_what_is_no_such_set(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_data(name, tmp_path)


PREPROCESSING = Preprocessing((3, 24, 32), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.fixture
def inside(tmp_path: Path) -> DataSet:
    _inside(tmp_path)
    return load_data("segmentation", tmp_path)


def _classes_of(images: Tensor) -> Tensor:
    """Reads the class back from the brightness; shades between two classes are 255."""
    shade = (images.mean(1) * 0.25 + 0.5) * 255
    distance = (shade[..., None] - torch.tensor(SHADES[:3].astype(np.float32))).abs()
    return torch.where(distance.min(-1).values < 3, distance.argmin(-1), VOID)


def test_image_and_mask_are_transformed_alike(inside: DataSet) -> None:
    augmented = 0
    batches = training_batches(inside.training_split(), PREPROCESSING, Augmentation(), 5, seed=0)
    original = torch.stack([torch.from_numpy(inside.training_split().mask(i)).long() for i in range(5)])
    for seed in range(4):
        torch.manual_seed(seed)
        images, masks = next(iter(batches))
        assert images.shape == (5, 3, 24, 32) and masks.shape == (5, 24, 32) and masks.dtype == torch.int64
        clear = (_classes_of(images) != VOID) & (masks != VOID)
        assert clear.float().mean() > 0.1
        # Nearest and bilinear resizing may differ by a pixel at a border.
        assert (_classes_of(images) == masks)[clear].float().mean() > 0.97
        augmented += not any(torch.equal(mask, other) for mask in masks for other in original)
    assert augmented >= 3


def test_what_lies_beyond_the_image_is_void(inside: DataSet) -> None:
    torch.manual_seed(0)
    preprocessing = Preprocessing((3, 24, 32), (0.02, 0.5, 0.9), (0.25, 0.25, 0.25))
    seen = 0
    for _ in range(6):
        images, masks = next(iter(training_batches(inside.training_split(), preprocessing, Augmentation(), 5, seed=1)))
        mean = (images.abs() < 0.02).all(dim=1)  # the data is grey and this mean is not: only padding has its colour
        assert (masks[mean] == VOID).all()
        seen += int(mean.sum())
    assert seen > 100


def test_equal_seeds_give_equal_batches(inside: DataSet) -> None:
    def first(seed: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        augmentation = Augmentation(color_jitter=0.4)
        return next(iter(training_batches(inside.training_split(), PREPROCESSING, augmentation, 5, seed=seed)))

    assert all(torch.equal(a, b) for a, b in zip(first(3), first(3), strict=True))
    assert not torch.equal(first(3)[1], first(4)[1])


def test_evaluation_resizes_masks_without_new_classes(inside: DataSet) -> None:
    preprocessing = Preprocessing((3, 48, 96), (0.5,) * 3, (0.25,) * 3)
    images, masks = next(iter(evaluation_batches(inside.test, preprocessing, 3)))
    assert images.shape == (3, 3, 48, 96)
    assert torch.equal(masks[0], torch.from_numpy(np.repeat(np.repeat(inside.test.mask(0), 2, 0), 3, 1)).long())
    calibration = list(CalibrationBatches(inside.training_split(), preprocessing, 4, 2, seed=0))
    assert [tuple(batch.shape) for batch in calibration] == [(2, 3, 48, 96)] * 2


def test_the_loss_is_that_of_the_pixels_that_count() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))
    labels[0, :3] = VOID
    counted = labels != VOID
    expected = F.cross_entropy(scores.permute(0, 2, 3, 1)[counted], labels[counted])
    assert torch.allclose(Segmentation.with_classes(3).loss(scores, labels, 0.0), expected)
    assert Segmentation.with_classes(3).loss(scores, torch.full_like(labels, VOID), 0.0) == 0


def test_coarse_scores_are_enlarged_to_the_mask() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 16, 16))
    larger = F.interpolate(scores, (16, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(
        Segmentation.with_classes(3).loss(scores, labels, 0.1), F.cross_entropy(larger, labels, label_smoothing=0.1)
    )


def test_the_teachers_part_is_a_mean_over_pixels() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    task = Segmentation.with_classes(3)
    softened = (F.log_softmax(tensor / 2, dim=1) for tensor in (teacher, student))
    first, second = softened
    expected = (first.exp() * (first - second)).sum(1).mean()
    assert torch.allclose(task.teacher_loss(student, teacher, 2.0), expected, atol=1e-6)
    assert task.teacher_loss(student, student, 2.0).abs() < 1e-7
    flat = [tensor.permute(0, 2, 3, 1).reshape(-1, 3) for tensor in (student, teacher)]
    assert torch.allclose(Classification.with_classes(3).teacher_loss(*flat, 2.0), expected, atol=1e-6)


class _Scores(nn.Module):
    """Gives back what it is shown, so that a test chooses the predictions."""

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_miou_and_pixel_accuracy_against_scikit_learn() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 4, (6, 8, 8))  # class 4 occurs in predictions alone, class 5 nowhere
    labels[:, 0] = VOID
    predictions = torch.where(torch.rand(6, 8, 8) < 0.6, labels.clamp(max=3), torch.randint(0, 5, (6, 8, 8)))
    scores = F.one_hot(predictions, 6).permute(0, 3, 1, 2).float() * 5
    batches = [(scores[:4], labels[:4]), (scores[4:], labels[4:])]
    figures = evaluate(_Scores(), batches, CPU, task=Segmentation.with_classes(6))
    assert isinstance(figures, SegmentationAccuracy)
    counted = labels != VOID
    truth, predicted = labels[counted].numpy(), predictions[counted].numpy()
    assert figures.miou == pytest.approx(100 * jaccard_score(truth, predicted, average="macro", labels=range(5)))
    assert figures.pixel_accuracy == pytest.approx(100 * accuracy_score(truth, predicted))
    assert figures.class_iou[4] == 0.0 and figures.class_iou[5] is None
    assert figures.loss == pytest.approx(F.cross_entropy(scores, labels, ignore_index=VOID).item(), rel=1e-5)
    assert figures.images == 6 and figures.score == figures.miou


def test_the_mean_is_over_the_set_and_not_over_batches() -> None:
    labels = torch.tensor([[[0, 0, 0, 1]], [[1, 1, 1, 1]]])
    predictions = torch.tensor([[[0, 0, 0, 0]], [[1, 1, 1, 1]]])
    scores = F.one_hot(predictions, 2).permute(0, 3, 1, 2).float()
    batches = [(scores[:1], labels[:1]), (scores[1:], labels[1:])]
    figures = evaluate(_Scores(), batches, CPU, task=Segmentation.with_classes(2))
    assert isinstance(figures, SegmentationAccuracy)
    assert figures.miou == pytest.approx(100 * (3 / 4 + 4 / 5) / 2)  # means of batches would give 68.75


class _Segmenter(nn.Module):
    """A backbone with batch normalisation and a head that gives scores at half the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))  # type: ignore[no-any-return]


def _fitted(model: nn.Module, data: DataSet, frozen: int = 0, **config: float) -> FitResult:
    train = training_batches(data.training_split(), PREPROCESSING, Augmentation(), 5, seed=0)
    validation = evaluation_batches(data.test, PREPROCESSING, 3)
    settings = FitConfig(optimizer="adamw", lr=0.05, **{"epochs": 12, **config})  # type: ignore[arg-type]
    hooks = [FreezeBackbone(frozen)] if frozen else []
    return fit(model, train, validation, settings, CPU, hooks=hooks, task=Segmentation.with_classes(3))


def test_a_segmenter_learns_and_keeps_its_best_miou(inside: DataSet) -> None:
    torch.manual_seed(0)
    model = _Segmenter()
    result = _fitted(model, inside)
    scores = [epoch.validation.miou for epoch in result.epochs]  # type: ignore[union-attr]
    assert max(scores) > 60 and result.chosen == scores.index(max(scores)) + 1
    figures = evaluate(model, evaluation_batches(inside.test, PREPROCESSING, 3), CPU, task=Segmentation.with_classes(3))
    assert isinstance(figures, SegmentationAccuracy) and figures.miou == max(scores)


def test_a_frozen_backbone_waits_and_then_trains(inside: DataSet) -> None:
    torch.manual_seed(0)
    model = _Segmenter()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    _fitted(model, inside, epochs=2, frozen=2)
    after = model.state_dict()
    for name, tensor in before.items():  # running statistics and their counter too
        assert torch.equal(tensor, after[name]) == name.startswith("backbone."), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    _fitted(model, inside, epochs=3, frozen=1)
    moved = model.state_dict()
    assert not torch.equal(before["backbone.0.weight"], moved["backbone.0.weight"])
    assert not torch.equal(before["backbone.1.running_mean"], moved["backbone.1.running_mean"])


def test_freezing_is_not_the_same_as_training_all_along(inside: DataSet) -> None:
    weights = []
    for epochs in (0, 2):
        torch.manual_seed(0)
        model = _Segmenter()
        _fitted(model, inside, epochs=4, frozen=epochs)
        weights.append(model.backbone[0].weight)
    assert not torch.equal(*weights)


def _begun(model: nn.Module, num_classes: int) -> FreezeBackbone:
    hook = FreezeBackbone(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook.begin(Training(model, optimizer, CPU, epochs=2, steps=1, num_classes=num_classes))
    return hook


@pytest.mark.parametrize(
    "ref", ["timm:resnet18", "torchvision:resnet18", "cifar:resnet20", "timm:vit_tiny_patch16_224"]
)
def test_of_a_classifier_all_but_its_last_layer_is_the_backbone(ref: str) -> None:
    model = build(ref, num_classes=7).train()
    hook = _begun(model, 7)
    hook.epoch_start(1, 0)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    head = {"torchvision:resnet18": "fc", "timm:resnet18": "fc", "cifar:resnet20": "linear"}.get(ref, "head")
    assert trainable == [f"{head}.weight", f"{head}.bias"]
    assert not any(m.training for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm)))
    hook.end()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_was_frozen_before_stays_frozen() -> None:
    model = _Segmenter()
    model.backbone[0].weight.requires_grad_(False)
    hook = _begun(model, 3)
    hook.epoch_start(1, 0)
    hook.end()
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["backbone.0.weight"]


def test_a_network_without_a_head_cannot_freeze_its_backbone() -> None:
    with pytest.raises(RecipeError, match="no layer with 5 outputs"):
        _begun(nn.Sequential(nn.Linear(4, 3)), 5)


@pytest.mark.parametrize(("text", "size"), [("360x480", (360, 480)), ("512", (512, 512)), (64, (64, 64))])
def test_image_sizes(text: str | int, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0", "36x", "x48", "360 480", "-1", "1.5"])
def test_wrong_image_sizes(text: str) -> None:
    with pytest.raises(RecipeError, match="write height and width as 360x480"):
        parse_size(text)


RECIPE = """
version: 1
model: {ref: "segformer:b0"}
data: {name: segmentation, root: "ROOT", image_size: 32x64, batch_size: 5, val_fraction: 0.4}
threads: 1
stages:
  - {stage: train, epochs: 2, optimizer: adamw, lr: 2e-3, freeze_backbone_epochs: 1}
  - {stage: eval, report: first.json, latency_rounds: 2}
  - {stage: finetune, epochs: 1, optimizer: adamw}
  - {stage: eval, report: second.json, latency_rounds: 2}
  - {stage: compare, fail_if: "miou_drop > 100 or pixel_accuracy_drop < 100"}
"""


@pytest.mark.usefixtures("transformers_ready")
def test_a_recipe_trains_evaluates_and_compares(prune: Prune, tmp_path: Path) -> None:
    _around(tmp_path / "set")
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("ROOT", str(tmp_path / "set")))
    done = prune("run", "recipe.yaml", "--output", "out")
    assert done.code == 3 and "pixel_accuracy_drop < 100" in done.err, done.err  # a gate that always fails
    assert "validation mIoU" in done.err and "on 3 images" in done.err
    report = json.loads((tmp_path / "out" / "first.json").read_text())
    figures = report["metrics"]
    assert 0 <= figures["miou"] <= 100 and 0 < figures["pixel_accuracy"] <= 100 and figures["images"] == 3
    assert set(figures["class_iou"]) == {"0", "1", "2"} and "top1" not in figures
    # What a results file of a segmentation pruner has to hold: network, classes, input, parameters, operations, time.
    assert report["model"]["ref"] == "segformer:b0" and report["model"]["arguments"] == {"num_classes": 3}
    assert report["model"]["input_shape"] == [3, 32, 64]
    assert figures["params"] > 3e6 and figures["macs"] > 1e7 and figures["latency_ms"]["median"] > 0
    comparison = json.loads((tmp_path / "out" / "comparison.json").read_text())
    compared = comparison["candidates"][0]
    assert [part["condition"] for part in comparison["gate"]["parts"] if part["failed"]] == [
        "pixel_accuracy_drop < 100"
    ]
    second = json.loads((tmp_path / "out" / "second.json").read_text())["metrics"]
    assert compared["miou_drop"] == pytest.approx(figures["miou"] - second["miou"])
    assert compared["params_ratio"] == compared["macs_ratio"] == 1.0
    manifest = prune("inspect", "out/finetuned.safetensors", "--manifest").json
    finetune = manifest["history"][-1]
    assert finetune["settings"]["lr"] == pytest.approx(2e-4)  # a tenth of the training stage's
    assert "validation_miou" in finetune["figures"] and manifest["frozen_parameters"] == []
    log = (tmp_path / "out" / "trained.metrics.jsonl").read_text().splitlines()
    assert {"validation_miou", "validation_pixel_accuracy", "train_loss"} <= json.loads(log[0]).keys()


def test_the_default_rate_of_finetuning_is_known_for_the_same_optimizer_alone(prune: Prune) -> None:
    common = ("--data", "digits", "--epochs", "1", "--threads", "1")
    assert prune("train", "cifar:resnet20", *common, "--lr", "0.3", "-o", "t.safetensors").code == 0
    for optimizer, lr in (("sgd", 0.03), ("adamw", 0.01)):
        done = prune("finetune", "t.safetensors", *common, "--optimizer", optimizer, "-o", f"{optimizer}.safetensors")
        assert done.code == 0, done.err
        manifest = prune("inspect", f"{optimizer}.safetensors", "--manifest").json
        assert manifest["history"][-1]["settings"]["lr"] == pytest.approx(lr)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cifar:resnet20", "--data", "segmentation:set"), "finds a class for each image"),
        (("segformer:b0", "--data", "digits", "--image-size", "64"), "finds a class for every pixel"),
        (("segformer:b0", "--data", "segmentation:set", "--mixup", "0.2"), "--mixup is for images with one class each"),
        (("segformer:b0", "--data", "segmentation:set", "--image-size", "3x"), "write height and width as 360x480"),
        (("segformer:b7", "--data", "segmentation:set"), "did you mean"),
    ],
)
@pytest.mark.usefixtures("transformers_ready")
def test_what_does_not_go_together_is_one_line(
    words: tuple[str, ...], message: str, prune: Prune, tmp_path: Path
) -> None:
    _around(tmp_path / "set")
    done = prune("train", *words, "--threads", "1")
    assert done.code == 2, done.err
    assert message in done.err and len(done.err.strip().splitlines()) == 1


@pytest.mark.usefixtures("transformers_ready")
def test_classes_can_be_asked_for(prune: Prune) -> None:
    words = ("--num-classes", "8", "--image-size", "64x96", "--measure", "params", "--measure", "macs", "--json")
    model = prune("eval", "segformer:b0", *words).json["model"]
    assert model["arguments"] == {"num_classes": 8} and model["input_shape"] == [3, 64, 96]


@pytest.mark.parametrize("workers", ["0", "1"])
@pytest.mark.usefixtures("transformers_ready")
def test_a_mask_that_is_wrong_stops_training_with_its_name(workers: str, prune: Prune, tmp_path: Path) -> None:
    _around(tmp_path / "set")
    (tmp_path / "set" / "classes.txt").write_text("road\nsky\n")
    common = ("--data", "segmentation:set", "--image-size", "32", "--epochs", "1", "--workers", workers)
    done = prune("train", "segformer:b0", *common)
    assert done.code == 2 and "holds the number 2, which is not one of 2 classes" in done.err
    assert done.err.strip().splitlines()[-1].startswith("error: set/train/masks/"), done.err
    assert "Traceback" not in done.err


@pytest.mark.usefixtures("transformers_ready")
def test_imagenet_weights_get_a_head_for_the_data(prune: Prune, tmp_path: Path) -> None:
    _around(tmp_path / "set")
    state = build("segformer:b0").segformer.state_dict()  # type: ignore[union-attr]
    torch.save(state, tmp_path / "mit_b0.pth")
    common = ("--data", "segmentation:set", "--image-size", "32x64", "--batch-size", "5", "--epochs", "1")
    done = prune("train", "mit_b0.pth", *common, "--optimizer", "adamw", "--lr", "1e-3", "-o", "t.safetensors")
    assert done.code == 0, done.err
    assert "holds an encoder alone" in done.err
    assert prune("inspect", "t.safetensors", "--manifest").json["architecture"]["kwargs"] == {"num_classes": 3}
