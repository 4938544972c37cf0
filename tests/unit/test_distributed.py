"""Two processes that train and evaluate together do what one does: gradients, figures, states."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from prunecli import ranks
from prunecli.data.epochs import BatchPlan, Shuffled
from prunecli.data.images import BadImages, UnreadableImage
from prunecli.data.loader import TrainingBatches, evaluation_batches, training_batches
from prunecli.data.preparation import Augmentation, Preprocessing
from prunecli.data.splits import ArraySplit
from prunecli.data.token_batches import StreamBatches, TextSplit, evaluation_streams
from prunecli.data.vocabulary import UNKNOWN, Vocabulary
from prunecli.engine.config import FitConfig
from prunecli.engine.distillation import Distillation
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.freezing import FreezeBackbone
from prunecli.engine.hooks import Batch, Hook
from prunecli.engine.tasks.base import Labels, Task
from prunecli.engine.tasks.index import task_of
from prunecli.errors import PruneError
from tests.processes import Processes
from tests.several import run_together

CPU = torch.device("cpu")
IMAGES = Preprocessing((3, 8, 8), (0.5,) * 3, (0.25,) * 3)
SGD: dict[str, Any] = {"epochs": 2, "lr": 0.05, "weight_decay": 1e-3}


def _images(count: int = 23) -> ArraySplit:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, count)
    pixels = generator.integers(0, 120, (count, 8, 8, 3), dtype=np.uint8) + (labels * 30)[:, None, None, None]
    return ArraySplit(pixels.astype(np.uint8), labels)


class _Damaged(ArraySplit):
    """Two images cannot be read. Of a share of two each leaves one sample, which another process takes."""

    def image(self, index: int) -> Any:
        if index in (3, 4):
            raise UnreadableImage(Path(f"{index}.png"), "is cut off", "image")
        return super().image(index)


def _batches(size: int = 5, split: ArraySplit | None = None, bad: int = 0) -> TrainingBatches:
    """Batches of 5 are shared as 3 and 2; the last one of 3 has one share."""
    chosen = _images() if split is None else split
    return training_batches(chosen, IMAGES, Augmentation(flip=True), size, seed=1, bad=BadImages(bad))


def _plain(outputs: int = 4, *, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(24, outputs),
    )  # fmt: skip


class _WithSpare(nn.Module):
    """One parameter is used for few images alone, and one never; the optimizer has to leave the latter alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.unused = _plain(), nn.Parameter(torch.ones(3))
        self.sometimes = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.net(inputs)
        bright = inputs[:, 0, 0, 0] > 0.3
        return torch.where(bright[:, None], scores * self.sometimes, scores) if bright.any() else scores


def _labels(task: str, classes: int = 4) -> Task:
    return task_of(Labels("the data", task, tuple(map(str, range(classes)))))


class _Gradients(Hook):
    """Notes the gradients of the first steps."""

    name = "gradients"

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def begin(self, training: Any) -> None:
        self._model = training.model

    def before_step(self) -> None:
        self.random = torch.get_rng_state()
        if len(self.seen) < 2:
            named = self._model.named_parameters()
            self.seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})


class _Penalty(Hook):
    """A penalty on weights, which no process may count twice."""

    name = "penalty"

    def begin(self, training: Any) -> None:
        self._model = training.model

    def loss(self, loss: Tensor, batch: Batch) -> Tensor:
        return loss + 0.1 * torch.stack([p.square().sum() for p in self._model.parameters()]).sum()


def _trained(
    model: nn.Module, batches: Any, task: Task, config: dict[str, Any] | None = None, *hooks: Hook, **more: Any
) -> dict[str, Any]:
    watching = _Gradients()
    settings = FitConfig(**SGD | (config or {}))
    result = fit(model, batches, None, settings, CPU, task=task, hooks=[*hooks, watching], **more)
    losses = [epoch.loss for epoch in result.epochs]
    weights = dict(model.state_dict())
    return {"gradients": watching.seen, "losses": losses, "weights": weights, "random": watching.random}


