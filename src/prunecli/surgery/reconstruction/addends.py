"""What the output of a layer is added to: the shortcut of a residual block, where it is computed before the layer.

The network is run once under a dispatch mode. From a layer's output, results are followed through normalisations with
fixed statistics, products with one number for each channel, and views, up to the first addition of something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunecli.inputs import Inputs, run_batch

_VIEWS = frozenset("view _unsafe_view reshape alias detach clone contiguous dropout squeeze unsqueeze".split())


@dataclass(frozen=True)
class Addend:
    """What is added to a layer's output.

    Attributes:
        operator: Number of the operator that computes it.
        begin: Number of operators that have run when the layer begins.
        end: The same, when it is done.
        scale: By what the layer's output was multiplied on the way, one number for each of its channels; None: by one.
    """

    operator: int
    begin: int
    end: int
    scale: Tensor | None


@dataclass
class _Branch:
    """A tensor that is one layer's output, but for a factor for each channel."""

    layer: str
    began: int
    ended: int
    scale: Tensor | None
    raw: bool = True
    """Whether it is the output itself."""

    def times(self, scale: Tensor) -> _Branch:
        return _Branch(
            self.layer, self.began, self.ended, scale if self.scale is None else self.scale * scale, raw=False
        )


@dataclass
class Layers:
    """What one run shows about the layers of a network.

    Attributes:
        order: Names of layers, as often as they run.
        addends: By layer.
        statistics: Running mean and variance of the normalisation, for layers whose output one reads and nothing else.
    """

    order: list[str] = field(default_factory=list)
    addends: dict[str, Addend] = field(default_factory=dict)
    statistics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, seen: Layers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self._seen = seen
        self._made: dict[int, int] = {}
        self._branches: dict[int, _Branch] = {}
        self.readers: dict[str, int] = {}

    def begin(self, name: str, starts: dict[str, int]) -> None:
        starts[name] = self.count
        self._seen.order.append(name)

    def end(self, name: str, output: Tensor, starts: dict[str, int]) -> None:
        self._remember(output, self._branches, _Branch(name, starts[name], self.count, None))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        number, self.count = self.count, self.count + 1
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        made = [self._made.get(id(tensor)) for tensor in given]
        branches = [self._branches.get(id(tensor)) for tensor in given]
        result = func(*args, **(kwargs or {}))
        first = next((leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)), None)
        operator = func.overloadpacket.__name__.rstrip("_")
        for branch in branches:
            if branch is not None and branch.raw and operator not in _VIEWS:
                self.readers[branch.layer] = self.readers.get(branch.layer, 0) + 1
        if first is not None:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._remember(leaf, self._made, number)
            branch = self._followed(operator, args, kwargs or {}, given, branches, made)
            if branch is not None:
                self._remember(first, self._branches, branch)
            else:
                self._branches.pop(id(first), None)
        return result

    def _followed(
        self,
        operator: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: list[Tensor],
        branches: list[_Branch | None],
        made: list[int | None],
    ) -> _Branch | None:
        branch = branches[0] if branches else None
        if operator == "add" and len(given) == 2 and given[0].shape == given[1].shape and kwargs.get("alpha", 1) == 1:
            for own, other in ((0, 1), (1, 0)):
                found, number = branches[own], made[other]
                if found is not None and number is not None and number < found.began:
                    self._seen.addends.setdefault(found.layer, Addend(number, found.began, found.ended, found.scale))
            return None
        if branch is None:
            return None
        if operator in _VIEWS:
            return branch
        if "batch_norm" in operator and args[3] is not None and not any(flag is True for flag in args[5:]):
            weight, mean, variance, eps = args[1], args[3], args[4], float(args[-1])
            if branch.raw:
                self._seen.statistics[branch.layer] = mean, variance
            scale = torch.rsqrt(variance + eps) * (weight if weight is not None else 1.0)
            return branch.times(scale)
        if operator == "mul" and len(given) == 2 and given[1].numel() == given[0].shape[-1] == given[1].shape[-1]:
            scale = given[1].flatten()  # the factor of each channel in a block of ConvNeXt or CaiT
            return branch.times(scale)
        return None

    def _remember(self, tensor: Tensor, where: dict[int, Any], value: Any) -> None:
        if id(tensor) not in where:
            finalize(tensor, where.pop, id(tensor), None).atexit = False
        where[id(tensor)] = value


def layers_of(network: nn.Module, layers: Mapping[str, nn.Module], inputs: Inputs) -> Layers:
    """Runs a network once and says in which order layers run, and what is added to what they give.

    Args:
        network: In evaluation mode; not changed.
        layers: Its layers by name.
        inputs: Inputs that it accepts.

    Raises:
        MethodError: It does not run on them.
    """
    seen = Layers()
    recording, starts = _Recording(seen), dict[str, int]()
    hooks = []
    for name, layer in layers.items():
        hooks.append(layer.register_forward_pre_hook(lambda module, args, own=name: recording.begin(own, starts)))
        hooks.append(
            layer.register_forward_hook(lambda module, args, output, own=name: recording.end(own, output, starts))
        )
    try:
        with torch.no_grad(), recording:
            run_batch(network, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for name in [name for name in seen.statistics if recording.readers[name] > 1]:
        del seen.statistics[name]
    return seen
