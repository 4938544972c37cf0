"""Every override of Typer's internals, and nothing else: commands are imported only when they are used.

Typer has no lazy sub-commands, builds a pydantic adapter to show help, and prints usage errors over several lines.
`tests/cli/test_typer_contract.py` checks that what is overridden here still exists.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command as typer_get_command

from prunecli.errors import unknown


@dataclass(frozen=True)
class Verb:
    """A verb of the command line: its help is known without importing what it does."""

    summary: str
    section: str
    load: Callable[[], Any]


class _HelpWithoutPydantic:
    """A --help whose default is a plain False: Typer's default is coerced through pydantic."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)  # type: ignore[misc]
        if option is not None:
            option.default = False
        return option


class PruneCommand(_HelpWithoutPydantic, TyperCommand):
    """A command of ours.

    Attributes:
        aliases: Options under other names, which help does not show: the name here, and what follows (None, "value", or
            "list": several words).
    """

    aliases: Mapping[str, tuple[str, str | None]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts today's names in the place of aliases."""
        parsed: list[str] = super().parse_args(ctx, _renamed(args, self.aliases) if self.aliases else args)
        return parsed


def _renamed(args: list[str], aliases: Mapping[str, tuple[str, str | None]]) -> list[str]:
    words, renamed = list(args), []
    while words:
        word, joined, value = words.pop(0).partition("=")
        if word not in aliases:
            renamed.append(word + joined + value)
            continue
        name, follows = aliases[word]
        renamed.append(name)
        if follows == "value" and (value or words):
            renamed.append((value or words.pop(0)).lower())
        elif follows == "list":
            entries = [value] if value else []
            while words and _NUMBERS.fullmatch(words[0]):
                entries.append(words.pop(0))
            renamed.append(",".join(entries).translate(_BRACKETS).replace(",,", ","))
    return renamed


_NUMBERS = re.compile(r"[\[(]?[-+.\deE, ]*[])]?,?")
_BRACKETS = str.maketrans("", "", "[]() ")


class LazyGroup(_HelpWithoutPydantic, TyperGroup):
    """A group whose commands are imported on use and listed from static help."""

    verbs: Mapping[str, Verb] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the verb table."""
        return list(self.verbs)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports and returns the command, or None."""
        if cmd_name not in self.commands and cmd_name in self.verbs:
            self.commands[cmd_name] = self.verbs[cmd_name].load()
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Suggests among all verbs, not only those already imported."""
        name = args[0]
        if name not in self.verbs and not name.startswith("-"):
            ctx.fail(unknown("command", name, self.verbs, see=f"{ctx.command_path} --help").rstrip("?"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Lists the verbs by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, verb in self.verbs.items():
            sections.setdefault(verb.section, []).append((name, verb.summary))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)


def make_command(
    name: str,
    callback: Callable[..., Any],
    summary: str,
    epilog: str | None = None,
    aliases: Mapping[str, tuple[str, str | None]] | None = None,
) -> PruneCommand:
    """Makes one command from a function with annotated parameters."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, cls=PruneCommand, help=summary, epilog=epilog)(callback)
    command = typer_get_command(app)
    assert isinstance(command, PruneCommand)
    command.aliases = aliases or {}
    return command


def make_group(name: str, verbs: Mapping[str, Verb], callback: Callable[..., Any], summary: str) -> LazyGroup:
    """Makes a group of lazily imported commands; `callback` has the group's own options."""
    kind = type("Group", (LazyGroup,), {"verbs": dict(verbs)})
    app = typer.Typer(
        add_completion=False, rich_markup_mode=None, cls=kind, help=summary, invoke_without_command=True, name=name
    )
    app.callback()(callback)
    group = typer_get_command(app)
    assert isinstance(group, LazyGroup)
    group.name = name
    return group


def option_names(command: Any) -> dict[str, TyperOption]:
    """Every spelling of every option of a command, with the option."""
    return {
        spelling: parameter
        for parameter in command.params
        if isinstance(parameter, TyperOption)
        for spelling in (*parameter.opts, *parameter.secondary_opts)
    }


def option_choices(option: Any) -> list[str]:
    """The values an option may take, where they are few."""
    return [str(choice) for choice in option.type_descriptor.choices or ()]


def error_text(error: BaseException) -> str:
    """What Typer's own error says, on one line."""
    message = " ".join(str(getattr(error, "format_message", lambda: str(error))()).split())
    context = getattr(error, "ctx", None)
    return f"{message.rstrip('.')}; see `{context.command_path} --help`" if context is not None else message
