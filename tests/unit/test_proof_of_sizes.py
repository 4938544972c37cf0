"""Networks in which a channel count meets the size of the input: a proof on smaller inputs would not see it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import VerificationError
from prunecli.surgery.proof.verify import verify
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace

_TOKENS = 48
"""Between 32 and 64 channels, so that half of the channels are fewer than there are tokens."""


class Meeting(nn.Module):
    """64 channels at as many positions as the input has, in one of several ways that depend on which are more."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way, self.first, self.last = way, nn.Linear(8, 64), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        tokens, channels = hidden.shape[1:]
        if self.way == "as many as channels":
            hidden = hidden[:, : min(tokens, channels)]
        elif self.way == "more channels" and channels >= tokens:
            hidden = hidden * 2
        elif self.way == "last positions":
            hidden = hidden[:, -channels:]
        return self.last(hidden).sum(1)


@pytest.mark.parametrize("way", ["as many as channels", "more channels", "last positions"])
def test_where_channels_meet_positions_nothing_wrong_is_accepted(way: str) -> None:
    model, inputs = Meeting(way).eval(), torch.randn(1, _TOKENS, 8)
    traced = trace(model, inputs, prune_stem=True)
    group = next((group for group in traced.groups if group.name == "first"), None)
    if group is None:
        return  # left alone
    keep = {"first": torch.arange(group.units // 2)}
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    with pytest.raises(VerificationError, match=r"differs|another shape|other operators"):
        verify(model, pruned, traced, keep, inputs)


def test_half_as_many_channels_are_fine_where_they_meet_nothing() -> None:
    model, inputs = Meeting("").eval(), torch.randn(1, _TOKENS, 8)
    traced = trace(model, inputs, prune_stem=True)
    keep = {"first": torch.arange(32)}
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, inputs) < 1e-12
