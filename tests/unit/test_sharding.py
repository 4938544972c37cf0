"""A network that two processes divide is trained, evaluated and resumed as in one process, and is plain afterwards."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli import ranks
from prunecli.data.loader import evaluation_batches
from prunecli.data.token_batches import StreamBatches
from prunecli.engine.config import FitConfig
from prunecli.engine.distillation import Distillation
from prunecli.engine.divided import is_sharded
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.freezing import FreezeBackbone
from prunecli.engine.holding import HoldZeros
from prunecli.engine.hooks import Hook
from prunecli.engine.optimizer import DIVISIBLE, make_optimizer
from prunecli.engine.repeated_blocks import repeated_blocks
from prunecli.engine.sharding import Sharded
from prunecli.errors import PruneError
from prunecli.models.catalog import build
from tests.processes import Processes
from tests.several import run_together
from tests.unit.test_distributed import (
    CPU,
    IMAGES,
    _batches,
    _images,
    _labels,
    _Masks,
    _meeting,
    _near,
    _pairs,
    _Penalty,
    _Stopped,
    _StopsAfter,
    _text,
    _text_task,
)

ADAM: dict[str, Any] = {"epochs": 2, "lr": 1e-3, "weight_decay": 1e-2, "optimizer": "adamw"}
SGD: dict[str, Any] = {"epochs": 2, "lr": 0.02, "weight_decay": 1e-3}


class _Block(nn.Module):
    """A residual block whose output is a view, which the network changes in place."""

    def __init__(self, width: int, normalised: bool, experts: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width) if normalised else nn.GroupNorm(2, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.experts = nn.ModuleList(nn.Sequential(nn.Conv2d(width, width, 1), nn.ReLU()) for _ in range(experts))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.conv(self.norm(inputs).relu())
        if self.experts:
            bright = inputs.detach().mean((1, 2, 3)) > 0
            for number, expert in enumerate(self.experts):
                rows = (bright == bool(number)).nonzero()[:, 0]
                if len(rows):  # as mixtures of experts leave out those of no token
                    hidden = hidden.index_add(0, rows, expert(hidden[rows]))
        return (inputs + hidden).flatten(2).unflatten(2, tuple(inputs.shape[2:]))


class _Layers(nn.Module):
    """Some blocks, of whose parameters one is used for few images alone, and one never."""

    def __init__(self, *, normalised: bool = False, experts: int = 0, outputs: int = 4, spare: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.layers = nn.ModuleList(_Block(6, normalised, experts) for _ in range(3))
        self.head = nn.Linear(6, outputs)
        self.sometimes = nn.Parameter(torch.ones(1)) if spare else None
        self.unused = nn.Parameter(torch.ones(3)) if spare else None

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
            hidden += 0.1
        bright = inputs[:, 0, 0, 0] > 0.3
        if self.sometimes is not None and bright.any():
            hidden = torch.where(bright[:, None, None, None], hidden * self.sometimes, hidden)
        scores: Tensor = self.head(hidden.mean((2, 3)))
        return scores


class _Reaching(_Layers):
    """Calls a part of a block."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden: Tensor = self.layers[0].conv(self.stem(inputs))  # type: ignore[union-attr,operator]
        return super().forward(inputs) + hidden.mean()


class _InAnyOrder(_Layers):
    """Blocks that run in another order in each process, as where random numbers choose them."""

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.stem(inputs)
        for layer in (*self.layers,) if ranks.rank() == 0 else reversed((*self.layers,)):
            hidden = layer(hidden)
        scores: Tensor = self.head(hidden.mean((2, 3)))
        return scores


def _tied() -> nn.Module:
    network = _Layers()
    network.layers[1].conv.weight = network.layers[0].conv.weight
    return network


def _half(network: nn.Module) -> nn.Module:
    """With masked weights, and one layer that is not trained at all."""
    network.layers[0].conv.weight.data[::2] = 0  # type: ignore[index,union-attr]
    network.stem.weight.data[1:3] = 0  # type: ignore[union-attr]
    network.layers[2].conv.requires_grad_(False)  # type: ignore[index,union-attr]
    return network


