"""Arguments of `prunecli.prune`, checked before any work, with messages that name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from prunecli.bounds import percentage_meant
from prunecli.errors import MethodError, unknown
from prunecli.methods.spec import MethodSpec
from prunecli.patterns import split_patterns
from prunecli.recipe.fields import fields_of, listed, refusal
from prunecli.surgery.tracing.traced import Trace

_PLAIN = (str, int, float, type(None))
_SHOWN = 60


def check_types(**given: Any) -> None:
    """Refuses arguments of types that would fail somewhere inside, or mean something else there.

    Args:
        **given: Any of method, data, seed, recalibrate, loss, recover and trace.

    Raises:
        MethodError: The first that is not what it has to be.
    """
    for name, value in given.items():
        wanted, fits = _TYPES[name]
        if not fits(value):
            raise MethodError(f"{_said(name, value)}: give {wanted}")


def _are_batches(value: Any) -> bool:
    return not isinstance(value, str) and (hasattr(value, "__iter__") or hasattr(value, "__getitem__"))


_TYPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "method": ("the name of a method, such as 'l1'", lambda value: isinstance(value, str)),
    "data": ("calibration batches", lambda value: value is None or _are_batches(value)),
    "seed": ("a whole number, 0 or more", lambda value: hasattr(value, "__index__") and value >= 0),
    "recalibrate": ("True, False or None", lambda value: value is None or isinstance(value, (bool, int))),
    "loss": ("a function of outputs and labels", callable),
    "recover": ("a function of a Transition", lambda value: value is None or callable(value)),
    "trace": ("the trace of an earlier result", lambda value: value is None or isinstance(value, Trace)),
}


def kept_patterns(keep: Any) -> tuple[str, ...]:
    """The patterns of `keep`, of which a single one may stand alone.

    Raises:
        MethodError: It is neither a text nor texts.
    """
    words = tuple(keep) if isinstance(keep, Iterable) and not isinstance(keep, str) else (keep,)
    if not all(isinstance(word, str) for word in words):
        raise MethodError(f"{_said('keep', keep)}: give names or patterns of layers, such as ['layer1', '*.conv1']")
    return split_patterns(words)


def checked_params(spec: MethodSpec, params: Mapping[str, Any]) -> Any:
    """A method's parameters as its dataclass.

    Raises:
        MethodError: One is unknown, or has a wrong value.
    """
    names = [field.name for field in fields_of(spec.params_class)]
    for name in params:
        if name not in names:
            raise MethodError(unknown(f"parameter of {spec.name}", name, names))
    try:
        return TypeAdapter(spec.params_class).validate_python(listed(spec.params_class, params))
    except ValidationError as error:
        first = error.errors()[0]
        name, inner = str(first["loc"][0]), "".join(f"[{part!r}]" for part in first["loc"][1:] if part != "[key]")
        said = refusal(first)
        share = any(field.share for field in fields_of(spec.params_class) if field.name == name)
        meant = percentage_meant(first["input"]) if share else ""
        raise MethodError(f"{_said(name + inner, first['input'])}: {said}{meant}") from error


def _said(name: str, value: Any) -> str:
    """An argument with its value; of what may be large, such as a tensor, with its type."""
    shown = " ".join(repr(value).split()) if isinstance(value, (*_PLAIN, list, tuple)) else type(value).__name__
    return f"{name}={shown if len(shown) <= _SHOWN else type(value).__name__}"
