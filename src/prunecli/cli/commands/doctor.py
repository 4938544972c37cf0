"""`prune doctor`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from prunecli.cli.lazy import make_command
from prunecli.cli.options import with_output
from prunecli.cli.output import Output
from prunecli.errors import RecipeError


def run(
    output: Output,
    coverage: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Prune half of every architecture that matches, and say which are right."),
    ] = None,
    max_params: Annotated[
        float | None, typer.Option(metavar="MILLIONS", help="With --coverage: pass larger architectures over.")
    ] = None,
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="FILE", help="With --coverage: write the figures as JSON.")
    ] = None,
) -> None:
    """Checks what pruning needs, or tries architectures."""
    if coverage is not None:
        _cover(output, coverage, max_params, out)
        return
    if max_params is not None or out is not None:
        raise RecipeError("--max-params and --out belong to --coverage PATTERN; give that too")
    from prunecli.measure.environment import describe_environment
    from prunecli.report.table import Table

    problems: list[str] = []
    facts: dict[str, str] = {}
    try:
        facts = {name: str(value) for name, value in describe_environment().items()}
        import torch
        import torchvision  # noqa: F401 - importing it is the check

        facts["accelerator"] = str(torch.accelerator.current_accelerator() or "none")
        facts |= _data_sets()
    except Exception as error:  # a mismatched pair fails in many ways
        first = (str(error).strip().splitlines() or [""])[0]
        problems.append(f"torch and torchvision do not fit each other ({first}); install both again, together")
    output.document({"facts": facts, "problems": problems})
    output.table(Table(("what", "found"), list(facts.items())))
    for problem in problems:
        output.complain(problem)
    if problems:
        raise typer.Exit(1)


def _cover(output: Output, pattern: str, max_params: float | None, out: str | None) -> None:
    import json
    from collections import Counter
    from pathlib import Path

    from prunecli.measure.environment import library_versions
    from prunecli.report.table import Table
    from prunecli.studies.coverage import cover, matching

    refs = matching(pattern)
    found = []
    with output.progress("architectures", len(refs)) as advance:
        for entry in cover(refs, max_params=max_params):
            found.append(entry)
            advance(len(found), entry.ref)
            if out is not None:  # after each, so that an interrupted run keeps what it has
                document = {"versions": library_versions(), "architectures": [e.to_dict() for e in found]}
                Path(out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    counts = Counter(entry.status for entry in found)
    output.document({"counts": dict(counts), "architectures": [entry.to_dict() for entry in found]})
    rows = [
        (
            entry.ref,
            entry.status,
            *((f"{entry.kept:.1%}", f"{entry.implied:.1%}", f"{entry.error:.0e}") if entry.groups else ("", "", "")),
            entry.reason,
        )
        for entry in found
    ]
    output.table(Table(("architecture", "result", "parameters kept", "implied", "difference", "why"), rows))
    output.note(", ".join(f"{count} {status}" for status, count in counts.items()))
    if counts["wrong"]:
        raise typer.Exit(1)


def _data_sets() -> dict[str, str]:
    from prunecli.data.catalog import default_root, load_data, named_datasets
    from prunecli.errors import DataError

    facts = {}
    root = default_root()
    for name in named_datasets():
        try:
            data = load_data(name, root)
            train = len(data.train.labels) if data.train is not None else 0
            facts[f"data {name}"] = f"{train} training and {len(data.test.labels)} test images"
        except DataError:
            facts[f"data {name}"] = f"not in {root}"
    return facts


def command() -> Any:
    """The Typer command."""
    return make_command("doctor", with_output(run), "Check this installation: versions, devices, data sets.")
