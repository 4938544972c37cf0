"""Attention weights and kept patches against what the network itself computes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from prunecli.checkpoint.manifest import TokenSelection, TokenStage
from prunecli.errors import MethodError
from prunecli.studies.token_pictures import _greyed, _patch_size
from prunecli.tokens import runtime
from prunecli.tokens.runtime import applied_selection, tokens_pruned
from prunecli.tokens.watching import attention_maps, kept_patches
from tests.unit.test_tokens import (
    MODELS,
    NO_MADE_UP_TOKENS,
    UNLIKE,
    features,
    images,
    of_timm,
    on_all,
    perturbed,
    selection,
)


@pytest.fixture
def attended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Weights of every attention that is run, one after the other."""
    kept: list[Tensor] = []

    def plain(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        kept.append((scores if attn_mask is None else scores + attn_mask).softmax(dim=-1))
        return kept[-1] @ v

    monkeypatch.setattr(functional, "scaled_dot_product_attention", plain)
    torch.backends.mha.set_fastpath_enabled(False)
    yield kept
    torch.backends.mha.set_fastpath_enabled(True)


def in_two_stages(model: nn.Module, inside: bool = False) -> TokenSelection:
    stages = (TokenStage(block=0, kept=30, anchors=10), TokenStage(block=2, kept=20, anchors=5))
    return selection(model, 30, inside=inside).model_copy(update={"stages": stages})


WAYS = ("unpruned", "before", "inside", "merged", "fused")
CASES = [
    pytest.param(name, how, marks=() if name in UNLIKE or how == "before" else pytest.mark.slow)
    for name in MODELS
    for how in WAYS
    if (name not in NO_MADE_UP_TOKENS or how not in ("merged", "fused"))
    and "eager" not in name  # which calls no kernel
]


@pytest.mark.parametrize(("name", "how"), CASES)
def test_attention_is_what_the_blocks_compute(name: str, how: str, attended: list[Tensor]) -> None:
    model = perturbed(MODELS[name]()).double()
    x = images(3).double()
    chosen = {
        "merged": lambda: selection(model, 20, "tome", block=0, merged=9),
        "fused": lambda: selection(model, 20, "evit", block=0),
        "before": lambda: in_two_stages(model),
        "inside": lambda: in_two_stages(model, inside=True),
    }
    pruning = None if how == "unpruned" else runtime.prune_tokens(model, chosen[how]())
    before = features(model, x)
    attended.clear()
    maps = attention_maps(model, x, [2, 0])
    assert set(maps) == {"block_00", "block_02"} and len(attended) >= 3
    for index in (0, 2):
        weights = maps[f"block_{index:02d}"]
        assert weights.shape == attended[index].shape
        assert torch.allclose(weights, attended[index], rtol=1e-9, atol=1e-12)
        assert (weights.sum(dim=-1) - 1).abs().max() < 1e-9
    assert torch.equal(features(model, x), before)
    if pruning is not None:
        pruning.remove()
    assert all(not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(("name", "inside"), on_all((False,), (True,)))
def test_kept_patches_are_those_the_stages_choose(name: str, inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = perturbed(MODELS[name]())
    x, chosen = images(), in_two_stages(model, inside)
    left: list[Tensor] = []
    take = runtime.choose

    def remember(*args: Any) -> tuple[Tensor, Tensor | None]:
        patches, importance = take(*args)
        left.append(patches)
        return patches, importance

    monkeypatch.setattr(runtime, "choose", remember)
    kept = kept_patches(model, chosen, x)
    first, second = left
    expected = [[int(first[image, index]) for index in second[image]] for image in range(len(x))]
    assert kept is not None and kept.tolist() == expected
    assert kept.shape == (4, 20) and any(row != expected[0] for row in expected)
    assert applied_selection(model) is None and all(not module._forward_hooks for module in model.modules())
    with tokens_pruned(model, chosen):
        hooks = [len(module._forward_hooks) for module in model.modules()]
        for network in (model, copy.deepcopy(model)):
            again = kept_patches(network, chosen, x)
            assert again is not None and torch.equal(again, kept)
        assert [len(module._forward_hooks) for module in model.modules()] == hooks


def test_what_is_not_there_cannot_be_seen() -> None:
    model = MODELS["vit"]()
    assert kept_patches(model, selection(model, 20, "tome", merged=5), images()) is None
    for index in (3, -1):
        with pytest.raises(MethodError, match=f"no attention of block {index}: the network has blocks 0 to 2"):
            attention_maps(model, images(), [index])
    with (
        tokens_pruned(model, selection(model, 20)),
        pytest.raises(MethodError, match="pruned already"),
    ):
        kept_patches(model, selection(model, 21), images())


def test_a_picture_of_another_shape_is_grey_outside_its_patches() -> None:
    pixels = np.full((30, 100, 3), 90, dtype=np.uint8)
    seen = np.array([[True, False, False, False, False, True], [False, False, True, False, False, False]])
    picture = np.asarray(_greyed(pixels, seen, (14, 16)))
    assert picture.shape == (90, 300, 3)
    expected = np.full((30, 100), 30 + 48)
    for row, column in ((0, 0), (0, 5), (1, 2)):
        expected[14 * row : 14 * (row + 1), 16 * column : 16 * (column + 1)] = 90
    assert np.array_equal(picture[::3, ::3, 0], expected)
    wide = _greyed(np.zeros((300, 400, 3), dtype=np.uint8), np.ones((3, 4), dtype=bool), (100, 100))
    small = _greyed(np.zeros((8, 8, 3), dtype=np.uint8), np.ones((2, 2), dtype=bool), (4, 4))
    assert wide.size == (400, 300) and small.size == (256, 256)


def test_patches_behind_a_convolution_are_as_large_as_they_are_in_the_image() -> None:
    model = of_timm("vit_tiny_r_s16_p8_224", img_size=48, patch_size=2)
    assert _patch_size(model, (48, 48, 3), (6, 6)) == (8, 8)
    assert _patch_size(of_timm("vit_tiny_patch16_224"), (32, 32, 3), (8, 8)) == (4, 4)
