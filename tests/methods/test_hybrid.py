"""Selecting units of hybrid networks: as many of each kind as asked, the most important of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.errors import MethodError
from prunecli.methods.hybrid import composed
from prunecli.methods.hybrid_params import HybridParams
from prunecli.models.catalog import build
from prunecli.models.loading import load_file

_TOKENS = 20


def _network(**kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return build("lm:hybrid", **{"num_classes": _TOKENS, "units": 24, "layers": 2, **kwargs}).eval()


def _batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [tuple(torch.randint(0, _TOKENS, (2, 4, 6), generator=generator)) for _ in range(count)]  # type: ignore[misc]


def _units(network: Any) -> list[tuple[int, int]]:
    """Units of each layer, those that do not spike and those that do."""
    return [
        (layer.dense.recurrent.out_features // layer.dense.gates, layer.spiking.recurrent.out_features)
        for layer in network.layers
    ]


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
@pytest.mark.parametrize(
    "keep, snn, expected", [(0.5, 0.25, (9, 3)), (0.5, 0.5, (6, 6)), (0.5, 0.75, (3, 9)), (0.75, 0.5, (9, 9))]
)
def test_every_layer_keeps_the_composition_that_is_asked_for(
    cell: str, keep: float, snn: float, expected: tuple[int, int]
) -> None:
    network = _network(cell=cell)
    result = prunecli.prune(
        network, "hybrid", example_inputs=_batches()[0][0], data=_batches(), keep_fraction=keep, snn_fraction=snn
    )
    assert _units(result.model) == [expected] * 2
    assert result.report.verify_error < 1e-9


@pytest.mark.parametrize("snn, expected", [(0.01, (1, 1)), (0.99, (1, 1))])
def test_one_unit_of_each_kind_stays(snn: float, expected: tuple[int, int]) -> None:
    result = prunecli.prune(
        _network(), "hybrid", example_inputs=_batches()[0][0], data=_batches(), keep_fraction=0.05, snn_fraction=snn
    )
    assert _units(result.model) == [expected] * 2


def test_units_of_one_kind_are_ranked_by_the_criterion() -> None:
    network, inputs = _network(), _batches()[0][0]
    chosen = prunecli.prune(
        network, "hybrid", example_inputs=inputs, data=_batches(), criterion="l2", compensate="none"
    ).report.edits
    ranked = prunecli.prune(
        network, "l2", example_inputs=inputs, ratio=0.5, scope="local", round_to=1, min_width=1
    ).report.edits
    assert [(edit.group, edit.keep_indices) for edit in chosen] == [(edit.group, edit.keep_indices) for edit in ranked]


def test_equal_seeds_give_equal_bytes_and_a_checkpoint_that_loads(tmp_path: Path) -> None:
    for name in ("one", "two"):
        result = prunecli.prune(
            _network(), "hybrid", example_inputs=_batches()[0][0], data=_batches(), compensate="ls", seed=3
        )
        result.save(tmp_path / f"{name}.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    restored = load_file(tmp_path / "one.safetensors", None).model
    tokens = torch.randint(0, _TOKENS, (3, 9))
    assert torch.equal(restored(tokens), result.model.eval()(tokens))


@pytest.mark.parametrize(
    "network, params, message",
    [
        ("lm:lstm", {}, "no spiking units"),
        ("lm:spiking", {}, "no other than spiking units"),
        ("lm:hybrid", {"keep_fraction": 0.9, "snn_fraction": 0.9}, "layers.0: 20 spiking units are asked for"),
        ("lm:hybrid", {"criterion": "l3"}, "did you mean 'l2'"),
        ("lm:hybrid", {"criterion": "hybrid"}, "unknown criterion 'hybrid'"),
        ("lm:hybrid", {"params": 0.5}, "params has no effect"),
        ("lm:hybrid", {"round_to": 4}, "round_to has no effect"),
        ("lm:hybrid", {"keep": ["layers.0.spiking"]}, "0"),
        ("lm:hybrid", {"ratio": 0.3}, "ratio has no effect"),
        ("lm:hybrid", {"layer_ratio": {"layers.0": 0.3}}, "layer_ratio has no effect"),
    ],
)
def test_what_cannot_be_done_is_said(network: str, params: dict[str, Any], message: str) -> None:
    model = build(network, num_classes=_TOKENS, units=24, layers=2).eval()
    with pytest.raises(MethodError, match=message):
        prunecli.prune(model, "hybrid", example_inputs=_batches()[0][0], data=_batches(), **params)


def test_an_embedding_that_may_shrink_is_left_to_other_methods() -> None:
    result = prunecli.prune(
        _network(), "hybrid", example_inputs=_batches()[0][0], data=_batches(), criterion="l2", prune_stem=True
    )
    assert {edit.group.partition(".")[0] for edit in result.report.edits} == {"layers"}
    reasons = {entry.name: entry.reason for entry in result.report.untouched}
    assert reasons["encoder"] == "the method decides on other layers alone"


def test_the_pruned_share_is_that_of_each_kind() -> None:
    from prunecli.surgery.tracing.trace import trace

    groups = trace(_network(snn_fraction=0.25), _batches()[0][0]).groups
    ratios = composed(groups, HybridParams(keep_fraction=0.5, snn_fraction=0.25))
    assert {name: round(ratio, 6) for name, ratio in ratios.items()} == {
        f"layers.{layer}.{kind}.input": 0.5 for layer in (0, 1) for kind in ("dense", "spiking")
    }
