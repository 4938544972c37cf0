"""`prune doctor`."""

from __future__ import annotations

from typing import Any

import typer

from prunecli.cli.lazy import make_command
from prunecli.cli.method_command import with_output
from prunecli.cli.output import Output


def run(output: Output) -> None:
    """Checks what pruning needs."""
    from prunecli.measure.environment import describe_environment
    from prunecli.report.tables import Table

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
        problems.append(f"torch and torchvision do not fit each other ({first}); install both anew, together")
    output.document({"facts": facts, "problems": problems})
    output.table(Table(("what", "found"), list(facts.items())))
    for problem in problems:
        output.complain(problem)
    if problems:
        raise typer.Exit(1)


def _data_sets() -> dict[str, str]:
    from prunecli.data.catalog import DATASETS, default_root, load_data
    from prunecli.errors import DataError

    facts = {}
    root = default_root()
    for name in DATASETS:
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
