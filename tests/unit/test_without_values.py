"""Following channels without computing, and what makes a network compute after all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.surgery.tracing import follow as module
from prunecli.surgery.tracing.follow import follow
from prunecli.surgery.tracing.labels import ValuesNeededError
from prunecli.surgery.tracing.trace import trace

IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Read(nn.Module):
    """Between two layers something looks at what the first one computes."""

    def __init__(self, look: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        self.second = nn.Conv2d(16, 8, 3)
        self.head = nn.Linear(8, 4)
        self.look = look

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.look(x)
        return self.head(self.second(x).mean((2, 3)))


def _nothing(x: Tensor) -> None:
    """Reads no value."""


def _swallowed(x: Tensor) -> None:
    try:
        x.max().item()
    except Exception:
        pass


def _checked(x: Tensor) -> None:
    if not bool((x >= 0).all()):
        raise ValueError("negative")


LOOKS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda x: x.max().item(),
    "list": lambda x: x.tolist(),
    "array": lambda x: x.numpy(),
    "mask": lambda x: x[x > 0.5].sum(),
    "nonzero": lambda x: x.nonzero(),
    "equal": lambda x: torch.equal(x, x + 1),
    "swallowed": _swallowed,
    "checked": _checked,
}


@pytest.mark.parametrize("look", LOOKS)
def test_reading_values_is_refused(look: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(ValuesNeededError):
        follow(Read(LOOKS[look]).double().eval(), IMAGE.double(), values=False)


@pytest.mark.parametrize("look", ["item", "list", "array", "equal", "swallowed", "checked"])
def test_networks_that_read_values_are_followed_as_before(look: str) -> None:
    torch.manual_seed(0)
    model = Read(LOOKS[look])
    found = trace(model, IMAGE, prune_stem=True)
    known = trace(model, IMAGE, prune_stem=True, values=True)
    assert [group.name for group in found.groups] == [group.name for group in known.groups] == ["first.0", "second"]
    assert prunecli.prune(model, ratio=0.5, example_inputs=IMAGE).report.verify_error < 1e-12


def test_nothing_large_is_computed_where_nothing_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same operators are recorded, with and without values."""
    torch.manual_seed(0)
    model = Read(_nothing).double().eval()
    with_values = follow(model, IMAGE.double(), training=True)
    made: list[bool] = []
    quick = module.uncomputed

    def noted(*args: object) -> object:
        out = quick(*args)  # type: ignore[arg-type]
        made.append(out is not None)
        return out

    monkeypatch.setattr(module, "uncomputed", noted)
    without = follow(model, IMAGE.double(), training=True, values=False)
    assert sum(made) >= 8
    for one, other in ((with_values.records, without.records), (with_values.training, without.training)):
        assert one is not None
        assert other is not None
        assert [record.operator for record in one] == [record.operator for record in other]
        assert [[term.size for label in record.outputs for term in label.dims] for record in one] == [
            [term.size for label in record.outputs for term in label.dims] for record in other
        ]


def test_buffers_stay_as_they_are() -> None:
    model = Read(_nothing).double().train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    follow(model.eval(), IMAGE.double(), training=True, values=False)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())
