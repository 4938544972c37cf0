"""The JSON schema of recipe files, for editors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from prunecli.recipe.fields import fields_of, takes_texts
from prunecli.recipe.schema import STAGES, DataSection, ModelSection, Recipe


def recipe_json_schema() -> dict[str, Any]:
    """JSON schema of recipe files, for editors."""
    schema = TypeAdapter(Recipe).json_schema()
    schema["title"] = "prune recipe"
    schema["properties"]["extends"] = {"type": "string", "description": "A recipe that this one changes."}
    _describe(schema, [Recipe, ModelSection, DataSection, *STAGES.values()])
    for stage in STAGES.values():
        schema["$defs"][stage.__name__].setdefault("required", []).append("stage")
    return schema


def _describe(schema: dict[str, Any], classes: Sequence[type[Any]]) -> None:
    for cls in classes:
        properties = (schema if cls is Recipe else schema["$defs"][cls.__name__])["properties"]
        for field in fields_of(cls):
            if takes_texts(field.type):
                properties[field.name] = _or_one_text(properties[field.name])
            if field.doc:
                properties[field.name]["description"] = field.doc


def _or_one_text(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a list of texts, or of one of them alone."""
    outer = {key: value for key, value in schema.items() if key in ("default", "title")}
    inner = {key: value for key, value in schema.items() if key not in outer}
    return {**outer, "anyOf": [inner, inner["items"]]}
