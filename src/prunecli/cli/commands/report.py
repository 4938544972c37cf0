"""`prune report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prunecli.cli.declared import Argument, Command
from prunecli.cli.options import option, with_output
from prunecli.cli.output import Output
from prunecli.cli.stages import check_writable, reproducible_command
from prunecli.errors import RecipeError

if TYPE_CHECKING:
    from prunecli.report.page import Page
    from prunecli.studies.reporting.material import Material

OPTIONS = [
    option("out", str, "File to write: .html (default: report.html), or .md.", "-o", "--out"),
    option("force", bool, "Replace a file that exists.", "--force"),
    option("markdown", bool, "Print the report as Markdown, or write it there with -o.", "--markdown"),
    option("card", bool, "Write a model card for the Hugging Face hub instead; default: README.md.", "--card"),
    option("title", str, "Title of the page; default: the names of what it is about.", "--title"),
    option("no_measure", bool, "Only read files; do not load the network to measure its parts.", "--no-measure"),
]
_FORMATS = {".html": "html", ".htm": "html", ".md": "markdown", ".markdown": "markdown"}

_PathsArgument = Annotated[
    list[Path],
    Argument("RUN-OR-FILES...", "The folder of `prune run`, or reports, checkpoints, logs of training and pictures."),
]


def run(output: Output, paths: _PathsArgument, values: dict[str, Any]) -> None:
    """Writes a report."""
    form, path = _form_and_path(values)
    if path is not None:
        check_writable(path, bool(values["force"]))
    from prunecli.checkpoint.durable import write_text_atomically
    from prunecli.studies.reporting.material import collect
    from prunecli.studies.reporting.report_page import page_of

    material = collect([path.expanduser() for path in paths])
    measure = form != "card" and not values["no_measure"]
    command = reproducible_command(sys.argv[1:])
    page = page_of(material, output, measure=measure, command=command, title=values["title"])
    text = _written(page, form, material)
    if path is None:
        output.document({"markdown": text})
        output.text(text)
        return
    write_text_atomically(path, text, replace=bool(values["force"]))
    output.document({"wrote": str(path), "format": form, "bytes": len(text.encode())})
    output.note(f"wrote {path}")


def _written(page: Page, form: str, material: Material) -> str:
    if form == "card":
        from prunecli.studies.reporting.card import model_card

        return model_card(material, page)
    if form == "markdown":
        from prunecli.report.page_markdown import page_markdown

        return page_markdown(page)
    from prunecli.report.page_html import page_html

    return page_html(page)


def _form_and_path(values: dict[str, Any]) -> tuple[str, Path | None]:
    """What to write and where; no path for standard output.

    Raises:
        RecipeError: Options exclude each other, or the file has another ending.
    """
    if values["card"] and values["markdown"]:
        raise RecipeError("--card and --markdown exclude each other; give one of them")
    out = Path(values["out"]).expanduser() if values["out"] is not None else None
    if values["card"]:
        return "card", out or Path("README.md")
    if values["markdown"]:
        return "markdown", out
    out = out or Path("report.html")
    if out.suffix.lower() not in _FORMATS:
        raise RecipeError(f"-o {out}: name it .html or .md")
    return _FORMATS[out.suffix.lower()], out


def command() -> Command:
    """The command."""
    summary = (
        "Write a report about a run, or about reports and checkpoints: one page that needs nothing else. It shows what "
        "was done, figures before and after, what was removed, training, history, and how to make it again."
    )
    return Command("report", with_output(run, OPTIONS), summary)