def _llama() -> nn.Module:
    torch.manual_seed(0)
    return build(
        "hf:LlamaForCausalLM", num_classes=10, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=True,
    )  # fmt: skip


def _vit() -> nn.Module:
    torch.manual_seed(0)
    return build(
        "timm:vit_tiny_patch16_224", num_classes=4, img_size=8, patch_size=4, embed_dim=24, depth=2, num_heads=3
    )


class _Sequences:
    """Sequences of a text, shared by two."""

    def __init__(self) -> None:
        self._tokens = torch.as_tensor(_text().tokens[:120]).view(3, 5, 8)

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        for rows in self._tokens:
            share = ranks.own_share(range(5))
            yield rows[share, :-1], rows[share, 1:]


class _Whole(Hook):
    """Notes the gradients of the first steps."""

    name = "gradients"
    works_sharded = True

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def begin(self, training: Any) -> None:
        self._model, self.sharded = training.model, is_sharded(training.model)

    def before_step(self) -> None:
        if len(self.seen) < 2:
            named = [(name, p.grad) for name, p in self._model.named_parameters() if p.grad is not None]
            self.seen.append({name: grad.full_tensor() if self.sharded else grad.clone() for name, grad in named})


def _trained(
    model: nn.Module, batches: Any, task: Any, config: dict[str, Any], *hooks: Hook, mode: str = "", **more: Any
) -> dict[str, Any]:
    watching = _Whole()
    mode = mode or ("fsdp2" if ranks.together() else "none")
    settings = FitConfig(**config | {"sharding": mode})
    validation = more.pop("validation", None)
    result = fit(model, batches, validation, settings, CPU, task=task, hooks=[*hooks, watching], **more)
    assert watching.sharded == (mode == "fsdp2") and not is_sharded(model)
    return {
        "gradients": watching.seen,
        "losses": [epoch.loss for epoch in result.epochs],
        "chosen": result.chosen,
        "validation": [epoch.validation for epoch in result.epochs],
        "weights": dict(model.state_dict()),
    }


def _classified(model: nn.Module, config: dict[str, Any], *hooks: Hook, size: int = 5, **more: Any) -> dict[str, Any]:
    return _trained(model, _batches(size), _labels("classification"), config, *hooks, **more)


def _masked(mode: str = "", **more: Any) -> dict[str, Any]:
    network = _half(_Layers())
    held = HoldZeros(network, ["layers.0.conv.weight", "stem.weight"])
    return _classified(network, ADAM, held, mode=mode, **more)


def _validated(count: int = 22) -> dict[str, Any]:
    batches = evaluation_batches(_images(count), IMAGES, 4)
    return _classified(_Layers(), SGD, validation=batches)


def _optimized(name: str) -> dict[str, Any]:
    return _classified(_Layers(), ADAM | {"epochs": 1, "optimizer": name})


Trainings = dict[str, Callable[[], dict[str, Any]]]
TRAININGS: Trainings = {
    "uneven shares": lambda: _classified(_Layers(), SGD),
    "accumulated and clipped": lambda: _classified(_vit(), ADAM | {"accumulate": 3, "clip_grad": 0.1}),
    "frozen at first": lambda: _classified(_Layers(), SGD, FreezeBackbone(1)),
    "masks and frozen layers": _masked,
    "experts, and parameters without gradients": lambda: _classified(_Layers(experts=2, spare=True), SGD),
    "shared parameters": lambda: _classified(_tied(), SGD),
    "validation": lambda: _validated(12),
    "validation of one batch": lambda: _validated(3),
}
MORE: Trainings = {
    "fewer samples than processes": lambda: _classified(_Layers(), ADAM, size=2),
    "a teacher": lambda: _classified(_Layers(), SGD, Distillation(_Layers(), _labels("classification"), 0.5)),
    "a decoder with tied embeddings": lambda: _trained(_llama(), _Sequences(), _text_task(), ADAM | {"clip_grad": 0.5}),
    "void pixels": lambda: _trained(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 3, 1)), _Masks(), _labels("segmentation", 3), SGD
    ),
    **{name: partial(_optimized, name) for name in sorted(DIVISIBLE)},
}


