"""`prune models`."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any

import typer

from prunecli.cli.lazy import make_command
from prunecli.cli.options import with_output
from prunecli.cli.output import Output
from prunecli.errors import ModelError, unknown


def run(
    output: Output,
    pattern: Annotated[str, typer.Argument(metavar="[PATTERN]", help="A part of the name, or a shell pattern.")] = "*",
) -> None:
    """Lists references."""
    from prunecli.models.index import added_sources, known_references

    full_pattern = pattern if any(mark in pattern for mark in "*?[") else f"*{pattern}*"
    known = known_references()
    if added_sources():
        from prunecli.models.catalog import added_references  # imports torch, and the packages

        known += added_references()
    matches = [ref for ref in known if fnmatchcase(ref, full_pattern)]
    if not matches:
        raise ModelError(unknown("architecture", pattern, known, see="prune models"))
    output.document(matches)
    output.text("\n".join(matches))


def command() -> Any:
    """The Typer command."""
    return make_command("models", with_output(run), "List the architectures that can be built, as source:name.")