class _Masks:
    """Images with masks, most of one process's pixels void; a share of the samples of each batch like the loader's."""

    def __init__(self, broken: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self._inputs = torch.randn(7, 3, 8, 8, generator=generator)
        if broken is not None:
            self._inputs[broken] = torch.nan
        self._labels = torch.randint(3, (7, 8, 8), generator=generator)
        self._labels[::2, 1:] = 255
        self.position, self.counts = 0, True

    def __len__(self) -> int:
        return 2

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        for index, rows in list(enumerate(([0, 1, 2, 3], [4, 5, 6])))[first:]:
            plan = BatchPlan(rows).share(1)
            self.position, self.counts = index + 1, plan.counts
            yield self._inputs[plan.indices], self._labels[plan.indices]

    __iter__ = epoch  # type: ignore[assignment]


def _dense(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, outputs, 1))


def _text() -> TextSplit:
    numbers = np.random.default_rng(0).integers(0, 10, 400)
    return TextSplit(numbers, 7, Vocabulary("char", (*"abcdefghi", UNKNOWN)))


def _language() -> nn.Module:
    from prunecli.models.catalog import build

    torch.manual_seed(0)
    return build("lm:lstm", num_classes=10, units=6)


def _text_task() -> Task:
    return task_of(Labels("a text", "character-language", tuple("abcdefghij")))


TRAININGS: dict[str, Callable[[], dict[str, Any]]] = {
    "uneven shares": lambda: _trained(_plain(), _batches(), _labels("classification")),
    "accumulated": lambda: _trained(_plain(), _batches(), _labels("classification"), {"accumulate": 3}),
    "clipped": lambda: _trained(_plain(), _batches(), _labels("classification"), {"clip_grad": 0.1}),
    "smoothed, adamw": lambda: _trained(
        _plain(), _batches(), _labels("classification"), {"optimizer": "adamw", "lr": 1e-3, "label_smoothing": 0.1}
    ),
    "fewer samples than processes": lambda: _trained(_plain(), _batches(2), _labels("classification")),
    "lone samples": lambda: _trained(
        _plain(), _batches(4, _Damaged(*vars(_images()).values()), 2), _labels("classification")
    ),
    "unreadable images": lambda: _trained(
        _plain(), _batches(5, _Damaged(*vars(_images()).values()), 2), _labels("classification")
    ),
    "void pixels": lambda: _trained(_dense(), _Masks(), _labels("segmentation", 3)),
    "streams of a text": lambda: _trained(_language(), StreamBatches(_text(), 3, whole=False), _text_task()),
    "a teacher": lambda: _trained(
        _plain(), _batches(), _labels("classification"), {},
        Distillation(_plain(), _labels("classification"), 0.5), _Penalty(),
    ),
    "frozen at first": lambda: _trained(
        _plain(), _batches(), _labels("classification"), {}, FreezeBackbone(1)
    ),
    "parameters without gradients": lambda: _trained(_WithSpare(), _batches(), _labels("classification")),
}  # fmt: skip


def _pairs(task: str) -> list[tuple[Tensor, Any]]:
    """Batches of several sizes for a task, seven of them: an odd number for two processes."""
    generator = torch.Generator().manual_seed(3)
    batches: list[tuple[Tensor, Any]] = []
    for index, size in enumerate((4, 4, 3, 4, 2, 1, 4)):
        if task == "segmentation":
            labels = torch.randint(3, (size, 8, 8), generator=generator)
            labels[:, 0] = 255
        elif task == "retrieval":
            labels = torch.arange(4 * index, 4 * index + size)
        elif task in ("token-classification", "masked-language"):
            labels = torch.randint(-1, 4, (size, 6), generator=generator)
            labels[labels < 0] = -100
        else:
            labels = torch.randint(4, (size,), generator=generator)
        shape = (size, 6, 5) if task in ("token-classification", "masked-language") else (size, 3, 8, 8)
        batches.append((torch.randn(shape, generator=generator), labels))
    return batches


