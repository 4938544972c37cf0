"""Images with boxes: the three layouts, what is refused, and that boxes stay where the objects are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunecli.data.box_layouts import part_named
from prunecli.data.boxes import BoxPreparation, BoxSplit, FileBoxSplit
from prunecli.data.catalog import load_data
from prunecli.data.images import BadImages
from prunecli.data.loader import evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import DataSet, hold_out
from prunecli.errors import DataError
from tests.unit.box_folders import CLASSES, WRITERS, Scene, scenes, write_coco, write_voc, write_yolo

PARTS = {"train": scenes(12), "val": scenes(5, seed=1)}


def _load(folder: Path) -> DataSet:
    return load_data(f"detection:{folder}")


def _objects(split: object) -> list[list[tuple[tuple[float, ...], int]]]:
    assert isinstance(split, BoxSplit)
    found = []
    for index in range(len(split.labels)):
        _, objects = split.annotated(index)
        rows = zip(objects.boxes.round(3).tolist(), objects.labels.tolist(), strict=True)
        found.append([(tuple(box), label) for box, label in rows])
    return found


@pytest.mark.parametrize("kind", WRITERS)
def test_every_layout_has_the_same_boxes(kind: str, tmp_path: Path) -> None:
    WRITERS[kind](tmp_path / "set", PARTS)
    data = _load(tmp_path / "set")
    assert (data.task, data.class_names, data.image_size) == ("detection", CLASSES, (48, 48))
    assert data.notes == (
        f"detection:{tmp_path / 'set'} is read as {kind}: images 12 train, 5 val; "
        f"{sum(len(s.boxes) for part in PARTS.values() for s in part)} boxes of 2 classes",
    )
    assert data.train is not None and data.validation is None
    for split, own in ((data.train, PARTS["train"]), (data.test, PARTS["val"])):
        assert _objects(split) == [[(tuple(map(float, box)), label) for box, label in s.boxes] for s in own]
    assert _objects(data.train)[0] == []  # an image without objects
    held = hold_out(data, 0.25)
    assert held.validation is not None and len(held.validation.labels) == 3


def test_a_fixed_fifth_is_for_tests_where_nothing_divides_the_images(tmp_path: Path) -> None:
    write_yolo(tmp_path / "a", {"": scenes(10)})
    data = _load(tmp_path / "a")
    assert data.train is not None and (len(data.train.labels), len(data.test.labels)) == (8, 2)
    assert _load(tmp_path / "a").test.fingerprint() == data.test.fingerprint()
    write_coco(tmp_path / "b", {"all": scenes(10)})
    assert len(_load(tmp_path / "b").test.labels) == 2


def test_roboflows_folders_are_read(tmp_path: Path) -> None:
    for part, own in {"train": scenes(4), "valid": scenes(3, seed=1)}.items():
        write_yolo(tmp_path / "x" / part, {"": own})
        (tmp_path / "x" / part / "data.yaml").rename(tmp_path / "x" / "data.yaml")
    (tmp_path / "x" / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\nnames: {0: disc, 1: square}\n"
    )
    data = _load(tmp_path / "x")
    assert len(data.test.labels) == 3 and data.class_names == CLASSES
    write_coco(tmp_path / "y", PARTS)
    for part in PARTS:
        (tmp_path / "y" / "annotations" / f"instances_{part}.json").rename(
            tmp_path / "y" / part / "_annotations.coco.json"
        )
    assert _objects(_load(tmp_path / "y").test) == _objects(load_data(f"detection:{_copy(tmp_path)}").test)


def _copy(tmp_path: Path) -> Path:
    write_coco(tmp_path / "z", PARTS)
    return tmp_path / "z"


def test_fingerprints_tell_boxes_classes_and_images_apart(tmp_path: Path) -> None:
    def fingerprint(name: str, own: list[Scene], classes: str = "") -> str:
        write_yolo(tmp_path / name, {"train": own, "val": scenes(2)})
        if classes:
            (tmp_path / name / "data.yaml").write_text(f"names: {classes}")
        train = _load(tmp_path / name).train
        assert train is not None
        return train.fingerprint()

    own = scenes(4)
    (left, top, right, bottom), label = own[1].boxes[0]
    moved = Scene(own[1].name, own[1].size, (((left, top, right - 1, bottom), label), *own[1].boxes[1:]))
    other = Scene(own[1].name, own[1].size, (((left, top, right, bottom), 1 - label), *own[1].boxes[1:]))
    found = [
        fingerprint("a", own),
        fingerprint("b", [own[0], moved, *own[2:]]),
        fingerprint("c", [own[0], other, *own[2:]]),
        fingerprint("d", own[:3]),
        fingerprint("e", own, "[square, disc]"),
    ]
    assert len(set(found)) == 5 and fingerprint("f", own) == found[0]


def _bounds(image: torch.Tensor, label: int) -> tuple[float, float, float, float] | None:
    """Of the bright pixels of a class."""
    rows, columns = (image[label] > 0.5).nonzero(as_tuple=True)
    if len(rows) == 0:
        return None
    return tuple(map(float, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)))  # type: ignore[return-value]


@pytest.mark.parametrize("size", [(48, 48), (96, 96), (40, 80)])
@pytest.mark.parametrize("augmented", [False, True])
def test_boxes_stay_where_the_objects_are(size: tuple[int, int], augmented: bool, tmp_path: Path) -> None:
    own = [Scene(f"i{n}", (30 + n, 50), (((5 + n, 4, 20 + n, 14), n % 2),)) for n in range(16)]
    write_yolo(tmp_path, {"train": own, "val": own[:2]})
    train = _load(tmp_path).train
    assert isinstance(train, FileBoxSplit)
    plain = Preprocessing((3, *size), (0.0,) * 3, (1.0,) * 3)
    batches = (
        training_batches(train, plain, Augmentation(flip=True), 8, seed=1)
        if augmented
        else evaluation_batches(train, plain, 8)
    )
    seen_objects = cut = 0
    for images, targets in batches:
        assert images.shape[1:] == (3, *size) and len(images) == len(targets)
        for image, target in zip(images, targets, strict=True):
            if not len(target["boxes"]):
                cut += 1
                continue
            box, label = target["boxes"][0], int(target["labels"][0])
            seen = _bounds(image, label)  # what was added is grey, not bright
            assert seen is not None and _bounds(image, 1 - label) is None
            assert torch.allclose(torch.tensor(seen), box, atol=1.2), (seen, box)
            assert (box[2:] > box[:2]).all() and box.min() >= 0 and (box <= torch.tensor([size[1], size[0]] * 2)).all()
            seen_objects += 1
    assert seen_objects + cut == 16 and (cut < 8 if augmented else cut == 0)


def test_images_keep_their_aspect_and_say_what_was_added(tmp_path: Path) -> None:
    own = [Scene("a", (20, 40), (((0, 0, 40, 20), 0),)), Scene("b", (40, 20), (((0, 0, 20, 40), 1),))]
    write_voc(tmp_path, {"train": own, "val": own})
    test = _load(tmp_path).test
    (images, targets), *_ = evaluation_batches(test, Preprocessing((3, 64, 64), (0.0,) * 3, (1.0,) * 3), 2)
    assert [t["size"].tolist() for t in targets] == [[32, 64], [64, 32]]
    assert [t["boxes"].tolist() for t in targets] == [[[0, 0, 64, 32]], [[0, 0, 32, 64]]]
    assert images[0, 0, :31].mean() > 0.99 and torch.allclose(images[0, :, 33:], torch.tensor(114 / 255))
    listed = Preprocessing((3, 64, 64), (0.0,) * 3, (1.0,) * 3, boxes=BoxPreparation(listed=True, own_sizes=True))
    (images, targets), *_ = evaluation_batches(test, listed, 2)
    assert [tuple(image.shape) for image in images] == [(3, 20, 40), (3, 40, 20)]
    assert [t["size"].tolist() for t in targets] == [[20, 40], [40, 20]]


def test_augmentation_depends_on_the_seed_and_the_epoch_alone(tmp_path: Path) -> None:
    write_coco(tmp_path, PARTS)
    train = _load(tmp_path).train
    assert train is not None
    plain = Preprocessing((3, 48, 48), (0.0,) * 3, (1.0,) * 3)

    def boxes(seed: int, epoch: int, workers: int = 0) -> list[list[list[float]]]:
        batches = training_batches(train, plain, Augmentation(), 4, seed=seed, workers=workers)
        return [t["boxes"].tolist() for _, targets in batches.epoch(epoch) for t in targets]

    assert boxes(0, 1) == boxes(0, 1) == boxes(0, 1, workers=2)
    assert boxes(0, 1) != boxes(0, 2) and boxes(0, 1) != boxes(1, 1)


def test_crowds_and_difficult_objects_are_ignored_not_left_out(tmp_path: Path) -> None:
    write_coco(tmp_path / "a", PARTS)
    path = tmp_path / "a" / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(document))
    data = _load(tmp_path / "a")
    assert isinstance(data.test, FileBoxSplit)
    ignored = [a.objects.ignored.tolist() for a in data.test.annotations]
    assert sum(map(sum, ignored)) == 1 and "crowds and difficult objects, which count nowhere: 1" in data.notes[1]
    write_voc(tmp_path / "b", PARTS)
    xml = next(p for p in sorted((tmp_path / "b" / "Annotations").glob("i1*.xml")) if "object" in p.read_text())
    xml.write_text(xml.read_text().replace("<difficult>0", "<difficult>1", 1))
    test = _load(tmp_path / "b").test
    assert isinstance(test, FileBoxSplit) and sum(int(a.objects.ignored.sum()) for a in test.annotations) == 1


def test_boxes_that_stick_out_are_cut_and_empty_ones_left_out(tmp_path: Path) -> None:
    write_coco(tmp_path, {"train": scenes(3), "val": [Scene("v", (20, 30), (((1, 1, 5, 5), 0),) * 3)]})
    path = tmp_path / "annotations" / "instances_val.json"
    document = json.loads(path.read_text())
    document["annotations"][0]["bbox"] = [20, 10, 14, 15]
    document["annotations"][1]["bbox"] = [5, 5, 0, 7]
    path.write_text(json.dumps(document))
    data = _load(tmp_path)
    assert _objects(data.test) == [[((20.0, 10.0, 30.0, 20.0), 0), ((1.0, 1.0, 5.0, 5.0), 0)]]
    assert f"stick out of their image and are cut: 1, first {path}: annotations[0]" in data.notes[1]
    assert f"without an area, left out: 1, first {path}: annotations[1]" in data.notes[2]


def _change(name: str, change: Callable[[dict[str, object]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "annotations" / f"instances_{name}.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return apply


def _first(table: str, **entries: object) -> Callable[[Path], None]:
    return _change("val", lambda document: document[table][0].update(entries))  # type: ignore[index]


BAD_COCO: dict[str, tuple[Callable[[Path], None], str]] = {
    "outside": (_first("annotations", bbox=[60, 1, 5, 5]), r"\[0\]: the box from 60, 1 to 65, 6 lies outside"),
    "inside out": (_first("annotations", bbox=[6, 1, -5, 5]), "is inside out"),
    "no numbers": (_first("annotations", bbox=[float("nan"), 1, 5, 5]), "is not made of numbers"),
    "no box": (_first("annotations", bbox="x"), "bbox is 'x'"),
    "no category": (_first("annotations", category_id=99), "there is no category 99"),
    "no image": (_first("annotations", image_id=99), "there is no image 99"),
    "outside the folder": (_first("images", file_name="../../etc/passwd"), "leads out of the data set's folder"),
    "absolute": (_first("images", file_name="/etc/passwd"), "leads out of the data set's folder"),
    "images elsewhere": (_first("images", file_name="nowhere.png"), "nowhere.png is not in val/"),
    "size": (_first("images", height=0), "height is 0"),
    "other size": (_first("images", height=50), "is 48x48 and its annotation says 48x50"),
    "same id": (_first("images", id=1), "its id is 1; give every image one of its own"),
    "same categories": (
        _change("val", lambda d: d["categories"][0].update(name="ring")),  # type: ignore[index]
        "have other categories",
    ),
    "table": (_change("val", lambda d: d.update(annotations=3)), "has no list of annotations"),
    "damaged": (lambda f: (f / "annotations" / "instances_val.json").write_text("{"), "not a readable JSON file"),
    "deep": (lambda f: (f / "annotations" / "instances_val.json").write_text("[" * 99999), "not a readable JSON file"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_COCO)
def test_wrong_coco_files_are_named(case: str, tmp_path: Path) -> None:
    write_coco(tmp_path, PARTS)
    damage, message = BAD_COCO[case]
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        for index in range(5):
            _load(tmp_path).test.annotated(index)  # type: ignore[attr-defined]


def _line(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "labels" / "val" / "i1001.txt").write_text(text) and None


BAD_YOLO: dict[str, tuple[Callable[[Path], None], str]] = {
    "pixels": (_line("0 24 24 10 10"), "i1001.txt:1: '0 24 24 10 10' is in pixels; write shares"),
    "outside": (_line("0 1.2 0.5 0.1 0.1"), "lies outside the image of 1x1"),
    "class": (_line("0 .5 .5 .1 .1\n2 .5 .5 .1 .1"), "i1001.txt:2: there is no class 2, only 0 to 1"),
    "half a class": (_line("0.5 .5 .5 .1 .1"), "there is no class 0.5"),
    "words": (_line("disc .5 .5 .1 .1"), "is not made of numbers"),
    "too few": (_line("0 .5 .5 .1"), "4 numbers; write class"),
    "negative": (_line("0 .5 .5 -.1 .1"), "is inside out"),
    "infinite": (_line("0 inf .5 .1 .1"), "is in pixels"),
    "no names": (lambda f: (f / "data.yaml").unlink(), "nothing names the classes"),
    "count": (lambda f: (f / "data.yaml").write_text("names: [a]\nnc: 2") and None, "nc is 2 and there are 1 names"),
    "yaml": (lambda f: (f / "data.yaml").write_text("names: [") and None, "not a readable YAML file"),
    "code": (lambda f: (f / "data.yaml").write_text("names: !!python/name:os.system") and None, "not a readable YAML"),
    "twice": (lambda f: (f / "data.yaml").write_text("names: [a, a]") and None, "names the class 'a' twice"),
    "binary": (lambda f: (f / "labels" / "val" / "i1001.txt").write_bytes(b"\xff\xfe") and None, "not a readable t"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_YOLO)
def test_wrong_yolo_files_are_named(case: str, tmp_path: Path) -> None:
    write_yolo(tmp_path, PARTS)
    damage, message = BAD_YOLO[case]
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        _load(tmp_path)


def test_images_without_label_files_have_no_objects_and_outlines_become_boxes(tmp_path: Path) -> None:
    write_yolo(tmp_path, PARTS)
    (tmp_path / "labels" / "val" / "i1001.txt").unlink()
    (tmp_path / "labels" / "val" / "i1002.txt").write_text("1 0.25 0.25 0.5 0.75 0.75 0.5\n\n")
    data = _load(tmp_path)
    found = _objects(data.test)
    assert found[1] == [] and found[2] == [((12.0, 12.0, 36.0, 36.0), 1)]
    assert "images without a label file, taken as without objects: 1" in data.notes[1]
    for path in (tmp_path / "labels" / "val").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"no image has a label file, such as i1000.txt"):
        _load(tmp_path)


BAD_VOC: dict[str, tuple[tuple[str, str], str]] = {
    "outside": (("<xmin>", "<xmin>99"), "is inside out|lies outside"),
    "number": (("<xmin>", "<xmin>x"), "xmin is 'x"),
    "no xml": (("</annotation>", ""), "not a readable XML file"),
    "entities": (("<annotation>", '<!DOCTYPE a [<!ENTITY b "c">]><annotation>'), "defines entities"),
    "no name": (("<name>", "<other>x</other><name2>"), "not a readable XML file"),
}


@pytest.mark.parametrize("case", BAD_VOC)
def test_wrong_voc_files_are_named(case: str, tmp_path: Path) -> None:
    write_voc(tmp_path, PARTS)
    path = next(p for p in sorted((tmp_path / "Annotations").glob("i1*.xml")) if "object" in p.read_text())
    (old, new), message = BAD_VOC[case]
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        _load(tmp_path)


def test_a_list_may_name_more_classes_than_occur_but_not_fewer(tmp_path: Path) -> None:
    write_voc(tmp_path, PARTS)
    (tmp_path / "classes.txt").write_text("square\ndisc\ntriangle\n")
    assert _load(tmp_path).class_names == ("square", "disc", "triangle")
    (tmp_path / "classes.txt").write_text("square\n")
    with pytest.raises(DataError, match=r"there is no class 'disc'; add it to classes.txt"):
        _load(tmp_path)
    (tmp_path / "JPEGImages" / "i1001.png").unlink()
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match="there is no image i1001 in JPEGImages/"):
        _load(tmp_path)


@pytest.mark.parametrize("layout", [(), ("images",), ("images", "labels"), ("annotations",)])
def test_other_folders_are_refused(layout: tuple[str, ...], tmp_path: Path) -> None:
    for name in layout:
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"no images with boxes; expected the layout of COCO .*, YOLO .*or Pascal VOC"):
        _load(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        load_data("detection:nowhere", tmp_path)


def test_unreadable_images_are_named_or_left_out(tmp_path: Path) -> None:
    write_coco(tmp_path, PARTS)
    (tmp_path / "val" / "i1001.png").write_bytes(b"no image")
    test, plain = _load(tmp_path).test, Preprocessing((3, 48, 48), (0.0,) * 3, (1.0,) * 3)
    with pytest.raises(DataError, match=r"i1001.png: not a readable image"):
        list(evaluation_batches(test, plain, 5))
    ((images, targets),) = evaluation_batches(test, plain, 5, bad=BadImages(1))
    assert len(images) == len(targets) == 4


def test_digits_with_boxes_never_change(data_root: Path) -> None:
    data = load_data("mnist-boxes", data_root)
    assert isinstance(data.train, BoxSplit) and isinstance(data.test, BoxSplit)
    assert (len(data.train.labels), len(data.test.labels), data.flip, data.task) == (4000, 1000, False, "detection")
    digest = hashlib.sha256()
    for split in (data.train, data.test):
        for index in (0, 1, 999):
            image, objects = split.annotated(index)
            digest.update(np.asarray(image).tobytes() + objects.boxes.tobytes() + objects.labels.tobytes())
    assert digest.hexdigest()[:16] == "1819ff9a6603473a"


def test_every_digit_fills_its_box(data_root: Path) -> None:
    test = load_data("mnist-boxes", data_root).test
    assert isinstance(test, BoxSplit)
    counts = set()
    for index in range(60):
        image, objects = test.annotated(index)
        pixels = np.asarray(image.convert("L"))
        assert image.size == (96, 96) and isinstance(image, Image.Image)
        counts.add(len(objects.labels))
        for number, (left, top, right, bottom) in enumerate(objects.boxes.astype(int)):
            inside = pixels[top:bottom, left:right] >= 64
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
            others = np.delete(objects.boxes, number, axis=0)
            apart = (others[:, 0] > right) | (others[:, 2] < left) | (others[:, 1] > bottom) | (others[:, 3] < top)
            assert apart.all()
    assert counts == {1, 2, 3, 4}


def test_a_name_of_two_splits_is_that_of_the_first() -> None:
    assert part_named(["instances_test-dev2017"]) == "test"
    assert part_named(["instances_val2017"]) == "val" and part_named(["boxes"]) is None
