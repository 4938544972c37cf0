"""Stand-ins for classes and functions named in a file: they hold their arguments and do nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunecli.checkpoint.archive import Damaged
from prunecli.checkpoint.records import printable

_MAX_TENSORS = 100_000
_MAX_MODULES = 100_000
_MAX_DEPTH = 200
_WRAPPERS = ("torch.nn.parallel.", "torch.optim.swa_utils.", "torch._dynamo.")
_PARTS = ("_parameters", "_buffers", "_modules")

_PLAIN = (bool, int, float, str)
_MAX_SEQUENCE = 16
_MAX_ENTRIES = 100_000
_MAX_NESTED = 16

Plain = bool | int | float | str | None | tuple[bool | int | float | str | None, ...]
StandIn = tuple[Callable[..., Any], str]
"""The class that torch uses for a name, and the name."""


@dataclass(frozen=True)
class StoredModule:
    """A pickled module without its tensors.

    Attributes:
        path: Name of its class.
        settings: Its attributes that are numbers, words or short tuples of them.
    """

    path: str
    settings: Mapping[str, Plain]


class Inert:
    """An object of a class that is never imported.

    Attributes:
        path: Name of the class or function that would have created it.
        state: The state it would have been given.
    """

    path = ""
    state: Any = None

    def __new__(cls, *arguments: Any) -> Any:
        """Accepts any arguments; the first one of some wrappers is the wrapped module."""
        instance = object.__new__(cls)
        if arguments and cls.path.startswith("torch.fx."):
            instance.state = arguments[0]
        elif arguments and cls.path.startswith("torch._dynamo."):
            instance.state = {"_parameters": {}, "_buffers": {}, "_modules": {"_orig_mod": arguments[0]}}
        return instance

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Mapping(Inert):
    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict()


class _Sequence(Inert):
    def __new__(cls, *arguments: Any) -> Any:
        return []


class _ModuleClass(Inert):
    def __new__(cls, kind: str, module: Any, *source: Any) -> Any:
        return module


def stand_ins(
    names: Iterable[str], mappings: Iterable[str], sequences: Iterable[str], module_class: str
) -> list[StandIn]:
    """Makes a stand-in for each name.

    Args:
        names: All class and function names in a file.
        mappings: Names of classes with dictionary-like instances, which become dictionaries.
        sequences: Names of classes with list-like instances, which become lists.
        module_class: Name of the call that extracts a class from its entry in files of older torch versions.
    """
    kinds: dict[str, type[Inert]] = {**dict.fromkeys(sequences, _Sequence), **dict.fromkeys(mappings, _Mapping)}
    classes = [(type("Inert", (kinds.get(name, Inert),), {"path": name}), name) for name in names]
    return [*classes, (_ModuleClass, module_class)]


def is_module(value: Any) -> bool:
    """Whether a value stands in for a pickled `nn.Module`."""
    state = value.state if isinstance(value, Inert) else None
    return isinstance(state, dict) and all(isinstance(state.get(part), dict) for part in _PARTS)


def unwrapped(module: Inert) -> tuple[Inert, str]:
    """The module inside wrappers such as DataParallel, and the attributes that lead to it, such as ".module"."""
    attributes = ""
    for _ in range(_MAX_DEPTH):
        inside = {name: child for name, child in module.state["_modules"].items() if is_module(child)}
        if not module.path.startswith(_WRAPPERS) or len(inside) != 1:
            break
        ((name, module),) = inside.items()
        attributes += f".{name}"
    return module, attributes


def plain_values(state: Mapping[Any, Any]) -> dict[str, Plain]:
    """The entries of a dictionary that are numbers, words or short sequences of them."""
    plain: dict[str, Plain] = {}
    for name, value in state.items():
        if isinstance(value, (list, tuple)) and len(value) <= _MAX_SEQUENCE:
            value = tuple(value)
        items = value if isinstance(value, tuple) else (value,)
        if isinstance(name, str) and all(item is None or type(item) in _PLAIN for item in items):
            plain[name] = value
    return plain


def plain_trees(state: Mapping[Any, Any]) -> dict[str, Any]:
    """The public entries of a dictionary that consist of numbers and words, in lists and dictionaries at any depth.

    Tuples and tensors of a few numbers become lists; what is larger than a description of a network is left out.
    """
    trees: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(name, str) and not name.startswith("_"):
            tree = _tree(value, [_MAX_ENTRIES], 0)
            if tree is not _NO_TREE:
                trees[name] = tree
    return trees


_NO_TREE = object()


def _tree(value: Any, left: list[int], depth: int) -> Any:
    """A copy of a tree of plain values; `_NO_TREE` if it is none, or has over `left[0]` entries."""
    left[0] -= 1
    if left[0] < 0 or depth > _MAX_NESTED:
        return _NO_TREE
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, Tensor):
        few = value.dim() == 1 and value.numel() <= _MAX_SEQUENCE and not value.is_sparse and not value.is_quantized
        return value.tolist() if few else _NO_TREE
    if isinstance(value, dict):
        keys: list[Any] = list(value)
        if not all(type(key) in (str, int) for key in keys):
            return _NO_TREE
        items = [_tree(item, left, depth + 1) for item in value.values()]
        return _NO_TREE if any(item is _NO_TREE for item in items) else dict(zip(keys, items, strict=True))
    if isinstance(value, (list, tuple)):
        items = [_tree(item, left, depth + 1) for item in value]
        return _NO_TREE if any(item is _NO_TREE for item in items) else items
    return _NO_TREE


def modules_of(module: Inert) -> dict[str, StoredModule]:
    """Class and settings of a module and of those inside it, by their names.

    Raises:
        Damaged: They are nested too deeply.
    """
    return {name: StoredModule(current.path, plain_values(current.state)) for name, current in _walk(module)}


def state_dict_of(module: Inert) -> dict[str, Tensor]:
    """The result of `module.state_dict()`: parameters and persistent buffers of a module and its submodules.

    Raises:
        Damaged: It holds something other than tensors in their place, or more of them than any network.
    """
    tensors: dict[str, Tensor] = {}
    for path, current in _walk(module):
        prefix = f"{path}." if path else ""
        for name, tensor in _own_tensors(current):
            if not isinstance(tensor, Tensor):
                kind = tensor.path if isinstance(tensor, Inert) else type(tensor).__name__
                raise Damaged(f"{printable(prefix + name)} in it is a {printable(kind)}, not a tensor", _SAVE)
            tensors[prefix + name] = tensor
        if len(tensors) > _MAX_TENSORS:
            raise Damaged(f"it holds over {_MAX_TENSORS:,} tensors", _SAVE)
    return tensors


def _walk(module: Inert) -> Iterator[tuple[str, Inert]]:
    """A module and those inside it with their names, in their order.

    Raises:
        Damaged: They are nested too deeply, or one is no module.
    """
    visits = 0
    pending: list[tuple[str, Any, int]] = [("", module, 0)]
    while pending:
        name, current, depth = pending.pop()
        visits += 1
        if visits > _MAX_MODULES or depth > _MAX_DEPTH:
            raise Damaged("its modules are nested too deeply")
        if not is_module(current):
            raise Damaged(f"its module {printable(name)} is damaged")
        yield name, current
        prefix = f"{name}." if name else ""
        children = [(f"{prefix}{own}", child, depth + 1) for own, child in current.state["_modules"].items()]
        pending += [child for child in reversed(children) if child[1] is not None]


_SAVE = "save `model.state_dict()` with torch.save and give that file"


def _own_tensors(module: Inert) -> Iterator[tuple[str, Any]]:
    state = module.state
    transient = state.get("_non_persistent_buffers_set")
    transient = transient if isinstance(transient, set) else set()
    for part in ("_parameters", "_buffers"):
        for name, tensor in state[part].items():
            if tensor is not None and not (part == "_buffers" and name in transient):
                yield str(name), tensor
