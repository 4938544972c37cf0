"""From dataclass fields to options, and from options back to a plan. Torch- and pydantic-free until a command runs."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from prunecli.bounds import percentage_meant
from prunecli.cli.declared import Option
from prunecli.cli.output import Output, use_output
from prunecli.cli.panels import panel_of
from prunecli.errors import RecipeError
from prunecli.own_code import allow
from prunecli.recipe.fields import FieldInfo, fields_of
from prunecli.recipe.schema import DataSection, ModelSection, Recipe

if TYPE_CHECKING:
    from prunecli.recipe.loader import KeyPath
    from prunecli.recipe.resolve import Override, Plan

TRACKER = "trackio"
"""What `--track` alone means."""

_RecipePath = tuple[str | int, ...]


class OptionSpec(NamedTuple):
    """One option: the parameter it becomes, and the recipe value that it sets (None: not a recipe value).

    A `mapping` option is given once per entry, as NAME=VALUE; for "numbers" every value must be a number. One of "row"
    is numbers with commas, one of "names" is words with commas.
    """

    name: str
    parameter: inspect.Parameter
    path: _RecipePath | None = None
    mapping: Literal["", "numbers", "values", "row", "names"] = ""


def option(
    name: str,
    kind: Any,
    doc: str,
    *flags: str,
    default: Any = None,
    path: _RecipePath | None = None,
    share: bool = False,
) -> OptionSpec:
    """An option that is None unless it is given.

    Args:
        name: Parameter name; the flag is the name with dashes unless `flags` say otherwise.
        kind: Type of the value.
        doc: Help.
        *flags: Spellings.
        default: The default to show in help.
        path: Recipe value that it sets.
        share: Whether it is a share, at most 1.
    """
    flag = "--" + name.replace("_", "-")
    spellings = flags or ((f"{flag}/--no-{flag[2:]}",) if kind is bool else (flag,))
    shown = doc if default is None or default in ("", (), {}) else f"{doc} [default: {_shown(default)}]"
    panel = panel_of(name, path)
    annotation = Annotated[kind | None, Option(*spellings, help=shown, show_default=False, share=share, panel=panel)]
    parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
    return OptionSpec(name, parameter, path)


def options_of(
    cls: type[Any], path: _RecipePath, *, only: Sequence[str] = (), skip: Sequence[str] = ()
) -> list[OptionSpec]:
    """One option for each field of a dataclass, setting the recipe values below `path`."""
    return [
        option(
            field.name,
            _option_type(field),
            field.doc,
            default=field.default,
            path=(*path, field.name),
            share=field.share,
        )._replace(mapping=_mapping(field))
        for field in fields_of(cls)
        if (not only or field.name in only) and field.name not in skip
    ]


def model_kwargs_options() -> list[OptionSpec]:
    """`--model-kwargs`, as timm's scripts call it."""
    field = next(field for field in fields_of(ModelSection) if field.name == "kwargs")
    named = option("model_kwargs", list[str], field.doc, path=("model", field.name))
    return [named._replace(mapping=_mapping(field))]


def track_options() -> list[OptionSpec]:
    """`--track`, whose names may be joined by commas; without one it means `TRACKER`."""
    return [spec._replace(mapping="names") for spec in options_of(Recipe, (), only=("track",))]


def shared_options() -> list[OptionSpec]:
    """Options of every stage that set the model, the data and the run."""
    model = {field.name: field for field in fields_of(ModelSection)}
    data = {field.name: field for field in fields_of(DataSection)}
    return [
        option(
            "arch",
            str,
            model["ref"].doc + " For foreign weights; without it they are recognised.",
            path=("model", "ref"),
        ),
        *options_of(
            ModelSection,
            ("model",),
            only=(
                *("pretrained", "num_classes", "weights_key", "strip_prefix", "allow_nonfinite"),
                *("example", "example_shape"),
            ),
        ),
        *model_kwargs_options(),
        option("data", str, data["name"].doc, path=("data", "name")),
        option("data_root", str, data["root"].doc, path=("data", "root")),
        *options_of(DataSection, ("data",), skip=("name", "root")),
        *options_of(Recipe, (), only=("seed", "device", "threads")),
        option("set_values", list[str], "Set any recipe value: KEY=VALUE, for instance data.workers=2.", "--set"),
    ]


OUTPUT_OPTIONS = [
    option("json", bool, "Print one JSON document.", "--json"),
    option("quiet", bool, "Print results only.", "--quiet", "-q"),
    option("debug", bool, "Show the traceback of an error.", "--debug"),
    option(
        "allow_code",
        list[str],
        "Run this module of yours, package.file, where a recipe or checkpoint names it.",
        "--allow-code",
    ),
]


