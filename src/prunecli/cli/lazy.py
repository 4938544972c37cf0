"""Every override of Typer's internals, and nothing else: commands become Typer's only when they are used.

Typer has no lazy sub-commands, builds a pydantic adapter to show help, and prints usage errors over several lines.
`tests/cli/test_typer_contract.py` checks that what is overridden here still exists.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as typer_get_command

from prunecli.bounds import percentage_meant
from prunecli.cli.declared import Argument, Command, Group, Option, Verb
from prunecli.cli.output import current_output
from prunecli.cli.panels import in_panels, panel_of
from prunecli.errors import RecipeError, unknown

_WIDEST = 10_000
_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": _WIDEST}
"""Help is as wide as the terminal: without a bound of our own, 80 columns would be the most."""


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
        aliases: See `Command.aliases`.
        optional: See `Command.optional`.
        renamed: See `Command.renamed`.
        panels: Where help lists its options, by name.
    """

    aliases: Mapping[str, tuple[str, str | None]] = {}
    optional: Mapping[str, str] = {}
    renamed: Mapping[str, str] = {}
    panels: Mapping[str, str] = {}

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments by their names alone: Typer adds braces, brackets and dots to those that have some."""
        pieces = [re.sub(r"\{(.*)\}", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]
        return [re.sub(r"\.\.\.(\]?)\.\.\.$", r"...\1", re.sub(r"^\[(\[.*\])\]$", r"\1", piece)) for piece in pieces]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Lists arguments, then options by panel."""
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        arguments = [record for name, record in records.items() if name not in self.panels]
        listed = {name: panel for name, panel in self.panels.items() if records[name] is not None}
        panels = [(panel, [records[name] for name in names]) for panel, names in in_panels(listed)]
        for heading, rows in [("Arguments", arguments), *panels]:
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts today's names in the place of aliases, and values where they were left out."""
        _refuse_empty(args)
        words = _renamed(_of_today(args, self.renamed), self.aliases)
        parsed: list[str] = super().parse_args(ctx, _completed(words, self.optional) if self.optional else words)
        return parsed


def _refuse_empty(args: list[str]) -> None:
    """Refuses empty words, which a shell makes of variables that are not set; paths would mean this folder.

    Raises:
        RecipeError: There is one.
    """
    for before, word in zip(["", *args], args, strict=False):
        if word and not re.fullmatch(r"--[a-z-]+=", word):
            continue
        name = word.rstrip("=") or (before if before.startswith("-") else "an argument")
        raise RecipeError(f"{name} is empty; give a value, or leave it out")


def _of_today(args: list[str], renamed: Mapping[str, str]) -> list[str]:
    """The same with today's names of options; whoever has typed an old one is told."""
    words = []
    for word in args:
        name, joined, value = word.partition("=")
        if name in renamed:
            current_output().warn(f"{name} is called {renamed[name]} now")
        words.append(renamed.get(name, name) + joined + value)
    return words


def _completed(args: list[str], optional: Mapping[str, str]) -> list[str]:
    words: list[str] = []
    for word, following in zip(args, [*args, "-"][1:], strict=True):
        words.append(word)
        if word in optional and following.startswith("-"):
            words.append(optional[word])
    return words


def _renamed(args: list[str], aliases: Mapping[str, tuple[str, str | None]]) -> list[str]:
    words, renamed = list(args), []
    while words:
        word, joined, value = words.pop(0).partition("=")
        if word not in aliases:
            renamed.append(word + joined + value)
            continue
        name, follows = aliases[word]
        renamed.append(name)
        if follows in ("value", "as is") and (value or words):
            renamed.append(_as_written(value or words.pop(0), follows))
        elif follows == "list":
            entries = [value] if value else []
            while words and re.fullmatch(_NUMBERS, words[0]):
                entries.append(words.pop(0))
            renamed.append(",".join(entries).translate(_BRACKETS).replace(",,", ","))
    return renamed


def _as_written(value: str, follows: str) -> str:
    return value if follows == "as is" else value.lower()


_NUMBERS = r"[\[(]?[-+.\deE, ]*[])]?,?"
_BRACKETS = str.maketrans("", "", "[]() ")


class LazyGroup(_HelpWithoutPydantic, TyperGroup):
    """A group whose commands are imported on use and listed from static help."""

    verbs: Mapping[str, Verb] = {}
    answer: Callable[[str], str | None] = staticmethod(lambda word: None)

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the verb table."""
        return list(self.verbs)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports and returns the command, or None."""
        if cmd_name not in self.commands and cmd_name in self.verbs:
            self.commands[cmd_name] = built(self.verbs[cmd_name].load())
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Suggests among all verbs, not only those already imported."""
        name = args[0]
        if name not in self.verbs and not name.startswith("-"):
            if answer := self.answer(name):
                raise RecipeError(answer)
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


def built(declared: Command | Group) -> PruneCommand | LazyGroup:
    """Typer's command or group for one of ours."""
    return _built_group(declared) if isinstance(declared, Group) else _built_command(declared)


