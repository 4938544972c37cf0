"""`prune methods`."""

from __future__ import annotations

from prunecli.cli.declared import Command
from prunecli.cli.options import with_output
from prunecli.cli.output import Output
from prunecli.methods.registry import all_methods
from prunecli.recipe.fields import fields_of


def run(output: Output) -> None:
    """Lists methods."""
    from prunecli.report.table import Table

    specs = all_methods().values()
    output.document(
        [
            {
                "name": spec.name,
                "family": spec.family,
                "summary": spec.summary,
                "paper": spec.paper,
                "params": {
                    field.name: {"default": field.default, "doc": field.doc} for field in fields_of(spec.params_class)
                },
            }
            for spec in specs
        ]
    )
    rows = [(spec.name, spec.family, spec.summary, spec.paper or "-") for spec in specs]
    output.table(Table(("method", "family", "what it does", "paper"), rows))


def command() -> Command:
    """The command."""
    return Command("methods", with_output(run), "List the pruning methods; `prune METHOD --help` has their options.")
