"""`prune doctor`."""

from __future__ import annotations

from typing import Any

from prunecli.cli.lazy import make_command
from prunecli.cli.method_command import with_output
from prunecli.cli.output import Output
from prunecli.errors import PruneError


def run(output: Output) -> None:
    """Checks what pruning needs."""
    from prunecli.data.catalog import DATASETS, default_root, load_data
    from prunecli.errors import DataError
    from prunecli.measure.environment import describe_environment
    from prunecli.report.tables import Table

    problems: list[str] = []
    facts = {name: str(value) for name, value in describe_environment().items()}
    try:
        import torch
        import torchvision  # noqa: F401 - importing it is the check

        facts["accelerator"] = "none"
        if torch.accelerator.is_available():
            facts["accelerator"] = str(torch.accelerator.current_accelerator())
    except (ImportError, RuntimeError) as error:
        problems.append(f"torch and torchvision do not fit each other ({error}); install both anew, together")
    root = default_root()
    for name in DATASETS:
        try:
            data = load_data(name, root)
            train = len(data.train.labels) if data.train is not None else 0
            facts[f"data {name}"] = f"{train} training and {len(data.test.labels)} test images"
        except DataError:
            facts[f"data {name}"] = f"not in {root}"
    output.document({"facts": facts, "problems": problems})
    output.table(Table(("what", "found"), list(facts.items())))
    if problems:
        raise PruneError(problems[0])


def command() -> Any:
    """The Typer command."""
    return make_command("doctor", with_output(run), "Check this installation: versions, devices, data sets.")
