"""Retrieval and images without classes on the command line, in processes of their own."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Prune

QUICK = ("--batch", "2", "--latency-rounds", "2")
COLOURS = ("red", "green", "blue", "yellow", "pink", "grey", "cyan", "brown", "orange", "purple", "white", "black")


def _picture(colour: str) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def captioned(tmp_path: Path) -> str:
    """Twelve plain images with two captions each, the last unreadable."""
    root = tmp_path / "plain"
    (root / "test").mkdir(parents=True)
    with tarfile.open(root / "test" / "0.tar", "w") as archive:
        for number, colour in enumerate(COLOURS):
            image = b"no image" if colour == "black" else _picture(colour)
            text = f"a {colour} square\nall {colour}\n".encode()
            for name, content in ((f"{number}.png", image), (f"{number}.txt", text)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    (root / "test" / "nshards.txt").write_text("1\n")
    return "wds:plain"


def test_recall_in_reports_comparisons_and_clip_benchmark(prune: Prune, tiny_clip: Path, captioned: str) -> None:
    how = ("--data", captioned, "--skip-bad", 1, "--measure", "accuracy")
    done = prune("eval", tiny_clip, *how, "-o", "base.json", "--json")
    assert done.code == 0, done.err
    metrics, data = done.json["metrics"], done.json["data"]
    assert (data["task"], data["images"], data["skipped"]) == ("retrieval", 11, 1)
    assert (metrics["images"], metrics["captions"]) == (11, 22)
    recalls = [metrics[f"image_recall_{rank}"] for rank in (1, 5, 10)]
    assert recalls == sorted(recalls) and 80 < recalls[2] <= 100
    low, high = metrics["image_recall_5_interval"]
    assert low < recalls[1] < high
    done = prune("token", tiny_clip, *QUICK, *how[:4], "--tokens", 20, "-o", "fewer.safetensors")
    assert done.code == 0, done.err
    for label in ("image R@1", "image R@10", "text R@5", "agreement", "cosine of features"):
        assert label in done.out
    done = prune("eval", "fewer.safetensors", *how, "-o", "fewer.json", "--require", "image_recall_10 >= 1")
    assert done.code == 0, done.err
    assert "11 with 22 captions of wds:plain (test), 1 could not be read" in done.out
    done = prune("compare", "base.json", "fewer.json", "--fail-if", "text_recall_5_drop > 100", "--json")
    assert done.code == 0, done.err
    (candidate,) = done.json["candidates"]
    assert candidate["image_recall_1_drop"] == pytest.approx(recalls[0] - candidate["metrics"]["image_recall_1"])


def test_clip_benchmark_has_shares_of_one(prune: Prune, tiny_clip: Path, captioned: str, tmp_path: Path) -> None:
    how = ("--data", captioned, "--skip-bad", 1, "--measure", "accuracy", "--task", "retrieval")
    done = prune("eval", tiny_clip, *how, "--clip-benchmark", "cb.json", "--json")
    assert done.code == 0, done.err
    written = json.loads((tmp_path / "cb.json").read_text())
    assert written["task"] == "zeroshot_retrieval"
    shares = {
        f"{kind}_retrieval_recall@{rank}": done.json["metrics"][f"{kind}_recall_{rank}"] / 100
        for kind in ("image", "text")
        for rank in (1, 5, 10)
    }
    assert written["metrics"] == pytest.approx(shares)


def test_a_frontier_of_recall(prune: Prune, tiny_clip: Path, captioned: str, tmp_path: Path) -> None:
    few = ("--frontier-selectors", "cls,random", "--frontier-shares", "0.5")
    done = prune("token", tiny_clip, "--data", captioned, "--skip-bad", 1, "--frontier", "f.svg", *few, "--json")
    assert done.code == 0, done.err
    assert [row["selector"] for row in done.json] == ["unpruned", "cls", "random"]
    assert all(0 <= row["image_recall_1"] <= 100 for row in done.json)
    assert "image R@1 (%)" in (tmp_path / "f.svg").read_text()


@pytest.fixture
def unlabelled(tmp_path: Path) -> str:
    """Plain images in two folders."""
    for number, colour in enumerate(COLOURS):
        folder = tmp_path / "found" / str(number % 2)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{colour}.png").write_bytes(_picture(colour))
    return "images:found"


def test_images_without_classes(prune: Prune, tiny_clip: Path, unlabelled: str, tmp_path: Path) -> None:
    """Features are compared; with names for classes the best one, too."""
    few = ("--frontier-selectors", "cls,random", "--frontier-shares", "0.5", "--json")
    done = prune("token", tiny_clip, "--data", unlabelled, "--frontier", "f.svg", *few)
    assert done.code == 0, done.err
    assert [row["top1"] for row in done.json] == [None] * 3
    assert [row["agreement"] for row in done.json] == [None] * 3
    cosines = [row["cosine"] for row in done.json]
    assert cosines[0] == pytest.approx(1) and all(0.2 < cosine < 0.9999 for cosine in cosines[1:])
    assert "cosine of features" in (tmp_path / "f.svg").read_text()
    (tmp_path / "names.txt").write_text("\n".join(COLOURS))
    named = ("--data", unlabelled, "--class-names", "names.txt")
    done = prune("token", tiny_clip, *named, "--frontier", "g.svg", *few)
    assert done.code == 0, done.err
    assert done.json[0]["agreement"] == 100 and all(0 <= row["agreement"] <= 100 for row in done.json)
    assert "agreement (%)" in (tmp_path / "g.svg").read_text()
    done = prune("token", tiny_clip, *QUICK, *named, "--tokens", 20, "--overlay", "seen", "--pictures", 2)
    assert done.code == 0, done.err
    assert "agreement" in done.out and "top-1" not in done.out
    assert len(list((tmp_path / "seen").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("eval", "NETWORK", "--data", "images:found"), "images:found has images without classes: give another data"),
        (("train", "open_clip:tiny", "--data", "images:found"), "has no training images"),
        (("eval", "NETWORK", "--data", "wds:plain", "--task", "zeroshot"), "wds:plain has captions; use --task retr"),
        (("eval", "NETWORK", "--data", "digits", "--task", "retrieval"), "digits has no captions; use --task zeroshot"),
        (("eval", "cifar:resnet20", "--data", "wds:plain"), "has captions and cifar:resnet20 no text tower"),
        (("eval", "NETWORK", "--data", "wds:plain", "--class-names", "n.txt"), "leave out --class-names"),
        (("train", "open_clip:tiny", "--data", "wds:plain"), "has no training images"),
    ],
)
def test_the_wrong_thing_is_one_line(
    prune: Prune, tiny_clip: Path, captioned: str, unlabelled: str, words: tuple[str, ...], says: str
) -> None:
    done = prune(*(tiny_clip if word == "NETWORK" else word for word in words))
    assert done.code == 2 and says in done.err and len(done.err.splitlines()) == 1, done.err
