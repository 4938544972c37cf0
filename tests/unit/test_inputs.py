"""Networks that take a mapping, several tensors or a list of images, through the engine and the Python interface."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.engine.config import FitConfig
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import MethodError, ModelError
from prunecli.inputs import (
    call,
    cast_inputs,
    doubled_batch,
    logits,
    map_tensors,
    output_tensors,
    repeat_sample,
    sample_count,
    split_batch,
    take_samples,
)
from prunecli.measure.counts import count_macs
from prunecli.measure.latency import time_paired

CPU = torch.device("cpu")
TASK = Classification.with_classes(4)


class Core(nn.Module):
    """Takes two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(8, 32), nn.BatchNorm1d(32)
        self.second, self.last = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(x + y)))
        return self.last(torch.relu(self.second(hidden)))


class FromList(Core):
    """Takes a list of samples, each of shape (2, 8)."""

    def forward(self, samples: list[Tensor]) -> Tensor:  # type: ignore[override]
        stacked = torch.stack(samples)
        return super().forward(stacked[:, 0], stacked[:, 1])


class FromOne(Core):
    """Takes one tensor (N, 2, 8)."""

    def forward(self, pairs: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(pairs[:, 0], pairs[:, 1])


class Words(nn.Module):
    """Takes token ids (N, L) and which of them count; averages embeddings, as text encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first = nn.Embedding(20, 8), nn.Linear(8, 32)
        self.second, self.last = nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        weights = attention_mask.unsqueeze(2).to(self.embedding.weight.dtype)
        mean = (self.embedding(input_ids) * weights).sum(1) / weights.sum(1)
        hidden = torch.relu(self.second(torch.relu(self.first(mean))))
        return {"logits": self.last(hidden)}


def _sentences(count: int = 4) -> list[tuple[dict[str, Tensor], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        labels = torch.randint(0, 4, (16,), generator=generator)
        ids = torch.randint(4, 20, (16, 6), generator=generator)
        ids[:, 0] = labels
        mask = torch.rand(16, 6, generator=generator) > 0.5
        mask[:, 0] = True
        batches.append(({"input_ids": ids, "attention_mask": mask}, labels))
    return batches


FORMS: dict[str, tuple[type[Core], Callable[[Tensor], Any]]] = {
    "tensor": (FromOne, lambda pairs: pairs),
    "tuple": (Core, lambda pairs: (pairs[:, 0], pairs[:, 1])),
    "mapping": (Core, lambda pairs: {"x": pairs[:, 0], "y": pairs[:, 1]}),
    "list": (FromList, lambda pairs: list(pairs)),
}


def _data(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(count):
        labels = torch.randint(0, 4, (16,), generator=generator)
        pairs = torch.randn(16, 2, 8, generator=generator) * 0.3
        pairs[torch.arange(16), 0, labels] += 2
        batches.append((pairs, labels))
    return batches


def _network(kind: type[Core]) -> Core:
    torch.manual_seed(0)
    return kind()


def _weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("form", FORMS)
def test_training_and_evaluation(form: str) -> None:
    def trained(name: str) -> tuple[Tensor, Any]:
        kind, shaped = FORMS[name]
        model = _network(kind)
        batches = [(shaped(pairs), labels) for pairs, labels in _data()]
        result = fit(model, batches, batches, FitConfig(epochs=3, lr=0.05), CPU, task=TASK)
        assert result.epochs[-1].validation == evaluate(model, batches, CPU) or result.chosen < 3
        return _weights(model), evaluate(model, batches, CPU)

    weights, accuracy = trained(form)
    expected, same = trained("tensor")
    assert torch.equal(weights, expected) and accuracy == same
    assert accuracy.images == 64 and accuracy.top1 > 90


@pytest.mark.parametrize("form", ["tuple", "mapping", "list"])
@pytest.mark.parametrize("method", ["taylor", "activation"])
def test_the_python_interface(form: str, method: str) -> None:
    def pruned(name: str, pack: Callable[[Any, Tensor], Any]) -> prunecli.PruneResult:
        kind, shaped = FORMS[name]
        data = [pack(shaped(pairs), labels) for pairs, labels in _data()]
        return prunecli.prune(
            _network(kind).eval(),
            method,
            ratio=0.5,
            example_inputs=shaped(_data()[0][0][:2]),
            data=data,
            compensate="ls",
            recalibrate=True,
            prune_stem=True,
        )

    packs: dict[str, Callable[[Any, Tensor], Any]] = {
        "tuple": lambda inputs, labels: (*inputs, labels),
        "mapping": lambda inputs, labels: {**inputs, "labels": labels},
        "list": lambda inputs, labels: (inputs, labels),
    }
    expected = pruned("tensor", lambda inputs, labels: (inputs, labels))
    for pack in (packs[form], lambda inputs, labels: (inputs, labels)):
        result = pruned(form, pack)
        assert torch.equal(_weights(result.model), _weights(expected.model))
        assert result.report.compensated == expected.report.compensated > 0
        assert result.report.recalibrated == 1 and result.report.verify_error < 1e-9
        assert result.report.macs_after.total == expected.report.macs_after.total


@pytest.mark.parametrize("form", FORMS)
def test_macs_and_latency(form: str) -> None:
    kind, shaped = FORMS[form]
    inputs = shaped(torch.randn(2, 2, 8))
    model = _network(kind)
    assert count_macs(model, inputs).total == 2 * (8 * 32 + 32 * 32 + 32 * 4)
    assert time_paired([model, model], [inputs, repeat_sample(inputs, 4)], rounds=2).timings[0].median > 0


def test_ids_and_a_mask() -> None:
    torch.manual_seed(0)
    model, batches = Words(), _sentences()
    fit(model, batches, batches, FitConfig(epochs=12, lr=0.01, optimizer="adamw"), CPU, task=TASK)
    assert evaluate(model, batches, CPU).top1 > 90
    inputs = batches[0][0]
    one = {name: tensor[:1] for name, tensor in inputs.items()}
    results = [
        prunecli.prune(model, "taylor", ratio=0.5, example_inputs=one, data=data, compensate="ls", prune_stem=True)
        for data in (batches, [{**inputs, "labels": labels} for inputs, labels in batches])
    ]
    assert torch.equal(_weights(results[0].model), _weights(results[1].model))
    assert results[0].report.verify_error < 1e-9 and results[0].report.achieved == pytest.approx(0.5)
    assert results[0].report.macs_before.total > results[0].report.macs_after.total
    assert evaluate(results[0].model, batches, CPU).top1 > 80
    assert time_paired([model], [inputs], rounds=2).timings[0].median > 0


def test_batches_are_split_cut_and_repeated() -> None:
    x, y, labels = torch.randn(4, 3), torch.randn(4, 5), torch.arange(4)
    assert split_batch(x) == (x, None)
    assert split_batch([x, labels])[1] is labels
    assert split_batch((x, y), like=(x, y)) == ((x, y), None)
    assert split_batch((x, y, labels), like=(x, y))[1] is labels
    assert split_batch(((x, y), labels), like=(x, y))[0] == (x, y)
    assert split_batch({"x": x, "labels": labels}) == ({"x": x}, labels)
    assert [sample_count(inputs) for inputs in (x, (x, y), {"x": x}, [x[0], x[1]])] == [4, 4, 4, 2]
    part = take_samples({"x": x, "flag": True, "scale": torch.tensor(2.0)}, 1, 3)
    assert torch.equal(part["x"], x[1:3]) and part["flag"] is True and float(part["scale"]) == 2
    assert len(take_samples([x[0], x[1], x[2]], 0, 2)) == 2
    assert torch.equal(repeat_sample((x, y), 3)[1], y[:1].repeat(3, 1))
    assert map_tensors([x, (y, None)], torch.clone)[1][1] is None


@dataclass(frozen=True)
class Scores:
    logits: Tensor
    extra: Any = None


class Pair(NamedTuple):
    first: Tensor
    second: Any


class Plain:
    def __init__(self, value: Any) -> None:
        self.value, self.owner = value, self  # objects may refer to themselves


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


@pytest.mark.parametrize("kind", [Scores, lambda x: Pair(x, None), Plain, Slotted, lambda x: {"a": [(x,)], "b": True}])
def test_structures_of_any_kind_yield_and_keep_their_tensors(kind: Callable[[Any], Any]) -> None:
    x = torch.randn(2, 3)
    value = kind(x)
    assert [tensor is x for tensor in output_tensors(value)] == [True]
    changed = map_tensors(value, lambda tensor: tensor + 1)
    assert type(changed) is type(value)
    assert torch.equal(output_tensors(changed)[0], x + 1) and output_tensors(value)[0] is x


@pytest.mark.parametrize("kind", [Scores, lambda x: Pair(x, None), Plain, Slotted])
def test_networks_may_return_objects(kind: Callable[[Any], Any]) -> None:
    class Net(Core):
        def forward(self, x: Tensor, y: Tensor) -> Any:  # type: ignore[override]
            return kind(super().forward(x, y))

    x = torch.randn(4, 8)
    result = prunecli.prune(Net().eval(), "taylor", ratio=0.5, example_inputs=(x, x), data=[(x, x)], prune_stem=True)
    assert result.report.achieved == pytest.approx(0.5)
    assert output_tensors(call(result.model, (x, x)))[0].shape == (4, 4)


def test_flags_numbers_and_nested_inputs_are_passed_on() -> None:
    class Net(Core):
        def forward(self, batch: dict[str, Any], use_cache: bool = True, cut: int = 3, extra: Any = 1) -> Tensor:  # type: ignore[override]
            assert use_cache is False and cut == 4 and extra is None
            images = batch.pop("images")  # a network may take its inputs apart
            return super().forward(torch.stack(images), batch["more"]["y"])

    inputs = {
        "batch": {"images": [torch.randn(8), torch.randn(8)], "more": {"y": torch.randn(2, 8)}},
        "use_cache": False,
        "cut": 4,
        "extra": None,
    }
    result = prunecli.prune(Net().eval(), ratio=0.5, example_inputs=inputs, macs=None, prune_stem=True)
    assert result.report.verify_error < 1e-9 and "images" in inputs["batch"]  # type: ignore[operator]
    assert sample_count(inputs) == 2
    assert len(take_samples(inputs, 0, 1)["batch"]["images"]) == 1
    assert [len(doubled_batch(inputs)["batch"][key]) for key in ("images",)] == [4]
    assert cast_inputs(inputs, dtype=torch.float64)["batch"]["images"][0].dtype == torch.float64


def test_only_what_has_one_entry_for_each_sample_is_cut_and_repeated() -> None:
    inputs = {"x": torch.randn(2, 5), "mask": torch.ones(5, 5), "names": ["a", "b"]}
    assert take_samples(inputs, 0, 1)["mask"].shape == doubled_batch(inputs)["mask"].shape == (5, 5)
    assert repeat_sample(inputs, 3)["x"].shape == (3, 5) and repeat_sample(inputs, 3)["names"] == ["a"] * 3


def test_complex_inputs_stay_complex() -> None:
    assert cast_inputs(torch.zeros(2, dtype=torch.complex64), dtype=torch.float64).dtype == torch.complex128


def test_scores_are_found_in_mappings_and_objects() -> None:
    x = torch.randn(2, 3)
    assert logits({"loss": torch.zeros(()), "logits": x}) is x and logits(Scores(x)) is x
    assert logits((torch.zeros(2, dtype=torch.int64), x)) is x
    scores = torch.randn(3, 4)
    assert logits((scores.softmax(1), scores)) is scores, "a softmax before its scores"
    assert logits((scores, scores.softmax(1))) is scores and logits((scores.sigmoid(), scores)) is not scores
    with pytest.raises(ModelError, match="holds no tensor"):
        logits(None)


def test_batches_are_split_by_the_form_of_the_example_inputs() -> None:
    x, y, labels = torch.randn(4, 3), torch.randn(4, 5), torch.arange(4)
    flagged = {"x": x, "use_cache": False}
    assert split_batch({"x": y, "label": labels}, like=flagged) == ({"x": y, "use_cache": False}, labels)
    assert split_batch((y, labels), like=flagged) == ({"x": y, "use_cache": False}, labels)
    assert split_batch([y], like=(x, None, True)) == ((y, None, True), None)
    assert split_batch(((x, y), labels), like=(x, y)) == ((x, y), labels)
    assert split_batch({"image": y, "label": labels}, like=x) == (y, labels)
    assert split_batch({"x": x, "labels": labels}, like={"x": x, "labels": labels})[0] == {"x": x, "labels": labels}
    images = [x[0], x[1]]
    assert split_batch(images, like=images[:1]) == (images, None)
    assert split_batch((images, labels), like=images[:1]) == (images, labels)
    assert split_batch(({"a": x}, labels), like=({"a": x},)) == (({"a": x},), labels)
    assert split_batch({"a": x, "labels": labels}, like=({"a": x},)) == (({"a": x},), labels)
    with pytest.raises(MethodError, match="is empty"):
        split_batch((), like=x)


@pytest.mark.parametrize("method", ["l1", "taylor", "activation", "wanda"])
def test_batches_that_the_network_does_not_take_are_one_line(method: str) -> None:
    x = torch.randn(4, 8)
    with pytest.raises(MethodError, match=r"does not run on the calibration data: .*give batches of the form"):
        prunecli.prune(Core().eval(), method, example_inputs=(x, x), data=[x], compensate="ls", prune_stem=True)


def test_parts_are_traced_on_lists_flags_and_keywords() -> None:
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.core = Core()

        def forward(self, samples: list[Tensor], flag: bool, *, scale: float) -> Tensor:
            assert flag
            stacked = torch.stack(samples)
            return self.core(stacked[:, 0] * scale, stacked[:, 1])  # type: ignore[no-any-return]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.last = Part(), nn.Linear(4, 2)

        def forward(self, samples: list[Tensor]) -> Tensor:
            return self.last(self.part(samples, flag=True, scale=2.0))  # type: ignore[no-any-return]

    samples = list(torch.randn(3, 2, 8))
    result = prunecli.prune(Whole().eval(), ratio=0.5, example_inputs=samples, only="part", prune_stem=True)
    assert result.report.achieved == pytest.approx(0.5)
    with pytest.raises(ModelError, match="does not run on the example inputs"):
        prunecli.prune(Whole().eval(), example_inputs=[torch.randn(2, 8), torch.randn(3)], only="part")


class _Holder(nn.Module):
    """An object around a network."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Core()


class _Trainer(_Holder):
    def train(self, trainer: Any = None, **settings: Any) -> Any:  # type: ignore[override]
        raise AssertionError("pruning must not train anything")


class _Locked(_Holder):
    def __init__(self) -> None:
        super().__init__()
        self.progress = (index for index in range(3))


class _Pipeline:
    def __init__(self) -> None:
        self.model = Core()


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (_Trainer, r"does not behave like.*prune the network inside, \.model"),
        (_Locked, "cannot be copied: progress holds a generator .*; set it to None or remove it before pruning"),
        (_Pipeline, r"is not a torch.*prune the network inside, \.model"),
    ],
)
def test_objects_around_a_network_name_the_network(kind: type[Any], cause: str) -> None:
    with pytest.raises(ModelError, match=cause):
        prunecli.prune(kind(), example_inputs=(torch.randn(2, 8), torch.randn(2, 8)))


def test_what_is_no_network_is_named_with_what_to_pass() -> None:
    with pytest.raises(ModelError, match=r"^an OrderedDict is not a torch"):
        prunecli.prune(OrderedDict(), example_inputs=torch.randn(2, 8))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"^Core is a class; pass an instance, such as Core\(\)$"):
        prunecli.prune(Core, example_inputs=torch.randn(2, 8))  # type: ignore[arg-type]


def test_other_names_for_the_mode_are_fine() -> None:
    class Own(Core):
        def train(self, training: bool = True) -> Own:  # type: ignore[override]
            return super().train(training)  # type: ignore[return-value]

    x = torch.randn(2, 8)
    assert prunecli.prune(Own().eval(), example_inputs=(x, x), prune_stem=True).report.achieved > 0


def test_quantised_networks_are_refused() -> None:
    packed = nn.Module()
    packed._packed_params = nn.Identity()
    network = nn.Sequential(nn.Linear(8, 4), copy.deepcopy(packed))
    with pytest.raises(ModelError, match="1 is quantised; prune the network before"):
        prunecli.prune(network, example_inputs=torch.randn(2, 8))