def _stopped(folder: Path, after: int | None, mode: str = "") -> dict[str, Any]:
    batches = evaluation_batches(_images(), IMAGES, 4)
    try:
        return _masked(mode, keeper=_StopsAfter(folder, after), validation=batches)
    except _Stopped:
        return {}


def _message(action: Callable[[], object]) -> str:
    try:
        action()
    except PruneError as error:
        return f"{type(error).__name__}: {error}"
    return ""


class _Weighing(_Penalty):
    name = "weighing"


class _Spoiling(Hook):
    """Makes one number of the last process's part no number."""

    name = "spoiling"
    works_sharded = True

    def begin(self, training: Any) -> None:
        self._weight = training.model.layers[1].conv.weight

    def after_step(self) -> None:
        if ranks.rank() == 1:
            self._weight.detach().to_local()[0, 0, 0, 0] = torch.nan


def _scalar() -> nn.Module:
    network = _Layers()
    network.register_parameter("scale", nn.Parameter(torch.ones(())))
    return network


def _continued() -> object:
    network = _Layers()
    optimizer = make_optimizer(network, FitConfig(**SGD))
    return _classified(network, SGD, optimizer=optimizer)


def _boxes() -> object:
    from tests.unit.test_detection import TASK

    return _trained(_Layers(), _batches(), TASK, SGD)


REFUSED: dict[str, Callable[[], object]] = {
    "weighing needs whole weights": lambda: _classified(_Layers(), SGD, _Weighing()),
    "scale is a single number": lambda: _classified(_scalar(), SGD),
    "optimizer of the whole network": _continued,
    "and muon is not": lambda: _optimized("muon"),
    "detectors": _boxes,
    "read a text from end to end": lambda: _trained(
        build("lm:lstm", num_classes=10, units=6), StreamBatches(_text(), 4, whole=False), _text_task(), SGD
    ),
    "reads weights of a block without calling the block": lambda: _classified(_Reaching(), SGD),
    "in the same order": lambda: _classified(_InAnyOrder(), SGD),
    "layers.1.conv.weight holds NaN or infinity at epoch 1": lambda: _classified(_Layers(), SGD, _Spoiling(), size=23),
}


def _described(network: nn.Module) -> list[Any]:
    """Everything about modules that dividing them changes."""
    return [
        (
            name,
            type(module),
            list(vars(module)),
            {key: len(value) for key, value in vars(module).items() if "_hooks" in key},
        )
        for name, module in network.named_modules()
    ]


def _left() -> dict[str, Any]:
    """What is left of dividing a network once it has been trained."""
    network = _tied()
    seen: list[int] = []
    network.layers[0].register_forward_hook(lambda *_: seen.append(1))  # type: ignore[index,union-attr]
    parameters, before = dict(network.named_parameters(remove_duplicate=False)), _described(network)
    _classified(network, SGD, validation=evaluation_batches(_images(), IMAGES, 4))
    calls = len(seen)
    copied = copy.deepcopy(network)
    copied.layers[0].conv.weight.sum().backward()  # type: ignore[index,union-attr]
    found = evaluate(network, _pairs("classification"), CPU, task=_labels("classification"))
    return {
        "plain": _described(network) == before,
        "same parameters": all(
            type(one) is nn.Parameter and one is parameters[name]
            for name, one in network.named_parameters(remove_duplicate=False)
        ),
        "kinds": {type(one) for one in network.state_dict().values()},
        "hooks": calls > 0 and len(seen) > calls,
        "figures": found,
    }


def work(folder: Path) -> None:
    """What each process does once."""
    with _meeting():
        size = ranks.world_size()
        found: dict[str, Any] = {name: run() for name, run in TRAININGS.items()}
        if size == 2:
            found["normalised"] = {mode: _classified(_Layers(normalised=True), SGD, mode=mode) for mode in ("none", "")}
        for mode in ("none", "fsdp2")[:size]:
            found[f"stopped {mode}"] = _stopped(folder / f"states-{size}-{mode}", 7, mode)
        found["whole"] = _stopped(folder / f"whole-{size}", None)
        found["left"] = _left()
        if size == 2:
            found["refused"] = {name: _message(run) for name, run in REFUSED.items()}
            found["part"] = _part()
        torch.save(found, folder / f"{size}-{ranks.rank()}.pt")


