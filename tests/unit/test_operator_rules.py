"""Each operator's rule against a reference of its own: the original network, zero wherever pruning took a value away.

What is kept is found by value, not from the trace: a trace that is wrong in the same way as its proof is noticed, too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import DeformConv2d, nms, ps_roi_align, ps_roi_pool, roi_align, roi_pool

import prunecli
from prunecli.surgery.proof.comparing import TOLERANCE
from prunecli.surgery.proof.verify import verify
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.trial import half_of

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BOXES = torch.tensor([[0, 0.0, 0.0, 5.0, 5.0], [1, 1.0, 2.0, 7.0, 6.0]])


class Between(nn.Module):
    """Two layers of 24 channels, something with both, and a layer that reads what it gives."""

    def __init__(self, something: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 24, 3, padding=1), nn.Conv2d(8, 24, 1)
        self.something = something
        self.c = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = self.something(F.relu(self.a(x)), F.relu(self.b(x)))
        return self.c(x).mean((2, 3))


def with_values_of_their_own(model: nn.Module) -> nn.Module:
    """Gives every parameter values that occur once in it."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).reshape(parameter.shape)
        parameter.data = ((order + 0.5) / parameter.numel() - 0.47).to(parameter.dtype)
    return model.eval()


def zeroed(model: nn.Module, pruned: nn.Module) -> nn.Module:
    """The original with every value that `pruned` does not have set to zero."""
    reference = copy.deepcopy(model)
    left = dict(pruned.named_parameters())
    for name, parameter in reference.named_parameters():
        kept = torch.isin(parameter.data.abs() if parameter.is_complex() else parameter.data, _values(left[name]))
        assert int(kept.sum()) == left[name].numel()
        parameter.data *= kept
    return reference


def _values(parameter: Tensor) -> Tensor:
    return parameter.data.abs() if parameter.is_complex() else parameter.data


def difference(model: nn.Module, pruned: nn.Module, x: Tensor) -> float:
    reference, result = zeroed(model, pruned).double(), copy.deepcopy(pruned).double()
    with torch.no_grad():
        wanted, got = reference(x.double()), result(x.double())
    return float((wanted - got).abs().max() / wanted.abs().max())


def halved(model: nn.Module) -> Any:
    """The network with about half of every group removed, after the tool's own proof."""
    traced = trace(model, X, prune_stem=True)
    keep = half_of(traced.groups)
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, X) <= TOLERANCE
    return pruned


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def image(x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (8, 8))


class Layer(nn.Module):
    """A layer in the middle, called by a function."""

    def __init__(self, layer: nn.Module, use: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.use = layer, use

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.use(self.layer, a, b)


class Weight(nn.Module):
    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape, dtype=dtype))


def offsets(x: Tensor, taps: int) -> Tensor:
    return torch.linspace(-1, 1, taps).to(x)[None, :, None, None].expand(x.shape[0], taps, *x.shape[2:])


def unpooled(a: Tensor, b: Tensor) -> Tensor:
    small, places = F.max_pool2d(a, 2, return_indices=True)
    return F.max_unpool2d(small + F.avg_pool2d(b, 2), places, 2)


def unpooled_volume(a: Tensor, b: Tensor) -> Tensor:
    small, places = F.max_pool3d(a[:, :, None], (1, 2, 2), return_indices=True)
    return F.max_unpool3d(small, places, (1, 2, 2))[:, :, 0] + b


