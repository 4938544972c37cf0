"""A page as GitHub Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from prunecli.report.page import Block, Code, Page, Picture, Rows, Text


def page_markdown(page: Page) -> str:
    """The page; of pictures that were drawn from figures, the figures.

    Args:
        page: The page.
    """
    lines = [f"# {_plain(page.title)}", "", _plain(page.subtitle), ""]
    if page.tiles:
        lines += ["| figure | before | after | change |", "| --- | --- | --- | --- |"]
        rows = [(tile.label, tile.before, f"{tile.value} {tile.interval}", tile.change) for tile in page.tiles]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
        lines.append("")
    for section in page.sections:
        lines += [f"## {_plain(section.title)}", ""]
        for block in section.blocks:
            lines += _lines(block)
    lines += [f"Written by {page.made_by}.", ""]
    return "\n".join(lines)


def _lines(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield f"> {_plain(block.text)}" if block.caution else _plain(block.text)
    elif isinstance(block, Code):
        fence = "`" * max(3, _longest_run(block.text) + 1)
        yield f"{fence}{block.language}\n{block.text.rstrip()}\n{fence}"
    elif isinstance(block, Rows):
        yield from [f"{_plain(block.caption)}\n"] if block.caption else []
        yield block.table.to_markdown().rstrip()
    elif isinstance(block, Picture):
        yield f"{_plain(block.caption)}: {_plain(block.description)}"
        if block.data is not None:
            yield "\n" + block.data.to_markdown().rstrip()
    yield ""


def _longest_run(text: str) -> int:
    """How many backticks follow each other at most."""
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest


def _plain(text: str) -> str:
    """Text in which nothing is markup."""
    for mark in "\\`*_[]<>#|":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
