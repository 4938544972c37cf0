"""Reading YAML: line and column of every value, YAML 1.2 scalars, no aliases, no tags, bounded depth."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.errors import RecipeError
from prunecli.recipe.refusals import Refusals

KeyPath = tuple[str | int, ...]
"""Keys and list indices that lead to a value, for instance ("stages", 0, "lr")."""
_MAX_DEPTH = 32
_MAX_BYTES = 1_000_000
_MAX_DIGITS = 1_000

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


RECIPE = "a recipe is a mapping (model:, data:, stages:)"
ENVIRONMENT = "<environment>"
"""Appended to a value's path: this path has a position if the value comes from an environment variable."""
TEMPLATE = "<template>"
"""Appended to a value's path: this path has the value as it was written, with variables of the environment in it."""


@dataclass
class Document:
    """A parsed YAML file.

    Attributes:
        data: Its values.
        source: Name of the file.
        positions: Position of every value as "file:line:column", and what is marked by `ENVIRONMENT` and `TEMPLATE`.
        refusals: Where mistakes go.
    """

    data: dict[str, Any]
    source: str
    positions: dict[KeyPath, str] = field(default_factory=dict)
    refusals: Refusals = field(default_factory=Refusals)


def load_yaml(path: Path, refusals: Refusals | None = None, *, holds: str = RECIPE) -> Document:
    """Reads a recipe file.

    Args:
        path: The file.
        refusals: Where mistakes in its values go; by default the first is raised.
        holds: What a file of its kind holds, for messages.

    Raises:
        RecipeError: The file is missing, or is not YAML without aliases, tags and duplicate keys.
    """
    if path.is_dir():
        raise RecipeError(f"{path}: is a directory; give a recipe file, or a name that `prune recipe ls` lists")
    if path.suffix in WEIGHT_SUFFIXES and path.is_file():
        raise RecipeError(f"{path}: is a network, and a recipe is a .yaml file; `prune recipe new` writes one")
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(f"{path}: over {_MAX_BYTES:,} bytes, which is too large for a recipe")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe; `prune recipe new` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a readable text file ({error})") from error
    # A place that begins with dashes is an option that the user typed, which may do more than a file.
    return parse_yaml(text, f"./{path}" if str(path).startswith("-") else str(path), refusals, holds=holds)


def parse_yaml(text: str, source: str, refusals: Refusals | None = None, *, holds: str = RECIPE) -> Document:
    """Parses the text of a recipe; `source` is its name in messages.

    Args:
        text: YAML.
        source: Its name.
        refusals: Where mistakes in its values go; by default the first is raised.
        holds: What a file of its kind holds, for messages.

    Raises:
        RecipeError: See `load_yaml`.
    """
    document = Document({}, source, refusals=refusals or Refusals())
    node = _compose(text, source)
    value = _construct(node, (), document) if node is not None else None
    if not isinstance(value, dict):
        raise RecipeError(f"{source}:1:1: {holds}")
    document.data = value
    return document


def placed(message: str, where: str | None) -> str:
    """A message after where the value that it is about was written, if that is known."""
    return f"{where}: {message}" if where is not None else message


def parse_value(text: str, source: str) -> Any:
    """Parses the right-hand side of --set: a scalar or a [list] or a {mapping}."""
    return parse_value_and_templates(text, source)[0]


def parse_value_and_templates(text: str, source: str) -> tuple[Any, dict[KeyPath, str]]:
    """The same, and what was written for values in it that name variables of the environment; see `TEMPLATE`."""
    node = _compose(text, source)
    if node is None:
        return None, {}
    document = Document({}, source)
    value = _construct(node, (), document)
    return value, {path: written for path, written in document.positions.items() if path[-1:] == (TEMPLATE,)}


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise RecipeError(f"{_position(source, event)}: anchors and aliases are not allowed; use `extends`")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > _MAX_DEPTH:
                    raise RecipeError(f"{_position(source, event)}: nested more than {_MAX_DEPTH} deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        return node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        raise RecipeError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        first = str(error).strip().splitlines()[0]
        raise RecipeError(f"{source}: not valid YAML: {first}") from error


def _construct(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    document.positions[path] = _position(document.source, node)
    if node.tag.startswith("!") or "python" in node.tag:
        document.refusals.add(RecipeError(f"{_position(document.source, node)}: the tag {node.tag} is not allowed"))
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                mistake = f"{_position(document.source, key_node)}: a key has to be plain text"
                document.refusals.add(RecipeError(mistake))
                continue
            if key in mapping:
                document.refusals.add(RecipeError(f"{_position(document.source, key_node)}: {key!r} appears twice"))
                continue
            mapping[key] = _construct(value_node, (*path, key), document)
            # A message about a key points at the key, one about a value at the value.
            document.positions[(*path, key, "<key>")] = _position(document.source, key_node)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, index), document) for index, item in enumerate(node.value)]
    if _from_environment(node.value):
        document.positions[(*path, ENVIRONMENT)] = document.positions[path]
    if _ENV.search(node.value):
        document.positions[(*path, TEMPLATE)] = node.value
    return _scalar(node, document)


def _from_environment(text: str) -> bool:
    """Whether a value is one variable that is set, and nothing else: any text around it comes from the recipe."""
    match = _ENV.fullmatch(text)
    return match is not None and bool(os.environ.get(match[1]))


def _scalar(node: yaml.Node, document: Document) -> Any:
    text = str(node.value)
    if getattr(node, "style", None) in ("'", '"', "|", ">"):
        return _interpolate(text, node, document)
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            mistake = f"{_position(document.source, node)}: a number of {len(text):,} digits is too long"
            document.refusals.add(RecipeError(mistake))
            return None
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", "", 1))
    return _interpolate(text, node, document)


def _interpolate(template: str, node: yaml.Node, document: Document) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        text = os.environ.get(name) or default
        if text is None:
            document.refusals.add(
                RecipeError(
                    f"{_position(document.source, node)}: environment variable {name} is not set; set it or write "
                    f"${{env:{name}:-default}}"
                )
            )
        return text or ""

    return _ENV.sub(value, template)


def _position(source: str, marked: Any) -> str:
    return f"{source}:{marked.start_mark.line + 1}:{marked.start_mark.column + 1}"