def _built_command(declared: Command) -> PruneCommand:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    make = app.command(
        declared.name, cls=PruneCommand, help=declared.summary, epilog=declared.epilog, context_settings=_CONTEXT
    )
    make(_typed(declared))
    command = typer_get_command(app)
    assert isinstance(command, PruneCommand)
    command.aliases, command.optional = {**_EVERYWHERE, **declared.aliases}, declared.optional
    command.renamed = declared.renamed
    command.panels = {**_panels(declared), "help": panel_of("help")}
    return command


_EVERYWHERE: dict[str, tuple[str, str | None]] = {"--output": ("--out", "as is")}
"""Names that other programs have for options of ours; a command that has no such option says so of ours."""


def _panels(declared: Command) -> dict[str, str]:
    """Where help lists each option."""
    parameters = inspect.signature(declared.callback).parameters.values()
    options = [(parameter.name, get_args(parameter.annotation)[1]) for parameter in parameters]
    return {name: ours.panel or panel_of(name) for name, ours in options if isinstance(ours, Option)}


def _typed(declared: Command) -> Callable[..., None]:
    """The function of a command with its parameters declared as Typer does."""

    def callback(**given: Any) -> None:
        declared.callback(**given)

    signature = inspect.signature(declared.callback)
    parameters = [_typed_parameter(parameter) for parameter in signature.parameters.values()]
    callback.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return callback


def _typed_parameter(parameter: inspect.Parameter) -> inspect.Parameter:
    kind, ours = get_args(parameter.annotation)
    theirs = (
        typer.Argument(metavar=ours.metavar, help=ours.help)
        if isinstance(ours, Argument)
        else typer.Option(
            *ours.spellings,
            help=ours.help,
            metavar=ours.metavar or _metavar(kind),
            show_default=ours.show_default,
            parser=_reader(kind, ours.share),
        )
    )
    return parameter.replace(annotation=Annotated[kind, theirs])


_NUMBER_KINDS: dict[Any, tuple[type[int] | type[float], str]] = {
    kind: (number, text) for number, text in ((int, "<int>"), (float, "<float>")) for kind in (number, number | None)
}


def _metavar(kind: Any) -> str | None:
    return _NUMBER_KINDS[kind][1] if kind in _NUMBER_KINDS else None


def _reader(kind: Any, share: bool) -> Callable[[str], Any] | None:
    """Reads a number, because Typer's message does not say what was given; None for anything else."""
    if kind not in _NUMBER_KINDS:
        return None
    number = _NUMBER_KINDS[kind][0]

    def read(text: str) -> float:
        try:
            return number(text)
        except ValueError:
            pass
        hint = percentage_meant(text) if share else ""
        if not hint and number is float and text.count(",") == 1:
            hint = f"; write {text.replace(',', '.')}"
        raise typer.BadParameter(f"{text!r} is not a {'whole ' if number is int else ''}number{hint}")

    return read


def _built_group(declared: Group) -> LazyGroup:
    kind = type("Group", (LazyGroup,), {"verbs": declared.verbs, "answer": staticmethod(declared.answer)})
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        cls=kind,
        help=declared.summary,
        invoke_without_command=True,
        name=declared.name,
        context_settings=_CONTEXT,
    )
    app.callback()(_with_version(declared) if declared.version else _shows(declared))
    group = typer_get_command(app)
    assert isinstance(group, LazyGroup)
    group.name = declared.name
    return group


def _shows(declared: Group) -> Callable[..., None]:
    """What a group does without a command."""

    def program(ctx: typer.Context) -> None:
        if ctx.invoked_subcommand is None:
            print(declared.opening.rstrip() or ctx.get_help())

    return program


def _with_version(declared: Group) -> Callable[..., None]:
    shows = _shows(declared)

    def program(
        ctx: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    ) -> None:
        if version:
            print(f"{declared.name} {declared.version}")
            raise typer.Exit()
        shows(ctx)

    return program


def error_text(error: BaseException) -> str:
    """What Typer's own error says, on one line."""
    message = " ".join(str(getattr(error, "format_message", lambda: str(error))()).split()).replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    if context.parent is None and (option := getattr(error, "option_name", None)):
        return f"{option}: a command comes before its options: prune l1 MODEL --ratio 0.5; see `prune --help`"
    see = f"`{context.command_path} --help`"
    return message.rstrip(".") if see in message else f"{message.rstrip('.')}; see {see}"
