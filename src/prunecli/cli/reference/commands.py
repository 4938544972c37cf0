"""What pages say of commands."""

from __future__ import annotations

import inspect
import types
from typing import Any, Union, get_args, get_origin

from prunecli.cli.commands.prune import method_command
from prunecli.cli.declared import Argument, Command, Group, Parameter, read_parameter
from prunecli.cli.options import OUTPUT_OPTIONS, shared_options
from prunecli.cli.reference.markdown import code, prose, table
from prunecli.cli.stages import stage_options
from prunecli.cli.verbs import VERBS
from prunecli.methods.index import METHODS
from prunecli.methods.spec import FAMILIES, MethodSpec
from prunecli.recipe.fields import fields_of

_METAVARS = {int: "N", float: "X", str: "TEXT"}


def command_list(_: str) -> str:
    """Every verb but those of methods."""
    rows = [(f"[`prune {name}`](#prune-{name})", prose(verb.summary)) for name, verb in VERBS.items()]
    return table(("command", "what it does"), rows)


def command_sections(_: str) -> str:
    """A section for each of them."""
    return "\n\n".join(_section(name) for name in VERBS)


def method_verbs(_: str) -> str:
    """The verbs of methods, with links to their cards."""
    specs = [METHODS.load(name) for name in METHODS.built_in]
    rows = [(f"[`prune {spec.name}`](../methods/{spec.family}.md#{spec.name})", prose(spec.summary)) for spec in specs]
    return table(("command", "what it does"), rows)


def beside_parameters(spec: MethodSpec) -> str:
    """Options of a method's verb that are neither its parameters nor those of every stage that prunes; empty: none."""
    usual = {field.name for field in fields_of(spec.params_class)} | set(FAMILIES[spec.family].settings)
    usual |= {option.name for option in (*stage_options("checkpoint", resumable=True), *OUTPUT_OPTIONS)}
    command = method_command(spec.name)
    own = [p for p in inspect.signature(command.callback).parameters.values() if p.name not in usual]
    own = [parameter for parameter in own if not isinstance(_declared(parameter), Argument)]
    return _options(own) if own else ""


def shared_option_table(_: str) -> str:
    """Options of every stage: the model, the data and the run."""
    return _options([spec.parameter for spec in shared_options()])


def output_option_table(_: str) -> str:
    """Options of every command."""
    return _options([spec.parameter for spec in OUTPUT_OPTIONS])


def _section(name: str) -> str:
    loaded = VERBS[name].load()
    if isinstance(loaded, Command):
        return _usage(loaded, f"prune {name}", "##")
    parts = [_usage(verb.load(), f"prune {name} {member}", "###") for member, verb in loaded.verbs.items()]
    return "\n\n".join([f"## prune {name}", prose(loaded.summary), *parts])


def _usage(command: Command | Group, title: str, heading: str) -> str:
    assert isinstance(command, Command), f"{title}: a group within a group has no place in the reference"
    parameters = list(inspect.signature(command.callback).parameters.values())
    arguments = [parameter for parameter in parameters if isinstance(_declared(parameter), Argument)]
    shared = {read_parameter(spec.parameter) for spec in shared_options()}
    common = shared | {read_parameter(spec.parameter) for spec in OUTPUT_OPTIONS}
    read = set(map(read_parameter, parameters))
    if not shared <= read:
        common -= shared  # all of them or none: a link to options that a command does not take would be wrong
    own = [
        parameter for parameter in parameters if parameter not in arguments and read_parameter(parameter) not in common
    ]
    usage = " ".join([title, *(_declared(argument).metavar for argument in arguments), "[OPTIONS]"])
    lines = [f"{heading} {title}", prose(command.summary), f"```text\n{usage}\n```"]
    if arguments:
        rows = [(code(_declared(argument).metavar), prose(_declared(argument).help)) for argument in arguments]
        lines.append(table(("argument", "meaning"), rows))
    if own:
        lines.append(_options(own))
    if shared <= read:
        lines.append("It also takes the [options of every stage](#options-of-every-stage).")
    return "\n\n".join(lines)


def _declared(parameter: inspect.Parameter) -> Any:
    return get_args(parameter.annotation)[1]


def _options(parameters: list[inspect.Parameter]) -> str:
    rows = []
    for parameter in parameters:
        known = read_parameter(parameter)
        metavar = "" if known.is_flag else " " + (_declared(parameter).metavar or _metavar(parameter))
        spelled = ", ".join(code(spelling + metavar) for spelling in known.spellings)
        rows.append((spelled, prose(known.help) + _choices(known)))
    return table(("option", "meaning"), rows)


def _metavar(parameter: inspect.Parameter) -> str:
    kind = get_args(parameter.annotation)[0]
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is list:
        kind = get_args(kind)[0]
    return _METAVARS.get(kind, "FILE" if isinstance(kind, type) else "WORD")


def _choices(known: Parameter) -> str:
    return f" One of {', '.join(map(code, known.choices))}." if known.choices else ""