def with_output(function: Callable[..., None], specs: Sequence[OptionSpec] = ()) -> Callable[..., None]:
    """Gives a command function its options and an `Output` made from --json, --quiet and --debug.

    Args:
        function: Called as function(output, **values). Its own annotated parameters after `output` become options.
        specs: Options beyond those of its signature; their values come in as one dictionary, `values`.
    """
    signature = inspect.signature(function, eval_str=True)
    own = [p for p in signature.parameters.values() if p.name not in ("output", "values")]
    parameters = [*own, *(spec.parameter for spec in specs), *(spec.parameter for spec in OUTPUT_OPTIONS)]
    generated = {spec.name for spec in specs}

    def command(**given: Any) -> None:
        mode = "json" if given.pop("json") else "human"
        if given.pop("quiet") and mode == "human":
            mode = "quiet"
        output = Output(mode, debug=bool(given.pop("debug")))  # type: ignore[arg-type]
        use_output(output)
        for module in given.pop("allow_code") or ():
            allow(module)
        values = {name: given.pop(name) for name in list(given) if name in generated}
        if specs:
            given["values"] = values
        function(output, **given)

    ordered = sorted(parameters, key=lambda p: p.kind)
    command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in ordered}
    return command


def overrides_from(specs: Sequence[OptionSpec], values: dict[str, Any], stage_index: int) -> list[Override]:
    """What the given flags set, --set first, so that a flag of its own wins."""
    from prunecli.recipe.resolve import Override, parse_set

    overrides = [parse_set(text) for text in values.get("set_values") or ()]
    for spec in specs:
        value = values.get(spec.name)
        if spec.path is None or value is None:
            continue
        path = tuple(stage_index if part == "STAGE" else part for part in spec.path)
        flag = f"--{'no-' if value is False else ''}{spec.name.replace('_', '-')}"
        read, templates = _entries(value, flag, spec.mapping) if spec.mapping else (value, {})
        overrides.append(Override(path, read, flag, templates))
    return overrides


def _entries(
    texts: Sequence[str], flag: str, kind: str
) -> tuple[dict[str, Any] | list[float] | list[str], dict[KeyPath, str]]:
    """Reads NAME=VALUE entries, or numbers or words with commas; the plan checks bounds of numbers."""
    from prunecli.recipe.loader import parse_value_and_templates

    templates: dict[KeyPath, str] = {}
    if kind == "names":
        return [word.strip() for text in texts for word in text.split(",") if word.strip()], templates
    if kind == "row":
        try:
            return [float(number) for text in texts for number in text.split(",") if number.strip()], templates
        except ValueError:
            raise RecipeError(f"{flag} {','.join(texts)}: give numbers with commas, for instance 5,1000") from None
    entries: dict[str, Any] = {}
    for text in texts:
        name, equals, written = text.rpartition("=") if kind == "numbers" else text.partition("=")
        if kind == "values":
            if not equals or not name:
                raise RecipeError(f"{flag} {text}: write it as KEY=VALUE, for instance {flag} T=4")
            value, inner = parse_value_and_templates(written, f"{flag} {name}")
            templates |= {(name, *path): text for path, text in inner.items()}
        else:
            try:
                value = float(written)
            except ValueError:
                equals = ""
            if not equals or not name:
                hint = percentage_meant(written) or f", for instance {flag} 'layer1.*=0.3'"
                raise RecipeError(f"{flag} {text}: write it as PATTERN=RATIO{hint}")
        if name in entries:
            raise RecipeError(f"{flag} {text}: {name} is given twice")
        entries[name] = value
    return entries, templates


def plan_for_stage(model: str, stage: dict[str, Any], specs: Sequence[OptionSpec], values: dict[str, Any]) -> Plan:
    """The plan of one stage, from a recipe that contains it or from flags alone.

    Args:
        model: A weights file, a reference, or a recipe.
        stage: At least {"stage": name}; what the verb itself fixes.
        specs: The verb's options.
        values: Their values.

    Raises:
        RecipeError: The recipe has no such stage, or several.
    """
    from prunecli.recipe.loader import Document, load_yaml
    from prunecli.recipe.origins import COMMAND_LINE
    from prunecli.recipe.resolve import resolve

    if Path(model).suffix not in (".yaml", ".yml"):
        reference = ":" in model and not Path(model).exists()
        section = {"ref" if reference else "weights": model}
        if reference and values.get("arch") is not None:
            raise RecipeError(f"--arch is for weights files; {model} already is an architecture")
        document = Document({"model": section, "stages": [stage]}, COMMAND_LINE)
        return resolve(document, overrides_from(specs, values, 0))
    document = load_yaml(Path(model))
    draft = resolve(document, confined=False)
    matches = [
        index
        for index, candidate in enumerate(draft.recipe.stages)
        if candidate.stage == stage["stage"]
        and getattr(candidate, "method", None) == stage.get("method", getattr(candidate, "method", None))
    ]
    if len(matches) != 1:
        count = f"{len(matches)} stages" if matches else "no stage"
        kind = f"{stage['stage']}, method {stage['method']}" if "method" in stage else stage["stage"]
        raise RecipeError(f"{model}: has {count} `{kind}`; use `prune run`, or a recipe with just one")
    return resolve(document, overrides_from(specs, values, matches[0])).only(matches[0])


def _mapping(field: FieldInfo) -> Literal["", "numbers", "values", "row"]:
    if get_origin(field.type) is tuple and get_args(field.type)[0] is float:
        return "row"
    if get_origin(field.type) is not Mapping:
        return ""
    return "values" if get_args(field.type)[1] is Any else "numbers"


def _option_type(field: FieldInfo) -> Any:
    kind = field.type
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) in (tuple, Mapping):
        kind = list[str]  # Typer takes no lists of choices; the plan checks them
    return kind


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ",".join(map(_shown, value)) if isinstance(value[0], float) else ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
