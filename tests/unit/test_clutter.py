"""Cluttered MNIST: what is drawn, and that it is always the same."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from prunecli.data.catalog import load_data
from prunecli.data.clutter import ClutterSplit
from prunecli.data.loader import evaluation_batches
from prunecli.data.preparation import Preprocessing
from prunecli.data.splits import ArraySplit, DataSet, hold_out
from prunecli.errors import DataError


@pytest.fixture(scope="module")
def cluttered(data_root: Path) -> DataSet:
    return load_data("cluttered-mnist", data_root)


@pytest.fixture(scope="module")
def mnist(data_root: Path) -> DataSet:
    return load_data("mnist", data_root)


def _canvas(split: object, index: int) -> np.ndarray:
    assert isinstance(split, ClutterSplit)
    return np.asarray(split.image(index))


def _places_of(pattern: np.ndarray, canvas: np.ndarray) -> list[tuple[int, int]]:
    """Where nothing of `pattern` is darker on the canvas, and something as bright."""
    windows = np.lib.stride_tricks.sliding_window_view(canvas, pattern.shape)
    fits = (windows >= pattern).all(axis=(2, 3))
    return [(int(top), int(left)) for top, left in np.argwhere(fits)]


def test_it_is_described_as_it_is(cluttered: DataSet, mnist: DataSet) -> None:
    train = cluttered.training_split()
    assert (cluttered.name, cluttered.image_size, cluttered.channels, cluttered.flip) == (
        "cluttered-mnist", (48, 48), 1, False,
    )  # fmt: skip
    assert cluttered.class_names == mnist.class_names and (len(train.labels), len(cluttered.test.labels)) == (
        60000,
        10000,
    )
    assert np.array_equal(cluttered.test.labels, mnist.test.labels)


def test_canvases_never_change(cluttered: DataSet) -> None:
    digest = hashlib.sha256()
    for split in (cluttered.training_split(), cluttered.test):
        for index in (0, 1, 9999):
            digest.update(_canvas(split, index))
    assert digest.hexdigest()[:16] == "6b4769b1dd644a39"
    assert cluttered.training_split().fingerprint() == "31b2abd73af31687"
    assert cluttered.test.fingerprint() == "833054aab2060b1b"


def test_a_subset_and_a_held_out_part_look_the_same(cluttered: DataSet) -> None:
    chosen = np.array([7000, 3, 41])
    part = cluttered.test.subset(chosen)
    again = part.subset(np.array([2, 0]))
    assert np.array_equal(part.labels, cluttered.test.labels[chosen])
    for index, number in enumerate(chosen):
        assert np.array_equal(_canvas(part, index), _canvas(cluttered.test, int(number)))
    assert np.array_equal(_canvas(again, 0), _canvas(cluttered.test, 41))
    assert len({cluttered.test.fingerprint(), part.fingerprint(), again.fingerprint()}) == 3
    held = hold_out(cluttered, 0.1)
    assert isinstance(held.validation, ClutterSplit)
    number = int(held.validation.indices[5])
    assert np.array_equal(_canvas(held.validation, 5), _canvas(cluttered.train, number))


def test_each_digit_is_there_and_goes_anywhere(cluttered: DataSet, mnist: DataSet) -> None:
    assert isinstance(mnist.test, ArraySplit)
    tops, lefts = set(), set()
    for index in range(300):
        positions = _places_of(mnist.test.images[index], _canvas(cluttered.test, index))
        assert positions, f"digit {index} is not to be seen"
        if len(positions) == 1:
            tops.add(positions[0][0])
            lefts.add(positions[0][1])
    assert min(tops) <= 2 and max(tops) >= 18 and min(lefts) <= 2 and max(lefts) >= 18


def _drawn(digits: np.ndarray, number: int, part: str = "test") -> np.ndarray:
    return _canvas(ClutterSplit(part, digits, np.arange(len(digits)), np.zeros(len(digits), dtype=np.int64)), number)


def test_pieces_are_six_of_other_digits_cut_anywhere() -> None:
    numbers, areas, shades = set(), set(), set()
    for number in range(40):
        digits = np.arange(1, 201, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
        digits[number] = 0
        values, area = np.unique(_drawn(digits, number), return_counts=True)
        numbers.add(len(values) - 1)
        areas.add(area[1:].sum())
        shades |= set(values.tolist())
    assert max(numbers) == 6 and max(areas) == 6 * 64  # in most canvases some lie over one another
    assert min(shades - {0}) < 10 and max(shades) > 190
    rows = np.arange(1, 29, dtype=np.uint8)[None, :, None].repeat(100, 0).repeat(28, 2)
    for digits in (rows, rows.transpose(0, 2, 1).copy()):
        digits[:50] = 0
        assert {int(shade) for number in range(50) for shade in np.unique(_drawn(digits, number))} == set(range(29))


def test_a_digit_is_no_distractor_of_itself() -> None:
    two = np.stack([np.zeros((28, 28)), np.full((28, 28), 9)]).astype(np.uint8)
    assert np.count_nonzero(_drawn(two, 1)) == 28 * 28
    assert np.count_nonzero(_drawn(two, 0)) > 3 * 64


def test_brighter_pixels_win_and_parts_differ() -> None:
    digits = np.stack([np.full((28, 28), shade) for shade in (100, 200)]).astype(np.uint8)
    assert np.count_nonzero(_drawn(digits, 1) == 200) == 28 * 28  # some pieces of the darker one lie below it
    assert np.count_nonzero(_drawn(digits, 0) == 100) < 28 * 28
    assert not np.array_equal(_drawn(digits, 1, "test"), _drawn(digits, 1, "train"))


def test_statistics_are_those_of_the_canvases(cluttered: DataSet) -> None:
    train = cluttered.training_split()
    pixels = np.stack([_canvas(train, index) for index in range(0, 60000, 29)]) / 255  # its classes come in tens
    assert pixels.mean() == pytest.approx(cluttered.mean[0], abs=5e-4)
    assert pixels.std() == pytest.approx(cluttered.std[0], abs=1e-3)


def test_it_takes_little_more_memory_than_mnist_and_loads_in_processes(cluttered: DataSet) -> None:
    assert isinstance(cluttered.train, ClutterSplit)
    part = cluttered.train.subset(np.arange(5))
    assert np.shares_memory(part.digits, cluttered.train.digits)
    preprocessing = Preprocessing((1, 48, 48), cluttered.mean, cluttered.std)
    alone, shared = (next(iter(evaluation_batches(part, preprocessing, 5, workers))) for workers in (0, 1))
    assert alone[0].shape == (5, 1, 48, 48) and bool((alone[0] == shared[0]).all())


def _small_mnist(root: Path, images: np.ndarray) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind, array in (("images-idx3", images), ("labels-idx1", np.zeros(len(images), dtype=np.uint8))):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_what_cannot_be_cluttered_is_named(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    with pytest.raises(DataError, match=r"neither .*train-images-idx3-ubyte.* exists; add --download"):
        load_data("cluttered-mnist", tmp_path)
    _small_mnist(tmp_path, np.zeros(shape, dtype=np.uint8))
    size = f"{shape[1]}x{shape[2]}"
    with pytest.raises(DataError, match=rf"train part of MNIST has {shape[0]} images of {size}, expected at least 2"):
        load_data("cluttered-mnist", tmp_path)
