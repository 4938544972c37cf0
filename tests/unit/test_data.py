"""Data sets: every layout, every split, every mistake."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from prunecli.data.catalog import load_data
from prunecli.data.loader import CalibrationBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import hold_out
from prunecli.errors import DataError


def test_digits_need_no_download_and_never_change() -> None:
    data = hold_out(load_data("digits"), 0.1)
    assert data.train is not None and data.validation is not None
    assert (len(data.train.labels), len(data.validation.labels), len(data.test.labels)) == (1293, 144, 360)
    assert data.test.fingerprint() == "99ac20baf448e93e"
    assert set(np.bincount(data.validation.labels)) <= {14, 15}


def test_splits_do_not_overlap() -> None:
    whole = load_data("digits")
    data = hold_out(whole, 0.2)
    assert whole.train is not None and data.train is not None and data.validation is not None
    joined = np.concatenate([data.train.images, data.validation.images])  # type: ignore[attr-defined]
    assert len(joined) == len(whole.train.labels)
    assert sorted(i.tobytes() for i in joined) == sorted(i.tobytes() for i in whole.train.images)  # type: ignore[attr-defined]
    assert hold_out(whole, 0) is whole


def _cifar(root: Path, records: int = 4, name: str = "cifar-10-batches-bin") -> Path:
    folder = root / name
    folder.mkdir()
    pixels = np.arange(3072, dtype=np.uint8)
    for file in ("data_batch_2.bin", "test_batch.bin"):
        (folder / file).write_bytes(b"".join(bytes([label]) + pixels.tobytes() for label in range(records)))
    return folder


def test_cifar_subsets_of_the_binary_layout(tmp_path: Path) -> None:
    _cifar(tmp_path)
    data = load_data("cifar10", tmp_path)
    assert data.train is not None and data.train.labels.tolist() == [0, 1, 2, 3]
    image = np.asarray(data.test.image(1))
    assert image.shape == (32, 32, 3)
    assert image[0, 1].tolist() == [1, 1025 % 256, 2049 % 256]  # planes of red, green, blue, row by row


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for file in ("train.bin", "test.bin"):
        (folder / file).write_bytes(bytes([3, 77]) + bytes(3072))
    data = load_data("cifar100", tmp_path)
    assert data.num_classes == 100 and data.test.labels.tolist() == [77]


def test_a_cut_cifar_file_and_a_missing_one_are_named(tmp_path: Path) -> None:
    folder = _cifar(tmp_path)
    (folder / "test_batch.bin").write_bytes(bytes(100))
    with pytest.raises(DataError, match=r"test_batch.bin: 100 bytes is not a whole number of 3073-byte records"):
        load_data("cifar10", tmp_path)
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"test_batch.bin: not found"):
        load_data("cifar10", tmp_path)
    with pytest.raises(DataError, match="--download"):
        load_data("cifar10", tmp_path / "nowhere")


def test_test_images_are_used_without_the_training_files(tmp_path: Path) -> None:
    (_cifar(tmp_path) / "data_batch_2.bin").unlink()
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "t10k-images-idx3-ubyte").write_bytes(_idx(np.zeros((2, 28, 28), dtype=np.uint8)))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.array([4, 9], dtype=np.uint8)))
    for name, images, message in (
        ("cifar10", 4, r"data_batch_\*\.bin: not found"),
        ("mnist", 2, "neither .*train-images-idx3-ubyte.* exists"),
        ("cluttered-mnist", 2, "neither .*train-images-idx3-ubyte.* exists"),
    ):
        data = hold_out(load_data(name, tmp_path), 0.1)
        assert len(data.test.labels) == images and data.train is None and data.trainable
        with pytest.raises(DataError, match=message):
            data.training_split()


def test_test_images_of_torchvisions_layout_are_used_without_the_training_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    files = {"test_batch": {"data": np.zeros((3, 3072), dtype=np.uint8), "labels": [7, 8, 9]}}
    files |= {"batches.meta": {"label_names": [f"class {label}" for label in range(10)]}}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
    sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in files}
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]})
    data = load_data("cifar10", tmp_path)
    assert data.train is None and data.test.labels.tolist() == [7, 8, 9] and data.class_names[7] == "class 7"
    with pytest.raises(DataError, match=r"the training files of cifar10 are not in .*cifar-10-batches-py"):
        data.training_split()
    (folder / "test_batch").write_bytes(b"altered")
    with pytest.raises(DataError, match=r"cifar10 is not in .*; add --download"):
        load_data("cifar10", tmp_path)


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_mnist_reads_packed_and_plain_files(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(images)))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(_idx(np.array([4, 9], dtype=np.uint8)))
    data = load_data("mnist", tmp_path)
    assert data.test.labels.tolist() == [4, 9] and data.channels == 1
    assert np.array_equal(np.asarray(data.test.image(1)), images[1])
    (raw / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(images))[:40])
    with pytest.raises(DataError, match="damaged"):
        load_data("mnist", tmp_path)
    with pytest.raises(DataError, match=r"neither .* exists"):
        load_data("fashion-mnist", tmp_path)


def _images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        Image.new("RGB", (12, 10), (200, 10, 10)).save(folder / name)


def test_folders_with_and_without_splits(tmp_path: Path) -> None:
    _images(tmp_path / "a" / "train" / "cat", "1.png", "2.jpg")
    _images(tmp_path / "a" / "train" / "dog", "1.png")
    _images(tmp_path / "a" / "val" / "dog", "3.png")
    data = load_data(f"folder:{tmp_path / 'a'}")
    assert data.class_names == ("cat", "dog") and data.test.labels.tolist() == [1]
    assert data.training_split().labels.tolist() == [0, 0, 1]
    _images(tmp_path / "b" / "cat", "1.png")
    flat = load_data("folder:b", tmp_path)
    with pytest.raises(DataError, match="only a test split"):
        flat.training_split()
    batch = next(iter(evaluation_batches(flat.test, Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3), 2)))
    assert batch[0].shape == (1, 3, 8, 8)


def test_wordnet_folders_get_their_imagenet_classes(tmp_path: Path) -> None:
    _images(tmp_path / "n01440764", "1.png")
    _images(tmp_path / "n15075141", "1.png")
    data = load_data(f"folder:{tmp_path}")
    assert data.num_classes == 1000 and data.test.labels.tolist() == [0, 999]


def test_folder_mistakes_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no images"):
        load_data(f"folder:{tmp_path / 'empty'}")
    with pytest.raises(DataError, match="no such folder"):
        load_data(f"folder:{tmp_path / 'missing'}")
    _images(tmp_path / "c" / "train" / "cat", "1.png")
    with pytest.raises(DataError, match="has train/ but none of"):
        load_data(f"folder:{tmp_path / 'c'}")
    _images(tmp_path / "c" / "val" / "bird", "1.png")
    with pytest.raises(DataError, match="class folder 'bird' does not exist in train/"):
        load_data(f"folder:{tmp_path / 'c'}")
    _images(tmp_path / "d" / "cat")
    (tmp_path / "d" / "cat" / "x.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"x.png: not a readable image"):
        load_data(f"folder:{tmp_path / 'd'}").test.image(0)


@pytest.mark.parametrize("keys", [("x_{}", "y_{}"), ("{}_images", "{}_labels"), ("{}_x", "{}_y")])
def test_npz_spellings(tmp_path: Path, keys: tuple[str, str]) -> None:
    arrays = {}
    for part, images in (("train", 6), ("test", 3)):
        arrays[keys[0].format(part)] = np.zeros((images, 9, 7), dtype=np.uint8)
        arrays[keys[1].format(part)] = np.arange(images).reshape(-1, 1) % 3
    np.savez(tmp_path / "x.npz", **arrays)
    data = load_data(str(tmp_path / "x.npz"))
    assert (data.num_classes, data.image_size, data.channels) == (3, (9, 7), 1)
    assert len(data.training_split().labels) == 6


def test_npz_mistakes_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x_test=np.zeros((2, 4, 4)), y_test=np.zeros(2, dtype=int))
    with pytest.raises(DataError, match=r"x_test is float64\(2, 4, 4\)"):
        load_data(f"npz:{tmp_path / 'f.npz'}")
    np.savez(tmp_path / "o.npz", x_test=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"not a readable \.npz"):
        load_data(f"npz:{tmp_path / 'o.npz'}")
    np.savez(tmp_path / "k.npz", a=np.zeros(2))
    with pytest.raises(DataError, match="holds a; expected x_test"):
        load_data(f"npz:{tmp_path / 'k.npz'}")
    with pytest.raises(DataError, match="no such file"):
        load_data("missing.npz")


def test_unknown_sets_get_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'cifar10'"):
        load_data("cifar11")
    with pytest.raises(DataError, match="digits, cifar10"):
        load_data("xyz")


def test_calibration_images_come_from_the_training_split_alone_and_repeat() -> None:
    data = load_data("digits")
    preprocessing = Preprocessing((1, 8, 8), data.mean, data.std)
    first, again = (list(CalibrationBatches(data.training_split(), preprocessing, 40, 16, seed=3)) for _ in "ab")
    assert [len(batch) for batch in first] == [16, 16, 8]
    assert all(bool((a == b).all()) for a, b in zip(first, again, strict=True))


def test_training_batches_shuffle_by_seed_and_avoid_a_batch_of_one() -> None:
    data = load_data("digits")
    split = data.training_split().subset(np.arange(33))
    preprocessing = Preprocessing((1, 8, 8), data.mean, data.std)
    loader = training_batches(split, preprocessing, Augmentation(flip=False), 16, seed=1)
    assert [len(labels) for _, labels in loader] == [16, 16]
    again = training_batches(split, preprocessing, Augmentation(flip=False), 16, seed=1)
    first, second = (
        next(iter(again))[1],
        next(iter(training_batches(split, preprocessing, Augmentation(), 16, seed=2)))[1],
    )
    assert first.tolist() != second.tolist()
