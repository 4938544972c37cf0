"""Every kind of operator between two layers: half of the channels are removed and the result compared with masking."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunecli
from prunecli.errors import DataDependentError, ModelError
from prunecli.surgery.proof.comparing import TOLERANCE
from prunecli.surgery.proof.verify import verify
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.trial import half_of

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Between(nn.Module):
    """A convolution of 24 channels, something, a convolution that reads the `width` channels it leaves."""

    def __init__(self, something: Callable[[Tensor], Tensor], width: int = 24) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 3, padding=1)
        self.b, self.c = nn.Conv2d(8, 24, 1), nn.Conv2d(width, 10, 1)
        self.something = something

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.c(self.something(F.relu(self.a(x)), self.b(x))).mean((2, 3))  # type: ignore[call-arg]


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image(x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (8, 8))


FOLLOWED = {
    "add": (lambda a, b: a + b, 24),
    "in place": (lambda a, b: a.mul_(2).add_(b), 24),
    "multiply": (lambda a, b: a * b.sigmoid(), 24),
    "cat": (lambda a, b: torch.cat([a, b], 1), 48),
    "stack and sum": (lambda a, b: torch.stack([a, b]).sum(0), 24),
    "stack and softmax": (lambda a, b: (torch.stack([a, b], 1).softmax(1) * a[:, None]).sum(1), 24),
    "halves": (lambda a, b: torch.mul(*a.chunk(2, 1)) + b.chunk(2, 1)[0], 12),
    "interleaved": (lambda a, b: a.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2) + b, 24),
    "channel shuffle": (lambda a, b: F.channel_shuffle(a, 4) + b, 24),
    "pixel shuffle": (lambda a, b: F.pixel_unshuffle(F.pixel_shuffle(a, 2), 2) + b, 24),
    "zero padding": (lambda a, b: F.pad(a, (0, 0, 0, 0, 4, 4)), 32),
    "spatial padding": (lambda a, b: F.pad(a, (1, 1, 1, 1), mode="reflect"), 24),
    "pooling": (lambda a, b: F.max_pool2d(a, 2) + F.avg_pool2d(b, 2), 24),
    "resizing": (lambda a, b: F.interpolate(a, scale_factor=2, mode="bilinear"), 24),
    "tokens": (lambda a, b: image(tokens(a) + tokens(b)), 24),
    "layer norm": (lambda a, b: image(F.layer_norm(tokens(a), (a.shape[1],))), 24),
    "softmax over channels": (lambda a, b: a.softmax(1) * b, 24),
    "mean over channels": (lambda a, b: a * b.mean(1, keepdim=True), 24),
    "maximum over channels": (lambda a, b: a * b.amax(1, keepdim=True), 24),
    "normalised": (lambda a, b: F.normalize(a, dim=1) + b, 24),
    "response norm": (lambda a, b: b * (norm := a.norm(dim=(2, 3), keepdim=True)) / norm.mean(1, True), 24),
    "gram": (lambda a, b: image((tokens(a) @ tokens(b).transpose(1, 2)).softmax(-1) @ tokens(b)), 24),
    "cross covariance": (lambda a, b: image(tokens(b) @ (a.flatten(2) @ tokens(b)).softmax(-1)), 24),
    "einsum": (lambda a, b: torch.einsum("bchw,bdhw->bcd", a, b).softmax(-1)[..., None] + a[..., :1].mean(2, True), 24),
    "gated halves": (lambda a, b: F.glu(a, 1) + b.chunk(2, 1)[0], 12),
    "roll of the image": (lambda a, b: a.roll((2, 2), (2, 3)) + b, 24),
    "windows": (lambda a, b: F.fold(F.unfold(a, 2, stride=2), (8, 8), 2, stride=2) + b, 24),
    "repeat": (lambda a, b: a.repeat(1, 2, 1, 1), 48),
    "slices": (lambda a, b: torch.cat([a[:, :8] + b[:, 16:], a[:, 8:]], 1), 24),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_is_between_two_layers_is_followed(name: str) -> None:
    torch.manual_seed(0)
    something, width = FOLLOWED[name]
    model = Between(something, width).eval()
    traced = trace(model, X)
    keep = half_of(traced.groups)
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, X) <= TOLERANCE
    held = {frozen.name: frozen.reason for frozen in traced.frozen}
    if name not in ("slices", "gram", "einsum"):
        assert "a" not in held, held["a"]
        assert pruned.a.out_channels < model.a.out_channels


REFUSED = {
    "sorted channels": lambda a, b: a.sort(1).values,
    "where the maximum is": lambda a, b: b + a.max(1, keepdim=True).indices,
    "cumulative sum": lambda a, b: a.cumsum(1),
    "flipped": lambda a, b: a.flip(1) + b,
    "picked by index": lambda a, b: a[:, torch.randperm(24, generator=torch.Generator().manual_seed(0))],
    "Fourier transform": lambda a, b: torch.fft.fft(a, dim=1).abs(),
    "a constant of the same width": lambda a, b: a * torch.arange(24.0).to(a)[:, None, None],
    "a loop over channels": lambda a, b: torch.cat([a[:, i : i + 1] * i for i in range(24)], 1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_holds_its_channels_and_says_why(name: str) -> None:
    model = Between(REFUSED[name]).eval()
    traced = trace(model, X)
    keep = half_of(traced.groups)
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    if keep:
        assert verify(model, pruned, traced, keep, X) <= TOLERANCE
    reasons = {frozen.name: frozen.reason for frozen in traced.frozen}
    assert reasons["a"] and pruned.a.out_channels == 24
    if name == "Fourier transform":
        assert reasons["a"] == "a Fourier transform runs along it"


def test_a_model_that_looks_at_values_is_refused_and_its_parts_offered() -> None:
    class Deciding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Between(lambda a, b: a + b)
            self.head, self.other = nn.Linear(10, 4), nn.Linear(10, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return self.head(x) if int(x.argmax()) < 99 else self.other(x)

    model = Deciding().eval()
    with pytest.raises(DataDependentError, match=r"depends on the values of its input.*can be pruned: --only body$"):
        trace(model, X)
    traced = trace(model, X, only="body")
    assert all(group.name.startswith("body.") for group in traced.groups) and traced.groups
    keep = half_of(traced.groups)
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, X) <= TOLERANCE
    pruned.body.c.weight.data.flip(0)
    pruned.body.c.weight.data *= 1.5
    with pytest.raises(Exception, match="does not consist of"):
        verify(model, pruned, traced, keep, X)
    with pytest.raises(ModelError, match="did you mean 'body'"):
        trace(model, X, only="boddy")


def test_a_part_that_is_used_by_another_way_too_is_refused() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1))
            self.out = nn.Conv2d(3, 4, 1)
            self.way = "layer"

        def forward(self, x: Tensor) -> Tensor:
            y = self.out(self.body(x))
            if self.way == "layer":
                return y * self.body[0](x).mean()
            return self.out(self.body(x) + self.body(x)) if self.way == "twice" else y

    model = Both().eval()
    with pytest.raises(ModelError, match=r"body.0 also runs outside it"):
        trace(model, X, only="body")
    model.way = "twice"
    with pytest.raises(ModelError, match="runs it 3 times"):
        trace(model, X, only="body")
    model.way = "once"
    assert trace(model, X, only="body").groups
    model.extra = nn.Conv2d(3, 16, 1)
    model.extra.weight = model.body[0].weight
    with pytest.raises(ModelError, match="shares a parameter with a layer outside"):
        trace(model, X, only="body")


def test_silent_channels_and_closed_gates_hide_no_mistake() -> None:
    """A slice of constant width behind a rectifier: on one sample the difference may not show."""

    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.b = nn.Linear(8, 32), nn.Linear(32, 24)
            self.d, self.o, self.gate = nn.Linear(24, 32), nn.Linear(32, 4), nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            x = self.i(x)
            h = self.b(F.relu(x))
            h = torch.cat([h[:, :4] * 9, h[:, 4:]], 1)
            return self.o(x + self.gate * self.d(F.relu(h)))

    for seed in range(6):
        torch.manual_seed(seed)
        model = Sliced().eval()
        result = prunecli.prune(model, ratio=0.5, example_inputs=torch.randn(1, 8), scope="local", round_to=1)
        assert result.model.b.out_features == 14  # the four that are sliced by number stay, of the others half
