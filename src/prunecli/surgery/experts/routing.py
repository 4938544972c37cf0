"""What routers compute and decide while a network runs, and switching experts off by their logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_PRODUCTS = frozenset((F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.addmm,
                       torch.einsum))  # fmt: skip
_LARGEST = frozenset((torch.topk, Tensor.topk, torch.sort, Tensor.sort))
_ONE = frozenset((torch.argmax, Tensor.argmax))
_WEIGHED = frozenset((torch.softmax, Tensor.softmax, F.softmax, torch.sigmoid, Tensor.sigmoid, torch.max, Tensor.max))


@dataclass(frozen=True)
class Routers:
    """A router to watch: its name, that of the layer which it belongs to, and the number of its experts."""

    layer: str
    router: str
    experts: int


@dataclass(frozen=True)
class Decision:
    """What a layer decides once.

    Attributes:
        router: Name of the router.
        logits: Its logits, shape (..., experts).
        indices: The experts that tokens are sent to, shape (..., experts for each token); None where all are weighed.
    """

    router: str
    logits: Tensor
    indices: Tensor | None


@dataclass(eq=False)
class _Running:
    """One layer that runs: whether its router does, and what has been seen so far."""

    router: Routers
    inside: bool = False
    logits: Tensor | None = None
    indices: Tensor | None = None
    weighed: bool = False


class Routing(TorchFunctionMode):
    """Watches routers in a network that runs under it, and sets logits to minus infinity.

    Args:
        network: The network; hooks are put on it while the mode is entered.
        routers: Which of its modules are routers.
        off: By router, a mask of the experts that are switched off, shape (experts,).
        decide: Called with every decision.

    Attributes:
        single: Whether something was computed in less than double precision.
    """

    def __init__(
        self,
        network: nn.Module,
        routers: Sequence[Routers],
        *,
        off: Mapping[str, Tensor] | None = None,
        decide: Callable[[Decision], None] | None = None,
    ) -> None:
        super().__init__()
        self.single = False
        self._network, self._routers = network, routers
        self._off, self._decide = off or {}, decide
        self._stack: list[_Running] = []
        self._hooks = ExitStack()

    def deciding(self, tensor: Tensor) -> str | None:
        """The layer that runs, if it has computed logits of this tensor's shape: noise on them has it too."""
        running = self._stack[-1] if self._stack else None
        if running is None or running.logits is None or running.logits.shape != tensor.shape:
            return None
        return running.router.layer

    def __enter__(self) -> Routing:
        for router in self._routers:
            layer, own = self._network.get_submodule(router.layer), self._network.get_submodule(router.router)
            for hook in (
                layer.register_forward_pre_hook(self._entered(router)),
                own.register_forward_pre_hook(self._inside(router, True)),
                own.register_forward_hook(self._inside(router, False)),
                layer.register_forward_hook(self._left(router)),
            ):
                self._hooks.callback(hook.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()
        self._stack.clear()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self._stack or func not in _SEEN:
            return out
        for running in self._stack:
            out = self._seen(running, func, args, out)
        return out

    def _seen(self, running: _Running, func: Any, args: tuple[Any, ...], out: Any) -> Any:
        count = running.router.experts
        if isinstance(out, Tensor) and out.is_floating_point():
            self.single |= out.dtype != torch.float64
        if func in _PRODUCTS:
            if running.inside and running.logits is None and _is_last(out, count):
                off = self._off.get(running.router.router)
                if off is not None:
                    out = out.masked_fill(off.to(out.device), float("-inf"))
                running.logits = out
        elif running.logits is not None and args and _is_last(args[0], count):
            if func in _LARGEST:
                running.indices = out[1]
            elif func in _ONE:
                running.indices = out.unsqueeze(-1)
            else:
                running.weighed = True
        return out

    def _entered(self, router: Routers) -> Any:
        return lambda module, args: self._stack.append(_Running(router))

    def _inside(self, router: Routers, inside: bool) -> Any:
        def hook(*_: Any) -> None:
            for running in self._stack:
                if running.router is router:
                    running.inside = inside

        return hook

    def _left(self, router: Routers) -> Any:
        def hook(*_: Any) -> None:
            running = next(running for running in reversed(self._stack) if running.router is router)
            self._stack.remove(running)
            logits = running.logits
            if self._decide is not None and logits is not None and (running.weighed or running.indices is not None):
                with torch._C.DisableTorchFunction():
                    self._decide(Decision(router.router, logits.detach(), running.indices))

        return hook


_SEEN = _PRODUCTS | _LARGEST | _ONE | _WEIGHED


def _is_last(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 0 and value.shape[-1] == count
