"""Images in tar files: the layout, what each mistake is called, and that no tar file can do harm."""

from __future__ import annotations

import gc
import gzip
import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prunecli.data import webdataset
from prunecli.data.catalog import load_data
from prunecli.data.images import BadImages, UnreadableImage
from prunecli.data.loader import evaluation_batches
from prunecli.data.preparation import Preprocessing
from prunecli.data.prompts import class_texts, templates
from prunecli.data.webdataset import TarSplit, templates_file
from prunecli.errors import DataError

PREPROCESSING = Preprocessing((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
Members = Iterable[tuple[str, bytes]]


def _picture(shade: int, suffix: str = ".png") -> bytes:
    """An image with `shade` as its red; a `.jpeg` is grey."""
    written = io.BytesIO()
    image = Image.new("RGB", (12, 10), (shade, 0, 0)) if suffix != ".jpeg" else Image.new("L", (12, 10), shade)
    kind = {".webp": "WEBP", ".png": "PNG"}.get(suffix.lower(), "JPEG")
    image.save(written, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return written.getvalue()


def _pack(path: Path, members: Members, style: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=style) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5  # webdataset's fraction of a second needs a header of its own
            archive.addfile(info, io.BytesIO(content))


def _set(root: Path, *tars: Members, part: str = "test", names: str = "cat\ndog\nold bird\n") -> Path:
    for number, members in enumerate(tars):
        _pack(root / part / f"{number}.tar", members)
    (root / part / "nshards.txt").write_text(f"{len(tars)}\n")
    (root / "classnames.txt").write_text(names)
    return root


def _sample(key: str, label: object, shade: int = 0, suffix: str = ".png") -> list[tuple[str, bytes]]:
    return [(f"{key}.cls", str(label).encode()), (f"{key}{suffix}", _picture(shade, suffix))]


def _load(root: Path) -> TarSplit:
    split = load_data(f"wds:{root}").test
    assert isinstance(split, TarSplit)
    return split


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """Four test images in two tar files, one training image."""
    first = [*_sample("s0", 2, 10), *reversed(_sample("s1", "0\n", 20, ".webp")), ("s1.json", b"{}")]
    _set(tmp_path, first, [*_sample("a/s0", 1, 30, ".jpeg"), *_sample("s3", 2, 40, ".JPEG")])
    return _set(tmp_path, _sample("s0", 1, 99), part="train")


def test_images_of_all_tar_files_in_their_order(whole: Path) -> None:
    data = load_data(f"wds:{whole}")
    assert data.class_names == ("cat", "dog", "old bird") and (data.channels, data.image_size) == (3, None)
    assert data.test.labels.tolist() == [2, 0, 1, 2] and data.training_split().labels.tolist() == [1]
    images = [_load(whole).image(index) for index in range(4)]
    assert [(image.mode, image.size) for image in images] == [("RGB", (12, 10))] * 4
    assert [round(np.asarray(image)[0, 0, 0] / 10) for image in images] == [1, 2, 3, 4]  # JPEG is off by a little


def test_subsets_and_batches_of_processes(whole: Path) -> None:
    split = _load(whole)
    part = split.subset(np.array([3, 1]))
    assert part.labels.tolist() == [2, 0] and part.names == ("s3.JPEG", "s1.webp")
    assert np.asarray(part.image(1))[0, 0].tolist() == [20, 0, 0]
    for workers in (0, 1):
        images, labels = next(iter(evaluation_batches(part, PREPROCESSING, 4, workers)))
        assert images.shape == (2, 3, 8, 8) and labels.tolist() == [2, 0]


def test_the_fingerprint_is_of_the_content_not_of_the_folder(
    whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    split = _load(whole)
    moved = tmp_path_factory.mktemp("other") / "set"
    whole.rename(moved)
    assert _load(moved).fingerprint() == split.fingerprint()
    assert split.subset(np.arange(3)).fingerprint() != split.fingerprint()
    assert replace(split, labels=split.labels[::-1].copy()).fingerprint() != split.fingerprint()


def test_a_relative_path_is_one_in_the_data_folder_which_may_be_the_set(whole: Path) -> None:
    for name, root in ((f"wds:{whole.name}", whole.parent), ("wds", whole)):
        data = load_data(name, root)
        assert data.name.startswith("wds:") and len(data.test.labels) == 4 and data.test.image(0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_kinds_of_tar_and_long_names(tmp_path: Path, style: int) -> None:
    _set(tmp_path, [])
    key = "deep/" * 20 + "x" * 60
    _pack(tmp_path / "test" / "0.tar", [*_sample(f"{key}.v1", 1, 50), *_sample(f"{key}.v2", 0, 60)], style)
    split = _load(tmp_path)
    assert split.labels.tolist() == [1, 0] and np.asarray(split.image(1))[0, 0, 0] == 60


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    _set(tmp_path, [("readme.txt", b"words"), *_sample("s", 0), ("s.npy", b"")])
    with tarfile.open(tmp_path / "test" / "0.tar", "a") as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert _load(tmp_path).names == ("s.png",)


def test_templates_of_the_set_are_taken_unless_others_are_given(whole: Path, tmp_path: Path) -> None:
    data = load_data(f"wds:{whole}")
    assert templates_file(whole) is None and templates(data) == ("a photo of a {}.", "{}")
    file = whole / "zeroshot_classification_templates.txt"
    file.write_text("a {c} here.\nmany {c}.\n")
    assert templates_file(whole) == file and templates(data) == ("a {} here.", "many {}.")
    (tmp_path / "mine.txt").write_text("mine: {}\n")
    assert templates(data, str(tmp_path / "mine.txt")) == ("mine: {}",)
    imagenet = replace(data, class_names=tuple(map(str, range(1000))))
    assert templates(imagenet) == ("a {} here.", "many {}.")
    file.write_text("no place\n")
    with pytest.raises(DataError, match=r"zeroshot_classification_templates.txt: template 'no place' has no"):
        templates(data)


GOOD = _sample("s0", 1)
MISTAKES: dict[str, tuple[Members, str]] = {
    "no class": ([*GOOD, ("s1.jpg", b"")], r"0.tar:s1.jpg: has no class; put its number into a member s1.cls$"),
    "captions": ([("s1.jpg", b""), ("s1.txt", b"a cat")], r"0.tar:s1.jpg: has no class"),
    "no image": ([*GOOD, ("s1.cls", b"0")], r"0.tar:s1.cls: has no image; add .jpg, .jpeg, .png or .webp$"),
    "outside": (_sample("s1", 3), r"0.tar:s1.cls: '3' is not a class from 0 to 2, the lines of classnames.txt"),
    "negative": (_sample("s1", -1), r"0.tar:s1.cls: '-1' is not a class from 0 to 2"),
    "no number": (_sample("s1", "cat"), r"0.tar:s1.cls: 'cat' is not a class"),
    "no bytes": ([("s1.cls", b"\xff\x00\n1")], r"0.tar:s1.cls: '\S+' is not a class"),
    "padded": ([("s1.cls", b"1" + b" " * 40)], r"0.tar:s1.cls: '1' is not a class"),
    "two images": ([*GOOD, ("s0.jpg", b"")], r"0.tar:s0.jpg: is the second image of one key"),
    "two classes": ([*GOOD, ("s0.cls", b"1")], r"0.tar:s0.cls: is the second class of one key"),
    "two lines": ([("s\n1.jpg", b"")], r"0.tar:'s\\n1.jpg': has no class; put its number into a member 's\\n1'.cls$"),
    "nothing": ([("s1.gif", b"")], r"test: no images; expected KEY.jpg and KEY.cls in 0.tar$"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_wrong_samples_are_named(tmp_path: Path, mistake: str) -> None:
    members, said = MISTAKES[mistake]
    _set(tmp_path, members)
    with pytest.raises(DataError, match=said) as caught:
        load_data(f"wds:{tmp_path}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("count", "said"),
    [
        ("3", r"nshards.txt: says 3 tar files, from 0.tar on, and there are 2; fetch those that are missing"),
        ("1", r"nshards.txt: says 1 tar files, from 0.tar on, and there are 2;"),
        ("9" * 5000, r"nshards.txt: says 9{20} tar files, from 0.tar on, and there are 2;"),
        ("-2", r"nshards.txt: does not say how many tar files there are; write the number, such as 2$"),
        ("1\n1", r"nshards.txt: does not say"),
        ("", r"nshards.txt: does not say"),
        (None, r"nshards.txt: does not say"),
    ],
)
def test_the_number_of_tar_files_is_checked(whole: Path, count: str | None, said: str) -> None:
    file = whole / "test" / "nshards.txt"
    file.unlink() if count is None else file.write_text(count)
    with pytest.raises(DataError, match=said):
        load_data(f"wds:{whole}")


def test_missing_parts_are_named(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (whole / "test" / "1.tar").rename(whole / "test" / "2.tar")
    with pytest.raises(DataError, match=r"says 2 tar files, from 0.tar on, and there are 2, one of them 2.tar;"):
        load_data(f"wds:{whole}")
    with pytest.raises(DataError, match=r"wds:nowhere: no such folder; give that of a set"):
        load_data("wds:nowhere", whole)
    (whole / "classnames.txt").write_text("\n")
    with pytest.raises(DataError, match=r"classnames.txt: is empty"):
        load_data(f"wds:{whole}")
    (whole / "classnames.txt").unlink()
    (whole / "test" / "2.tar").rename(whole / "test" / "1.tar")
    with pytest.raises(DataError, match=r"has no caption; put one on each line into .*txt, or write classnames.txt"):
        load_data(f"wds:{whole}")
    alone = _set(tmp_path_factory.mktemp("alone"), GOOD, part="train")
    with pytest.raises(DataError, match=r"/test: no tar files; expected 0.tar and nshards.txt in it"):
        load_data(f"wds:{alone}")


def _spoil(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    second = content.index(b"s1.png", 1024)
    if how == "cut in a member":
        del content[second + 520 :]
    elif how == "cut before a member":
        del content[second:]
    elif how == "damaged header":
        content[second + 1] ^= 1
    elif how in ("larger than the file", "negative size"):
        size = {"larger than the file": b"77777777777\0", "negative size": b"\xff" * 10 + b"\xf0\x00"}[how]
        content[second + 124 : second + 136] = size  # -4,096 in base 256: back over what was read
        content[second + 148 : second + 156] = b" " * 8
        content[second + 148 : second + 156] = b"%06o\0 " % sum(content[second : second + 512])
    elif how == "no tar":
        content[:] = b"words" * 300
    elif how == "empty":
        content.clear()
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut in a member", r"s1.png of [\d,]+ bytes does not fit into it"),
        ("cut before a member", r"it is cut off or damaged at byte [\d,]+"),
        ("damaged header", r"it is cut off or damaged at byte [\d,]+"),
        ("larger than the file", r"s1.png of 8,589,934,591 bytes does not fit into it"),
        ("negative size", r"s1.png of -4,096 bytes does not fit into it"),
        ("no tar", ""),
        ("empty", ""),
    ],
)
def test_damaged_tar_files_are_named_and_end(tmp_path: Path, how: str, said: str) -> None:
    _set(tmp_path, [])
    tar = tmp_path / "test" / "0.tar"
    _pack(tar, [*_sample("s0", 0), *_sample("s1", 1)], tarfile.USTAR_FORMAT)
    _spoil(tar, how)
    with pytest.raises(DataError, match=rf"0.tar: not a readable tar file \({said}.*\); fetch it again$") as caught:
        load_data(f"wds:{tmp_path}")
    assert len(str(caught.value).splitlines()) == 1


def test_packed_tar_files_pipes_and_links_are_not_followed(tmp_path: Path) -> None:
    tar = _set(tmp_path, GOOD) / "test" / "0.tar"
    tar.write_bytes(gzip.compress(tar.read_bytes(), 0))
    with pytest.raises(DataError, match=r"0.tar: not a readable tar file"):
        load_data(f"wds:{tmp_path}")
    tar.unlink()
    os.mkfifo(tar)
    with pytest.raises(DataError, match=r"0.tar: not a readable tar file \(not a regular file\)"):
        load_data(f"wds:{tmp_path}")
    tar.unlink()
    with tarfile.open(tar, "w") as archive:
        link = tarfile.TarInfo("s0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(DataError, match=r"0.tar:s0.png: is not a plain file"):
        load_data(f"wds:{tmp_path}")


def test_headers_are_not_kept_in_memory(tmp_path: Path) -> None:
    _pack(tmp_path / "0.tar", [(f"{number}.cls", b"0") for number in range(50)])
    before = sum(type(kept) is tarfile.TarInfo for kept in gc.get_objects())
    with (tmp_path / "0.tar").open("rb") as stream:
        for number, _ in enumerate(webdataset._members(stream)):
            if number == 49:
                assert sum(type(kept) is tarfile.TarInfo for kept in gc.get_objects()) - before < 5


def test_members_are_counted(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "_MOST_MEMBERS", 9)
    assert len(load_data(f"wds:{whole}").test.labels) == 4
    monkeypatch.setattr(webdataset, "_MOST_MEMBERS", 8)
    with pytest.raises(DataError, match=r"1.tar: more than 8 members up to this file"):
        load_data(f"wds:{whole}")


def test_unreadable_images_are_named_and_may_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise, whole = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(noise).save(whole, "JPEG")
    content = {
        "cut.jpg": whole.getvalue()[: len(whole.getvalue()) // 2],
        "text.png": b"no picture",
        "empty.webp": b"",
        "ps.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
    }
    members = [pair for name, data in content.items() for pair in ((name, data), (f"{Path(name).stem}.cls", b"0"))]
    _set(tmp_path, [*members, *_sample("sound", 2)])
    split = _load(tmp_path)
    reasons = [
        "truncated",
        "its content is not JPEG, PNG, .* or GIF",
        "the file is empty",
        "its content is not JPEG",
    ]
    for index, (name, reason) in enumerate(zip(content, reasons, strict=True)):
        with pytest.raises(UnreadableImage, match=rf"0.tar:{name}: not a readable image \(.*{reason}.*\); replace"):
            split.image(index)
    bad = BadImages(4)
    ((_, labels),) = evaluation_batches(split, PREPROCESSING, 8, bad=bad)
    assert labels.tolist() == [2] and next(iter(bad.left_out)) == f"{tmp_path}/test/0.tar:cut.jpg"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # the sound one has 120, at which Pillow only warns
    with pytest.raises(UnreadableImage, match=r"0.tar:sound.png: .*it has more than 100 pixels"):
        split.image(4)
    monkeypatch.setattr(webdataset, "_MOST_BYTES", 5)
    with pytest.raises(UnreadableImage, match=r"0.tar:sound.png: not a readable image \(it has over"):
        split.image(4)


def test_a_tar_file_that_was_cut_or_removed_since(whole: Path) -> None:
    split = _load(whole)
    tar = whole / "test" / "1.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(UnreadableImage, match=r"1.tar:s3.JPEG: .*its tar file has been cut"):
        split.image(3)
    tar.unlink()
    with pytest.raises(UnreadableImage, match=r"1.tar:s3.JPEG: not a readable image \(No such file"):
        split.image(3)


def _with_captions(root: Path, captions: Iterable[bytes]) -> Path:
    members = [
        member
        for number, text in enumerate(captions)
        for member in ((f"s{number}.png", _picture(number)), (f"s{number}.txt", text), (f"s{number}.json", b"{}"))
    ]
    _set(root, members[:6], members[6:])
    (root / "classnames.txt").unlink()
    return root


def test_captions(tmp_path: Path) -> None:
    """Without class names: one caption on each line, over all tar files; labels are the images' own numbers."""
    texts = (b"a cat\na tabby  \n", "ein Kätzchen".encode(), b"\n a dog \n\na hound\na pet\n")
    data = load_data(f"wds:{_with_captions(tmp_path, texts)}")
    assert data.task == "retrieval" and data.train is None
    assert data.class_names == ("a cat", "a tabby", "ein Kätzchen", "a dog", "a hound", "a pet")
    assert data.described == (0, 0, 1, 2, 2, 2)
    assert data.test.labels.tolist() == [0, 1, 2]
    assert data.test.subset(np.array([2])).labels.tolist() == [2]
    assert templates(data) == ("{}",)
    assert class_texts(data) == data.class_names
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "dataset_type.txt").write_text("Retrieval\n")
    assert load_data(f"wds:{tmp_path}").described == data.described
    (tmp_path / "dataset_type.txt").write_text("multilabel\n")
    with pytest.raises(DataError, match=r"dataset_type.txt: 'multilabel' is neither classification nor retrieval"):
        load_data(f"wds:{tmp_path}")
    with pytest.raises(DataError, match="has captions in place of classes; leave out --class-names"):
        class_texts(data, "names.txt")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b" \n", r"0.tar:s1.txt: is empty; write one caption on each line"),
        (b"\xff\xfe", r"0.tar:s1.txt: its captions are not UTF-8 .*; write them again"),
        (b"a" * (2**20 + 1), r"0.tar:s1.txt: has 1,048,577 bytes of captions; at most 1,048,576 are read"),
    ],
)
def test_wrong_captions(tmp_path: Path, text: bytes, says: str) -> None:
    """Each is named with its member."""
    with pytest.raises(DataError, match=says):
        load_data(f"wds:{_with_captions(tmp_path, (b'a', text, b'c'))}")