def more(folder: Path) -> None:
    """What takes longer."""
    with _meeting():
        found = {name: run() for name, run in MORE.items()}
        torch.save(found, folder / f"more-{ranks.world_size()}-{ranks.rank()}.pt")


def _part() -> tuple[int, int]:
    """Numbers in the parameters that one process holds while a network is divided, and in all of them."""
    network = _Layers()
    numbers = sum(one.numel() for one in network.parameters())
    sharded = Sharded(network, CPU)
    held = sum(one.to_local().numel() for one in network.parameters())  # type: ignore[attr-defined]
    sharded.end()
    assert sum(one.numel() for one in network.parameters()) == numbers
    return held, numbers


def resume(folder: Path) -> None:
    """Continues what another number of processes began, or these in another way."""
    with _meeting():
        size = ranks.world_size()
        found = {}
        for began in ("1-none", "2-none", "2-fsdp2"):
            own = folder / f"own-{size}-{began}"
            ranks.by_first(lambda began=began, own=own: shutil.copytree(folder / f"states-{began}", own))
            found[began] = _stopped(own, None)
        torch.save(found, folder / f"resumed-{size}-{ranks.rank()}.pt")


Found = dict[int, list[dict[str, Any]]]


def _in_one_and_in_two(call: str, files: str, processes: Processes, folder: Path) -> Found:
    results: Found = {}
    for size in (1, 2):
        ended = run_together(processes, folder, size=size, call=f"tests.unit.test_sharding:{call}")
        assert ended.codes == [0] * size, ended.err
        # Written by this test, with objects beside tensors.
        results[size] = [torch.load(folder / files.format(size, rank), weights_only=False) for rank in range(size)]
    return results


