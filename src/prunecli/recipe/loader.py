"""Reading YAML: line and column of every value, YAML 1.2 scalars, and no way to surprise."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prunecli.errors import RecipeError

Path_ = tuple[str | int, ...]
MAX_DEPTH = 32
MAX_BYTES = 1_000_000
_MAX_DIGITS = 1_000

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL_FLOAT = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


ENVIRONMENT = "<environment>"
"""Added to the path of a value, it has a position if the value comes from the user's environment."""


@dataclass
class Document:
    """A parsed YAML file: its values, and where each stands as "file:line:column"."""

    data: dict[str, Any]
    source: str
    positions: dict[Path_, str] = field(default_factory=dict)


def load_yaml(path: Path) -> Document:
    """Reads a recipe file.

    Raises:
        RecipeError: The file is missing or is not the plain YAML that recipes are written in.
    """
    if path.is_dir():
        raise RecipeError(f"{path}: is a directory; give a recipe file such as recipes/quickstart.yaml")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: over {MAX_BYTES:,} bytes; that is no recipe")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: no such recipe; `prune recipe new` writes one") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not a readable text file ({error})") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Document:
    """Parses a recipe from text; `source` is the name used in messages.

    Raises:
        RecipeError: See `load_yaml`.
    """
    document = Document({}, source)
    node = _compose(text, source)
    value = _construct(node, (), document) if node is not None else None
    if not isinstance(value, dict):
        raise RecipeError(f"{source}:1:1: a recipe is a mapping (model:, data:, stages:)")
    document.data = value
    return document


def parse_value(text: str, source: str) -> Any:
    """Parses the right-hand side of --set: a scalar or a [list] or a {mapping}."""
    node = _compose(text, source)
    return _construct(node, (), Document({}, source)) if node is not None else None


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise RecipeError(f"{_place(source, event)}: anchors and aliases are not allowed; use `extends`")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise RecipeError(f"{_place(source, event)}: nested more than {MAX_DEPTH} deep")
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


def _construct(node: yaml.Node, path: Path_, document: Document) -> Any:
    document.positions[path] = _place(document.source, node)
    if node.tag.startswith("!") or "python" in node.tag:
        raise RecipeError(f"{_place(document.source, node)}: the tag {node.tag} is not allowed")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise RecipeError(f"{_place(document.source, key_node)}: a key has to be plain text")
            if key in mapping:
                raise RecipeError(f"{_place(document.source, key_node)}: {key!r} stands here twice")
            mapping[key] = _construct(value_node, (*path, key), document)
            # A wrong key is pointed at itself, a wrong value at the value.
            document.positions[(*path, key, "<key>")] = _place(document.source, key_node)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(item, (*path, index), document) for index, item in enumerate(node.value)]
    if _from_environment(node.value):
        document.positions[(*path, ENVIRONMENT)] = document.positions[path]
    return _scalar(node, document.source)


def _from_environment(text: str) -> bool:
    """Whether a value is nothing but a variable that the user has set: what is written around one is the recipe's."""
    match = _ENV.fullmatch(text)
    return match is not None and bool(os.environ.get(match[1]))


def _scalar(node: yaml.Node, source: str) -> Any:
    text = str(node.value)
    if getattr(node, "style", None) in ("'", '"', "|", ">"):
        return _interpolate(text, node, source)
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        if len(text) > _MAX_DIGITS:
            raise RecipeError(f"{_place(source, node)}: a number of {len(text):,} digits")
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL_FLOAT.fullmatch(text):
        return float(text.replace(".", "", 1))
    return _interpolate(text, node, source)


def _interpolate(text: str, node: yaml.Node, source: str) -> str:
    def value(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name) or default
        if found is None:
            raise RecipeError(
                f"{_place(source, node)}: environment variable {name} is not set; set it or write "
                f"${{env:{name}:-default}}"
            )
        return found

    return _ENV.sub(value, text)


def _place(source: str, marked: Any) -> str:
    return f"{source}:{marked.start_mark.line + 1}:{marked.start_mark.column + 1}"
