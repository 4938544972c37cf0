"""Copying networks, whatever state an earlier pass has left on them."""

from __future__ import annotations

import copy
import ctypes
import gc
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunecli.errors import ModelError, described
from prunecli.widened import can_be_widened, is_on_disk, widened

_Network = TypeVar("_Network", bound=nn.Module)
_OWN = ("_parameters", "_buffers", "_modules")
_LARGE = 1 << 25
"""Parameters of a network whose copies are worth avoiding."""
_MMAP_THRESHOLD = -3
"""glibc's M_MMAP_THRESHOLD: from how many bytes on a block is a mapping of its own."""
_WORTH_WIDENING = 1 << 14
"""Numbers in a tensor that is not worth copying, in such a network."""


_COPIES: WeakSet[nn.Module] = WeakSet()
"""Copies that something still refers to, or that refer to themselves."""


class _DetachedCopies(TorchFunctionMode):
    """Copies tensors that belong to a graph without the graph, which `copy.deepcopy` refuses to do."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            return copy.deepcopy(args[0].detach(), args[1])
        return func(*args, **(kwargs or {}))


def copied(model: _Network, memo: dict[int, Any] | None = None) -> _Network:
    """A deep copy of a network.

    A forward pass with gradients leaves tensors on some networks that are no leaves of autograd's graph: the weight
    that weight normalisation or a pruning mask computes, a feature map kept for later. The copy has their values,
    detached.

    Args:
        model: The network; not changed.
        memo: What stands for some objects in the copy, by their ids, as in `copy.deepcopy`.

    Raises:
        ModelError: Something the network holds cannot be copied; the message names it.
    """
    with _DetachedCopies():
        try:
            duplicate = cast(_Network, _duplicate(model, {} if memo is None else memo))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            remedy = "set it to None or remove it before pruning"
            where = next(_uncopyable(model), "")
            if not where:
                where, remedy = "an object in it refuses", "make copy.deepcopy(model) work"
            raise ModelError(f"the model cannot be copied: {where} ({described(error)}); {remedy}") from error
    _COPIES.add(duplicate)
    return duplicate


def converted(model: _Network, dtype: torch.dtype, *, sparing: bool = False) -> _Network:
    """A copy on the CPU whose floating parameters and buffers have `dtype`, and whose complex ones are as wide.

    Large parameters of large networks are not copied, but widened where an operator reads them, so the model must not
    change as long as the copy is used; what changes the copy leaves the model alone.

    Args:
        model: The network.
        dtype: float64 or float32.
        sparing: Whether that goes for networks of any size: their values will hardly be read.
    """
    memo: dict[int, Any] = {}
    large = sparing or is_large(model)
    for tensor in (*model.parameters(), *model.buffers()):
        worth = large and tensor.numel() >= _WORTH_WIDENING and isinstance(tensor, nn.Parameter)
        in_place = worth or is_on_disk(tensor)
        memo[id(tensor)] = (
            widened(tensor, dtype) if in_place and can_be_widened(tensor, dtype) else _converted(tensor, dtype)
        )
    return in_precision(copied(model, memo), dtype)  # what hooks compute is converted here


def release_copies(model: nn.Module, *used: nn.Module) -> None:
    """Frees copies of a large network that nothing uses any more, but that refer to themselves, as hooked ones do.

    Python notices such garbage by the number of objects, not by their size, and glibc keeps what was freed between
    blocks that are still used.

    Args:
        model: The network.
        used: Copies that are still needed.
    """
    if is_large(model):
        if any(all(left is not network for network in (model, *used)) for left in _COPIES):
            gc.collect()  # takes long, as it looks at every object there is
        _of_malloc("malloc_trim", 0)


@contextmanager
def freed_at_once() -> Iterator[None]:
    """Lets the memory of tensors go back to the system as soon as they are freed.

    glibc learns from what is freed, and soon keeps blocks of up to 32 MB for later, between others that are still used:
    where weights are read and widened one after the other, that came to more than the network. Afterwards it keeps
    them again, since training would be slower.
    """
    _of_malloc("mallopt", _MMAP_THRESHOLD, 1 << 17)
    try:
        yield
    finally:
        _of_malloc("mallopt", _MMAP_THRESHOLD, 32 << 20)
        _of_malloc("malloc_trim", 0)


def _of_malloc(function: str, *arguments: int) -> None:
    """Calls a function of glibc's allocator; nothing where there is another one."""
    found = getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None
    if found is not None:
        found(*arguments)


