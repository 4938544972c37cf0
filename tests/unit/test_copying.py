"""Copies of networks with whatever an earlier pass left on them."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as masks

import prunecli
from prunecli.copying import converted, copied
from prunecli.errors import ModelError


class Remembering(nn.Module):
    """Keeps feature maps of its last pass: alone, in a list and in a mapping."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.body(x)
        self.maps, self.named = [self.last], {"last": self.last}
        return self.head(self.last)


def test_tensors_of_a_graph_are_detached_in_the_copy() -> None:
    model = Remembering()
    model(torch.randn(1, 3, 8, 8))
    twin = copied(model)
    assert not twin.last.requires_grad
    assert twin.maps[0] is twin.last is twin.named["last"]
    assert torch.equal(twin.last, model.last)
    assert model.last.requires_grad
    assert twin.last.data_ptr() != model.last.data_ptr()


def test_what_cannot_be_copied_is_named() -> None:
    model = Remembering()
    model.body[2].guard = [threading.Lock()]
    with pytest.raises(ModelError, match=r"body\.2\.guard holds a list .*lock.*set it to None"):
        prunecli.prune(model, example_inputs=torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("data", [None, [torch.randn(4, 3, 8, 8)]])
def test_a_network_that_has_been_trained_is_pruned_restored_and_copied(data: object, tmp_path: object) -> None:
    def built() -> nn.Module:
        torch.manual_seed(0)
        model = Remembering()
        nn.utils.weight_norm(model.body[0])
        masks.l1_unstructured(model.body[2], "weight", 0.5)
        model(torch.randn(2, 3, 8, 8)).sum().backward()
        return model

    model, x = built(), torch.randn(1, 3, 8, 8)
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    method = "l1" if data is None else "taylor"
    result = prunecli.prune(
        model, method, example_inputs=x, data=data, ratio=0.5, prune_stem=True, min_width=1, round_to=1
    )
    assert result.report.params_after < 0.6 * result.report.params_before
    pruned = copy.deepcopy(result.model)
    result.save(f"{tmp_path}/p.safetensors")
    restored = copy.deepcopy(prunecli.load(f"{tmp_path}/p.safetensors", built()))
    for network in (pruned, restored):
        first, second = network.body[0], network.body[2]
        assert first.weight.shape == first.weight_v.shape
        assert torch.equal(second.weight, second.weight_orig * second.weight_mask)
        assert first.out_channels == second.in_channels == first.weight_v.shape[0]
        assert torch.equal(network(x), result.model(x))
    assert restored.last.requires_grad


def test_a_copy_has_what_deepcopy_makes() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            self.again, self.sizes, self.by_module = self.a[0], [4, [5]], {self.a: "a"}
            self.me, self.table = [self], {"norm": self.a[1], "sizes": self.sizes}
            self.a[0].register_forward_hook(_hook)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x)

    model = Shared().train()
    duplicate = copied(model)
    assert (
        duplicate.again is duplicate.a[0] and duplicate.me[0] is duplicate and duplicate.table["norm"] is duplicate.a[1]
    )
    assert duplicate.table["sizes"] is duplicate.sizes and duplicate.sizes[1] is not model.sizes[1]
    assert list(duplicate.by_module) == [duplicate.a] and duplicate.training
    assert list(duplicate.a[0]._forward_hooks.values()) == [_hook]
    assert duplicate.a[0].weight is not model.a[0].weight and torch.equal(duplicate.a[0].weight, model.a[0].weight)
    assert type(duplicate._parameters) is type(copy.deepcopy(model)._parameters)


def test_a_class_that_copies_itself_is_asked() -> None:
    class Own(nn.Linear):
        def __deepcopy__(self, memo: dict[int, Any]) -> Own:
            return self

    inner = Own(2, 2)
    assert copied(nn.Sequential(inner))[0] is inner


def _hook(module: nn.Module, args: Any, output: Any) -> None:
    return None


def test_conversion_keeps_ties_and_what_is_no_float() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    exact = converted(model.half(), torch.float64)
    assert exact[1].weight is exact[0].weight and exact[0].weight.dtype == torch.float64
    assert exact[2].num_batches_tracked.dtype == torch.int64 and model[0].weight.dtype == torch.float16


def test_pruning_in_training_mode_leaves_the_state_of_parametrisations_alone() -> None:
    """Looking at a spectrally normalised weight in training mode takes a step of its power iteration."""
    layers = [nn.utils.parametrizations.spectral_norm(nn.Conv2d(3 if i == 0 else 16, 16, 3)) for i in range(3)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(2)).train()
    x = torch.randn(2, 3, 8, 8)
    model(x)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    result = prunecli.prune(model, "l1", example_inputs=x, ratio=0.5)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
    edit = next(edit for edit in result.report.edits if any(layer.startswith("1.") for layer in edit.layers))
    kept = torch.tensor(edit.keep_indices)
    pruned = result.model[1].parametrizations.weight[0]  # type: ignore[index,union-attr]
    assert torch.equal(pruned._u, before["1.parametrizations.weight.0._u"][kept])
