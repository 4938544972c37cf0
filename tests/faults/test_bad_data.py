"""Damaged data: what cannot be read is named and may be left out, and nothing hangs or unpacks to any size."""

from __future__ import annotations

import gzip
import multiprocessing
import os
import signal
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from prunecli.data.catalog import load_data
from prunecli.data.images import BadImages, read_image
from prunecli.data.loader import Batches, evaluation_batches, training_batches
from prunecli.data.masks import MaskSplit
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import FileSplit, Split, hold_out
from prunecli.engine.evaluate import evaluate
from prunecli.engine.resources import as_resource_error, resource_errors
from prunecli.engine.tasks.classification import Accuracy
from prunecli.errors import DataError, ResourceError
from tests.processes import Processes

PREPROCESSING = Preprocessing((3, 16, 16), (0.5,) * 3, (0.25,) * 3)
CPU = torch.device("cpu")


def _jpeg(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    generator = np.random.default_rng(len(path.name))
    Image.fromarray(generator.integers(0, 256, size=(*size, 3), dtype=np.uint8)).save(path)


def _truncated(path: Path) -> None:
    _jpeg(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bomb(path: Path, side: int = 20_000) -> None:
    """A sound PNG header of `side` x `side` pixels; only a kilobyte follows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def _postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut.jpg": (_truncated, "truncated"),
    "cut.png": (_truncated, "truncated"),
    "text.jpg": (lambda path: path.write_text("no picture"), "its content is not JPEG, PNG, .* or GIF"),
    "nothing.jpg": (lambda path: path.touch(), "the file is empty"),
    "bomb.png": (_bomb, "it has more than 89,478,485 pixels"),
    "large.png": (lambda path: _bomb(path, 10_000), "it has more than 89,478,485 pixels"),  # Pillow would only warn
    "pipe.jpg": (os.mkfifo, "not a regular file"),
    "link.jpg": (lambda path: path.symlink_to("nowhere.jpg"), "a link to a file that does not exist"),
    "device.jpg": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "program.jpg": (_postscript, "its content is not"),  # Pillow would start Ghostscript
}


@pytest.fixture(scope="module", autouse=True)
def _frequent_checks() -> Iterator[None]:
    """torch would look after the processes that load images only every five seconds."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.5,))
        patched.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of two classes, twelve for training and six for evaluation."""
    for part, count in (("train", 6), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for place in range(count):
                _jpeg(tmp_path / part / name / f"{place}.jpg")
    return tmp_path


def _test_split(folder: Path) -> Split:
    return load_data(f"folder:{folder}").test


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_and_may_be_left_out(folder: Path, name: str, workers: int) -> None:
    make, reason = BAD[name]
    place = folder / "val" / "cat" / name
    make(place)
    split = _test_split(folder)
    assert len(split.labels) == 7 and split.fingerprint()
    with pytest.raises(DataError, match=rf"^{place}: not a readable image \([^\n]*{reason}[^\n]*--skip-bad 1$"):
        list(evaluation_batches(split, PREPROCESSING, 4, workers))
    bad = BadImages(1)
    batches = evaluation_batches(split, PREPROCESSING, 4, workers, bad=bad)
    assert sum(len(labels) for _, labels in batches) == 6
    assert sum(len(labels) for _, labels in batches) == 6  # it counts once, however often it is met
    assert list(bad.left_out) == [str(place)]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_more_than_allowed_stops_with_the_count(folder: Path, workers: int) -> None:
    for name in ("a", "b", "c"):
        (folder / "val" / "cat" / f"{name}.jpg").write_text("no picture")
    bad = BadImages(2)
    with pytest.raises(DataError, match=r"c\.jpg: not .*, the 3rd of them where --skip-bad allows 2; [^\n]*$"):
        list(evaluation_batches(_test_split(folder), PREPROCESSING, 1, workers, bad=bad))
    assert [Path(path).name for path in bad.left_out] == ["a.jpg", "b.jpg"]
    assert len(list(evaluation_batches(_test_split(folder), PREPROCESSING, 1, workers, bad=BadImages(3)))) == 6


def test_the_count_is_over_all_splits(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "dog" / "x.jpg").touch()
    data = hold_out(load_data(f"folder:{folder}"), 0)
    bad = BadImages(1)
    list(training_batches(data.training_split(), PREPROCESSING, Augmentation(), 4, seed=0, bad=bad))
    assert len(bad) == 1
    with pytest.raises(DataError, match="the 2nd of them"):
        list(evaluation_batches(data.test, PREPROCESSING, 4, bad=bad))


def test_figures_count_the_images_that_were_read(folder: Path) -> None:
    (folder / "val" / "cat" / "0.jpg").write_bytes(b"")
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 6))
    split = _test_split(folder)
    figures = evaluate(model, evaluation_batches(split, PREPROCESSING, 2, bad=BadImages(1)), CPU)
    sound = FileSplit(split.root, split.files[1:], split.labels[1:])  # type: ignore[attr-defined]
    expected = evaluate(model, evaluation_batches(sound, PREPROCESSING, 2), CPU)
    assert isinstance(figures, Accuracy) and isinstance(expected, Accuracy)
    assert (figures.top1, figures.top5, figures.images) == (expected.top1, expected.top5, 5)
    assert figures.loss == pytest.approx(expected.loss)
    for file in (folder / "val").rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="none could be read"):
        evaluate(model, evaluation_batches(split, PREPROCESSING, 2, bad=BadImages(6)), CPU)


def test_a_training_batch_of_which_one_image_is_left_is_passed_over(folder: Path) -> None:
    for place in range(5):
        (folder / "train" / "dog" / f"{place}.jpg").write_bytes(b"")
    split = load_data(f"folder:{folder}").training_split()
    batches = training_batches(split, PREPROCESSING, Augmentation(), 2, seed=0, bad=BadImages(5))
    seen = []
    for number in range(1, 9):
        for images, labels in batches.epoch(number):
            assert len(images) == len(labels) == 2
            seen.append(batches.position)
    assert len(seen) < 8 * len(batches) and set(seen) == set(range(1, 7))


def test_a_bad_mask_leaves_its_image_out(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for place in range(10):
        _jpeg(tmp_path / "images" / f"{place}.png")
        Image.fromarray(np.full((40, 30), place % 3, dtype=np.uint8)).save(tmp_path / "masks" / f"{place}.png")
    (tmp_path / "masks" / "3.png").write_bytes(b"")
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    data = load_data(f"segmentation:{tmp_path}")
    bad = BadImages(2)
    batches = [
        *training_batches(data.training_split(), PREPROCESSING, Augmentation(), 4, seed=0, bad=bad),
        *evaluation_batches(data.test, PREPROCESSING, 4, bad=bad),
    ]
    assert sum(len(masks) for _, masks in batches) == 8
    assert {Path(path).relative_to(tmp_path).as_posix() for path in bad.left_out} == {"masks/3.png", "images/0.png"}


def test_a_wrong_number_in_a_mask_is_never_left_out(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for place in range(10):
        _jpeg(tmp_path / "images" / f"{place}.png")
        Image.fromarray(np.full((40, 30), place, dtype=np.uint8)).save(tmp_path / "masks" / f"{place}.png")
    (tmp_path / "classes.txt").write_text("one\ntwo\n")
    with pytest.raises(DataError, match="not one of 2 classes"):
        load_data(f"segmentation:{tmp_path}")
    for mask in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((40, 30), int(mask.stem) % 2, dtype=np.uint8)).save(mask)
    data = load_data(f"segmentation:{tmp_path}")
    assert isinstance(data.test, MaskSplit)
    Image.fromarray(np.full((40, 30), 7, dtype=np.uint8)).save(data.test.masks[0])  # after the masks were looked at
    with pytest.raises(DataError, match="not one of 2 classes"):
        list(evaluation_batches(data.test, PREPROCESSING, 4, 1, bad=BadImages(9)))


def test_an_image_within_the_bound_is_read_whole(tmp_path: Path) -> None:
    Image.new("L", (9000, 9000)).save(tmp_path / "large.png")
    assert read_image(tmp_path / "large.png").size == (9000, 9000)


def _npy(shape: tuple[int, ...]) -> bytes:
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def test_arrays_that_announce_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x_test.npy", _npy((10**6, 1000, 1000)) + bytes(100))
        archive.writestr("y_test.npy", _npy((100,)) + bytes(100))
    with pytest.raises(DataError, match=r"x\.npz: .*x_test\.npy announces 1,000,000,000,000 bytes and has 228"):
        load_data(f"npz:{file}")


def test_arrays_larger_than_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_test.npy", _npy((30, 1000, 1000)) + bytes(3 * 10**7))
        archive.writestr("y_test.npy", _npy((30,)) + bytes(30))
        archive.writestr("unrelated.npy", b"no array, and not opened")
    assert file.stat().st_size < 10**5
    assert len(load_data(f"npz:{file}").test.labels) == 30
    monkeypatch.setattr("prunecli.data.npz.memory_bytes", lambda: 2 * 10**7)
    with pytest.raises(DataError, match=r"bomb\.npz: its data would take"):
        load_data(f"npz:{file}")


def test_a_packed_file_unpacks_to_what_its_header_says_and_no_further(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 1) + b"\0")
        head = b"\0\0\x08\x03" + struct.pack(">3I", 1, 28, 28)
        (raw / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(3 * 10**8), 1))
    start = time.perf_counter()
    with pytest.raises(DataError, match=r"idx3-ubyte\.gz: more bytes of data where its header announces \(1, 28, 28\)"):
        load_data("mnist", tmp_path)
    assert time.perf_counter() - start < 0.5  # unpacking it all takes several times that
    for size, message in ((2**31, "bytes of data where its header"), (2**32 - 1, "its data would take")):
        head = b"\0\0\x08\x03" + struct.pack(">3I", size // 2**10, 2**10, 1 if size == 2**31 else 2**20)
        (raw / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + bytes(100)))
        with pytest.raises(DataError, match=message):
            load_data("mnist", tmp_path)
    os.unlink(raw / "t10k-images-idx3-ubyte.gz")
    os.mkfifo(raw / "t10k-images-idx3-ubyte")
    with pytest.raises(DataError, match=r"neither .* exists"):
        load_data("mnist", tmp_path)


def test_lists_of_names_that_are_no_text_are_named(tmp_path: Path) -> None:
    binary = tmp_path / "cifar-10-batches-bin"
    binary.mkdir()
    for name in ("data_batch_1.bin", "test_batch.bin"):
        (binary / name).write_bytes(bytes(3073))
    (binary / "batches.meta.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"batches\.meta\.txt: not a readable text file"):
        load_data("cifar10", tmp_path)
    (binary / "batches.meta.txt").unlink()
    (binary / "data_batch_1.bin").unlink()
    os.mkfifo(binary / "data_batch_1.bin")
    with pytest.raises(DataError, match=r"data_batch_\*\.bin: not found"):
        load_data("cifar10", tmp_path).training_split()


def _slow_split(tmp_path: Path) -> FileSplit:
    for place in range(64):
        _jpeg(tmp_path / f"{place}.jpg", (500, 500))
    return FileSplit(tmp_path, tuple(f"{place}.jpg" for place in range(64)), np.zeros(64, dtype=np.int64))


def _loaders(split: FileSplit) -> dict[str, Batches]:
    return {
        "training": training_batches(split, PREPROCESSING, Augmentation(), 2, seed=0, workers=2),
        "evaluation": evaluation_batches(split, PREPROCESSING, 2, 2),
    }


@pytest.mark.parametrize(("kind", "count"), [("training", 1), ("training", 2), ("evaluation", 2)])
def test_killed_workers_end_with_one_line(tmp_path: Path, kind: str, count: int) -> None:
    others = set(multiprocessing.active_children())  # those of an earlier test may still be ending
    batches = iter(_loaders(_slow_split(tmp_path))[kind])
    next(batches)
    workers = [worker for worker in multiprocessing.active_children() if worker not in others]
    assert len(workers) == 2
    start = time.perf_counter()
    for worker in workers[:count]:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ResourceError, match=r"^a process that loads images has died[^\n]*--workers [^\n]*$"):
        for _ in batches:
            time.sleep(0.01)
    assert time.perf_counter() - start < 15


_EXHAUST = """
import resource, sys, torch
from torch import nn
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter
from prunecli.engine.evaluate import evaluate
torch.set_num_threads(1)
model = nn.Sequential(nn.Conv2d(3, 512, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
labels = torch.zeros(64, dtype=torch.long)
evaluate(model, [(torch.zeros(2, 3, 32, 32), labels[:2])], torch.device("cpu"))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
class Sized(list):
    batch_size = 64
try:
    evaluate(model, Sized([(torch.zeros(64, 3, 128, 128), labels)]), torch.device("cpu"))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_memory_that_runs_out_ends_with_one_line(processes: Processes, tmp_path: Path) -> None:
    done = processes.run((), tmp_path, code=_EXHAUST)
    assert done.out.startswith("ResourceError out of memory at batches of 64 images (2147483648 bytes more"), done.err
    assert "--batch-size" in done.out and done.out.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"), "(2.00 GiB more"),
        (RuntimeError("std::bad_alloc"), "out of memory"),
        (OSError(12, "Cannot allocate memory"), "out of memory"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "(pid 7, 8)"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It"), "(pid 7)"),
        (RuntimeError("unable to write to file </torch_1_2>: No space left on device (28)"), "/dev/shm"),
    ],
)
def test_every_way_to_run_out_is_known(error: Exception, words: str) -> None:
    found = as_resource_error(error, 8)
    assert found is not None and words in str(found) and "\n" not in str(found) and found.exit_code == 1


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 cannot be multiplied"), OSError(2, "No such file")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert as_resource_error(error) is None
    with pytest.raises(type(error)), resource_errors():
        raise error
