"""Names of layers as people write them, the same everywhere: a layer, a module around layers, or a shell pattern."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from prunecli.errors import MethodError


def split_patterns(words: str | Iterable[str]) -> tuple[str, ...]:
    """One entry for each pattern.

    Args:
        words: One text or several, each of which may hold several with commas between them; a comma in brackets, as in
            "layers.[0,1]", belongs to the pattern.

    Raises:
        MethodError: One is empty.
    """
    entries = (words,) if isinstance(words, str) else tuple(words)
    if not all(entry.strip(" ,") for entry in entries):
        raise MethodError("a name of layers is empty, and would match none; give one, or leave it out")
    parts = (part.strip() for entry in entries for part in re.findall(r"(?:\[[^\[\]]*\]|[^,])+", entry))
    return tuple(part for part in parts if part)


def matches(name: str, pattern: str) -> bool:
    """Whether a layer, or a module around it, matches: of "layer1.0.conv1", "layer1.0" or "layer1" too."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(len(parts), 0, -1))


def matching_pattern(name: str, patterns: str | Sequence[str]) -> str | None:
    """The first pattern that matches a layer or a module around it."""
    return next((pattern for pattern in split_patterns(patterns) if matches(name, pattern)), None)


def chosen(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a pattern means: the one that is spelled so, else all that match."""
    listed = list(names)
    return [pattern] if pattern in listed else [name for name in listed if fnmatchcase(name, pattern)]


def with_modules(names: Iterable[str]) -> list[str]:
    """Names of layers, and of the modules around them, which a pattern may mean as well."""
    parts = [name.split(".") for name in names]
    return list(dict.fromkeys(".".join(part[:end]) for part in parts for end in range(len(part), 0, -1)))