def _judge(task: str) -> nn.Module:
    torch.manual_seed(0)
    if task == "segmentation":
        return _dense()
    if task == "retrieval":
        return _plain(40)
    return nn.Linear(5, 4) if task in ("token-classification", "masked-language") else _plain()


def _evaluated(name: str) -> Any:
    if name == "text":
        return evaluate(_language(), evaluation_streams(_text()), CPU, task=_text_task())
    if name == "loader":
        batches = evaluation_batches(_Damaged(*vars(_images()).values()), IMAGES, 4, bad=BadImages(2))
        return evaluate(_plain(), batches, CPU, task=_labels("classification"))
    if name == "detection":
        return _boxes_evaluated()
    described = tuple(sorted(number % 28 for number in range(40))) if name == "retrieval" else ()
    task = task_of(Labels("the data", name, tuple("abcd"[: 3 if name == "segmentation" else 4]), described))
    return evaluate(_judge(name), _pairs(name), CPU, task=task)


def _boxes_evaluated() -> Any:
    from tests.unit.test_detection import TASK, _target, _yolos

    torch.manual_seed(0)
    network = _yolos()
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(2, 3, 64, 64, generator=generator), [_target([[8.0, 8.0, 40.0, 40.0 + n]], [n % 2])] * 2)
        for n in range(5)
    ]
    return evaluate(network, batches, CPU, task=TASK)


EVALUATIONS = (
    "classification", "segmentation", "token-classification", "masked-language", "retrieval", "text", "loader",
    "detection",
)  # fmt: skip


@contextmanager
def _meeting() -> Iterator[None]:
    torch.set_num_threads(1)
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    dist.init_process_group("gloo")
    yield
    ranks.wait_for_all()
    dist.destroy_process_group()


class _Stopped(Exception):
    pass


class _StopsAfter:
    """A keeper that raises once it has saved so many states."""

    def __init__(self, folder: Path, after: int | None) -> None:
        from prunecli.checkpoint.runstate import RunIdentity, StateStore

        folder.mkdir(parents=True, exist_ok=True)
        self._store = StateStore(folder, RunIdentity({}, {}), every=0)
        self._after = after
        self.load, self.due, self.interrupted = self._store.load, self._store.due, self._store.interrupted

    def save(self, content: dict[str, Any], position: str) -> bool:
        self._store.save(content, position)
        self._after = self._after - 1 if self._after is not None else None
        if self._after == 0:
            raise _Stopped
        return True


def _with_keeper(folder: Path, after: int | None, dropout: float = 0.0) -> dict[str, Any]:
    model, keeper = _plain(dropout=dropout), _StopsAfter(folder, after)
    try:
        return _trained(model, _batches(), _labels("classification"), {"optimizer": "adamw", "lr": 1e-3}, keeper=keeper)
    except _Stopped:
        return {}


def _texts_with_keeper(folder: Path, after: int | None) -> dict[str, Any]:
    batches, keeper = StreamBatches(_text(), 3, whole=False), _StopsAfter(folder, after)
    try:
        return _trained(_language(), batches, _text_task(), keeper=keeper)
    except _Stopped:
        return {}


