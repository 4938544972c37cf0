"""Batches: an epoch is the same whoever loads it and wherever it is entered, and loading disturbs no random numbers."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prunecli.data.label_map import LabelMap
from prunecli.data.loader import CalibrationBatches, TrainingBatches, evaluation_batches, training_batches
from prunecli.data.masks import MaskSplit
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import ArraySplit, FileSplit, SampleSplit
from prunecli.data.workers import workers_for
from prunecli.errors import DataError
from prunecli.inputs import sample_count
from prunecli.measure.cores import usable_cores

PREPROCESSING = Preprocessing((3, 16, 16), (0.5,) * 3, (0.25,) * 3)
EVERYTHING = Augmentation(flip=True, auto_augment="rand-m9-mstd0.5", color_jitter=0.4, random_erasing=0.5)
Batch = tuple[Tensor, Tensor]


@pytest.fixture(params=["images", "masks"])
def split(request: pytest.FixtureRequest, tmp_path: Path) -> ArraySplit | MaskSplit:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, size=(22, 16, 16, 3), dtype=np.uint8)
    if request.param == "images":
        return ArraySplit(pixels, np.arange(22))
    images, masks = [], []
    for index, image in enumerate(pixels):
        images.append(tmp_path / f"{index}.png")
        masks.append(tmp_path / f"{index}_mask.png")
        Image.fromarray(image).save(images[-1])
        Image.fromarray(generator.integers(0, 3, size=(16, 16), dtype=np.uint8)).save(masks[-1])
    labels = LabelMap(("0", "1", "2"), np.arange(3), np.arange(3, dtype=np.int16))
    return MaskSplit(tuple(images), tuple(masks), labels)


def _training(split: ArraySplit | MaskSplit, workers: int = 0, seed: int = 5, size: int = 4) -> TrainingBatches:
    return training_batches(split, PREPROCESSING, EVERYTHING, size, seed=seed, workers=workers)


def _equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_load_what_the_main_process_loads(split: ArraySplit | MaskSplit, workers: int) -> None:
    alone, together = _training(split), _training(split, workers)
    epochs = [list(alone.epoch(number)) for number in (1, 2)]
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert not _equal(*epochs)
    for number, expected in enumerate(epochs, start=1):  # the processes live on from one to the next
        assert _equal(list(together.epoch(number)), expected)
    assert _equal(list(together.epoch(1, 3)), epochs[0][3:])


def test_an_epoch_entered_in_the_middle_is_the_rest_of_it(split: ArraySplit | MaskSplit) -> None:
    whole = list(_training(split).epoch(7))
    assert [len(labels) for _, labels in whole] == [4, 4, 4, 4, 4, 2]
    for first in range(len(whole) + 1):
        assert _equal(list(_training(split).epoch(7, first)), whole[first:])


def test_batches_before_the_first_are_not_loaded(split: ArraySplit | MaskSplit) -> None:
    opened: list[int] = []
    read = type(split).image

    class Watched(type(split)):  # type: ignore[misc]
        def image(self, index: int) -> Image.Image:
            opened.append(index)
            return read(self, index)

    assert len(list(_training(Watched(**vars(split))).epoch(1, 4))) == 2
    assert len(opened) == 6


def test_iterating_gives_the_next_epoch_even_if_the_last_was_left(split: ArraySplit | MaskSplit) -> None:
    batches, reference = _training(split, workers=2), _training(split)
    left: Iterator[Batch] = iter(batches)
    next(left)
    assert batches.position == 1
    assert _equal(list(batches), list(reference.epoch(2)))
    assert batches.position == len(batches) == 6
    assert _equal(list(batches), list(reference.epoch(3)))


def test_other_seeds_and_epochs_are_other_orders(split: ArraySplit | MaskSplit) -> None:
    images = [torch.cat([x for x, _ in _training(split, seed=seed).epoch(n)]) for seed, n in ((1, 1), (1, 2), (2, 1))]
    assert not any(torch.equal(a, b) for a, b in zip(images, [*images[1:], images[0]], strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_generators_alone(split: ArraySplit | MaskSplit, workers: int) -> None:
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
    for _ in _training(split, workers):
        pass
    for _ in evaluation_batches(split, PREPROCESSING, 4, workers):
        pass
    for _ in CalibrationBatches(split, PREPROCESSING, 8, 4, seed=0):
        pass
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # type: ignore[union-attr]
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])


@pytest.mark.parametrize(("images", "size", "counts"), [(22, 7, [7, 7, 7]), (1, 7, [1]), (3, 1, [1, 1, 1])])
def test_a_last_batch_of_one_is_left_out(images: int, size: int, counts: list[int]) -> None:
    split = ArraySplit(np.zeros((images, 16, 16, 3), dtype=np.uint8), np.arange(images))
    batches = training_batches(split, PREPROCESSING, EVERYTHING, size, seed=0)
    epochs = [[labels for _, labels in batches] for _ in range(30)]
    assert all([len(labels) for labels in epoch] == counts for epoch in epochs) and len(batches) == len(counts)
    assert set(torch.cat([labels for epoch in epochs for labels in epoch]).tolist()) == set(range(images))


class Sentences:
    """A split whose samples are mappings, tuples or lists."""

    def __init__(self, kind: str, indices: NDArray[np.int64]) -> None:
        self._kind, self._indices, self.labels = kind, indices, indices % 3

    def sample(self, index: int) -> Any:
        number = int(self._indices[index])
        ids, mask = torch.full((5,), number), torch.ones(5, dtype=torch.bool)
        if self._kind == "mapping":
            return {"input_ids": ids, "attention_mask": mask}
        return (ids, mask) if self._kind == "tuple" else [torch.full((3, 4, 4 + number), float(number))]

    def subset(self, indices: NDArray[np.int64]) -> Sentences:
        return Sentences(self._kind, self._indices[indices])

    def fingerprint(self) -> str:
        return f"{self._kind} {self._indices.tolist()}"


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ["mapping", "tuple", "list"])
def test_samples_that_are_not_images(kind: str, workers: int) -> None:
    split = Sentences(kind, np.arange(7))
    assert isinstance(split, SampleSplit)
    batches = list(evaluation_batches(split, PREPROCESSING, 3, workers))
    assert [sample_count(inputs) for inputs, _ in batches] == [len(labels) for _, labels in batches] == [3, 3, 1]
    inputs, labels = batches[1]
    assert labels.tolist() == [0, 1, 2]
    if kind == "list":
        assert [image.shape[-1] for image in inputs] == [7, 8, 9]
    else:
        ids, mask = inputs.values() if kind == "mapping" else inputs
        assert type(inputs) is (dict if kind == "mapping" else tuple)
        assert ids[:, 0].tolist() == [3, 4, 5] and mask.shape == (3, 5)
    epoch = list(training_batches(split, PREPROCESSING, Augmentation(), 3, seed=1, workers=workers))
    assert [len(labels) for _, labels in epoch] == [3, 3]  # a last batch of one sample is left out
    calibration = CalibrationBatches(split, PREPROCESSING, 4, 2, seed=0)
    assert [sample_count(inputs) for inputs in calibration] == [2, 2]
    with pytest.raises(DataError, match="the samples of this data set are taken as they are"):
        training_batches(split, PREPROCESSING, EVERYTHING, 3, seed=1)


def test_workers_are_for_many_samples_in_files(tmp_path: Path) -> None:
    labels = np.zeros(200, dtype=np.int64)
    files = FileSplit(tmp_path, tuple(f"{index}.png" for index in range(200)), labels)
    arrays = ArraySplit(np.zeros((200, 16, 16, 3), dtype=np.uint8), labels)
    spare = min(usable_cores() - 1, 4)
    assert usable_cores() <= len(os.sched_getaffinity(0))
    assert workers_for(files, PREPROCESSING, 8, None) == spare
    assert workers_for(files.subset(np.arange(100)), PREPROCESSING, 8, None) == 0
    assert workers_for(arrays, PREPROCESSING, 8, None) == 0
    assert workers_for(arrays, PREPROCESSING, 8, 3) == 3 and workers_for(files, PREPROCESSING, 8, 0) == 0
    huge = Preprocessing((3, 40_000, 40_000), (0.5,) * 3, (0.5,) * 3)  # 2 TB a batch, for which no machine has room
    assert workers_for(files, huge, 100, None) == 0


def test_a_process_that_is_bound_to_one_core_has_none_to_spare(tmp_path: Path) -> None:
    files = FileSplit(tmp_path, tuple(map(str, range(200))), np.zeros(200, dtype=np.int64))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cores() == 1 and workers_for(files, PREPROCESSING, 8, None) == 0
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("name", "text", "cores"),
    [("cpu.max", "50000 100000", 1), ("cpu.max", "max 100000", None), ("cpu.cfs_quota_us", "100000", 1)],
)
def test_a_container_may_have_less_time_than_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, cores: int | None
) -> None:
    everything = usable_cores()
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/box\n" if name == "cpu.max" else "3:cpu,cpuacct:/box\n")
    folder = tmp_path / "box" if name == "cpu.max" else tmp_path / "cpu" / "box"
    folder.mkdir(parents=True)
    (folder / name).write_text(text + "\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr("prunecli.measure.free_memory._PROC", tmp_path)
    monkeypatch.setattr("prunecli.measure.free_memory._CGROUPS", tmp_path)
    assert usable_cores() == (everything if cores is None else cores)