def along_edges(reduce: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Messages between nodes: what a graph network adds up."""

    def message(a: Tensor, b: Tensor) -> Tensor:
        nodes, edges = tokens(a)[0], tokens(b)[0]
        target = torch.arange(63, -1, -1) // 2
        index = target[:, None].expand_as(edges)
        if reduce == "index_add":
            return nodes.index_add(0, target, edges).T.unflatten(1, (8, 8))[None]
        if reduce == "index_copy":
            return nodes.index_copy(0, torch.arange(63, -1, -1), edges).T.unflatten(1, (8, 8))[None]
        if reduce == "index_put":
            return nodes.index_put((target,), edges, accumulate=True).T.unflatten(1, (8, 8))[None]
        if reduce == "scatter_add":
            return nodes.scatter_add(0, index, edges).T.unflatten(1, (8, 8))[None]
        return nodes.scatter_reduce(0, index, edges, reduce).T.unflatten(1, (8, 8))[None]

    return message


def assigned(a: Tensor, b: Tensor) -> Tensor:
    x = tokens(a).clone()
    x[:, torch.tensor([1, 5, 7])] = tokens(b)[:, :3]
    x[:, torch.arange(64) % 9 == 0] = 0.5 * tokens(b)[:, 10:11]
    x.index_fill_(1, torch.tensor([2, 3]), 0)
    return image(x) + b


def masked_scatter(a: Tensor, b: Tensor) -> Tensor:
    x = tokens(a)
    mask = (torch.arange(64) % 3 == 0)[None, :, None].expand_as(x)
    return image(x.masked_scatter(mask, tokens(b))) + b


def picked_by_mask(a: Tensor, b: Tensor) -> Tensor:
    picked = tokens(a)[:, torch.arange(64) < 32]
    return image(torch.cat([picked, picked.flip(1)], 1)) + b


def gathered(a: Tensor, b: Tensor) -> Tensor:
    index = torch.arange(63, -1, -1)[None, :, None].expand(*tokens(a).shape)
    return image(tokens(a).gather(1, index)) + b


def sampled(x: Tensor, matrix: Tensor) -> Tensor:
    matrices = matrix.to(x)[None].repeat(len(x), 1, 1)
    grid = F.affine_grid(matrices, [len(x), 1, *x.shape[2:]], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def rotary(a: Tensor, b: Tensor) -> Tensor:
    pairs = torch.view_as_complex(a.unflatten(1, (-1, 2)).movedim(2, -1).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.tensor(1.0).to(a), torch.tensor(0.3).to(a)))
    return turned.movedim(-1, 2).flatten(1, 2) + b


def experts(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    x = tokens(a).flatten(0, 1)
    ends = torch.tensor([len(x) // 3, len(x)], dtype=torch.int32)
    return image(F.grouped_mm(x.float(), layer.weight.float(), offs=ends).to(a).unflatten(0, (-1, 64)))


def fourier_layer(layer: Any, a: Tensor, b: Tensor) -> Tensor:
    seen = torch.fft.rfft2(a)[..., :3, :3]
    mixed = torch.einsum("bixy,ioxy->boxy", seen, layer.weight.to(seen))
    return torch.fft.irfft2(F.pad(mixed, (0, 2, 0, 5)), s=(8, 8)) + b


NEUTRAL: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "unpooling": (unpooled, 24),
    "unpooling a volume": (unpooled_volume, 24),
    "deformable": (Layer(DeformConv2d(24, 20, 3, padding=1), lambda m, a, b: m(a + b, offsets(a, 18))), 20),
    "deformable with a mask": (
        Layer(DeformConv2d(24, 24, 3, padding=1), lambda m, a, b: m(a, offsets(a, 18), offsets(a, 9)) + b),
        24,
    ),
    "deformable in groups": (
        Layer(DeformConv2d(24, 16, 3, padding=1, groups=4), lambda m, a, b: m(a + b, offsets(a, 36))),
        16,
    ),
    "boxes": (lambda a, b: roi_align(a, BOXES.to(a), 4) + roi_pool(b, BOXES.to(b), 4), 24),
    "boxes by position": (lambda a, b: ps_roi_align(a, BOXES.to(a), 2) + ps_roi_pool(b, BOXES.to(b), 2), 6),
    "bilinear": (Layer(nn.Bilinear(24, 24, 18), lambda m, a, b: image(m(tokens(a), tokens(b)))), 18),
    "bags": (
        Layer(nn.EmbeddingBag(9, 24), lambda m, a, b: a + b * m(torch.tensor([[1, 2, 2], [0, 8, 3]]))[..., None, None]),
        24,
    ),
    "spectrum of the image": (lambda a, b: torch.fft.irfft2(torch.fft.rfft2(a) * torch.fft.rfft2(b)), 24),
    "complex spectrum": (lambda a, b: torch.fft.fftshift(torch.fft.fft2(a), (2, 3)).real + torch.fft.fft(b).imag, 24),
    "Fourier layer": (Layer(Weight(24, 24, 3, 3), fourier_layer), 24),
    "complex Fourier layer": (Layer(Weight(24, 24, 3, 3, dtype=torch.complex64), fourier_layer), 24),
    "rotation of pairs": (rotary, 24),
    "conjugates": (lambda a, b: (torch.complex(a, b).conj() * torch.complex(b, a)).real, 24),
    "scalar product of two vectors": (lambda a, b: a * torch.vdot(a[0, :, 0, 0], b[0, :, 0, 0]), 24),
    "grid": (lambda a, b: sampled(a + b, 0.9 * torch.eye(2, 3)), 24),
    "grid in a volume": (lambda a, b: sampled((a + b)[:, :, None], 0.9 * torch.eye(3, 4))[:, :, 0], 24),
    "sums along edges": (along_edges("scatter_add"), 24),
    "means along edges": (along_edges("mean"), 24),
    "maxima along edges": (along_edges("amax"), 24),
    "rows added": (along_edges("index_add"), 24),
    "rows copied": (along_edges("index_copy"), 24),
    "rows put": (along_edges("index_put"), 24),
    "assigned by index": (assigned, 24),
    "masked scatter": (masked_scatter, 24),
    "picked by a mask": (picked_by_mask, 24),
    "gathered": (gathered, 24),
    "bucketed": (lambda a, b: a * torch.bucketize(b, torch.tensor([0.0, 0.1, 0.5]).to(b)) + b, 24),
    "searched": (lambda a, b: a * torch.searchsorted(torch.tensor([0.0, 0.1, 0.5]).to(b), b) + b, 24),
    "maximum of two": (lambda a, b: torch.max(torch.stack([a, b], 4), 4)[0], 24),
    "maximum over channels": (lambda a, b: a * b.max(1, keepdim=True).values, 24),
    "median over the batch": (lambda a, b: a + b.median(0, keepdim=True).values, 24),
    "a position's shape": (lambda a, b: a + b.new_ones(b[:, -1].shape)[:, None] * b, 24),
    "padded by a constant": (lambda a, b: F.pad(a + b, (0, 0, 0, 0, 4, 4), value=1.0), 32),
    "first of a concatenation": (
        lambda a, b: torch.cat([a.mean(1, keepdim=True) * 0 + 1, a + b], 1)[:, 0][:, None] * (a + b),
        24,
    ),
    "slice replaced": (lambda a, b: torch.slice_scatter(a, b[..., :4], 3, 2, 6) + b, 24),
    "column replaced": (lambda a, b: torch.select_scatter(a, b[..., 0], 3, 2) + b, 24),
    "diagonal": (lambda a, b: a + torch.diag_embed(torch.diagonal(b, 0, 2, 3)), 24),
    "variances": (lambda a, b: a * torch.diagonal(tokens(b).mT @ tokens(a), 0, 1, 2)[..., None, None], 24),
    "trace": (lambda a, b: a * (tokens(b).mT @ tokens(a))[0].trace(), 24),
    "lower triangle": (lambda a, b: image(tokens(b) @ (tokens(a).mT @ tokens(b)).tril()), 24),
    "batch sum of products": (
        lambda a, b: image(tokens(b) @ torch.addbmm(b.new_zeros(1, 1), tokens(a).mT, tokens(b))),
        24,
    ),
    "outer product": (lambda a, b: image(tokens(a) @ torch.addr(a.new_zeros(1), a[0, :, 0, 0], b[0, :, 1, 1])), 24),
    "outer": (lambda a, b: image(tokens(a) @ torch.outer(a[0, :, 0, 0], b[0, :, 1, 1])), 24),
    "cross product": (
        lambda a, b: torch.linalg.cross(a.unflatten(1, (-1, 3)), b.unflatten(1, (-1, 3)), dim=2)[:, :, 0],
        8,
    ),
    "inverse of each map": (lambda a, b: torch.linalg.inv(a + 9 * torch.eye(8).to(a)) * b, 24),
    "distances": (lambda a, b: image(torch.cdist(tokens(a), tokens(b)).softmax(-1) @ tokens(b)), 24),
    "in place": (lambda a, b: b.sub(0.1).abs_().mul(a.clone().gt_(0.1)), 24),
    "logarithm of a sigmoid": (lambda a, b: a * F.logsigmoid(b), 24),
    "loss of each position": (lambda a, b: a * F.mse_loss(a, b, reduction="none"), 24),
    "largest so far": (lambda a, b: a.cummax(3).values + b.logcumsumexp(2), 24),
    "repeated one by one": (lambda a, b: (a + b).repeat_interleave(2, 1), 48),
    "tiled": (lambda a, b: (a + b).tile(1, 3, 1, 1), 72),
    "rolled and flipped": (lambda a, b: a.roll((1, 2), (2, 3)) + b.flip(2, 3) + a.rot90(1, (2, 3)), 24),
    "pixels shuffled": (lambda a, b: F.pixel_shuffle(a + b, 2), 6),
    "pixels gathered": (lambda a, b: F.pixel_unshuffle(a + b, 2), 96),
    "patches": (lambda a, b: F.unfold(a + b, 2, stride=2)[..., None], 96),
}  # fmt: skip


def test_matrices_for_runs_of_rows_are_followed() -> None:
    """In single precision, as the operator knows no other, and in widths that it takes: multiples of 8."""
    model = with_values_of_their_own(Between(Layer(Weight(2, 24, 16), experts), 16))
    result = prunecli.prune(model, ratio=0.5, example_inputs=X, scope="local", round_to=4)
    assert result.model.a.out_channels == 16 and result.model.something.layer.weight.shape == (2, 16, 8)
    with torch.no_grad():
        wanted, got = zeroed(model, result.model)(X), result.model(X)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("name", NEUTRAL)
def test_channels_are_followed_through_operators_that_zeros_do_not_change(name: str) -> None:
    torch.manual_seed(0)
    something, width = NEUTRAL[name]
    model = with_values_of_their_own(Between(copy.deepcopy(something), width))
    pruned = halved(model)
    assert pruned.a.out_channels < 24
    assert difference(model, pruned, X) < 1e-9
    assert difference(model, pruned, X.flip(3).mul(2)) < 1e-9


HELD = {
    "indices of the maximum": lambda a, b: b + a.max(1, keepdim=True).indices,
    "indices of the maximum, moved": lambda a, b: b + a.max(1)[1].unsqueeze(1).to(a.dtype),
    "the last position": lambda a, b: b * a[:, -1:].sum() + b * a[:, 3][:, None],
    "k-th value": lambda a, b: b * a.kthvalue(3, 1, keepdim=True).values,
    "scattered along channels": lambda a, b: b.scatter_add(1, a.long(), a),
    "rows of a mask": lambda a, b: b.masked_scatter(a > 0, a),
    "bins": lambda a, b: b * torch.histc(a, 4).mean(),
    "superdiagonal": lambda a, b: b * torch.diagonal(tokens(a).mT @ tokens(a), 1, 1, 2).mean(),
    "inverse over channels": lambda a, b: b * torch.linalg.inv(
        tokens(a).mT @ tokens(a) + 9 * torch.eye(24).to(a)
    ).mean(),
    "spectrum of channels": lambda a, b: b + torch.fft.fft(a, dim=1).real,
    "boxes of its own": lambda a, b: b[: len(nms(a.mean((2, 3))[:, :4], a.mean((2, 3))[:, 5], 0.5))] * 2,
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_channels_with_a_meaning_by_position_stay(name: str) -> None:
    model = with_values_of_their_own(Between(HELD[name], 24))
    pruned = halved(model)
    assert pruned.a.out_channels == 24
    assert difference(model, pruned, X) < 1e-9


def chains() -> Iterator[tuple[str, Callable[[Tensor, int], Tensor]]]:
    """Operators that keep (N, C, H, W) with C divisible by 4; the number says along which dimension, or how often."""
    yield "repeat", lambda x, n: x.repeat(1, n, 1, 1)
    yield "repeat_interleave", lambda x, n: x.repeat_interleave(n, 1)
    yield "tile", lambda x, n: x.tile(1, n, 1, 1)
    yield "roll", lambda x, n: x.roll(n, 2 + n % 2)
    yield "flip", lambda x, n: x.flip(2 + n % 2)
    yield "pixel shuffle", lambda x, n: F.pixel_shuffle(x, 2)
    yield "pixel unshuffle", lambda x, n: F.pixel_unshuffle(x, 2)
    yield "channel shuffle", lambda x, n: F.channel_shuffle(x, 2 * n)
    yield "glu", lambda x, n: F.glu(x, 1)
    yield "halves", lambda x, n: torch.add(*x.chunk(2, 1))
    yield "pad", lambda x, n: F.pad(x, (0, 0, 0, 0, 2 * n, 2 * n), value=0.5)
    yield "cat", lambda x, n: torch.cat([x, x.cos() * x], 1)
    yield "stack", lambda x, n: torch.stack([x, x * 2], 1 + n % 2).flatten(1, 2)
    yield "windows", lambda x, n: F.fold(F.unfold(x, 2, stride=2), x.shape[2:], 2, stride=2)
    yield "pool", lambda x, n: F.max_pool2d(x, 3, 1, 1)
    yield "spectrum", lambda x, n: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[2:])


CHAINS = dict(chains())


class Chain(nn.Module):
    """Operators one after another between two layers."""

    def __init__(self, channels: int, steps: list[tuple[str, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.a = nn.Conv2d(3, channels, 3, padding=1)
        with torch.no_grad():
            self.c = nn.Conv2d(self.moved(self.a(X)).shape[1], 4, 1)

    def moved(self, x: Tensor) -> Tensor:
        for name, number in self.steps:
            x = CHAINS[name](x, number)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.moved(F.relu(self.a(x)))).mean((2, 3))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_chain_of_movements_gives_what_zeros_give(data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.tuples(st.sampled_from(sorted(CHAINS)), st.integers(1, 3)), min_size=1, max_size=3))
    try:
        model = with_values_of_their_own(Chain(data.draw(st.sampled_from([16, 24, 48])), steps))
    except RuntimeError:  # the operators do not fit together
        return
    assert difference(model, halved(model), X) < 1e-9


class Skip(nn.Module):
    """A normalisation over a concatenation, with a group on both sides of the boundary, as in diffusion U-Nets."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down, self.up = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, 2, 1), nn.Conv2d(32, 64, 1)
        self.norm, self.c = nn.GroupNorm(8, 96), nn.Conv2d(96, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        up = self.up(F.interpolate(F.relu(self.down(a)), scale_factor=2))
        return self.c(F.silu(self.norm(torch.cat((up, a), 1)))).mean((2, 3))


def test_groups_of_a_normalisation_may_lie_across_a_boundary() -> None:
    model = with_values_of_their_own(Skip())
    pruned = prunecli.prune(model, ratio=0.5, example_inputs=X, scope="local", round_to=1, prune_stem=True).model
    assert pruned.up.out_channels == 32 and pruned.a.out_channels == 16 and pruned.norm.num_groups == 8
    reference = zeroed(model, pruned).double()
    kept = torch.isin(model.norm.weight.data, pruned.norm.weight.data)

    def kept_alone(x: Tensor) -> Tensor:
        result = torch.zeros_like(x)
        for start in range(0, 96, 12):
            inside = start + kept[start : start + 12].nonzero().flatten()
            norm = reference.norm
            result[:, inside] = F.group_norm(x[:, inside], 1, norm.weight[inside], norm.bias[inside])
        return result

    reference.norm.forward = kept_alone
    with torch.no_grad():
        torch.testing.assert_close(pruned.double()(X.double()), reference(X.double()))
