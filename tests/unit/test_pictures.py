"""People's own pictures: how they are read, what is answered about them, and how alike answers are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from prunecli.cli.lazy import _completed
from prunecli.data.boxes import BoxPreparation
from prunecli.data.images import UnreadableImage, read_image
from prunecli.data.pictures import Picture, find_pictures, read_picture
from prunecli.data.preparation import Preprocessing, picture_transform
from prunecli.engine.detectors.base import Detector, Found, Target
from prunecli.errors import ModelError
from prunecli.studies.prediction_answers import BestClasses, Boxes, Classes, Frame, Mask, Masks, Objects
from prunecli.studies.prediction_pictures import picture_paths, write_picture


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path: Path) -> None:
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "wide.png")
    for mode in ("L", "RGB"):
        pixels = np.asarray(read_image(tmp_path / "wide.png", mode))
        assert np.array_equal(pixels if mode == "L" else pixels[:, :, 1], values // 256)
    assert np.array_equal(np.asarray(read_picture(tmp_path / "wide.png").image), values // 256)


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(tmp_path: Path, kind: type[Any]) -> None:
    Image.fromarray(np.full((4, 4), 0.5 if kind is np.float32 else 70000, dtype=kind)).save(tmp_path / "wide.tif")
    for read in (lambda path: read_image(path, "RGB"), read_picture):
        with pytest.raises(UnreadableImage, match="32 bits and no known range"):
            read(tmp_path / "wide.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_the_right_way_up(tmp_path: Path, orientation: int) -> None:
    stored = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    read = read_picture(tmp_path / "photo.png")
    array = np.asarray(stored)
    expected = {
        1: array,
        2: array[:, ::-1],
        3: array[::-1, ::-1],
        4: array[::-1],
        5: array.T,
        6: array[::-1].T,
        7: array[::-1, ::-1].T,
        8: array.T[::-1],
    }[orientation]
    assert np.array_equal(np.asarray(read.image), expected)
    assert read.turned == (orientation > 1) and not read.transparent


def test_a_picture_counts_once_and_hidden_files_do_not(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/c.png", ".hidden/d.png", "._a.jpg", "words.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_pictures([tmp_path / "sub" / "c.png", tmp_path, tmp_path / "b.png"])
    assert [str(picture.path.relative_to(tmp_path)) for picture in found] == ["sub/c.png", "a.JPG", "b.png"]


class _BrightPart(Detector):
    """Finds the bright rectangle in a tensor, in pixels of the tensor."""

    package = "a test"

    def num_classes(self, network: nn.Module) -> int:
        return 2

    def losses(self, network: nn.Module, inputs: Any, targets: Sequence[Target]) -> dict[str, Tensor]:
        raise NotImplementedError  # nothing is trained here

    def found(self, network: nn.Module, inputs: Any) -> list[Found]:
        entries = []
        for image in inputs:
            rows, columns = torch.nonzero(image[0] > 0.9, as_tuple=True)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            boxes = torch.tensor([[float(side) for side in box], [0.0, 0.0, 9999.0, 9999.0], [0.0, 0.0, 9.0, 9.0]])
            entries.append({"boxes": boxes, "labels": torch.tensor([1, 0, 0]), "scores": torch.tensor([0.6, 0.8, 0.4])})
        return entries


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (77, 500)])
def test_boxes_are_in_pixels_of_the_picture_though_it_was_filled_up(size: tuple[int, int]) -> None:
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[height // 4 : height // 2, width // 5 : width // 2] = 255
    preprocessing = Preprocessing((3, 320, 320), (0.0,) * 3, (1.0,) * 3, boxes=BoxPreparation())
    prepared, inner = picture_transform(preprocessing, "detection")(Image.fromarray(pixels))
    assert prepared.shape == (3, 320, 320) and max(inner) == 320
    (answer,) = Objects(2, _BrightPart(), 0.5).answers(nn.Identity(), prepared[None], [Frame(size, inner)])
    assert isinstance(answer, Boxes)
    assert answer.numbers.tolist() == [0, 1], "the surest first, and none below the least score"
    assert answer.boxes[0].tolist() == [0, 0, width, height], "cut to the picture"
    expected = [width // 5, height // 4, width // 2, height // 2]
    assert answer.boxes[1].tolist() == pytest.approx(expected, abs=2 * max(size) / 320)


def test_masks_are_enlarged_by_the_nearest_pixel() -> None:
    scores = torch.zeros(1, 3, 4, 4)
    scores[0, 2, :, :2] = 5.0
    scores[0, 0, :, 2:] = 5.0
    (answer,) = Masks(3).answers(nn.Identity(), scores, [Frame((9, 20), (4, 4))])
    assert isinstance(answer, Mask)
    assert answer.classes.shape == (9, 20)
    assert set(np.unique(answer.classes)) == {0, 2}, "nothing between two classes is one"
    assert answer.shares() == {0: 0.5, 2: 0.5}


def test_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match="not numbers"):
        Classes(3, 2).answers(nn.Identity(), torch.tensor([[1.0, float("nan"), 0.0]]), [])
    scores = torch.tensor([[1.0, float("-inf"), 0.0]])
    (answer,) = Classes(3, 2).answers(nn.Identity(), scores, [])
    assert isinstance(answer, BestClasses) and answer.numbers == (0, 2)


def _boxes(*rows: tuple[list[float], int]) -> Boxes:
    boxes = torch.tensor([box for box, _ in rows]).reshape(-1, 4)
    return Boxes(boxes, torch.tensor([number for _, number in rows]), torch.ones(len(rows)))


def test_the_same_objects_are_found_in_any_order() -> None:
    first = _boxes(([0, 0, 10, 10], 1), ([20, 20, 40, 40], 1))
    assert first.likeness(_boxes(([21, 20, 40, 41], 1), ([0, 1, 10, 10], 1))).agree
    assert not first.likeness(_boxes(([21, 20, 40, 41], 1), ([0, 1, 10, 10], 2))).agree, "another class"
    assert not first.likeness(_boxes(([0, 0, 10, 10], 1), ([0, 1, 10, 10], 1))).agree, "one of them twice"
    assert not first.likeness(_boxes(([0, 0, 10, 10], 1))).agree
    assert _boxes().likeness(_boxes()).agree


def test_masks_agree_pixel_by_pixel() -> None:
    first, second = np.zeros((2, 4), np.uint16), np.zeros((2, 4), np.uint16)
    second[0, 0] = 1
    likeness = Mask(first).likeness(Mask(second))
    assert likeness.share == 7 / 8 and not likeness.agree


def test_no_two_pictures_go_to_one_file(tmp_path: Path) -> None:
    names = ("a.jpg", "A.png", "a.bmp", "sub/a.jpg")
    pictures = [Picture(tmp_path / str(i) / name, Path(name)) for i, name in enumerate(names)]
    paths = picture_paths(pictures, tmp_path / "out", replace=False)
    assert [str(path.relative_to(tmp_path / "out")) for path in paths] == ["a.png", "A-2.png", "a-3.png", "sub/a.png"]


def test_an_overlay_is_coloured_where_its_class_is(tmp_path: Path) -> None:
    classes = np.zeros((400, 400), np.uint16)
    classes[:, 200:] = 1
    image = Image.new("RGB", (400, 400), (128, 128, 128))
    write_picture(tmp_path / "mask.png", image, [Mask(classes)], ["network"], ["left", "right"])
    drawn = np.asarray(Image.open(tmp_path / "mask.png")).astype(int)
    assert drawn.shape[1] == 400 and drawn.shape[0] > 400
    left, right = drawn[:400, :200].reshape(-1, 3), drawn[:400, 200:].reshape(-1, 3)
    assert (left == left[0]).all() and (right == right[0]).all()
    assert abs(left[0] - right[0]).max() > 40


def test_a_value_may_be_left_out_before_an_option_and_at_the_end() -> None:
    optional = {"--beside": "parent"}
    assert _completed(["a", "--beside"], optional) == ["a", "--beside", "parent"]
    assert _completed(["--beside", "--json"], optional) == ["--beside", "parent", "--json"]
    assert _completed(["--beside", "file", "b"], optional) == ["--beside", "file", "b"]
    assert _completed(["--beside=file"], optional) == ["--beside=file"]
