"""Where the values of a plan come from, as dry runs show it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from prunecli.recipe.loader import TEMPLATE, KeyPath

COMMAND_LINE = "command line"
"""Source of a document that is no file, and origin of a network that is typed without an option."""
_BY_COMMAND = "set by the command"
_VARIABLE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)")


def origin_of(path: KeyPath, origins: Mapping[KeyPath, str]) -> str:
    """Who says what lies at `path`: the variables of the environment in it, then where it is written."""
    written = origins.get(path, "default")
    named = dict.fromkeys(_VARIABLE.findall(origins.get((*path, TEMPLATE), "")))
    return ", ".join([*(name for name in named if os.environ.get(name)), written])


def typed_origins(data: Mapping[str, Any]) -> dict[KeyPath, str]:
    """Origins of a document that a command has made: of what was typed, and of what the command adds itself."""
    return {path: COMMAND_LINE if path[0] == "model" else _BY_COMMAND for path, _ in leaves(data, ()) if path}


def leaves(value: Any, path: KeyPath) -> list[tuple[KeyPath, Any]]:
    """Single values and lists of single values, with the paths to them."""
    if isinstance(value, dict) and value:
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, (list, tuple)) and value and any(isinstance(item, dict) for item in value):
        return [leaf for index, item in enumerate(value) for leaf in leaves(item, (*path, index))]
    return [(path, value)]
