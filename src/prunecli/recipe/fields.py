"""Reading annotated dataclass fields, which describe options, recipes and the JSON schema alike."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from annotated_doc import Doc

from prunecli.bounds import is_share


class FieldInfo(NamedTuple):
    """A field: its type without annotations, its default, its help text, and whether it is a share, at most 1."""

    name: str
    type: Any
    default: Any
    doc: str
    share: bool = False


_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "dict_type": "a mapping",
    "tuple_type": "a name, or a list of names",
}


def refusal(error: Mapping[str, Any]) -> str:
    """What pydantic says of a wrong value, in the words of this tool, for instance "has to be less than 1".

    Args:
        error: One of `ValidationError.errors()`.
    """
    wanted = _WANTED.get(error["type"])
    if wanted is not None:
        return f"has to be {wanted}"
    said: str = error["msg"]
    return said.removeprefix("Value error, ").replace("Input should be", "has to be")


def listed(cls: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a dataclass as written, where a text alone stands for a list of one.

    Args:
        cls: The dataclass.
        values: By name; those of other names stay as they are.
    """
    lists = {field.name for field in fields_of(cls) if takes_texts(field.type)}
    return {name: [value] if name in lists and isinstance(value, str) else value for name, value in values.items()}


def takes_texts(kind: Any) -> bool:
    """Whether a field holds several texts."""
    if get_origin(kind) is not tuple:
        return False
    entry = get_args(kind)[0]
    return entry is str or (get_origin(entry) is Literal and all(isinstance(word, str) for word in get_args(entry)))


_read: dict[type[Any], tuple[FieldInfo, ...]] = {}


def fields_of(cls: type[Any]) -> tuple[FieldInfo, ...]:
    """Returns the fields of the dataclass `cls` in order, inherited ones included."""
    if cls not in _read:  # evaluating the annotations takes long, and the options of one command ask several times
        _read[cls] = _fields(cls)
    return _read[cls]


def _fields(cls: type[Any]) -> tuple[FieldInfo, ...]:
    hints = typing.get_type_hints(cls, include_extras=True)
    infos = []
    for field in dataclasses.fields(cls):
        hint, doc, share = hints[field.name], "", False
        if get_origin(hint) is Annotated:
            hint, *extras = get_args(hint)
            doc = next((extra.documentation for extra in extras if isinstance(extra, Doc)), "")
            share = is_share(extras)
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        infos.append(FieldInfo(field.name, hint, default, doc, share))
    return tuple(infos)
