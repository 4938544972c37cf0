"""What mask values mean: declared classes, conventions that fit, and every remedy that a refusal gives."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from prunecli.data.catalog import load_data
from prunecli.data.label_map import VOID
from prunecli.data.mask_labels import MaskReading, parse_void
from prunecli.data.masks import MaskSplit
from prunecli.data.splits import DataSet
from prunecli.errors import DataError
from tests.conftest import Prune

GREY = "grey"
NUMBERS = [0, 1, 2]


def _mask(values: Sequence[Any], dtype: Any = np.uint8) -> NDArray[Any]:
    """A stripe of 8 x 6 pixels for each value."""
    return np.concatenate([np.broadcast_to(np.asarray(v, dtype=dtype), (8, 6, *np.shape(v))) for v in values], axis=1)


def _save(mask: NDArray[Any], path: Path, *, palette: bool = False, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    if palette:
        image.putpalette([channel for number in range(256) for channel in (number, 255 - number, 7)])
    image.save(path, **how)


def _set(
    root: Path, masks: Sequence[NDArray[Any]], *, images: str = "images", folder: str = "masks", end: str = ".png"
) -> None:
    """Ten images with the masks in turn."""
    for number in range(10):
        mask = masks[number % len(masks)]
        _save(np.zeros((*mask.shape[:2], 3), dtype=np.uint8), root / images / f"{number}.jpg")
        _save(mask, root / folder / f"{number}{end}")


def _load(root: Path, **said: Any) -> DataSet:
    return load_data(f"segmentation:{root}", masks=MaskReading(**said))


def _classes(data: DataSet) -> list[int]:
    """Class indices of the stripes of the first mask."""
    split = data.train if isinstance(data.train, MaskSplit) else data.test
    assert isinstance(split, MaskSplit)
    return [int(number) for number in split.mask(0)[0, ::6]]


def _shares(data: DataSet) -> dict[str, tuple[str | None, float]]:
    return {label.value: (label.name, round(label.share, 3)) for label in data.labels}


def test_the_table_of_labels_has_value_name_and_share(tmp_path: Path) -> None:
    _set(tmp_path, [_mask([0, 0, 1, 255])])
    (tmp_path / "classes.txt").write_text("road\ncar\ntree\n")
    data = _load(tmp_path)
    assert _classes(data) == [0, 0, 1, VOID]
    assert _shares(data) == {"0": ("road", 0.5), "1": ("car", 0.25), "2": ("tree", 0), "255": (None, 0.25)}
    assert data.notes == (f"{tmp_path}: 1 of 3 classes without a pixel in 10 masks: tree",)


@pytest.mark.parametrize(
    ("lines", "values", "said", "expected"),
    [
        ("a\nb\n", [0, 255], {}, [0, 1]),
        ("a\nb\n", [0, 255], {"void": (255,)}, [0, VOID]),
        ("a\nb\n", [0, 1, 255], {}, [0, 1, VOID]),
        ("a\nb\nc\n", [1, 2, 3, 0], {"reduce_zero_label": True}, [0, 1, 2, VOID]),
        ("a\nb\nc\n", [0, 1, 2, 3], {"void": (3,)}, [0, 1, 2, VOID]),
        ("0: a\n147: b\n151: c\n220: d\n", [0, 147, 151, 220], {}, [0, 1, 2, 3]),
        ("7: road\n8: road\n11: house\n0: void\n", [7, 8, 11, 0], {}, [0, 0, 1, VOID]),
        ("0: a\n255: b\n", [0, 255], {}, [0, 1]),
        ("255: object\n0: ground\n", [0, 255], {}, [1, 0]),
        ("255: a\n0: b\n", [255, 0, 9], {"void": (9,)}, [0, 1, VOID]),
    ],
)
def test_declared_numbers(
    lines: str, values: list[int], said: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    _set(tmp_path, [_mask(values)])
    (tmp_path / "classes.txt").write_text(lines)
    assert _classes(_load(tmp_path, **said)) == expected
    (tmp_path / "classes.txt").rename(tmp_path / "mine.txt")
    assert _classes(_load(tmp_path, classes=str(tmp_path / "mine.txt"), **said)) == expected


COLORS = [(128, 0, 0), (0, 128, 0), (224, 224, 192)]
COLOR_LISTS = {
    "classes.txt": "128,0,0: plane\n0 128 0: bike\n224, 224, 192: void\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nplane:128,0,0::\nbike:0,128,0::\nvoid:224,224,192::\n",
    "class_dict.csv": "name,r,g,b\nplane,128,0,0\nbike,0,128,0\nVoid,224,224,192\n",
}


@pytest.mark.parametrize("file", COLOR_LISTS)
def test_colours(file: str, tmp_path: Path) -> None:
    _set(tmp_path, [_mask(COLORS)])
    (tmp_path / file).write_text(COLOR_LISTS[file])
    data = _load(tmp_path)
    assert data.class_names == ("plane", "bike") and _classes(data) == [0, 1, VOID]
    assert _shares(data)["224,224,192"] == (None, 0.333)
    _save(_mask([(1, 2, 3)] * 3), data.train.masks[0])  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"holds the colour 1,2,3, which is not one of 2 classes; add it, or void"):
        _classes(data)


def test_palette_images_are_read_by_index_or_by_declared_colour(tmp_path: Path) -> None:
    _set(tmp_path, [_mask([0, 1])])
    for path in (tmp_path / "masks").iterdir():
        _save(_mask([0, 1]), path, palette=True)
    assert _classes(_load(tmp_path)) == [0, 1]
    (tmp_path / "classes.txt").write_text("1,254,7: a\n0,255,7: b\n")
    assert _classes(_load(tmp_path)) == [1, 0]


@pytest.mark.parametrize(
    ("mask", "end"),
    [
        (_mask(NUMBERS), ".PNG"),
        (_mask(NUMBERS), ".bmp"),
        (_mask(NUMBERS), ".TIF"),
        (_mask(NUMBERS), ".gif"),
        (_mask([(n, n, n) for n in NUMBERS]), ".png"),
        (_mask([(n, n, n, 255) for n in NUMBERS]), ".png"),
        (_mask(NUMBERS, np.uint16), ".png"),
        (_mask(NUMBERS), "_mask.png"),
    ],
)
def test_kinds_of_files(mask: NDArray[Any], end: str, tmp_path: Path) -> None:
    _set(tmp_path, [mask], end=end)
    (tmp_path / "masks" / "0.json").write_text("{}")
    (tmp_path / "masks" / "Thumbs.db").write_bytes(b"x")
    assert _classes(_load(tmp_path)) == NUMBERS


def test_masks_of_one_bit(tmp_path: Path) -> None:
    _set(tmp_path, [_mask([False, True], bool)])
    assert _classes(_load(tmp_path)) == [0, 1]


CAMVID = {"images": "train", "folder": "trainannot"}
ADE20K = {"images": "images/training", "folder": "annotations/training"}


def _camvid(root: Path, values: Sequence[int]) -> None:
    _set(root, [_mask(values)], **CAMVID)
    _set(root, [_mask(values)], images="val", folder="valannot")


def _ade20k(root: Path, values: Sequence[int]) -> None:
    _set(root, [_mask(values)], **ADE20K)
    _set(root, [_mask(values)], images="images/validation", folder="annotations/validation")


@pytest.mark.parametrize(
    ("write", "values", "first"),
    [(_camvid, range(12), ("sky", 11)), (_ade20k, range(151), ("1", 150))],
)
def test_a_convention_that_fits_is_used_and_said(
    write: Callable[[Path, Sequence[int]], None], values: range, first: tuple[str, int], tmp_path: Path
) -> None:
    write(tmp_path, values)
    data = _load(tmp_path)
    assert (data.class_names[0], data.num_classes) == first
    assert "as their layout and numbers suggest" in data.notes[0]


@pytest.mark.parametrize(
    ("write", "values", "name"),
    [(_camvid, [0, 1, 2], "camvid"), (_ade20k, [0, 1, 2, 3], "ade20k"), (_camvid, [*range(11), 40], "camvid")],
)
def test_a_layout_says_nothing_where_the_numbers_do_not_fit(
    write: Callable[[Path, Sequence[int]], None], values: list[int], name: str, tmp_path: Path
) -> None:
    write(tmp_path, values)
    with pytest.raises(DataError, match=rf"is laid out as {name}, but its masks hold .* --classes numbers"):
        _load(tmp_path)
    if 40 not in values:
        named = _load(tmp_path, classes=name)
        assert named.num_classes == (11 if name == "camvid" else 150)
        assert _classes(_load(tmp_path, classes="numbers")) == values
    (tmp_path / "classes.txt").write_text("".join(f"{value}: thing {value}\n" for value in values))
    assert _load(tmp_path).num_classes == len(values)


def test_own_classes_in_the_layout_of_ade20k_are_not_shifted(tmp_path: Path) -> None:
    _ade20k(tmp_path, [0, 1, 2])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert _classes(_load(tmp_path)) == [0, 1, 2]
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"holds the number 2, which is not one of 2 classes.* --reduce-zero-label"):
        _load(tmp_path)
    assert _classes(_load(tmp_path, reduce_zero_label=True)) == [VOID, 0, 1]
    assert _classes(_load(tmp_path, void=(2,))) == [0, 1, VOID]


def _follow_lines(error: DataError, root: Path) -> None:
    """Writes the lines that a message shows into classes.txt."""
    lines = re.findall(r"`([\d,]+: [^`]+)`", str(error))
    (root / "classes.txt").write_text(
        "".join(f"{line.replace('name', f'class {i}')}\n" for i, line in enumerate(lines))
    )


def test_numbers_with_gaps_are_asked_for(tmp_path: Path) -> None:
    _set(tmp_path, [_mask([0, 147, 151, 220])])
    with pytest.raises(
        DataError, match=r"hold 0, 147, 151, 220, which would be 221 classes, most of them without"
    ) as e:
        _load(tmp_path)
    assert "a line `0: name` for each" in str(e.value)
    (tmp_path / "classes.txt").write_text("0: a\n147: b\n151: c\n220: d\n")
    assert _classes(_load(tmp_path)) == [0, 1, 2, 3]
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")  # names alone
    with pytest.raises(DataError, match=r"write them before the names: `0: a` and `147: b`") as e:
        _load(tmp_path)
    _follow_lines(e.value, tmp_path)
    assert _classes(_load(tmp_path)) == [0, 1, 2, 3]


def test_colours_that_nobody_named_are_listed(tmp_path: Path) -> None:
    _set(tmp_path, [_mask(COLORS)])
    with pytest.raises(DataError, match=r"its masks hold 3 colours; .*`128,0,0: name`") as e:
        _load(tmp_path)
    _follow_lines(e.value, tmp_path)
    assert sorted(_classes(_load(tmp_path))) == [0, 1, 2]


def test_lossy_masks(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    mask = np.where(generator.random((24, 24)) < 0.5, 0, 255).astype(np.uint8)
    _set(tmp_path, [mask], end=".jpg")
    with pytest.raises(DataError, match=r"is in a lossy format, which has changed its values") as e:
        _load(tmp_path)
    assert "`number: name` on each line" in str(e.value)
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match="is in a lossy format"):
        _load(tmp_path)
    (tmp_path / "classes.txt").write_text("0: a\n255: b\n")
    data = _load(tmp_path)
    assert isinstance(data.test, MaskSplit) and np.array_equal(data.test.mask(0), mask > 0)
    assert re.search(r"0\.jpg is in a lossy format; [\d.]+% of the pixels .* count as the nearest one", data.notes[-1])
    for number in range(10):  # the other remedy
        _save(mask, tmp_path / "masks" / f"{number}.png")
        (tmp_path / "masks" / f"{number}.jpg").unlink()
    assert _load(tmp_path).num_classes == 2


def test_two_files_for_one_image(tmp_path: Path) -> None:
    _set(tmp_path, [_mask(NUMBERS)])
    _save(_mask(NUMBERS), tmp_path / "masks" / "3_mask.png")
    with pytest.raises(DataError, match=r"3\.jpg: has 2 masks, .*3\.png and 3_mask\.png; remove all but one"):
        _load(tmp_path)
    (tmp_path / "masks" / "3_mask.png").unlink()
    _save(_mask(NUMBERS), tmp_path / "images" / "3.png")
    with pytest.raises(DataError, match=r"3\.jpg and 3\.png: would have the same mask; rename or remove one"):
        _load(tmp_path)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\n", "names 1 classes; write 2 to 255"),
        ("a\na\n", "names 'a' twice"),
        ("0: a\nb\n", "'b' is not `number: name`, as other lines are"),
        ("0: a\n0: b\n", "'b' and 'a' have the same value"),
        ("300,0,0: a\n0,0,0: b\n", "is not a colour; write three numbers from 0 to 255"),
        ("a\nb\n", "holds the number 2, which is not one of 2 classes"),
        ("0: a\n1: b\n", r"holds the number 2, which is not one of 2 classes; .*--void"),
        ("0: void\n1: b\n", "names 1 classes"),
    ],
)
def test_wrong_lists(lines: str, message: str, tmp_path: Path) -> None:
    _set(tmp_path, [_mask(NUMBERS)])
    (tmp_path / "classes.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        _load(tmp_path)


def test_contradictions(tmp_path: Path) -> None:
    _set(tmp_path, [_mask(NUMBERS)])
    (tmp_path / "classes.txt").write_text("0: a\n1: b\n2: c\n")
    with pytest.raises(DataError, match=r"--void 2: is c in classes\.txt; remove it there or leave it out"):
        _load(tmp_path, void=(2,))
    with pytest.raises(DataError, match=r"--reduce-zero-label: 0 is a in classes\.txt; leave it out"):
        _load(tmp_path, reduce_zero_label=True)
    with pytest.raises(DataError, match=r"--classes camvit: no such file; .*camvid"):
        _load(tmp_path, classes="camvit")
    with pytest.raises(DataError, match=r"digits: --classes, --void and --reduce-zero-label are for masks"):
        load_data("digits", masks=MaskReading(void=(0,)))
    _save(_mask([(0, 0, 0, 9)] * 3), tmp_path / "masks" / "0.png")
    data = _load(tmp_path)
    assert isinstance(data.train, MaskSplit) and isinstance(data.test, MaskSplit)
    with pytest.raises(DataError, match="is partly transparent; save the mask without transparency"):
        [split.mask(i) for split in (data.train, data.test) for i in range(len(split.images))]


def test_a_folder_with_test_images_alone_can_be_evaluated(tmp_path: Path) -> None:
    _set(tmp_path, [_mask(NUMBERS)], images="test/images", folder="test/masks")
    data = _load(tmp_path)
    assert data.train is None and isinstance(data.test, MaskSplit) and data.test.mask(0)[0, ::6].tolist() == NUMBERS


def test_void_as_it_is_written() -> None:
    assert [parse_void(text) for text in (None, 255, "0, 255", "none")] == [None, (255,), (0, 255), ()]
    with pytest.raises(DataError, match=r"--void sky: write numbers"):
        parse_void("sky")


def test_recorded_labels_need_no_list(tmp_path: Path) -> None:
    _set(tmp_path, [_mask([255, 0, 3])])
    (tmp_path / "classes.txt").write_text("255: object\n0: ground\n3: void\n")
    first = _load(tmp_path)
    (tmp_path / "classes.txt").unlink()
    again = _load(tmp_path, recorded=first.labels)
    assert again.class_names == first.class_names == ("object", "ground")
    assert _classes(again) == _classes(first) == [0, 1, VOID]


def test_other_values_after_a_thousand_masks_are_still_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunecli.data.mask_survey._SURVEYED", 2)
    _set(tmp_path, [_mask(NUMBERS)])
    data = _load(tmp_path)
    assert isinstance(data.train, MaskSplit)
    _save(_mask([0, 1, 9]), data.train.masks[3])
    with pytest.raises(DataError, match="holds the number 9, which is not one of 3 classes"):
        data.train.mask(3)


def test_void_is_no_class_even_where_classes_are_counted_or_named_in_order(tmp_path: Path) -> None:
    _set(tmp_path, [_mask([0, 1, 2, 3])])
    assert _classes(_load(tmp_path, void=(0, 255))) == [VOID, 0, 1, 2]
    assert _classes(_load(tmp_path, void=(1,))) == [0, VOID, 1, 2]
    (tmp_path / "classes.txt").write_text("# all of them\nroad\nvoid\ncar\ntree\n")
    data = _load(tmp_path)
    assert data.class_names == ("road", "car", "tree") and _classes(data) == [0, VOID, 1, 2]


@pytest.mark.parametrize("lines", ["tree: 2\nroad: 0\ncar: 1\n", "2 tree\n0 road\n1 car\n", "2=tree\n0=road\n1=car\n"])
def test_numbers_in_another_form_are_not_names(lines: str, tmp_path: Path) -> None:
    _set(tmp_path, [_mask(NUMBERS)])
    (tmp_path / "classes.txt").write_text(lines)
    with pytest.raises(DataError, match="has a number in another form than `number: name`; write it like that"):
        _load(tmp_path)
    (tmp_path / "classes.txt").write_text("2: tree\n0: road\n1: car\n", encoding="utf-8-sig")  # as Windows writes it
    assert _classes(_load(tmp_path)) == [1, 2, 0]


def test_one_lossy_mask_does_not_excuse_the_others(tmp_path: Path) -> None:
    _set(tmp_path, [_mask([0, 100, 200])])
    (tmp_path / "classes.txt").write_text("0: a\n100: b\n200: c\n")
    (tmp_path / "masks" / "0.png").unlink()
    _save(_mask([0, 100, 200]), tmp_path / "masks" / "0.jpg")
    assert _load(tmp_path).num_classes == 3
    _save(_mask([0, 50, 7]), tmp_path / "masks" / "1.png")
    with pytest.raises(DataError, match=r"1\.png: holds the number (7|50), which is not one of 3 classes"):
        _load(tmp_path)


def test_void_options_are_for_numbers(tmp_path: Path) -> None:
    _set(tmp_path, [_mask(COLORS)])
    (tmp_path / "classes.txt").write_text(COLOR_LISTS["classes.txt"])
    with pytest.raises(DataError, match=r"--void: is for class numbers, and classes\.txt names colours"):
        _load(tmp_path, void=(200,))


def test_a_negative_number_is_one_line(tmp_path: Path) -> None:
    _set(tmp_path, [_mask([0, 1, 2])])
    _save(_mask([0, -1, 2], np.int32), tmp_path / "masks" / "0.tif")
    (tmp_path / "masks" / "0.png").unlink()
    data = _load(tmp_path)
    splits = [split for split in (data.train, data.test) if isinstance(split, MaskSplit)]
    with pytest.raises(DataError, match=r"0\.tif: holds the negative number -1; write 255"):
        [split.mask(i) for split in splits for i in range(len(split.images))]


def test_cvats_layout(tmp_path: Path) -> None:
    _set(tmp_path, [_mask(COLORS)], images="JPEGImages", folder="SegmentationClass")
    (tmp_path / "labelmap.txt").write_text(COLOR_LISTS["labelmap.txt"])
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("\n".join(map(str, range(10))))
    assert _classes(_load(tmp_path)) == [0, 1, VOID]


@pytest.mark.usefixtures("transformers_ready")
def test_classes_keep_their_order_from_training_to_evaluation(tmp_path: Path, prune: Prune) -> None:
    _set(tmp_path / "set", [_mask([0, 1, 2])])
    (tmp_path / "mine.txt").write_text("2: road\n0: tree\n1: car\n")
    common = ("--epochs", "1", "--image-size", "32", "--batch-size", "4", "-o", "m.safetensors")
    done = prune("train", "segformer:b0", "--data", "segmentation:set", "--classes", "mine.txt", *common)
    assert done.code == 0 and re.search(r"2 +road +33\.33%", done.err), done.err
    for spelling in ("segmentation:set", "segmentation:set/", f"segmentation:{tmp_path}/set", "segmentation:./set"):
        done = prune("eval", "m.safetensors", "--data", spelling, "--measure", "accuracy")
        assert done.code == 0 and re.findall(r"IoU of (\w+)", done.out) == ["road", "tree", "car"], done.err
    done = prune("eval", "m.safetensors", "--data", "segmentation", "--data-root", "set", "--measure", "accuracy")
    assert re.findall(r"IoU of (\w+)", done.out) == ["road", "tree", "car"], done.err
    done = prune("eval", "m.safetensors", "--data", "segmentation:set", "--void", "9", "--measure", "accuracy")
    assert re.findall(r"IoU of (\w+)", done.out) == ["road", "tree", "car"]
    done = prune("eval", "m.safetensors", "--data", "segmentation:set", "--classes", "numbers", "--measure", "accuracy")
    assert "has learned the classes road, tree, car" in done.err and "compared by number" in done.err
