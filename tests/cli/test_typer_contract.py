"""What `cli/lazy.py` overrides in Typer has to exist and to behave as it expects."""

from __future__ import annotations

import inspect

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from prunecli.cli.lazy import LazyGroup, PruneCommand, error_text, option_choices, option_names
from prunecli.cli.verbs import VERBS, root, verbs
from prunecli.methods.index import METHODS


def test_overridden_methods_exist_with_the_same_parameters() -> None:
    for ours, theirs, names in (
        (LazyGroup, TyperGroup, ("list_commands", "get_command", "resolve_command", "format_commands")),
        (PruneCommand, TyperCommand, ("get_help_option",)),
    ):
        for name in names:
            assert name in dir(theirs), name
            wanted = list(inspect.signature(getattr(theirs, name)).parameters)
            assert list(inspect.signature(getattr(ours, name)).parameters) == wanted, name


def test_errors_carry_a_message_a_code_and_a_context() -> None:
    group = root()
    for words in (["nonsense"], ["l1"], ["l1", "x", "--bogus"]):
        try:
            group.main(args=words, prog_name="prune", standalone_mode=False)
        except Exception as error:
            assert isinstance(error, typer.TyperException if hasattr(typer, "TyperException") else Exception)
            assert error.exit_code == 2  # type: ignore[attr-defined]
            assert "\n" not in error_text(error) and "--help`" in error_text(error)
        else:
            raise AssertionError(words)


def test_commands_are_imported_on_use_and_kept() -> None:
    group = root()
    assert group.commands == {}
    first = group.get_command(None, "l1")
    assert group.get_command(None, "l1") is first and list(group.commands) == ["l1"]
    assert group.get_command(None, "nothing") is None


def test_every_verb_loads_and_says_in_help_what_the_table_says() -> None:
    group = root()
    assert set(verbs()) == set(VERBS) | set(METHODS.names)
    for name in verbs():
        command = group.get_command(None, name)
        assert command.name == name and command.help
        if isinstance(command, PruneCommand):
            assert {"--json", "--quiet", "-q", "--debug"} <= set(option_names(command)), name


def test_every_option_has_help_and_none_is_spelled_twice() -> None:
    group = root()
    for name in verbs():
        command = group.get_command(None, name)
        options = [parameter for parameter in command.params if isinstance(parameter, TyperOption)]
        spellings = [spelling for option in options for spelling in (*option.opts, *option.secondary_opts)]
        assert len(spellings) == len(set(spellings)), name
        assert all(option.help for option in options), name


def test_choices_are_readable() -> None:
    options = option_names(root().get_command(None, "l1"))
    assert option_choices(options["--scope"]) == ["auto", "global", "local", "isomorphic"]
    assert option_choices(options["--ratio"]) == []
