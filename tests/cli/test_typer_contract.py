"""What `cli/lazy.py` overrides in Typer has to exist and to behave as it expects."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from prunecli.cli.declared import Command, Group
from prunecli.cli.lazy import LazyGroup, PruneCommand, built, error_text
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
    group = built(root())
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
    group = built(root())
    assert group.commands == {}
    first = group.get_command(None, "l1")
    assert group.get_command(None, "l1") is first and list(group.commands) == ["l1"]
    assert group.get_command(None, "nothing") is None


def _declared() -> Iterator[Command]:
    groups = [root()]
    for group in groups:
        for verb in group.verbs.values():
            loaded = verb.load()
            if isinstance(loaded, Group):
                groups.append(loaded)
            else:
                yield loaded


COMMANDS = list(_declared())


def test_every_verb_loads_and_says_in_help_what_the_table_says() -> None:
    group = built(root())
    assert isinstance(group, LazyGroup) and set(verbs()) == set(VERBS) | set(METHODS.names)
    for name in verbs():
        command = group.get_command(None, name)
        assert command.name == name and command.help
    for declared in COMMANDS:
        spelled = {spelling for parameter in declared.parameters() for spelling in parameter.spellings}
        assert {"--json", "--quiet", "-q", "--debug"} <= spelled, declared.name


@pytest.mark.parametrize("declared", COMMANDS, ids=[command.name for command in COMMANDS])
def test_what_is_declared_is_what_typer_makes_of_it(declared: Command) -> None:
    """Completion offers what is declared, and never sees what Typer reads."""
    command = built(declared)
    assert isinstance(command, PruneCommand) and len(command.params) == len(declared.parameters())
    assert "-h" in command.make_context("prune", [], resilient_parsing=True).help_option_names
    assert set(command.panels) == {p.name for p in declared.parameters() if p.spellings} | {"help"}
    for ours, theirs in zip(declared.parameters(), command.params, strict=True):
        assert ours.name == theirs.name
        assert ours.choices == tuple(map(str, theirs.type_descriptor.choices or ())), ours
        if isinstance(theirs, TyperOption):
            assert ours.spellings == (*theirs.opts, *theirs.secondary_opts) and ours.help == theirs.help
            assert (ours.is_flag, ours.many) == (theirs.is_flag, theirs.multiple), ours
        else:
            assert not ours.spellings and ours.many == (theirs.nargs == -1), ours


def test_every_option_has_help_and_none_is_spelled_twice() -> None:
    for declared in COMMANDS:
        spellings = [spelling for parameter in declared.parameters() for spelling in parameter.spellings]
        assert len(spellings) == len(set(spellings)), declared.name
        assert all(parameter.help for parameter in declared.parameters()), declared.name


def test_choices_are_readable() -> None:
    l1 = next(command for command in COMMANDS if command.name == "l1")
    choices = {parameter.name: parameter.choices for parameter in l1.parameters()}
    assert choices["scope"] == ("auto", "global", "local", "isomorphic", "measured") and choices["ratio"] == ()
