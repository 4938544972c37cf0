"""`prune models`."""

from __future__ import annotations

from typing import Annotated

from prunecli.cli.declared import Argument, Command
from prunecli.cli.options import with_output
from prunecli.cli.output import Output
from prunecli.models.index import (
    OPENING,
    PATTERN_HELP,
    added_sources,
    known_references,
    listed_references,
    matching_references,
)


def run(
    output: Output,
    pattern: Annotated[str, Argument("[PATTERN]", PATTERN_HELP)] = "*",
) -> None:
    """Lists references."""
    known = [*known_references(), *listed_references()]
    if added_sources():
        from prunecli.models.catalog import added_references  # imports torch, and the packages

        known += added_references()
    matches = matching_references(pattern, known)
    output.document(matches)
    output.text("\n".join(matches))
    if pattern == "*":
        output.note("also " + "; ".join(OPENING.values()))


def command() -> Command:
    """The command."""
    return Command("models", with_output(run), "List the architectures that can be built, as source:name.")
