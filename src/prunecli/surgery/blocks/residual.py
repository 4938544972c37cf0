"""Which modules of a network are residual blocks: their output is their input plus something computed from it.

A network is run once under a dispatch mode. Every tensor knows of which running modules it is the input, unchanged
but for its shape, and of which inputs it was computed from. An addition of the two is a residual connection, whatever
the module's class is called.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import finalize

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunecli.copying import sharing_parameters
from prunecli.errors import ModelError
from prunecli.inputs import Inputs, call, explained, fitted, output_tensors
from prunecli.surgery.tracing.running import plain_kernels, seeded

_SAME_VALUES = frozenset(
    "view _unsafe_view reshape permute transpose t expand squeeze unsqueeze clone alias detach contiguous _to_copy "
    "_reshape_alias slice flatten movedim lift_fresh".split()
)
"""Operators that return what they get in another shape or type."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class _Input(NamedTuple):
    """One tensor that a running module was given: the number of the call, and which of its tensors."""

    call: int
    tensor: int


@dataclass(frozen=True)
class ResidualBlock:
    """A module that could be switched off, which makes it return its input.

    Attributes:
        name: Its dotted name.
        tensor: Which of the tensors that it is given (`passed_tensors`) is the stream that it adds to.
        bare: Whether it returns a tensor, not a container with tensors.
        parameters: How many parameters it holds.
    """

    name: str
    tensor: int
    bare: bool
    parameters: int


