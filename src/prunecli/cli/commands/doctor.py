"""`prune doctor`."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated

from prunecli.cli.declared import Command, Option
from prunecli.cli.options import with_output
from prunecli.cli.output import Output
from prunecli.errors import RecipeError, first_line
from prunecli.models.index import PATTERN_HELP

_NO_ACCELERATOR = "no accelerator: everything runs on the CPU"


def run(
    output: Output,
    coverage: Annotated[
        str | None,
        Option(
            metavar="PATTERN",
            help="Prune half of every network that matches, and say which are right. " + PATTERN_HELP,
        ),
    ] = None,
    max_params: Annotated[
        float | None, Option(metavar="MILLIONS", help="With --coverage: skip larger architectures.")
    ] = None,
    export: Annotated[
        bool, Option("--export", help="With --coverage: networks that can be exported have to stay so.")
    ] = False,
    peer: Annotated[
        bool, Option("--peer", help="With --coverage: try torch-pruning on each architecture too.")
    ] = False,
    out: Annotated[
        str | None, Option("-o", "--out", metavar="FILE", help="With --coverage: write the figures as JSON.")
    ] = None,
) -> None:
    """Checks what pruning needs, or tries architectures."""
    if coverage is not None:
        _cover(output, coverage, max_params, export, peer, out)
        return
    if max_params is not None or export or peer or out is not None:
        raise RecipeError("--max-params, --export, --peer and --out belong to --coverage PATTERN; add that")
    from prunecli.measure.environment import describe_environment
    from prunecli.report.coverage_tables import installation_table

    problems: list[str] = []
    facts: dict[str, str] = {}
    try:
        facts = {name: str(value) for name, value in describe_environment().items()}
        import torch
        import torchvision  # noqa: F401 - importing it is the check

        # Without a check this is what torch was built for, whether or not the machine has one.
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        facts["accelerator"] = f"{accelerator}, {torch.accelerator.device_count()}" if accelerator else _NO_ACCELERATOR
        facts |= _data_sets()
    except Exception as error:  # a mismatched pair fails in many ways
        problems.append(f"torch and torchvision do not match ({first_line(error)}); reinstall both together")
    else:
        problems += _torchaudio_problems()
    output.document({"facts": facts, "problems": problems})
    output.table(installation_table(facts))
    for problem in problems:
        output.complain(problem)
    if problems:
        from typer import Exit

        raise Exit(1)


def _cover(output: Output, pattern: str, max_params: float | None, export: bool, peer: bool, out: str | None) -> None:
    import json
    from collections import Counter
    from pathlib import Path

    from prunecli.measure.environment import library_versions
    from prunecli.report.coverage_tables import coverage_table, peer_table, reasons_table, status_counts
    from prunecli.studies.candidates import matching
    from prunecli.studies.coverage import cover

    refs = matching(pattern)
    entries = []
    with output.progress("architectures", len(refs)) as advance:
        for entry in cover(refs, max_params=max_params, export=export, peer=peer):
            entries.append(entry)
            advance(len(entries), entry.ref)
            if out is not None:  # after each, so that an interrupted run keeps its results
                document = {"versions": library_versions(), "architectures": [e.to_dict() for e in entries]}
                Path(out).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    counts = Counter(entry.status for entry in entries)
    output.document({"counts": dict(counts), "architectures": [entry.to_dict() for entry in entries]})
    output.table(coverage_table(entries))
    output.table(reasons_table(entries))
    if peer:
        output.table(peer_table(entries))
    output.note(status_counts(entries))
    if counts["wrong"]:
        from typer import Exit

        raise Exit(1)


def _torchaudio_problems() -> list[str]:
    """transformers imports torchaudio where it is installed, and cannot be used if that fails."""
    try:
        import_module("torchaudio")
    except ModuleNotFoundError:
        return []
    except Exception as error:  # another CUDA version, or a torch without CUDA: each fails in its own way
        return [
            f"torchaudio does not match torch ({first_line(error)}), and transformers cannot be imported beside it; "
            "reinstall torch, torchvision and torchaudio together, from one index"
        ]
    return []


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


def command() -> Command:
    """The command."""
    return Command("doctor", with_output(run), "Check this installation: versions, devices, data sets.")