def work(folder: Path) -> None:
    """What each process does once: everything below, written to a file."""
    with _meeting():
        size = ranks.world_size()
        found: dict[str, Any] = {f"train {name}": run() for name, run in TRAININGS.items()}
        found |= {f"eval {name}": evaluate_ for name in EVALUATIONS for evaluate_ in [_evaluated(name)]}
        found["normalised"] = _normalised()
        found["stopped"] = _with_keeper(folder / f"states-{size}", 4)
        found["whole"] = _with_keeper(folder / f"whole-{size}", None)
        found["dropout"] = _with_keeper(folder / f"dropout-{size}", None, 0.5)
        _with_keeper(folder / f"dropout-stopped-{size}", 4, 0.5)
        found["dropout resumed"] = _with_keeper(folder / f"dropout-stopped-{size}", None, 0.5)
        found["text"] = _texts_with_keeper(folder / f"text-{size}", None)
        _texts_with_keeper(folder / f"text-stopped-{size}", 5)
        found["text resumed"] = _texts_with_keeper(folder / f"text-stopped-{size}", None)
        found["even"] = _trained(_plain(dropout=0.5), _batches(4, _images(24)), _labels("classification"))
        found["random"] = torch.rand(3)  # afterwards all processes draw the same again
        found["too many unreadable"] = _message(
            lambda: _trained(_plain(), _batches(5, _Damaged(*vars(_images()).values()), 1), _labels("classification"))
        )
        found["not a number"] = _message(lambda: _trained(_dense(), _Masks(broken=3), _labels("segmentation", 3)))
        torch.save(found, folder / f"{size}-{ranks.rank()}.pt")


def three(folder: Path) -> None:
    """Where the third process has no share of a batch of 5, and computes what the first one does."""
    with _meeting():
        found = {"trained": TRAININGS["uneven shares"](), "normalised": _normalised()}
        torch.save(found, folder / f"three-{ranks.rank()}.pt")


def resume(folder: Path) -> None:
    """Continues what another number of processes began."""
    with _meeting():
        other = 3 - ranks.world_size()
        found = _with_keeper(folder / f"states-{other}", None)
        torch.save(found, folder / f"resumed-{ranks.world_size()}-{ranks.rank()}.pt")


def _normalised() -> dict[str, Any]:
    """A network with batch normalisation, and what one process would have measured at its first layer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    return _trained(model, _batches(), _labels("classification"))


def _message(action: Callable[[], object]) -> str:
    try:
        action()
    except PruneError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def found(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What one process found, and what each of two did; they write files for this test alone, so all may be in them."""
    folder = tmp_path_factory.mktemp("together")
    results = {}
    for size in (1, 2):
        ended = run_together(processes, folder, size=size, call="tests.unit.test_distributed:work")
        assert ended.codes == [0] * size, ended.err
        # These and those below are written by this test, with objects beside tensors.
        results[size] = [torch.load(folder / f"{size}-{rank}.pt", weights_only=False) for rank in range(size)]
    for size in (1, 2):
        ended = run_together(processes, folder, size=size, call="tests.unit.test_distributed:resume")
        assert ended.codes == [0] * size, ended.err
        for rank, result in enumerate(results[size]):
            result["resumed"] = torch.load(folder / f"resumed-{size}-{rank}.pt", weights_only=False)
    ended = run_together(processes, folder, size=3, call="tests.unit.test_distributed:three")
    assert ended.codes == [0, 0, 0], ended.err
    results[3] = [torch.load(folder / f"three-{rank}.pt", weights_only=False) for rank in range(3)]
    shutil.rmtree(folder)
    return results


Found = dict[int, list[dict[str, Any]]]


def _near(first: Any, second: Any, tolerance: float) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        told = partial("{}: {}".format, name)
        torch.testing.assert_close(tensor, second[name], rtol=tolerance, atol=tolerance, msg=told)


