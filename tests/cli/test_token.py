"""Leaving tokens out on the command line, and looking at which ones, in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from prunecli.data.digits import load
from tests.conftest import Prune

TOKENS, HEADS, PATCH, GRID, ENLARGED = 65, 4, 4, 8, 8
QUICK = ("--batch", "2", "--latency-rounds", "2", "--batch-size", "180")


def shown(path: Path) -> np.ndarray:
    """Pixels of a picture, each once."""
    picture = np.asarray(Image.open(path))
    assert picture.shape == (256, 256, 3) and picture.dtype == np.uint8
    small = picture[::ENLARGED, ::ENLARGED]
    assert np.array_equal(picture, small.repeat(ENLARGED, 0).repeat(ENLARGED, 1))
    return small.astype(int)


def test_attention_and_pictures_of_what_stays(prune: Prune, tiny_clip: Path, tmp_path: Path) -> None:
    how = (*QUICK, "--data", "digits", "--stages", "0:0.6", "--stages", "1:0.5", "-o", "t.safetensors")
    see = ("--extract-attention", "a.safetensors", "--overlay", "seen", "--pictures", 3)
    done = prune("token", tiny_clip, *how, *see)
    assert done.code == 0, done.err
    assert "wrote a.safetensors" in done.err and "drew pictures in seen" in done.err
    assert "latency: intervals of 2 rounds are wide" in done.err
    found = load_file(tmp_path / "a.safetensors")
    assert set(found) == {"block_00", "block_01", "images", "kept"}
    for name, left in (("block_00", 38), ("block_01", 19)):
        assert found[name].shape == (3, HEADS, left + 1, left + 1)
        assert np.allclose(found[name].sum(-1), 1, atol=1e-5)
    assert found["images"].tolist() == [0, 1, 2] and found["kept"].shape == (3, 19)
    assert len({tuple(row) for row in found["kept"]}) == 3
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == ["0000.png", "0001.png", "0002.png"]
    split = load("digits", tmp_path, download=False).test
    for index, kept in enumerate(found["kept"]):
        side = PATCH * GRID
        digit = split.image(index).convert("RGB").resize((side, side), Image.Resampling.BILINEAR)  # type: ignore[attr-defined]
        pixels, drawn = np.asarray(digit).astype(int), shown(tmp_path / "seen" / f"{index:04d}.png")
        assert (pixels > 60).any()
        for place in range(GRID * GRID):
            row, column = divmod(place, GRID)
            here = (slice(PATCH * row, PATCH * (row + 1)), slice(PATCH * column, PATCH * (column + 1)))
            expected = pixels[here] if place in kept else pixels[here] // 3 + 48
            assert np.abs(drawn[here] - expected).max() <= 1, (index, place)


def test_chosen_blocks_as_numpy_and_nothing_is_replaced_unasked(prune: Prune, tiny_clip: Path, tmp_path: Path) -> None:
    how = ("token", tiny_clip, *QUICK, "--data", "digits", "--tokens", 20, "--inside", "-o", "t.safetensors")
    see = ("--extract-attention", "a.npz", "--attention-block", 1, "--pictures", 2)
    done = prune(*how, *see, "--json")
    assert done.code == 0, done.err
    with np.load(tmp_path / "a.npz") as found:
        assert set(found.files) == {"block_01", "images", "kept"}
        assert found["block_01"].shape == (2, HEADS, TOKENS, TOKENS)  # they are left out behind its attention
        assert found["kept"].shape == (2, 19)
    (tmp_path / "t.safetensors").unlink()
    before = (tmp_path / "a.npz").read_bytes()
    done = prune(*how, *see)
    assert done.code == 2 and done.err.splitlines() == [
        "error: a.npz: exists; add --force to replace it, or choose another name"
    ]
    (tmp_path / "seen").mkdir()
    (tmp_path / "seen" / "0001.png").write_bytes(b"mine")
    done = prune(*how, "--overlay", "seen", "--pictures", 2)
    assert done.code == 2 and "seen/0001.png: exists" in done.err and len(done.err.splitlines()) == 1
    assert (tmp_path / "a.npz").read_bytes() == before and not (tmp_path / "t.safetensors").exists()
    done = prune(*how, "--extract-attention", "a.npz", "--overlay", "seen", "--pictures", 2, "--force")
    assert done.code == 0, done.err
    with np.load(tmp_path / "a.npz") as found:
        assert set(found.files) == {"block_01", "images", "kept"}
    shown(tmp_path / "seen" / "0001.png")


def test_images_that_cannot_be_read_are_passed_over(prune: Prune, tiny_clip: Path, tmp_path: Path) -> None:
    for place in range(10):
        for part in ("train", "val"):
            (tmp_path / "data" / part / str(place)).mkdir(parents=True)
            picture = tmp_path / "data" / part / str(place) / "image.png"
            Image.new("RGB", (40, 32), (20 * place, 0, 99)).save(picture)
    (tmp_path / "data" / "val" / "1" / "image.png").write_bytes(b"nothing")
    see = ("--extract-attention", "a.npz", "--overlay", "seen", "--pictures", 2)
    done = prune("token", tiny_clip, *QUICK, "--data", "folder:data", "--skip-bad", 1, "--selector", "evit", *see)
    assert done.code == 0, done.err
    with np.load(tmp_path / "a.npz") as found:
        assert found["images"].tolist() == [0, 2]
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == ["0000.png", "0002.png"]
    assert shown(tmp_path / "seen" / "0002.png")[:, :, 0].min() == 40


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--data", "digits", "--extract-attention", "a.pt"),
            "--extract-attention a.pt: name it a.safetensors, or with .npz",
        ),
        (("--extract-attention", "a.npz"), "--extract-attention needs images and there is no data set"),
        (("--overlay", "seen"), "--overlay needs images and there is no data set"),
        (
            ("--data", "digits", "--extract-attention", "a.npz", "--attention-block", "2"),
            "there is no attention of block 2: the network has blocks 0 to 1",
        ),
        (
            ("--data", "digits", "--extract-attention", "a.npz", "--attention-block=-1"),
            "there is no attention of block -1",
        ),
        (("--data", "digits", "--attention-block", "0"), "--attention-block goes with --extract-attention"),
        (("--data", "digits", "--pictures", "3"), "--pictures goes with --extract-attention or --overlay"),
        (("--data", "digits", "--overlay", "seen", "--pictures", "0"), "--pictures has to be at least 1 (got 0)"),
        (("--data", "digits", "--overlay", "seen", "--selector", "tome"), "tome merges them"),
        (("--data", "digits", "--overlay", "taken.txt"), "--overlay taken.txt: is a file"),
        (("--data", "digits", "--extract-attention", "t.safetensors"), "that is the checkpoint"),
    ],
)
def test_the_wrong_thing_is_one_line(
    prune: Prune, tiny_clip: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    (tmp_path / "taken.txt").touch()
    done = prune("token", tiny_clip, *words, "-o", "t.safetensors")
    assert done.code == 2, done.err
    assert len(done.err.splitlines()) == 1 and said in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["taken.txt"]


def test_one_table_and_a_checkpoint_that_leaves_tokens_out(prune: Prune, tiny_clip: Path, tmp_path: Path) -> None:
    done = prune("token", tiny_clip, *QUICK, "--data", "digits", "--tokens", 33, "-o", "t.safetensors")
    assert done.code == 0, done.err
    for said in ("tokens behind blocks\t65 x2\t65 x1, 33 x1", "mean class recall", "agreement", "of the MACs limit"):
        assert said in done.out
    again = prune(
        "eval",
        "t.safetensors",
        "--data",
        "digits",
        "--measure",
        "macs",
        "--measure",
        "accuracy",
        "--clip-benchmark",
        "c.json",
        "--json",
    )
    dense = prune("eval", tiny_clip, "--data", "digits", "--measure", "macs", "--json")
    assert again.code == dense.code == 0, again.err
    assert again.json["metrics"]["macs"] < dense.json["metrics"]["macs"]
    result = json.loads((tmp_path / "c.json").read_text())
    assert set(result) == {"dataset", "model", "pretrained", "task", "metrics", "language"}
    assert result["metrics"]["acc1"] == again.json["metrics"]["top1"] / 100
    before, after = load_state(tiny_clip), load_state(tmp_path / "t.safetensors")
    assert all(np.array_equal(before[name], after[name]) for name in before) and set(before) == set(after)
    for words, said in (
        (("token", "t.safetensors"), "its tokens are pruned already"),
        (("l1", "t.safetensors"), "prune its channels first, and do that afterwards"),
    ):
        refused = prune(*words, "-o", "u.safetensors")
        assert refused.code == 2 and said in refused.err and refused.err.strip().count("\n") == 0


def load_state(path: Path) -> dict[str, np.ndarray]:
    return dict(load_file(path))


def test_a_pruned_network_loses_tokens_too_and_is_finetuned_with_fewer(prune: Prune, tiny_clip: Path) -> None:
    small = prune("l1", tiny_clip, "--ratio", "0.3", "--only", "visual", "-o", "small.safetensors")
    assert small.code == 0, small.err
    tokens = prune("token", "small.safetensors", *QUICK, "--keep-share", "0.5", "-o", "fewer.safetensors")
    assert tokens.code == 0, tokens.err
    tuned = prune("finetune", "fewer.safetensors", "--data", "digits", "--epochs", "1", "-o", "tuned.safetensors")
    assert tuned.code == 0, tuned.err
    seen = prune("eval", "tuned.safetensors", "--measure", "macs", "--json")
    whole = prune("eval", "small.safetensors", "--measure", "macs", "--json")
    assert seen.json["metrics"]["macs"] < whole.json["metrics"]["macs"]


def test_a_frontier_is_a_table_and_a_picture(prune: Prune, tiny_clip: Path, tmp_path: Path) -> None:
    done = prune("token", tiny_clip, "--data", "digits", "--frontier", "f.png", "--frontier-selectors", "cls,random",
                 "--frontier-shares", "0.3,0.6", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert [(row["selector"], row["keep"]) for row in done.json[1:]] == [
        ("cls", 0.3), ("cls", 0.6), ("random", 0.3), ("random", 0.6)
    ]  # fmt: skip
    assert done.json[0]["macs_ratio"] == 1 and all(row["macs_ratio"] < 1 for row in done.json[1:])
    assert Image.open(tmp_path / "f.png").width > 500
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("token", "cifar:resnet20"), "ResNet is not a vision transformer"),
        (("token", "{w}", "--k-anchors", "10", "--top-m", "60"), "71 tokens are to stay, more than the 65"),
        (("token", "{w}", "--alpha", "1.5"), "--alpha"),
        (("token", "{w}", "--frontier", "f.png"), "--frontier needs images"),
        (("token", "{w}", "--frontier", "f.txt"), "name it f.png"),
        (
            ("token", "{w}", "--frontier", "f.png", "--keep-share", "0.5"),
            "--keep-share: --frontier tries many, times none and saves none",
        ),
        (("token", "{w}", "--frontier", "f.png", "-o", "t.pt"), "-o: --frontier tries many, times none and saves none"),
        (("token", "{w}", "--frontier-shares", "0.5"), "--frontier-shares: goes with --frontier"),
        (
            ("prune", "{w}", "--method", "token", "--keep", "0.25"),
            "--keep-share of `prune token` is params.keep_share",
        ),
        (("prune", "{w}", "--method", "token", "--epochs", "2"), "--epochs is for methods that remove channels"),
        (("eval", "{w}", "--clip-benchmark", "c.json", "--data", "digits", "--measure", "params"), "none is measured"),
        (
            ("eval", "{w}", "--data", "folder:one", "--val-fraction", "0", "--task", "linear-probe"),
            "images of two classes or more",
        ),
        (("token", "{w}", "--data", "folder:bad", "--skip-bad", "20"), "none of its images could be read"),
        (("eval", "{w}", "--data", "folder:bad", "--skip-bad", "20", "--task", "linear-probe"), "could be read"),
        (("token", "{w}", "--data", "digits", "--frontier", "f.png", "--frontier-blocks", "1.5"), "write numbers"),
        (("token", "{w}", "--data", "digits", "--frontier", "f.png", "--frontier-selectors", "clss"), "did you mean"),
        (("eval", "cifar:resnet20", "--task", "zeroshot"), "has no text tower"),
        (
            ("eval", "cifar:resnet20", "--data", "digits", "--class-names", "n.txt"),
            "are for networks with a text tower",
        ),
        (("eval", "{w}", "--task", "classification"), "has a text tower and no classifier"),
        (("eval", "{w}", "--clip-benchmark", "c.json"), "name a data set with --data"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    prune: Prune, tiny_clip: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    for data, classes in (("one", ["a"]), ("bad", [str(place) for place in range(10)])):
        for place in (tmp_path / data / part / name / "x.png" for part in ("train", "val") for name in classes):
            place.parent.mkdir(parents=True)
            place.write_bytes(b"nothing")
    done = prune(*(word.replace("{w}", str(tiny_clip)) for word in words))
    assert done.code == 2, done.out + done.err
    errors = [line for line in done.err.splitlines() if not line.startswith("warning")]
    assert len(errors) == 1 and said in errors[0], done.err


def test_a_linear_probe_of_features(prune: Prune, tiny_clip: Path, tmp_path: Path) -> None:
    probed = prune("eval", tiny_clip, "--data", "digits", "--task", "linear-probe", "--measure", "accuracy", "--json")
    assert probed.code == 0, probed.err
    assert probed.json["data"]["task"] == "linear-probe"
    guessed = prune("eval", tiny_clip, "--data", "digits", "--measure", "accuracy", "--json")
    assert guessed.json["data"]["task"] == "zeroshot"
    assert probed.json["metrics"]["top1"] > 60 > guessed.json["metrics"]["top1"]  # random features, but features
    refused = prune("eval", "cifar:resnet20", "--data", "digits", "--task", "linear-probe")
    assert refused.code == 2 and "a linear probe takes networks of timm and open_clip" in refused.err
