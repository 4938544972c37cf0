"""Event data: frames, published sets and folders, batches, and the way through the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunecli.checkpoint.manifest import Step
from prunecli.cli.output import Output
from prunecli.data.catalog import load_data, samples_of
from prunecli.data.events import Binning, Events, pooled, to_frames
from prunecli.data.images import BadImages
from prunecli.data.loader import CalibrationBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.recordings import EventSplit, Recording, shifted
from prunecli.data.splits import hold_out
from prunecli.errors import DataError, ModelError, PruneError, RecipeError
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe
from tests.conftest import Prune
from tests.unit.event_formats import Event, aedat2, aedat3, aedat3_packet, atis
from tests.unit.test_event_files import recordings

PREPROCESSING = Preprocessing((2, 17, 17), (0.0, 0.0), (1.0, 1.0), frames=Binning(4))


def events_of(sequence: Sequence[Event]) -> Events:
    return Events(*(np.array(column, dtype=np.int64) for column in zip(*sequence, strict=True)))


def some(seed: int, count: int = 60, width: int = 34, height: int = 34) -> list[Event]:
    generator = np.random.default_rng(seed)
    times = np.sort(generator.integers(0, 300_000, count))
    columns = generator.integers(0, (width, height, 2), size=(count, 3))
    return [(int(x), int(y), int(t), int(p)) for (x, y, p), t in zip(columns, times, strict=True)]


@settings(max_examples=80, deadline=None)
@given(
    given_events=recordings(34, 34, 5_000),
    count=st.integers(1, 12),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
)
def test_frames_lose_no_event(given_events: list[Event], count: int, height: int, width: int) -> None:
    events = events_of(given_events)
    by_number = to_frames(events, (34, 34), (height, width), Binning(count))
    assert by_number.shape == (count, 2, height, width) and by_number.dtype == np.float32
    counts = by_number.sum(axis=(1, 2, 3))
    assert counts.sum() == len(events) and counts.max() - counts.min() <= 1
    assert by_number[:, 1].sum() == events.p.sum()
    assert to_frames(events, (34, 34), (height, width), Binning(count, "time")).sum() == len(events)
    full = to_frames(events, (34, 34), (34, 34), Binning(count))
    assert np.array_equal(pooled(full, (height, width)), by_number)


def test_frames_hold_the_events_of_their_interval() -> None:
    given_events = [
        (0, 0, 1000, 1),
        (5, 3, 1100, 0),
        (5, 3, 1299, 0),
        (33, 33, 1300, 1),
        (1, 2, 1399, 1),
        (1, 2, 1500, 0),
    ]
    events = events_of(given_events)

    def by_hand(frames: Sequence[Sequence[int]]) -> np.ndarray:
        made = np.zeros((len(frames), 2, 34, 34), np.float32)
        for index, chosen in enumerate(frames):
            for x, y, _, p in (given_events[i] for i in chosen):
                made[index, p, y, x] += 1
        return made

    def made(binning: Binning) -> np.ndarray:
        return to_frames(events, (34, 34), (34, 34), binning)

    assert np.array_equal(made(Binning(3)), by_hand([[0, 1], [2, 3], [4, 5]]))
    assert np.array_equal(made(Binning(5, "time")), by_hand([[0, 1], [], [2, 3], [4], [5]]))  # 100.2 us each
    assert np.array_equal(made(Binning(4, duration=150)), by_hand([[0, 1], [2], [3, 4], [5]]))
    assert np.array_equal(made(Binning(2, duration=150)), by_hand([[0, 1], [2]]))  # the rest is cut off
    assert np.array_equal(made(Binning(7, duration=300)), by_hand([[0, 1, 2], [3, 4, 5], [], [], [], [], []]))
    assert np.array_equal(made(Binning(7)), by_hand([[0], [1], [2], [3], [4], [5], []]))  # fewer events than frames


@pytest.mark.parametrize("wrong", [(0,), (4, "size"), (4, "time", 0), (True,), (10**9,), (4.0,)])
def test_a_binning_has_frames(wrong: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="do not make frames"):
        Binning(*wrong)  # type: ignore[arg-type]


def test_the_real_recording_becomes_a_batch(data_root: Path) -> None:
    split = EventSplit(data_root / "events", (Recording("nmnist_sample.bin"),), np.array([0]), (34, 34))
    frames, labels = next(iter(evaluation_batches(split, Preprocessing((2, 34, 34), (), (), frames=Binning(4)), 8)))
    assert frames.shape == (1, 4, 2, 34, 34) and labels.tolist() == [0]
    assert frames.sum(dim=(2, 3, 4)).tolist() == [[1082, 1081, 1081, 1081]]


@pytest.fixture
def nmnist(tmp_path: Path) -> Path:
    """A data folder with N-MNIST in its original layout: eight training and two test recordings of three digits."""
    for part, count in (("Train", 8), ("Test", 2)):
        for digit in (0, 3, 9):
            folder = tmp_path / "N-MNIST" / part / str(digit)
            folder.mkdir(parents=True)
            for index in range(count):
                (folder / f"{index:05}.bin").write_bytes(atis(some(100 * digit + index + count)))
    return tmp_path


def test_n_mnist(nmnist: Path) -> None:
    data = load_data("n-mnist", nmnist)
    assert data.class_names == tuple("0123456789") and data.channels == 2 and data.image_size == (34, 34)
    assert data.training_split().labels.tolist() == [0] * 8 + [3] * 8 + [9] * 8 and len(data.test.labels) == 6
    held = hold_out(data, 0.25)
    assert held.validation is not None and set(held.validation.labels.tolist()) == {0, 3, 9}
    before = data.test.fingerprint()
    assert data.test.subset(np.arange(5)).fingerprint() != before
    (nmnist / "N-MNIST" / "Test" / "0" / "00000.bin").write_bytes(atis(some(0, 61)))
    assert load_data("n-mnist", nmnist).test.fingerprint() != before
    assert load_data("n-mnist", nmnist / "N-MNIST").class_names == data.class_names  # the set itself as data folder


def test_cifar10_dvs_is_turned_upright_and_divided_by_a_fixed_choice(tmp_path: Path) -> None:
    for name in ("airplane", "truck"):
        folder = tmp_path / "CIFAR10DVS" / "extract" / name
        folder.mkdir(parents=True)
        for index in range(20):
            (folder / f"cifar10_{name}_{index}.aedat").write_bytes(aedat2([(100, 20, 5, 1)] * (index + 1)))
    data, again = (load_data("cifar10-dvs", tmp_path) for _ in range(2))
    train, test = data.training_split(), data.test
    assert isinstance(train, EventSplit) and isinstance(test, EventSplit) and isinstance(again.test, EventSplit)
    assert test.labels.tolist() == [0, 0, 9, 9] and len(train.labels) == 36
    assert test.recordings == again.test.recordings and not set(test.recordings) & set(train.recordings)
    frames = train.frames(0, Binning(1), (128, 128))
    assert frames.nonzero()[1][0] == 1 and [int(axis[0]) for axis in frames.nonzero()[2:]] == [100, 20]


def _gestures(root: Path, rows: str = "1,1000,1200\n11,1200,1400\n") -> Path:
    folder = root / "DvsGesture"
    folder.mkdir()
    for part, user in (("train", "user01_led"), ("test", "user24_lab")):
        (folder / f"trials_to_{part}.txt").write_text(f"{user}.aedat\n")
        (folder / f"{user}_labels.csv").write_text("class,startTime_usec,endTime_usec\n" + rows)
        packets = [aedat3_packet([(start % 128, 7, start, 1)] * 5) for start in range(900, 1500, 50)]
        (folder / f"{user}.aedat").write_bytes(aedat3(*packets))
    return folder


def test_dvs_gesture_is_cut_into_gestures(tmp_path: Path) -> None:
    _gestures(tmp_path)
    data = load_data("dvs-gesture", tmp_path)
    assert data.num_classes == 11 and not data.flip and data.test.labels.tolist() == [0, 10]
    train = data.training_split()
    assert isinstance(train, EventSplit)
    events = train.read(1)
    assert isinstance(events, Events) and np.unique(events.t).tolist() == [1200, 1250, 1300, 1350]
    table = tmp_path / "DvsGesture" / "user01_led_labels.csv"
    table.write_text(table.read_text().replace("1400", "1300"))
    assert load_data("dvs-gesture", tmp_path).training_split().fingerprint() != train.fingerprint()


@pytest.mark.parametrize("rows", ["12,1000,1200\n", "1,1200,1000\n", "1,1000\n", "one,1000,1200\n"])
def test_a_wrong_table_of_gestures_is_one_line(tmp_path: Path, rows: str) -> None:
    _gestures(tmp_path, rows)
    with pytest.raises(DataError, match=r"^[^\n]*user01_led_labels.csv, line 2: [^\n]*unpack it again$"):
        load_data("dvs-gesture", tmp_path)


def test_a_gesture_without_events_is_named_with_its_interval(tmp_path: Path) -> None:
    _gestures(tmp_path, "1,100,200\n")
    with pytest.raises(DataError, match=r"user01_led.aedat: [^\n]*it has no events from 100 to 200 microseconds"):
        list(evaluation_batches(load_data("dvs-gesture", tmp_path).training_split(), PREPROCESSING, 2))


def test_n_caltech101_and_what_spikingjelly_makes(tmp_path: Path) -> None:
    for name in ("accordion", "BACKGROUND_Google"):
        (tmp_path / "N-Caltech101" / "Caltech101" / name).mkdir(parents=True)
        (tmp_path / "NMNIST" / "events_np" / "train" / "7").mkdir(parents=True, exist_ok=True)
        for index in range(3):
            content = atis(some(index, width=240, height=180))
            (tmp_path / "N-Caltech101" / "Caltech101" / name / f"image_{index}.bin").write_bytes(content)
    data = load_data("n-caltech101", tmp_path)
    assert data.class_names == ("BACKGROUND_Google", "accordion") and data.image_size == (180, 240)
    assert len(data.training_split().labels) == 4 and data.test.labels.tolist() == [0, 1]
    (tmp_path / "NMNIST" / "events_np" / "test" / "7").mkdir(parents=True)
    for part in ("train", "test"):
        x, y, t, p = np.array(some(1)).T
        np.savez(tmp_path / "NMNIST" / "events_np" / part / "7" / "1.npz", t=t, x=x, y=y, p=p)
    assert load_data("n-mnist", tmp_path).training_split().labels.tolist() == [7]


def test_a_missing_set_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^n-mnist is not in {tmp_path} \(looked for N-MNIST/Train/0/"):
        load_data("n-mnist", tmp_path)
    with pytest.raises(DataError, match="no recordings; expected CLASS"):
        load_data(f"events:{tmp_path}")
    with pytest.raises(DataError, match="no such folder"):
        load_data(f"events:{tmp_path / 'x'}")


def _folder(root: Path, content: bytes, suffix: str, count: int = 10) -> None:
    for name in ("2", "10"):
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}{suffix}").write_bytes(content)


def test_a_folder_tells_its_sensor(tmp_path: Path) -> None:
    _folder(tmp_path, atis([(150, 100, 5, 1), (3, 4, 6, 0)]), ".bin")
    data = load_data(f"events:{tmp_path}")
    assert data.class_names == ("2", "10") and data.image_size == (180, 240) and len(data.test.labels) == 2
    (tmp_path / "2" / "0.bin").write_bytes(bytes([255] * 5))  # a damaged one among many changes nothing
    assert load_data(f"events:{tmp_path}").image_size == (180, 240)
    (tmp_path / "sensor.txt").write_text("200x210\n")
    assert load_data(f"events:{tmp_path}").image_size == (200, 210)
    (tmp_path / "sensor.txt").write_text("wide\n")
    with pytest.raises(DataError, match=r"sensor.txt: 'wide' is not a height and width; write them as 480x640$"):
        load_data(f"events:{tmp_path}")


def test_a_folder_of_frames(tmp_path: Path) -> None:
    np.savez(tmp_path / "made.npz", frames=np.ones((3, 2, 20, 24), np.uint8))
    _folder(tmp_path / "set", (tmp_path / "made.npz").read_bytes(), ".npz")
    data = load_data(f"events:{tmp_path / 'set'}")
    assert data.image_size == (20, 24)
    fitting = Preprocessing((2, 10, 12), (), (), frames=Binning(3))
    frames, _ = next(iter(evaluation_batches(data.test, fitting, 2)))
    assert frames.shape == (2, 3, 2, 10, 12) and (frames == 4).all()
    with pytest.raises(DataError, match=r"^[^\n]*\.npz: has 3 frames and the network takes 4 steps; [^\n]*--frames 3"):
        list(evaluation_batches(data.test, PREPROCESSING, 2, 1))


Batch = tuple[Tensor, Tensor]


def _equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_an_epoch_is_the_same_whoever_loads_it(nmnist: Path) -> None:
    split = load_data("n-mnist", nmnist).training_split()
    alone, together = (
        training_batches(split, PREPROCESSING, Augmentation(flip=True), 5, seed=3, workers=workers)
        for workers in (0, 2)
    )
    epochs = [list(alone.epoch(number)) for number in (1, 2)]
    assert _equal(epochs[0], list(together.epoch(1))) and _equal(epochs[1], list(together.epoch(2)))
    assert _equal(epochs[1][3:], list(together.epoch(2, 3))) and not _equal(epochs[0], epochs[1])
    assert all(frames.shape[1:] == (4, 2, 17, 17) for frames, _ in epochs[0])
    calibration = CalibrationBatches(split, PREPROCESSING, 6, 3, seed=0)
    assert _equal(list(calibration.labelled), list(calibration.labelled))


def test_training_frames_are_shifted_and_mirrored(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(atis([(10, 20, 5, 1), (10, 20, 6, 0)]))
    split = EventSplit(tmp_path, (Recording("a.bin"),) * 200, np.zeros(200, np.int64), (34, 34))
    seen = {}
    for flip in (False, True):
        batches = training_batches(
            split, Preprocessing((2, 34, 34), (), (), frames=Binning(2)), Augmentation(flip=flip), 100, seed=0
        )
        frames = torch.cat([frames for frames, _ in batches])
        assert (frames.sum(dim=(1, 2, 3, 4)) == 2).all()
        first, second = (frames[:, polarity, 1 - polarity].nonzero()[:, 1:] for polarity in (0, 1))
        assert torch.equal(first, second)  # all frames of a recording alike
        seen[flip] = {tuple(pixel) for pixel in first.tolist()}
    shifts = {(20 + down, 10 + right) for down in (-2, -1, 0, 1, 2) for right in (-2, -1, 0, 1, 2)}
    assert seen[False] == shifts
    assert seen[True] <= shifts | {(row, 33 - column) for row, column in shifts} and len(seen[True]) > 40


@pytest.mark.parametrize(("down", "right"), [(0, 0), (2, -1), (-3, 4), (5, 5)])
def test_a_shift_leaves_zeros(down: int, right: int) -> None:
    frames = torch.arange(1.0, 26).reshape(5, 5)
    moved = shifted(frames, down, right)
    for row in range(5):
        for column in range(5):
            inside = 0 <= row - down < 5 and 0 <= column - right < 5
            assert moved[row, column] == (frames[row - down, column - right] if inside else 0)


def test_what_is_for_images_is_refused(nmnist: Path) -> None:
    split = load_data("n-mnist", nmnist).training_split()
    with pytest.raises(DataError, match="--random-erasing are for images"):
        training_batches(split, PREPROCESSING, Augmentation(random_erasing=0.5), 4, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_recording_that_cannot_be_read_may_be_left_out(nmnist: Path, workers: int) -> None:
    path = nmnist / "N-MNIST" / "Test" / "3" / "00001.bin"
    path.write_bytes(path.read_bytes()[:-1])
    split = load_data("n-mnist", nmnist).test
    with pytest.raises(DataError, match=rf"^{path}: not a readable recording \([^\n]*cut[^\n]*--skip-bad 1$"):
        list(evaluation_batches(split, PREPROCESSING, 4, workers))
    bad = BadImages(1)
    assert sum(len(labels) for _, labels in evaluation_batches(split, PREPROCESSING, 4, workers, bad=bad)) == 5
    assert list(bad.left_out) == [str(path)]


def _space(root: Path, ref: str = "spiking:vgg5", name: str = "n-mnist", **data: object) -> Workspace:
    kwargs = {"image_size": 16, "width": 0.1, "T": 3} if ref == "spiking:vgg5" else {}
    recipe = Recipe(
        model=ModelSection(ref=ref, kwargs=kwargs),
        data=DataSection(name=name, root=str(root), **data),  # type: ignore[arg-type]
        device="cpu",
    )
    return Workspace(recipe, Output("quiet"))


def test_the_network_says_how_many_frames(nmnist: Path) -> None:
    space = _space(nmnist)
    assert space.inputs.shape() == (2, 16, 16) and space.inputs.example().shape == (1, 3, 2, 16, 16)
    frames, _ = next(iter(space.inputs.batches(space.data().test)))
    assert frames.shape == (6, 3, 2, 16, 16) and frames.sum() == 6 * 60
    assert space.model().model(frames).shape == (6, 10)
    assert _space(nmnist, frames=5).inputs.example().shape == (1, 5, 2, 16, 16)
    assert _space(nmnist, name="digits").inputs.example().shape == (1, 1, 16, 16)


def test_a_checkpoint_goes_on_with_its_frames(nmnist: Path) -> None:
    space = _space(nmnist)
    history = space.model().manifest.history
    history.append(_space(nmnist, frame_duration=70, frames=6).lineage.step("train", {}, split=space.data().test))
    assert space.inputs.binning() == Binning(6, duration=70)
    for section, expected in (
        ({"frames": 2}, Binning(2, duration=70)),
        ({"frames_by": "time"}, Binning(6, "time")),
        ({"frame_duration": 9}, Binning(6, duration=9)),
    ):
        again = _space(nmnist, **section)
        again.model().manifest.history.extend(history)
        assert again.inputs.binning() == expected
    history.append(Step(stage="train", settings={"binning": {"frames": 10**9}}))
    with pytest.raises(ModelError, match="do not make frames; the file was altered"):
        space.inputs.binning()


@pytest.mark.parametrize(
    ("section", "error", "line"),
    [
        (
            {"ref": "cifar:resnet20"},
            DataError,
            "cifar:resnet20 takes images and n-mnist has recordings of events: use a",
        ),
        ({"frames": 4, "name": "digits"}, RecipeError, "are for events, and digits has images: leave them out"),
        ({"frame_duration": 5, "frames_by": "number"}, RecipeError, "--frame-duration and --frames-by number exclude"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    nmnist: Path, section: dict[str, object], error: type[PruneError], line: str
) -> None:
    with pytest.raises(error, match=line):
        _space(nmnist, **section).inputs.example()  # type: ignore[arg-type]


def test_a_network_for_colour_images_is_named(nmnist: Path) -> None:
    space = _space(nmnist)
    space.recipe.model.kwargs["in_chans"] = 3  # type: ignore[index]
    with pytest.raises(DataError, match="reads 3 channels and the events of n-mnist have 2, off and on"):
        space.inputs.preprocessing()


def test_events_are_told_by_name() -> None:
    assert samples_of("n-mnist") == samples_of("events:x") == "recordings"
    assert samples_of("mnist") == samples_of("x.npz") == "images"


@pytest.mark.usefixtures("spiking_ready")
def test_train_prune_and_evaluate(prune: Prune, nmnist: Path) -> None:
    common = ("--data-root", nmnist, "--batch-size", "8")
    (nmnist / "N-MNIST" / "Test" / "3" / "00001.bin").write_bytes(b"")
    done = prune(
        "train", "spiking:vgg5", "--data", "n-mnist", "--model-kwargs", "width=0.1", "--model-kwargs", "image_size=16",
        "--epochs", 1, "-o", "dense.safetensors", *common,
    )  # fmt: skip
    assert done.code == 0, done.err
    done = prune("l1", "dense.safetensors", "--ratio", 0.3, "--latency-rounds", 2, "-o", "pruned.safetensors", *common)
    assert done.code == 0 and "verified" in done.out, done.err
    assert (
        "warning: the score before and after is not measured: " in done.err and "00001.bin: not a readable" in done.err
    )
    done = prune("eval", "pruned.safetensors", "--measure", "accuracy", "--skip-bad", 1, "--json", *common)
    assert done.code == 0, done.err
    assert done.json["data"]["images"] == 5 and done.json["model"]["input_shape"] == [2, 16, 16]
    assert "unreadable recordings left out: 1 (" in done.err
