"""Random small networks from blocks of all kinds, compared with a reference that shares no code with the proof."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import prunecli
from tests.unit.by_value import difference, with_unique_values


class Block(nn.Module):
    """A piece of a network from (N, width, H, W) to (N, out, H, W)."""

    out: int


class Convolution(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = draw.choice((16, 24, 32))
        self.conv, self.norm = nn.Conv2d(width, self.out, 3, padding=1, bias=False), nn.BatchNorm2d(self.out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Bottleneck(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out, inner = width, draw.choice((8, 16))
        self.a, self.b = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 3, padding=1)
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.b(F.gelu(self.a(x))))


class Depthwise(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = width
        self.dw, self.pw = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.pw(F.silu(self.dw(x)))


class Grouped(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = 32
        self.conv, self.mix = nn.Conv2d(width, 32, 1), nn.Conv2d(32, 32, 3, padding=1, groups=draw.choice((2, 4)))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.mix(F.relu(self.conv(x))))


class Squeeze(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = width
        self.down, self.up = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()
        return x * gate[:, :, None, None]


class Concatenated(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.own = draw.choice((8, 16))
        self.out = width + self.own
        self.conv = nn.Conv2d(width, self.own, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, F.relu(self.conv(x))], 1)


class Split(Block):
    """Halves whose sizes are kept on the module; one of them passes on untouched."""

    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = width
        self.sizes = [width // 4, width - width // 4]
        self.conv, self.mix = nn.Conv2d(width // 4, width // 4, 3, padding=1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, self.sizes, 1)
        return F.relu(self.mix(torch.cat([self.conv(a), b], 1)))


class Gated(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = width
        self.hidden = draw.choice((12, 20))
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * self.hidden), nn.Linear(self.hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(self.norm(x.movedim(1, -1))).chunk(2, -1)
        return x + self.down(a * b.sigmoid()).movedim(-1, 1)


class Attention(Block):
    """Heads in an attribute, in a namespace, or computed from the shape."""

    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out, self.kind = width, draw.choice(("attribute", "namespace", "shape", "private"))
        self.embed, self.dims = nn.Linear(width, 32), 32
        self.norm, self.qkv, self.proj, self.back = (
            nn.LayerNorm(32), nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, width)
        )  # fmt: skip
        self.heads, self.head_dim, self._heads = 4, 8, 4
        self.settings = SimpleNamespace(heads=4, sizes={"head": 8})

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        y = self.embed(x.flatten(2).transpose(1, 2))
        batch, tokens, width = y.shape
        heads, size = self.heads, self.head_dim
        if self.kind == "namespace":
            heads, size = self.settings.heads, self.settings.sizes["head"]
        elif self.kind == "shape":
            size = width // heads
        elif self.kind == "private":
            heads, size = self._heads, width // self._heads
        q, k, v = self.qkv(self.norm(y)).reshape(batch, tokens, 3, heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        z = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        return x + self.back(y + self.proj(z)).transpose(1, 2).reshape(n, c, h, w)


class Normalised(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = 32
        self.conv, self.norm = nn.Conv2d(width, 32, 1), nn.GroupNorm(draw.choice((4, 8)), 32)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Shuffled(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = 32
        self.a, self.b = nn.Conv2d(width, 32, 1, groups=1), nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b(F.channel_shuffle(F.relu(self.a(x)), 2)))


class Padded(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = width + 8
        self.conv, self.planes = nn.Conv2d(width, width + 8, 3, padding=1), width + 8

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + F.pad(x, (0, 0, 0, 0, 4, 4)))


class Pixels(Block):
    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out = 16
        self.conv, self.down = nn.Conv2d(width, 64, 1), nn.Conv2d(16, 16, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.down(F.pixel_shuffle(self.conv(x), 2)))


class Unread(Block):
    """Numbers that equal a width but are none, and a branch that only training returns."""

    def __init__(self, width: int, draw: random.Random) -> None:
        super().__init__()
        self.out, self.version, self.steps = width, width, width
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        for _ in range(self.steps // 8):
            y = 0.9 * y + 0.1 * x
        return F.relu(y) * (1 + self.version / 100 if self.training else 1)


BLOCKS: tuple[Callable[[int, random.Random], Block], ...] = (
    Convolution, Bottleneck, Depthwise, Grouped, Squeeze, Concatenated, Split, Gated, Attention, Normalised, Shuffled,
    Padded, Pixels, Unread,
)  # fmt: skip


class Network(nn.Module):
    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        width, blocks = 16, []
        for kind in draw.choices(BLOCKS, k=draw.randint(2, 5)):
            blocks.append(kind(width, draw))
            width = blocks[-1].out
        self.blocks = nn.ModuleList(blocks)
        self.head, self.aux = nn.Linear(width, 5), nn.Linear(blocks[0].out, 3)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.stem(x))
        first: Tensor | None = None
        for block in self.blocks:
            x = block(x)
            first = x if first is None else first
        scores = self.head(x.mean((2, 3)))
        assert first is not None
        return (scores, self.aux(first.mean((2, 3)))) if self.training else scores


def _check(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = with_unique_values(Network(draw), seed).eval()
    scope = draw.choice(("local", "global"))
    heads = draw.random() < 0.3
    example = torch.randn(2, 3, 8, 8)
    result = prunecli.prune(model, "l1", example_inputs=example, ratio=0.5, scope=scope, heads=heads, prune_stem=True)
    assert result.report.params_after < result.report.params_before
    numbers = [(b.version, b.steps) for b in result.model.blocks if isinstance(b, Unread)]  # type: ignore[union-attr]
    assert numbers == [(b.version, b.steps) for b in model.blocks if isinstance(b, Unread)]
    other = torch.randn(3, 3, 12, 8).double()
    for inputs in (example.double(), other):
        for training in (False, True):
            assert difference(model, result.model, inputs, training=training) < 1e-6, (seed, training, inputs.shape)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_are_pruned_right(seed: int) -> None:
    _check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 320))
def test_many_random_networks_are_pruned_right(seed: int) -> None:
    _check(seed)