def passed_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The floating tensors that a module is given, in order."""
    return [tensor for tensor in output_tensors([args, dict(kwargs)]) if tensor.is_floating_point()]


def residual_blocks(model: nn.Module, inputs: Inputs) -> list[ResidualBlock]:
    """The residual blocks of a network, in the order in which they run.

    Of nested ones the outermost counts, unless it is a chain of others: a stage, or an encoder.

    Args:
        model: Not changed.
        inputs: Inputs that it accepts.

    Raises:
        ModelError: It does not run on them.
    """
    network = sharing_parameters(model).eval()
    watched = _Watched()
    with (
        explained("the network does not run on the example inputs", ModelError),
        torch.no_grad(),
        plain_kernels(),
        seeded(),
        _watching(network, watched),
        watched,
    ):
        call(network, fitted(inputs, network))
    modules = dict(network.named_modules())
    passages = {
        name: passage
        for name, passage in watched.passages().items()
        if name and any(True for _ in modules[name].parameters())
    }
    chains: set[str] = set()
    for name in sorted(passages, key=len, reverse=True):  # what is inside comes before what is around it
        if _is_chain(name, passages, chains, modules):
            chains.add(name)
    blocks = [name for name in watched.order if name in passages and name not in chains]
    return [
        ResidualBlock(name, found.tensor, found.bare, sum(p.numel() for p in modules[name].parameters()))
        for name in blocks
        if not any(name.startswith(f"{other}.") for other in blocks) and (found := passages[name])
    ]


def _is_chain(name: str, passages: Mapping[str, _Passage], chains: set[str], modules: Mapping[str, nn.Module]) -> bool:
    """Whether a residual module only consists of residual blocks, one behind the other.

    A block of T5 consists of residual halves, too, but these are of different kinds.
    """
    within = [other for other in passages if other.startswith(f"{name}.")]
    direct = [other for other in within if not any(other.startswith(f"{between}.") for between in within)]
    last = max((passages[other].call for other in direct), default=0)
    own = [site for site in passages[name].sites if not any(f"{site.module}.".startswith(f"{d}.") for d in direct)]
    if any(site.call >= last for site in own):
        return False  # it adds to its input what the others make of it
    if isinstance(modules[name], nn.Sequential) or any(other in chains for other in direct):
        return True
    listed: dict[str, set[type]] = {}
    for other in direct:
        parent = other.rpartition(".")[0]
        if isinstance(modules[parent], _CONTAINERS):
            listed.setdefault(parent, set()).add(type(modules[other]))
    return any(len(kinds) == 1 for kinds in listed.values())


class _Site(NamedTuple):
    """An addition: the module whose code adds, and the number of the last call of a module before it."""

    module: str
    call: int


class _Passage(NamedTuple):
    """How a stream passes a module.

    Attributes:
        tensor: Which of the tensors that the module is given it is.
        bare: Whether the module returns it alone.
        call: Number of the call.
        sites: Where something is added to it.
    """

    tensor: int
    bare: bool
    call: int
    sites: frozenset[_Site]


@dataclass
class _Known:
    """What is known of one tensor.

    Attributes:
        carries: Inputs that it is, unchanged.
        depends: Inputs that it was computed from.
        summed: Inputs to which something was added on the way to it.
    """

    carries: frozenset[_Input] = frozenset()
    depends: frozenset[_Input] = frozenset()
    summed: frozenset[_Input] = frozenset()


@dataclass
class _Frame:
    name: str
    call: int
    given: list[tuple[torch.Size, torch.dtype]] = field(default_factory=list)


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows how inputs of running modules are carried and added to.

    Attributes:
        order: Names in the order in which modules began to run.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.order: list[str] = []
        self._found: dict[str, list[_Passage | None]] = {}
        self._sites: dict[_Input, set[_Site]] = {}
        self._stack: list[_Frame] = []
        self._calls = 0
        self._known: dict[int, _Known] = {}
        self._active: set[int] = set()

    def passages(self) -> dict[str, _Passage]:
        """Modules through which a stream passes, in the same way each time that they run."""
        found: dict[str, _Passage] = {}
        for name, calls in self._found.items():
            known = [passage for passage in calls if passage is not None]
            if known and len(known) == len(calls) and len({passage[:2] for passage in known}) == 1:
                found[name] = known[0]._replace(sites=frozenset().union(*(passage.sites for passage in known)))
        return found

    def enter(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A module begins to run."""
        self._calls += 1
        if name not in self._found:
            self.order.append(name)
            self._found[name] = []
        frame = _Frame(name, self._calls)
        for number, tensor in enumerate(passed_tensors(args, kwargs)):
            frame.given.append((tensor.shape, tensor.dtype))
            source, before = frozenset((_Input(frame.call, number),)), self._of(tensor)
            self._note(tensor, _Known(before.carries | source, before.depends | source, before.summed))
        self._stack.append(frame)
        self._active.add(frame.call)

    def leave(self, output: Any) -> None:
        """The innermost running module returns `output`."""
        frame = self._stack.pop()
        self._active.discard(frame.call)
        returned = next((tensor for tensor in output_tensors(output) if tensor.is_floating_point()), None)
        passage = None
        if returned is not None:
            summed = self._of(returned).summed
            passing = (
                number
                for number, given in enumerate(frame.given)
                if given == (returned.shape, returned.dtype) and _Input(frame.call, number) in summed
            )
            number = next(passing, None)
            if number is not None:
                sites = self._sites[_Input(frame.call, number)]
                passage = _Passage(number, returned is output, frame.call, frozenset(sites))
        self._found[frame.name].append(passage)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        before = [self._of(tensor) for tensor in given]
        out = func(*args, **(kwargs or {}))
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        known = self._result(func, args, kwargs or {}, given, before, results)
        for tensor in results:
            self._note(tensor, known)
        return out

    def _result(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        given: list[Tensor],
        before: list[_Known],
        results: list[Tensor],
    ) -> _Known:
        operator = func.overloadpacket.__name__.removesuffix("_")
        depends = self._open(*(known.depends for known in before))
        summed = self._open(*(known.summed for known in before))
        carries: frozenset[_Input] = frozenset()
        if operator in _SAME_VALUES and results and given and results[0].numel() == given[0].numel():
            carries = self._open(before[0].carries)
        elif operator in ("add", "sub") and len(given) == 2 and isinstance(args[1], Tensor):
            scaled = kwargs.get("alpha", 1) != 1 or operator == "sub"
            first, second = before
            added = first.carries & (second.depends - second.carries)
            added |= frozenset() if scaled else second.carries & (first.depends - first.carries)
            summed |= self._open(added)
            for source in self._open(added):
                self._sites.setdefault(source, set()).add(_Site(self._stack[-1].name, self._calls))
        return _Known(carries, depends, summed)

    def _open(self, *sets: frozenset[_Input]) -> frozenset[_Input]:
        """Inputs of modules that are still running."""
        return frozenset(source for one in sets for source in one if source.call in self._active)

    def _of(self, tensor: Tensor) -> _Known:
        return self._known.get(id(tensor), _NOTHING)

    def _note(self, tensor: Tensor, known: _Known) -> None:
        if id(tensor) not in self._known:
            finalize(tensor, self._known.pop, id(tensor), None).atexit = False
        self._known[id(tensor)] = known


_NOTHING = _Known()


@contextmanager
def _watching(model: nn.Module, watched: _Watched) -> Iterator[None]:
    """Tells `watched` which modules run."""

    def entered(name: str) -> Any:
        return lambda module, args, kwargs: watched.enter(name, args, kwargs)

    def left(module: nn.Module, args: Any, output: Any) -> None:
        watched.leave(output)

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_pre_hook(entered(name), with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(left).remove)
        yield
