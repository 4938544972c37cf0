"""`prune compare`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunecli.cli.commands.compare_methods import CONTEST_OPTIONS, compare_methods, refuse_without_methods
from prunecli.cli.declared import Argument, Command
from prunecli.cli.options import option, overrides_from, shared_options, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import check_writable, reproducible_command
from prunecli.errors import PruneError, RecipeError
from prunecli.own_code import PREFIX, allow

if TYPE_CHECKING:
    from prunecli.report.comparison import Comparison
    from prunecli.report.contest import Contest
    from prunecli.report.pareto import Choice

OPTIONS = [
    option("fail_if", str, "Exit with 3 if this holds, e.g. 'top1_drop > 1.0 or macs_ratio > 0.6'.", "--fail-if"),
    option(
        "best",
        str,
        "Name the best network, e.g. 'min latency where top1_drop < 1'; exit with 3 if none meets the condition.",
        "--best",
    ),
    option("plot", str, "Draw score against cost, with the Pareto front (.png, .svg, .pdf).", "--plot"),
    option("markdown", bool, "Print a Markdown table.", "--markdown"),
    option("csv", bool, "Print one line of plain numbers for each network.", "--csv"),
    option("out", str, "File to write the comparison to (JSON).", "-o", "--out"),
    option("force", bool, "Replace a file that exists.", "--force"),
    option("rounds", int, "Paired timings of checkpoints.", default=30),
    option("channels_last", bool, "Time networks with their channels last in memory.", "--channels-last"),
    option("compile", bool, "Time networks that torch.compile has compiled.", "--compile"),
    option("runtime", str, "Time networks in this program instead of PyTorch: onnx or openvino."),
    *CONTEST_OPTIONS,
    *shared_options(),
]

_PathsArgument = Annotated[
    list[Path],
    Argument(
        "BASELINE OTHER...",
        "Reports of `prune eval`, or networks: weights files and references. With --methods: one network, or one for "
        "each seed.",
    ),
]


def run(output: Output, paths: _PathsArgument, values: dict[str, Any]) -> None:
    """Compares networks, or methods."""
    formats = [f"--{name}" for name in ("csv", "markdown") if values[name]]
    formats += ["--json"] if output.mode == "json" else []
    if len(formats) > 1:
        raise RecipeError(f"{' and '.join(formats)} exclude each other; give one of them")
    if values["methods"] is None:
        refuse_without_methods(values)
        _compare_networks(output, paths, values)
        return
    contest = compare_methods(output, paths, OPTIONS, values)
    if contest is not None:
        _show_contest(output, contest, values)


def _show_contest(output: Output, contest: Contest, values: dict[str, Any]) -> None:
    from prunecli.report.contest_tables import contest_tables

    output.document(contest.document())
    methods, *others = contest_tables(contest)
    if values["csv"]:
        output.text(methods.to_csv())
        return
    for table in (methods, *others):
        if values["markdown"]:
            output.text(table.to_markdown())
        else:
            output.table(table)
    left_out = [f"{label} was left out: {reason}" for label, reason in contest.left_out.items()]
    output.text("\n" + "\n".join([*contest.verdict, *left_out]))


def _compare_networks(output: Output, paths: list[Path], values: dict[str, Any]) -> None:
    from prunecli.recipe.loader import Document
    from prunecli.recipe.origins import COMMAND_LINE
    from prunecli.recipe.resolve import resolve

    for path in paths:
        if str(path).startswith(PREFIX):
            allow(str(path))
    plan = resolve(Document({}, COMMAND_LINE), overrides_from(OPTIONS, values, 0))
    for name in ("out", "plot"):
        if values[name] is not None:
            check_writable(Path(values[name]), bool(values["force"]))
    from prunecli.checkpoint.durable import write_atomically, write_text_atomically
    from prunecli.pipeline.stages.compare import compare_paths, judge
    from prunecli.report.comparison import Gate
    from prunecli.report.pareto import Choice
    from prunecli.report.pareto_tables import check_plot, pareto_plot

    rounds = 30 if values["rounds"] is None else values["rounds"]
    if rounds < 2:
        raise RecipeError(f"--rounds has to be at least 2 (got {rounds})")
    gate = Gate(values["fail_if"]) if values["fail_if"] is not None else None
    choice = Choice(values["best"]) if values["best"] is not None else None
    if values["plot"] is not None:
        check_plot(Path(values["plot"]))
    compared = compare_paths(
        paths,
        plan.recipe,
        output,
        rounds=rounds,
        command=reproducible_command(sys.argv[1:]),
        channels_last=bool(values["channels_last"]),
        compiled=bool(values["compile"]),
        runtime=values["runtime"],
    )
    comparison, failure = judge(compared.comparison, gate)
    failures: list[PruneError | None] = [failure]
    if choice is not None:
        comparison, unmet = choice.of(comparison)
        failures.append(unmet)
    failures.append(compared.damage)
    if values["plot"] is not None:
        picture = pareto_plot(comparison, Path(values["plot"]).suffix.removeprefix("."))
        write_atomically(
            Path(values["plot"]), lambda temporary: temporary.write_bytes(picture), replace=bool(values["force"])
        )
    document = comparison.model_dump_json(by_alias=True, indent=2) + "\n"
    if values["out"] is not None:
        write_text_atomically(Path(values["out"]), document, replace=bool(values["force"]))
    output.document(comparison.model_dump(mode="json", by_alias=True))
    _show_comparison(output, comparison, choice, values)
    for each in failures:
        if each is not None:
            raise each


def _show_comparison(output: Output, comparison: Comparison, choice: Choice | None, values: dict[str, Any]) -> None:
    from prunecli.report.pareto_tables import pareto_tables
    from prunecli.report.tables import comparison_table, plain_table

    tables = [comparison_table(comparison), *pareto_tables(comparison)]
    if values["csv"]:
        output.text(plain_table(comparison).to_csv())
    elif values["markdown"]:
        output.text("\n".join(table.to_markdown() for table in tables))
        output.text("".join(f"\n{note}\n" for note in comparison.notes) or "\n")
    else:
        for table in tables:
            output.table(table)
    if choice is not None and comparison.best is not None and not values["csv"]:
        output.text(f"best: {comparison.best} ({choice.figure} {choice.value(comparison):.4g}; {choice.text})")
    for note in comparison.notes:
        output.note(f"note: {note}")
    if values["plot"]:
        output.note(f"wrote {values['plot']}")


def command() -> Command:
    """The command."""
    summary = (
        "Compare reports, or networks, with the first one. Networks are timed in turns, so their ratio is paired. With "
        "--methods, compare how methods prune one network."
    )
    return Command("compare", with_output(run, OPTIONS), summary)
