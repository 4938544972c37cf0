"""What commands are before Typer knows of them: completion reads it, `lazy.py` makes Typer's commands of it.

Importing Typer takes longer than most completions do, so nothing here does; and making a named tuple takes a fraction
of what making a dataclass does.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Union, get_args, get_origin


class Argument:
    """Makes a parameter an argument: `Annotated[str, Argument("MODEL", "A weights file.")]`."""

    def __init__(self, metavar: str, help: str) -> None:
        self.metavar, self.help = metavar, help


class Option:
    """Makes a parameter an option: `Annotated[bool, Option("--force", help="Replace a file that exists.")]`.

    Args:
        *spellings: As Typer takes them, "--name/--no-name" for two at once; none: the parameter's name.
        help: What it does.
        metavar: What its value is called.
        show_default: Whether help says what the default is.
        share: Whether its value is a share, at most 1, which a percentage may be given for by mistake.
        panel: Where help lists it, see `panels.py`; empty: where its name belongs.
    """

    def __init__(
        self,
        *spellings: str,
        help: str,
        metavar: str | None = None,
        show_default: bool = True,
        share: bool = False,
        panel: str = "",
    ) -> None:
        self.spellings, self.help, self.metavar, self.show_default = spellings, help, metavar, show_default
        self.share, self.panel = share, panel


class Parameter(NamedTuple):
    """An argument or option of a command.

    Attributes:
        name: What the function calls it.
        spellings: Of an option; none: an argument.
        help: What it does.
        is_flag: Whether no value follows.
        many: Whether it is a list.
        choices: The values that it may have, where they are few.
    """

    name: str
    spellings: tuple[str, ...]
    help: str
    is_flag: bool
    many: bool
    choices: tuple[str, ...]


class Command(NamedTuple):
    """A command.

    Attributes:
        name: Its verb.
        callback: What it runs, with a parameter for each argument and option, annotated as above.
        summary: First lines of its help.
        epilog: Last line of its help.
        aliases: Options under other names, which help does not show: the name here, and what follows (None, "value", or
            "list": several words, or "as is": a value that is passed on as it was written).
        renamed: Options under the names that they had before, with their names now; whoever uses one is told.
        optional: Options whose value may be left out, at the end or before another option, and what it is then.
    """

    name: str
    callback: Callable[..., None]
    summary: str
    epilog: str | None = None
    aliases: Mapping[str, tuple[str, str | None]] = types.MappingProxyType({})
    optional: Mapping[str, str] = types.MappingProxyType({})
    renamed: Mapping[str, str] = types.MappingProxyType({})

    def parameters(self) -> list[Parameter]:
        """Its arguments and options, in the order of its function."""
        return [read_parameter(parameter) for parameter in inspect.signature(self.callback).parameters.values()]


class Verb(NamedTuple):
    """A verb of the command line: its help is known without importing what it does."""

    summary: str
    section: str
    load: Callable[[], Command | Group]


class Group(NamedTuple):
    """Several commands under one name.

    Attributes:
        name: Its verb, or the program's name.
        verbs: What it consists of.
        summary: First lines of its help.
        version: What --version prints; without it there is no such option.
        opening: What it prints without a command; without it, its help.
        answer: Says what to do with a first word that is no command, if it is something else that is known.
    """

    name: str
    verbs: Mapping[str, Verb]
    summary: str
    version: str = ""
    opening: str = ""
    answer: Callable[[str], str | None] = lambda word: None


def read_parameter(parameter: inspect.Parameter) -> Parameter:
    """An argument or option from its annotation."""
    annotated, declared = get_args(parameter.annotation)
    kind = annotated
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    choices = tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else ()
    spellings = _spelled(parameter.name, declared, kind is bool) if isinstance(declared, Option) else ()
    return Parameter(parameter.name, spellings, declared.help, kind is bool, get_origin(kind) is list, choices)


def _spelled(name: str, option: Option, is_flag: bool) -> tuple[str, ...]:
    """Every spelling of an option, those that say no last."""
    flag = name.replace("_", "-")
    given = option.spellings or ((f"--{flag}/--no-{flag}",) if is_flag else (f"--{flag}",))
    pairs = [spelling.partition("/") for spelling in given]
    return (*(yes for yes, _, _ in pairs), *(no for _, _, no in pairs if no))