@pytest.mark.parametrize("name", TRAININGS)
def test_gradients_and_weights_are_those_of_one_process(found: Found, name: str) -> None:
    (alone,), both = ([each[f"train {name}"] for each in found[size]] for size in (1, 2))
    for one in both:
        assert len(one["gradients"]) == 2
        for expected, gradients in zip(alone["gradients"], one["gradients"], strict=True):
            _near(gradients, expected, 1e-5)
        _near(one["weights"], alone["weights"], 1e-5)
        assert one["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert all(torch.equal(both[0]["weights"][key], both[1]["weights"][key]) for key in both[0]["weights"])


def test_what_stands_in_for_a_share_counts_as_nothing(found: Found) -> None:
    (alone,) = found[1]
    for one in found[3]:
        _near(one["trained"]["weights"], alone["train uneven shares"]["weights"], 1e-5)
        assert one["trained"]["losses"] == pytest.approx(alone["train uneven shares"]["losses"], rel=1e-5)
        mean, expected = (each["weights"]["0.running_mean"] for each in (one["normalised"], alone["normalised"]))
        torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_any_gradient_stays(found: Found) -> None:
    """Weight decay would move it if it had a gradient of zero."""
    for one in (*found[1], *found[2]):
        assert torch.equal(one["train parameters without gradients"]["weights"]["unused"], torch.ones(3))


@pytest.mark.parametrize("name", EVALUATIONS)
def test_figures_are_those_of_one_process(found: Found, name: str) -> None:
    (alone,), both = ([each[f"eval {name}"] for each in found[size]] for size in (1, 2))
    assert both == [alone] * 2
    assert name not in ("classification", "loader") or alone.images == {"classification": 22, "loader": 21}[name]


def test_running_means_are_those_of_one_process_and_equal_everywhere(found: Found) -> None:
    (alone,), both = ([each["normalised"]["weights"] for each in found[size]] for size in (1, 2))
    assert all(torch.equal(both[0][key], both[1][key]) for key in both[0])
    torch.testing.assert_close(both[0]["0.running_mean"], alone["0.running_mean"], rtol=1e-5, atol=1e-6)
    assert not torch.equal(both[0]["0.running_var"], alone["0.running_var"])  # without the part between shares


def test_another_number_of_processes_continues(found: Found) -> None:
    """2 -> 1 and 1 -> 2: the same network as without a stop."""
    expected = found[1][0]["whole"]["weights"]
    for one in (*found[1], *found[2]):
        assert one["stopped"] == {}
        _near(one["resumed"]["weights"], expected, 1e-5)


def test_the_same_number_resumes_bit_by_bit(found: Found) -> None:
    for one in (*found[1], *found[2]):
        for what in ("dropout", "text"):
            expected, resumed = one[what]["weights"], one[f"{what} resumed"]["weights"]
            assert all(torch.equal(expected[key], resumed[key]) for key in expected), what


def test_processes_drop_different_units_and_then_draw_the_same_again(found: Found) -> None:
    first, second = (one["even"] for one in found[2])  # all shares have two samples, so equally many are drawn
    assert torch.equal(found[2][0]["random"], found[2][1]["random"])
    assert not torch.equal(first["random"], second["random"])
    assert torch.equal(first["weights"]["6.weight"], second["weights"]["6.weight"])


def test_unreadable_images_count_over_all_processes(found: Found) -> None:
    """One of two is allowed, and each process meets one at most."""
    messages = {one["too many unreadable"] for one in (*found[1], *found[2])}
    assert len(messages) == 1 and "not a readable image (is cut off), the 2nd of them" in messages.pop()


def test_a_loss_that_is_no_number_in_one_process_is_an_error_in_all(found: Found) -> None:
    for one in (*found[1], *found[2]):
        assert one["not a number"] == "the loss is nan at epoch 1, batch 1; lower the learning rate (--lr)"


@pytest.mark.parametrize("processes_", [1, 2, 3, 4])
@pytest.mark.parametrize("samples", [1, 2, 3, 5, 22])
def test_shares_are_the_batch(samples: int, processes_: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sample counts once, with its own seed, whatever the number of processes, and no share has one of several."""
    (whole,) = Shuffled(samples, samples, 3)
    assert whole.seeds is not None
    monkeypatch.setattr(ranks, "world_size", lambda: processes_)
    seen: list[tuple[int, int]] = []
    for rank in range(processes_):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        share = copy.deepcopy(whole).share(min(2, samples))
        assert share.seeds is not None and len(share.indices) >= min(2, samples)
        seen += zip(share.indices, share.seeds, strict=True) if share.counts else []
    assert sorted(seen) == sorted(zip(whole.indices, whole.seeds, strict=True))