@contextmanager
def without_collections() -> Iterator[None]:
    """Puts off the search for objects that refer to each other while a network is taken apart and run a few times.

    A pass makes many small objects and leaves none behind, but makes Python look through all that libraries hold, which
    takes as long as the pass.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def in_precision(model: _Network, dtype: torch.dtype) -> _Network:
    """A network, moved to the CPU and converted in place to float64 or float32, with whatever its modules add to that.

    Args:
        model: Its parameters and buffers may have the precision already.
        dtype: float64 or float32.
    """
    kind = type(model)
    usual = (kind.cpu, kind.double, kind.float) == (nn.Module.cpu, nn.Module.double, nn.Module.float)
    if usual and all(type(module)._apply is nn.Module._apply for module in model.modules()):
        tensors = (*model.parameters(), *model.buffers())
        if all(tensor.device.type == "cpu" and _fits(tensor, dtype) for tensor in tensors):
            return model
    model = model.cpu()
    return model.double() if dtype == torch.float64 else model.float()


def _fits(tensor: Tensor, dtype: torch.dtype) -> bool:
    return not tensor.is_floating_point() or tensor.dtype == dtype


def is_large(model: nn.Module) -> bool:
    """Whether copies of a network are worth avoiding."""
    return are_large(model.parameters())


def are_large(weights: Iterable[Tensor]) -> bool:
    """Whether copies of a network with these weights are worth avoiding."""
    return sum(weight.numel() for weight in weights) > _LARGE


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    values = tensor.detach()
    if tensor.is_floating_point():
        values = values.to(dtype=dtype, device="cpu", copy=True)
    else:
        wide = torch.complex128 if dtype == torch.float64 else torch.complex64
        values = values.to(dtype=wide if tensor.is_complex() else None, device="cpu", copy=True)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def sharing_parameters(model: _Network, apart: Collection[str] = ()) -> _Network:
    """A copy that shares the parameters, and has buffers and everything else of its own.

    Args:
        model: The network.
        apart: Names of parameters that are copied nevertheless, because they will be changed in place.
    """
    shared = {id(parameter): parameter for parameter in model.parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in apart:
            shared.pop(id(parameter), None)
    return copied(model, dict(shared))


def _duplicate(value: Any, memo: dict[int, Any]) -> Any:
    """`copy.deepcopy`, but quick for modules that do not say themselves how they are copied."""
    kind = type(value)
    if kind in _ATOMIC:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    fresh: Any
    if kind in (dict, OrderedDict):
        fresh = memo[id(value)] = kind()
        for key, item in value.items():
            fresh[_duplicate(key, memo)] = _duplicate(item, memo)
        return fresh
    if kind in (tuple, set) and all(type(item) in _ATOMIC for item in value):
        return value if kind is tuple else memo.setdefault(id(value), set(value))
    if not isinstance(value, nn.Module) or not _is_copied_by_its_attributes(kind):
        return copy.deepcopy(value, memo)
    module: Any = object.__new__(kind)
    memo[id(value)] = module
    own = module.__dict__
    for name, item in value.__dict__.items():
        of = type(item)
        if of in _ATOMIC:
            own[name] = item
        elif of not in (dict, OrderedDict) or item:
            own[name] = _duplicate(item, memo)
        else:  # a module has a dozen empty tables
            fresh = memo.get(id(item))
            if fresh is None:
                fresh = memo[id(item)] = of()
            own[name] = fresh
    return module


_ATOMIC = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size))


_QUICK: dict[type, bool] = {}


def _is_copied_by_its_attributes(kind: type) -> bool:
    """Whether neither the class nor one it derives from changes how its instances are copied; torch's own may."""
    if kind not in _QUICK:
        _QUICK[kind] = _has_no_own_way(kind)
    return _QUICK[kind]


def _has_no_own_way(kind: type) -> bool:
    own = [part for part in kind.__mro__ if not part.__module__.startswith("torch.nn.") and part is not object]
    special = ("__deepcopy__", "__copy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__slots__")
    return "__deepcopy__" not in dir(kind) and not any(name in vars(part) for part in own for name in special)


def _uncopyable(model: nn.Module) -> Iterator[str]:
    """The attributes that make a copy fail, each with its module and type."""
    # Registered modules and tensors stand for themselves here, so an attribute that refers to one is not to blame.
    shared: list[Any] = [*model.modules(), *model.parameters(), *model.buffers()]
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in _OWN:
                continue
            try:
                copy.deepcopy(value, {id(item): item for item in shared})
            except Exception:
                where = f"{name}.{key}" if name else key
                yield f"a hook in {where} refuses" if "_hooks" in key else f"{where} holds a {type(value).__name__}"
