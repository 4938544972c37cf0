"""What pages say of recipes and of the methods in them."""

from __future__ import annotations

from typing import Any

from prunecli.cli.reference.commands import beside_parameters
from prunecli.cli.reference.markdown import bounds, code, kind, prose, table, value
from prunecli.methods.index import METHODS
from prunecli.methods.params import StructuralParams
from prunecli.methods.sparse_params import SparseParams
from prunecli.methods.spec import FAMILIES, MethodSpec
from prunecli.recipe.fields import FieldInfo, fields_of
from prunecli.recipe.schema import STAGES, DataSection, ModelSection, Recipe

_SECTIONS: dict[str, type[Any]] = {"recipe": Recipe, "model": ModelSection, "data": DataSection} | STAGES
_SHARED: dict[str, type[Any]] = {"structural": StructuralParams, "sparse": SparseParams}
"""What all methods of a family understand."""
_DESCRIBED = {
    (Recipe, "version"): "The version of the format.",
    (Recipe, "description"): "What it is for, in a line.",
    (Recipe, "model"): "Which network to start from: [model](#model).",
    (Recipe, "data"): "Which data, and how they are read: [data](#data).",
    (Recipe, "stages"): "What is done, in order: [stages](#stages).",
    (STAGES["prune"], "params"): "The method's own parameters: [methods](../methods/index.md).",
}
"""Fields that explain themselves in code, and not on a page."""


def section(name: str) -> str:
    """The keys of a part of a recipe: `recipe`, `model`, `data` or the name of a stage."""
    cls = _SECTIONS[name]
    return _fields(cls, [field for field in fields_of(cls) if field.name != "stage"])


def _stage(name: str, cls: type[Any]) -> str:
    lines = [f"### {name}", prose(cls.__doc__ or "")]
    parent = next((other for other, base in STAGES.items() if base in cls.__bases__), None)
    if parent is None:
        return "\n\n".join([*lines, section(name)])
    own = [field for field in fields_of(cls) if field not in fields_of(STAGES[parent]) and field.name != "stage"]
    return "\n\n".join(
        [*lines, f"The keys of [{parent}](#{parent}), and these, some with another default:", _fields(cls, own)]
    )


def stage_sections(_: str) -> str:
    """A section for each kind of stage."""
    return "\n\n".join(_stage(name, cls) for name, cls in STAGES.items())


def method_list(_: str) -> str:
    """Every method that comes with the program."""
    rows = [
        (f"[`{spec.name}`]({spec.family}.md#{spec.name})", spec.family, prose(spec.summary), _needs(spec))
        for spec in map(METHODS.load, METHODS.built_in)
    ]
    return table(("method", "family", "what it does", "data"), rows)


def card(name: str) -> str:
    """What the code knows of a method: the facts of its card."""
    spec = METHODS.load(name)
    facts = [f"Paper: [{spec.paper}]({spec.paper})." if spec.paper else "Paper: none."]
    facts.append(f"Data: {_needs(spec)}.")
    if spec.source:
        facts.append(f"Networks: {code(spec.source + ':...')}.")
    own, lacking = _own(spec)
    lines = [prose(spec.summary), " ".join(facts)]
    if own:
        lines.append(_fields(spec.params_class, own))
    beside = beside_parameters(spec)
    if beside:
        lines.append(f"The command also has these options:\n\n{beside}")
    if lacking:
        lines.append(f"It does not take {', '.join(code(name) for name in lacking)}.")
    return "\n\n".join(lines)


def shared(family: str) -> str:
    """The parameters that all methods of a family take."""
    return _fields(_SHARED[family], list(fields_of(_SHARED[family])))


def stage_settings(family: str) -> str:
    """The keys of a prune stage that methods of a family read."""
    names = FAMILIES[family].settings
    fields = {field.name: field for field in fields_of(STAGES["prune"])}
    return _fields(STAGES["prune"], [fields[name] for name in names])


def _needs(spec: MethodSpec) -> str:
    if not spec.needs_data and not spec.without_data:
        return "not needed"
    if not spec.without_data:
        return "needed"
    instead = ", ".join(f"{name} {given}" for name, given in spec.without_data.items())
    return f"needed, without them {code(instead)}"


def _own(spec: MethodSpec) -> tuple[list[FieldInfo], list[str]]:
    """Parameters that others of the family have not, or have with another default; and those that it lacks."""
    common = {field.name: field for field in fields_of(_SHARED[spec.family])} if spec.family in _SHARED else {}
    fields = fields_of(spec.params_class)
    own = [field for field in fields if field != common.get(field.name)]
    return own, [name for name in common if name not in {field.name for field in fields}]


def _fields(cls: type[Any], fields: list[FieldInfo]) -> str:
    rows = []
    for field in fields:
        limits = bounds(cls, field.name)
        meaning = _DESCRIBED.get((cls, field.name)) or prose(field.doc)
        assert meaning, f"{cls.__name__}.{field.name} has no description"
        shown = "-" if field.name == "stages" else value(_plain(field.default))
        rows.append((code(field.name), _typed(field, limits), shown, meaning))
    return table(("key", "type", "default", "meaning"), rows)


def _typed(field: FieldInfo, limits: str) -> str:
    links = dict.fromkeys(_SECTIONS.values(), "mapping")
    return kind(field.type, links) + (f", {limits}" if limits else "")


def _plain(default: Any) -> Any:
    return None if isinstance(default, (ModelSection, DataSection)) else default
