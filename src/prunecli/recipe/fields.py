"""Reading annotated dataclass fields, which describe options, recipes and the JSON schema alike."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from annotated_doc import Doc

from prunecli.bounds import is_share


class FieldInfo(NamedTuple):
    """A field: its type without annotations, its default, its help text, and whether it is a share, at most 1."""

    name: str
    type: Any
    default: Any
    doc: str
    share: bool = False


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
