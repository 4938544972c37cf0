"""A data set given as a path alone: what it is taken for, and that it can then be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunecli.data.catalog import load_data
from prunecli.data.naming import named_data
from prunecli.errors import DataError
from prunecli.recipe.resolve import load_plan
from tests.unit.box_folders import scenes, write_coco, write_voc, write_yolo


def _images(*files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), 1).save(file)


def _masks(images: str, masks: str, classes: int = 3) -> None:
    _images(*(f"{folder}/{number}.png" for folder in (images, masks) for number in range(10)))
    for number in range(10):
        Image.fromarray((np.arange(256) % classes).astype(np.uint8).reshape(16, 16)).save(f"{masks}/{number}.png")


def _write(text: str, *files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text)


def _recordings(*files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, t=np.arange(9), x=np.arange(9), y=np.arange(9), p=np.arange(9) % 2)


LAYOUTS = (write_coco, write_yolo, write_voc)
_READ: list[tuple[str, Callable[[], object]]] = [
    ("folder", lambda: _images("d/cat/a.png", "d/dog/b.JPG")),
    ("folder", lambda: _images(*(f"d/{part}/{kind}/a.png" for part in ("train", "val") for kind in "ab"))),
    ("folder", lambda: (_images("d/cat/a.png", "d/dog/b.png"), _write("{}", "d/classes.json", "d/README.txt"))),
    ("images", lambda: _images("d/a.png", "d/b.png")),
    ("segmentation", lambda: _masks("d/images", "d/masks")),
    ("segmentation", lambda: _masks("d/img", "d/labels")),
    ("segmentation", lambda: [_masks(f"d/{part}", f"d/{part}annot", 11) for part in ("train", "val")]),
    ("segmentation", lambda: [_masks(f"d/images/{p}", f"d/annotations/{p}", 151) for p in ("training", "validation")]),
    *(("detection", lambda w=write: w(Path("d"), {"train": scenes(4), "val": scenes(2, 1)})) for write in LAYOUTS),
    ("events", lambda: _recordings(*(f"d/{kind}/{number}.npz" for kind in "ab" for number in range(3)))),
    ("text", lambda: _write("some text, " * 200, *(f"d/wiki.{part}.tokens" for part in ("train", "valid", "test")))),
]


@pytest.mark.parametrize(("kind", "make"), _READ, ids=[f"{i}-{kind}" for i, (kind, _) in enumerate(_READ)])
def test_what_lies_there(
    kind: str, make: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make()
    assert named_data("./d") == f"{kind}:./d" and named_data("d") == f"{kind}:d"
    assert load_data(named_data("./d"), tmp_path).name == f"{kind}:./d"


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.csv", "c.parquet", "my text.TXT"):
        _write("text", name)
        assert named_data(name) == f"text:{name}"
    assert named_data("nothing") == "nothing"


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (lambda: Path("d").mkdir(), "d", "d: is an empty folder"),
        (lambda: _write("{}", "d/config.json"), "d", "the folder of a network, which is named as MODEL: hf:d"),
        (lambda: Path("d/cifar-10-batches-py").mkdir(parents=True), "d", "write cifar10, with --data-root d"),
        (lambda: Path("d/MNIST/raw").mkdir(parents=True), "d/MNIST", "write mnist, with --data-root "),
        (lambda: _write("", "d.zip"), "d.zip", "is packed; unpack it"),
        (lambda: _write("", "e/d.tar"), "e/d.tar", "write wds:e"),
        (lambda: _images("e/d.png"), "e/d.png", "is one image; give the folder, as images:e"),
        (lambda: _write("", "e/coco.json"), "e/coco.json", "give their folder, as detection:e"),
        (lambda: _write("", "d.h5"), "d.h5", "no kind of data set is a .h5 file"),
        (
            lambda: (_masks("d/JPEGImages", "d/SegmentationClass"), _write("<a/>", "d/Annotations/a.xml")),
            "d",
            "write segmentation:d (images with masks) or detection:d (images with boxes)",
        ),
        (
            lambda: (_images("d/cat/a.png"), _write("", "d/0.tar")),
            "d",
            "write wds:d (tar files) or folder:d (one folder of images per class)",
        ),
    ],
)
def test_what_is_none_or_several(
    make: Callable[[], object], name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make()
    with pytest.raises(DataError) as raised:
        named_data(name)
    assert message in str(raised.value) and str(raised.value).startswith(f"{name}: ")


def test_names_and_prefixes_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is called like a data set is not looked at, and a plan has the whole name."""
    monkeypatch.chdir(tmp_path)
    _images("digits/a/b.png", "pictures/a/b.png")
    for name, whole in (("digits", "digits"), ("./digits", "folder:./digits"), ("pictures", "folder:pictures")):
        _write(f"data: {{name: {name}}}\nstages: [{{stage: eval}}]\n", "r.yaml")
        assert load_plan(Path("r.yaml")).recipe.data.name == whole
    _write("data: {name: r.yaml}\n", "r.yaml")
    with pytest.raises(DataError, match=r"^r.yaml:1:14: r.yaml: if it describes boxes"):
        load_plan(Path("r.yaml"))
