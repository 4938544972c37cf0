"""Small networks, one for each way in which channels can be tied."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def example() -> Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def conv(a: int, b: int, kernel: int = 3, **kwargs: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, kernel, padding=kernel // 2, **kwargs)  # type: ignore[arg-type]


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class Plain(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (16, 24, 32)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in zip((3, *widths), widths, strict=False):
            layers += [conv(a, b), nn.BatchNorm2d(b), nn.ReLU()]
        self.body, self.head = nn.Sequential(*layers), Head(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 16), nn.BatchNorm2d(16)
        self.down = conv(16, 32, 1)
        self.a, self.an, self.b, self.bn = conv(16, 32), nn.BatchNorm2d(32), conv(32, 32), nn.BatchNorm2d(32)
        self.c, self.d, self.head = conv(32, 48), conv(48, 32), Head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(self.bn(self.b(F.relu(self.an(self.a(x))))) + self.down(x))
        return self.head(x + self.d(F.relu(self.c(x))))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = conv(3, 8), conv(8, 16)
        self.norm, self.b, self.head = nn.BatchNorm2d(24), conv(24, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(self.b(F.relu(self.norm(torch.cat([x, self.a(x)], 1)))))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.g = conv(3, 8), conv(8, 32, 1), conv(32, 32, groups=4)
        self.norm, self.b, self.head = nn.BatchNorm2d(32), conv(32, 16, 1), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        return self.head(self.b(F.relu(self.norm(self.g(x)))))


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.dw = conv(3, 8), conv(8, 32, 1), conv(32, 32, groups=32)
        self.norm, self.project, self.head = nn.BatchNorm2d(32), conv(32, 16, 1), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.dw(F.relu6(self.expand(F.relu(self.stem(x)))))))
        return self.head(self.project(x))


class Gated(nn.Module):
    """Squeeze and excitation: a removed channel is read by the squeeze and written by the excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = conv(3, 8), conv(8, 32)
        self.squeeze, self.excite, self.b, self.head = conv(32, 8, 1), conv(8, 32, 1), conv(32, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(self.b(x * gate))


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.pool = conv(3, 8), conv(8, 16), nn.AdaptiveAvgPool2d(4)
        self.fc1, self.fc2 = nn.Linear(16 * 16, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.a(F.relu(self.stem(x))))).flatten(1)
        return self.fc2(F.relu(self.fc1(x)))


class Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.up = conv(3, 8), conv(8, 16), nn.ConvTranspose2d(16, 24, 2, 2)
        self.out = conv(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.up(F.relu(self.a(F.relu(self.stem(x)))))))


class Averaged(nn.Module):
    """Reads its channels without a layer: the mean over channels changes when some are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv(3, 8), conv(8, 16), conv(16, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        return self.head(self.b(x) + x.mean(dim=1, keepdim=True))


class SplitByAttribute(nn.Module):
    """Keeps half its width in an attribute that could be several widths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pre, self.a, self.half = conv(3, 8), conv(8, 32), conv(32, 32), 16
        self.b, self.c, self.head = conv(16, 16), conv(32, 16), Head(16)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.a(F.relu(self.pre(F.relu(self.stem(x)))))).split(self.half, dim=1)
        return self.head(self.c(torch.cat([self.b(first), second], 1)))


RIGHT = [Plain, Residual, Concatenated, Grouped, Depthwise, Gated, Flattened, Transposed]
