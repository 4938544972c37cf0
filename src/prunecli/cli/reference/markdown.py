"""Pieces of Markdown, and types and bounds in words."""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from prunecli.bounds import Ge, Gt, Le, Lt

_BOUNDS = {Ge: "at least", Gt: "more than", Le: "at most", Lt: "less than"}
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything", Path: "path"}


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def prose(text: str) -> str:
    """Text of a docstring or of help as Markdown: outside code nothing in it is markup, and names of ours are code."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    return re.sub(r"(\*|(?<!\w)_|_(?!\w)|[\[\]])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


def code(text: object) -> str:
    """A piece of code."""
    return f"`{text}`"


def value(given: object) -> str:
    """A default, as a recipe would write it; a dash for nothing."""
    if given is None or given in ("", (), {}, []):
        return "-"
    if isinstance(given, bool):
        return code("true" if given else "false")
    if isinstance(given, (tuple, list)):
        return code(f"[{', '.join(map(_scalar, given))}]")
    return code(_scalar(given))


def _scalar(given: object) -> str:
    return f"{given:g}" if isinstance(given, float) else str(given)


def kind(annotation: Any, links: Mapping[Any, str] | None = None) -> str:
    """A type in words.

    Args:
        annotation: The type.
        links: What classes are called, as Markdown.
    """
    links = links or {}
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation in links:
        return links[annotation]
    if origin is Annotated:
        return kind(arguments[0], links)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(kind(part, links) for part in arguments if part is not type(None)))
    if origin is Literal:
        return ", ".join(code(choice) for choice in arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping to {kind(arguments[1], links)}"
    if origin is list or (origin is tuple and arguments[1:] == (...,)):
        return f"list of {_plural(kind(arguments[0], links))}"
    if origin is tuple:
        return f"list of {len(arguments)} {_plural(kind(arguments[0], links))}"
    name = getattr(annotation, "__name__", str(annotation))
    return _PLAIN.get(annotation, "anything" if "Json" in name or "Json" in str(annotation) else name)


def _plural(name: str) -> str:
    return f"{name}s" if name in ("text", "whole number", "number", "mapping") else name


def bounds(cls: type[Any], field: str) -> str:
    """What numbers a field of a dataclass may hold, in words; empty: any."""
    hint = typing.get_type_hints(cls, include_extras=True)[field]
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return ", ".join(f"{_BOUNDS[type(extra)]} {_scalar(extra.bound)}" for extra in extras if type(extra) in _BOUNDS)