@pytest.fixture(scope="module")
def found(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What one process found, and what each of two did."""
    folder = tmp_path_factory.mktemp("divided")
    results = _in_one_and_in_two("work", "{}-{}.pt", processes, folder)
    resumed = _in_one_and_in_two("resume", "resumed-{}-{}.pt", processes, folder)
    for size, states in resumed.items():
        for rank, state in enumerate(states):
            results[size][rank]["resume"] = state
    shutil.rmtree(folder)
    return results


@pytest.mark.parametrize("name", TRAININGS)
def test_gradients_weights_and_figures_are_those_of_one_process(found: Found, name: str) -> None:
    _compare(found[1][0][name], [each[name] for each in found[2]])


@pytest.mark.slow
def test_so_they_are_of_other_tasks_hooks_and_optimizers(processes: Processes, tmp_path: Path) -> None:
    found = _in_one_and_in_two("more", "more-{}-{}.pt", processes, tmp_path)
    for name, alone in found[1][0].items():
        print(name)
        _compare(alone, [each[name] for each in found[2]])


def _compare(alone: dict[str, Any], both: list[dict[str, Any]]) -> None:
    for one in both:
        assert len(one["gradients"]) == 2
        for expected, gradients in zip(alone["gradients"], one["gradients"], strict=True):
            _near(gradients, expected, 1e-5)
        _near(one["weights"], alone["weights"], 1e-5)
        assert one["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert one["chosen"] == alone["chosen"]
        for figures, expected in zip(one["validation"], alone["validation"], strict=True):
            assert (figures is None) == (expected is None)
            if figures is not None:
                assert (figures.top1, figures.images, figures.class_hits) == (
                    expected.top1, expected.images, expected.class_hits,
                )  # fmt: skip
                assert figures.loss == pytest.approx(expected.loss, rel=1e-5)
    assert all(torch.equal(both[0]["weights"][key], both[1]["weights"][key]) for key in both[0]["weights"])


def test_a_parameter_without_any_gradient_stays(found: Found) -> None:
    """Weight decay would move it if it had a gradient of zero."""
    for one in (*found[1], *found[2]):
        weights = one["experts, and parameters without gradients"]["weights"]
        assert torch.equal(weights["unused"], torch.ones(3)) and not torch.equal(weights["sometimes"], torch.ones(1))


def test_masked_weights_and_frozen_layers_stay(found: Found) -> None:
    fresh = _half(_Layers()).state_dict()
    for one in (*found[1], *found[2]):
        weights = one["masks and frozen layers"]["weights"]
        assert not weights["layers.0.conv.weight"][::2].any() and weights["layers.0.conv.weight"][1::2].all()
        assert torch.equal(weights["layers.2.conv.weight"], fresh["layers.2.conv.weight"])


def test_batch_normalisation_is_that_of_whole_copies(found: Found) -> None:
    for one in found[2]:
        whole, divided = one["normalised"]["none"], one["normalised"][""]
        _near(divided["weights"], whole["weights"], 1e-5)
        assert divided["losses"] == pytest.approx(whole["losses"], rel=1e-5)


@pytest.mark.parametrize("began", ["1-none", "2-none", "2-fsdp2"])
def test_a_run_goes_on_divided_or_not_and_in_any_number_of_processes(found: Found, began: str) -> None:
    expected = found[1][0]["whole"]
    for one in (*found[1], *found[2]):
        resumed = one["resume"][began]
        _near(resumed["weights"], expected["weights"], 1e-5)
        assert resumed["chosen"] == expected["chosen"]


def test_the_same_number_resumes_bit_by_bit(found: Found) -> None:
    for one in found[2]:
        expected, resumed = one["whole"]["weights"], one["resume"]["2-fsdp2"]["weights"]
        assert one["stopped fsdp2"] == {} and all(torch.equal(expected[key], resumed[key]) for key in expected)


def test_nothing_is_left_of_it_afterwards(found: Found) -> None:
    """Classes, attributes, hooks and parameters are those from before; own hooks of the network stay."""
    for one in (*found[1], *found[2]):
        left = one["left"]
        assert left["plain"] and left["same parameters"] and left["hooks"]
        assert left["kinds"] == {Tensor}
        assert left["figures"].images == found[1][0]["left"]["figures"].images


def test_each_process_holds_a_part(found: Found) -> None:
    held, numbers = zip(*(one["part"] for one in found[2]), strict=True)
    assert sum(held) == numbers[0] and max(held) < 0.6 * numbers[0]


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_done_is_said_by_every_process(found: Found, text: str) -> None:
    first, second = (one["refused"][text] for one in found[2])
    assert first == second and text in first and "\n" not in first


@pytest.mark.parametrize(
    ("ref", "kwargs", "expected"),
    [
        ("timm:vit_tiny_patch16_224", {}, [f"blocks.{n}" for n in range(12)]),
        ("cifar:resnet20", {}, [f"layer{s}.{n}" for s in (1, 2, 3) for n in range(3)]),
        pytest.param(
            "hf:LlamaForCausalLM",
            {"num_hidden_layers": 2},
            ["model.layers.0", "model.layers.1"],
            marks=pytest.mark.slow,  # transformers takes seconds to import
        ),
        ("timm:mobilenetv2_050", {}, None),
    ],
)
def test_blocks_are_those_that_a_network_repeats(ref: str, kwargs: dict[str, Any], expected: list[str] | None) -> None:
    found = repeated_blocks(build(ref, meta=True, **kwargs))
    assert found == expected if expected is not None else len(found) == len(set(found))


def test_entries_that_may_not_run_or_share_parameters_are_no_blocks() -> None:
    assert repeated_blocks(_Layers(experts=2)) == ["layers.0", "layers.1", "layers.2"]
    assert repeated_blocks(_tied()) == ["layers.2"]
    stages = nn.Sequential(*(nn.Sequential(*(_Block(4, False, 0) for _ in range(2))) for _ in range(2)))
    assert repeated_blocks(stages) == ["0.0", "0.1", "1.0", "1.1"]


def test_one_process_divides_nothing_and_says_so() -> None:
    told: list[str] = []
    _trained(_Layers(), _batches(), _labels("classification"), SGD | {"epochs": 1}, mode="none")
    settings = FitConfig(**SGD | {"epochs": 1, "sharding": "fsdp2"})
    fit(_Layers(), _batches(), None, settings, CPU, task=_labels("classification"), tell=told.append)
    assert told == ["sharding fsdp2: there is one process, so nothing is divided"]
