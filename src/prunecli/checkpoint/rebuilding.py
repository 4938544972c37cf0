"""The calls in a pickle that are accepted, and their arguments: those that create dense tensors and plain containers.

torch allows more with `weights_only`, including calls that allocate memory for a size without any data. Foreign classes
and functions are accepted too, because they are never called: an inert object takes their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from prunecli.checkpoint.archive import Damaged
from prunecli.checkpoint.records import Global, ObjectRecord, Storage, TensorRecord, printable

_KeyCheck = Callable[[Any], None]
_Rule = Callable[[tuple[Any, ...], _KeyCheck], Any]

_TORCH_MODULES = frozenset(
    ("torch", "torch._utils", "torch._tensor", "torch.storage", "torch.serialization", "torch.nn.parameter", "_codecs")
)
_OWN = frozenset(
    ("collections.OrderedDict", "collections.Counter", "builtins.bytearray", "builtins.set", "builtins.complex")
)
_SYSTEM = frozenset(("sys", "os", "posix", "nt", "subprocess", "pty", "runpy", "ctypes", "_ctypes", "socket", "shutil"))
_RUNNING = frozenset(f"builtins.{name}" for name in ("eval", "exec", "compile", "__import__", "open", "input"))
_NOT_DENSE = {
    "torch._utils._rebuild_sparse_tensor": "sparse",
    "torch._utils._rebuild_qtensor": "quantized",
    "torch._utils._rebuild_meta_tensor_no_storage": "empty (meta)",
    "torch._utils._rebuild_wrapper_subclass": "wrapped",
}
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_UNTYPED: Mapping[str, torch.dtype] = {
    str(dtype): dtype for dtype in (torch.uint16, torch.uint32, torch.uint64, *_FLOAT8)
}
"""Types that have no storage class."""
_MAX_DIMENSIONS = 64
_DENSE = "save a plain `state_dict()` of dense tensors with torch.save"
_DAMAGED = "its description of a tensor is damaged"


def is_foreign(name: Global) -> bool:
    """Whether torch itself may not resolve a name in a weights file."""
    if name.path.startswith("torch._") and name.module == "torch":  # classes of torch.compile
        return True
    kinds = name.path.startswith("torch.") and name.path.endswith(("Tensor", "Storage"))
    return not kinds and name.module not in _TORCH_MODULES and name.path not in _OWN


def call(function: Global, arguments: tuple[Any, ...], check_key: _KeyCheck, *, new: bool) -> Any:
    """Records what a call would return.

    Args:
        function: The class or function that is called.
        arguments: Its arguments.
        check_key: Raises `Damaged` for a value that may not be a dictionary key.
        new: Whether a class is instantiated by `__new__` alone.

    Raises:
        Damaged: Weights do not need this call.
    """
    if function.path.partition(".")[0] in _SYSTEM or function.path in _RUNNING:
        raise Damaged(
            f"it would call {printable(function.path)} when it is unpickled, which weights never need",
            "it may be hostile: do not open it with other software, and get the weights from their author",
        )
    if is_foreign(function):
        return ObjectRecord(function.path)
    rule = _RULES.get(function.path)
    if rule is not None and (not new or (rule is _ordered and not arguments)):
        return rule(arguments, check_key)
    if function.path in _NOT_DENSE:
        raise Damaged(f"it holds {_NOT_DENSE[function.path]} tensors", _DENSE)
    raise Damaged(f"it calls {printable(function.path)}, which plain weights do not need", _DENSE)


def _tensor(arguments: tuple[Any, ...], dtype: torch.dtype | None = None) -> TensorRecord:
    """Checks that a tensor lies inside its storage and is not larger than it."""
    storage, offset, shape, strides = arguments
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise Damaged(_DAMAGED)
    if not _whole_numbers(shape) or not _whole_numbers(strides) or len(shape) != len(strides):
        raise Damaged(_DAMAGED)
    if len(shape) > _MAX_DIMENSIONS:
        raise Damaged(f"it describes a tensor of {len(shape)} dimensions")
    itemsize = storage.itemsize if dtype is None else dtype.itemsize
    count = 1
    for length in shape:
        count *= length
        if count > 1 << 62:
            raise Damaged(f"it describes a tensor of the impossible shape {list(shape)}")
    if not count:
        return TensorRecord((storage.key, offset, shape, strides), 0)
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
    if (last + 1) * itemsize > storage.size:
        raise Damaged(f"it describes a tensor of shape {list(shape)} that does not fit its data")
    if count * itemsize > storage.size:
        raise Damaged(
            f"it describes a tensor of shape {list(shape)} that repeats {storage.count:,} numbers over and over",
            "call .contiguous() on such a tensor and save it again",
        )
    return TensorRecord((storage.key, offset, shape, strides), count * itemsize)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def _rebuild_tensor(arguments: tuple[Any, ...], check_key: _KeyCheck) -> TensorRecord:
    return _tensor(_exactly(arguments, 4))


def _rebuild_tensor_v2(arguments: tuple[Any, ...], check_key: _KeyCheck) -> TensorRecord:
    if len(arguments) not in (6, 7):
        raise Damaged(_DAMAGED)
    _check_gradient(arguments[4:])
    return _tensor(arguments[:4])


def _rebuild_tensor_v3(arguments: tuple[Any, ...], check_key: _KeyCheck) -> TensorRecord:
    if len(arguments) not in (7, 8) or not isinstance(arguments[6], Global):
        raise Damaged(_DAMAGED)
    _check_gradient((*arguments[4:6], *arguments[7:]))
    name = arguments[6]
    dtype = _UNTYPED.get(name.path)
    if dtype is None:
        raise Damaged(f"it holds numbers of the type {printable(name.path)}, not plain ones", _DENSE)
    return _tensor(arguments[:4], dtype)


def _check_gradient(arguments: tuple[Any, ...]) -> None:
    """Checks requires_grad, hooks, and the flags of a lazy conjugate or negation."""
    trainable, hooks, *flags = arguments
    if type(trainable) is not bool or not _no_hooks(hooks) or any(flags):
        raise Damaged("it holds a tensor with hooks or flags", _DENSE)


def _no_hooks(hooks: Any) -> bool:
    return hooks is None or (isinstance(hooks, ObjectRecord) and hooks.values == {})


def _rebuild_parameter(arguments: tuple[Any, ...], check_key: _KeyCheck) -> TensorRecord:
    data, trainable, hooks = _exactly(arguments, 3)
    if not isinstance(data, TensorRecord) or type(trainable) is not bool or not _no_hooks(hooks):
        raise Damaged(_DAMAGED)
    return data


def _rebuild_parameter_with_state(arguments: tuple[Any, ...], check_key: _KeyCheck) -> TensorRecord:
    *parameter, state = _exactly(arguments, 4)
    _check_state(state)
    return _rebuild_parameter(tuple(parameter), check_key)


def _rebuild_from_type(arguments: tuple[Any, ...], check_key: _KeyCheck) -> TensorRecord:
    function, kind, inner, state = _exactly(arguments, 4)
    if not isinstance(function, Global) or function.path not in _TENSORS or not isinstance(inner, tuple):
        raise Damaged(_DAMAGED)
    if not isinstance(kind, Global) or kind.path not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
        raise Damaged(f"it holds a tensor of the class {printable(getattr(kind, 'path', str(kind)))}", _DENSE)
    _check_state(state)
    return _TENSORS[function.path](inner, check_key)


def _check_state(state: Any) -> None:
    """Checks that attributes to set on a tensor do not replace any that it has."""
    if isinstance(state, tuple):
        state, slots = _exactly(state, 2)
        if slots:
            raise Damaged("it holds a tensor with unusual attributes", _DENSE)
    names = state if isinstance(state, dict) else {} if state is None else None
    if names is None or any(not isinstance(name, str) or hasattr(torch.nn.Parameter, name) for name in names):
        raise Damaged("it holds a tensor with unusual attributes", _DENSE)


def _ordered(arguments: tuple[Any, ...], check_key: _KeyCheck) -> ObjectRecord:
    pairs = _exactly(arguments, 1)[0] if arguments else []
    record = ObjectRecord("collections.OrderedDict", foreign=False, values={})
    if not isinstance(pairs, list):
        raise Damaged("a dictionary in it is damaged")
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise Damaged("a dictionary in it is damaged")
        check_key(pair[0])
        assert record.values is not None
        record.values[pair[0]] = pair[1]
    return record


def _counter(arguments: tuple[Any, ...], check_key: _KeyCheck) -> ObjectRecord:
    counts = _exactly(arguments, 1)[0] if arguments else {}
    if not isinstance(counts, dict):
        raise Damaged("a counter in it is damaged")
    return ObjectRecord("collections.Counter", foreign=False, values=dict(counts))


def _set(arguments: tuple[Any, ...], check_key: _KeyCheck) -> ObjectRecord:
    items = _exactly(arguments, 1)[0] if arguments else []
    if not isinstance(items, (list, tuple)):
        raise Damaged("a set in it is damaged")
    for item in items:
        check_key(item)
    return ObjectRecord("builtins.set", foreign=False)


def _encoded(arguments: tuple[Any, ...], check_key: _KeyCheck) -> bytes:
    text, encoding = _exactly(arguments, 2)
    if not isinstance(text, str) or encoding != "latin1":
        raise Damaged("a byte string in it is damaged")
    try:
        return text.encode("latin1")
    except UnicodeEncodeError as error:
        raise Damaged("a byte string in it is damaged") from error


def _bytes(arguments: tuple[Any, ...], check_key: _KeyCheck) -> ObjectRecord:
    coded = len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin-1"
    if (
        arguments and not coded and not (len(arguments) == 1 and isinstance(arguments[0], bytes))
    ):  # a number would be a size to allocate
        raise Damaged("a byte string in it is damaged")
    return ObjectRecord("builtins.bytearray", foreign=False)


def _size(arguments: tuple[Any, ...], check_key: _KeyCheck) -> Any:
    if not arguments or not _whole_numbers(arguments[0]):
        raise Damaged(_DAMAGED)
    return arguments[0]


def _scalar(kind: type, factory: str) -> _Rule:
    """The rule for a call with plain arguments of one kind."""

    def rule(arguments: tuple[Any, ...], check_key: _KeyCheck) -> ObjectRecord:
        if not arguments or len(arguments) > 2 or not all(isinstance(value, (kind, int)) for value in arguments):
            raise Damaged(f"a call of {factory} in it is damaged")
        return ObjectRecord(factory, foreign=False)

    return rule


def _exactly(arguments: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(arguments) != count:
        raise Damaged("a call in it is damaged")
    return arguments


_TENSORS: Mapping[str, Callable[[tuple[Any, ...], _KeyCheck], TensorRecord]] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
}
_RULES: Mapping[str, _Rule] = {
    **_TENSORS,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter_with_state,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.bytearray": _bytes,
    "builtins.complex": _scalar(float, "complex"),
    "torch.device": _scalar(str, "torch.device"),
    "torch.serialization._get_layout": _scalar(str, "torch.serialization._get_layout"),
    "torch.Size": _size,
    "_codecs.encode": _encoded,
}
