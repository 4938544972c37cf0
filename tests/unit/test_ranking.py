"""One ranking flow: what an earlier trace may be used for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import prunecli
from prunecli.errors import MethodError
from prunecli.methods import ranking
from tests.unit.networks import Plain, example


def test_an_earlier_trace_is_used_and_gives_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Plain((16, 32, 32)).eval()
    first = prunecli.prune(model, "l1", ratio=0.5, example_inputs=example())

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was traced again")

    monkeypatch.setattr(ranking, "trace", never)
    again = prunecli.prune(model, "l1", ratio=0.5, example_inputs=example(), trace=first.trace)
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
    more = prunecli.prune(model, "l2", ratio=0.25, example_inputs=example(), trace=first.trace)
    assert more.report.params_after > again.report.params_after


def test_a_trace_of_something_else_is_refused() -> None:
    model = Plain((16, 32, 32)).eval()
    result = prunecli.prune(model, "l1", ratio=0.5, example_inputs=example())
    with pytest.raises(MethodError, match=r"the trace handed in is of another network: .* has another shape"):
        prunecli.prune(result.model, "l1", ratio=0.5, example_inputs=example(), trace=result.trace)
    with pytest.raises(MethodError, match="the trace handed in was made with other settings than prune_stem=True"):
        prunecli.prune(model, "l1", ratio=0.5, example_inputs=example(), trace=result.trace, prune_stem=True)
