"""The pages of the documentation: their blocks of code, and the commands in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
SHELL = ("", "bash", "sh", "console")
_BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: Its page, as in `docs/start.md`.
        line: Where it begins.
        mark: What the comment just before it says, such as `run`; empty: there is none.
        language: What it is written in; empty for commands and output.
        body: What stands in it.
    """

    page: str
    line: int
    mark: str
    language: str
    body: str

    def commands(self) -> list[list[str]]:
        """The command lines in it, in words; with a prompt on some lines, only those are commands."""
        if self.language not in SHELL:
            return []
        lines = self.body.replace("\\\n", " ").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found = []
        for line in prompted or lines:
            for words in _divided(shlex.split(line, comments=True)) if _is_command(line) else ():
                found.append(words)
        return found

    def labels(self) -> set[str]:
        """Words in the first column of output that is shown in it: what figures, layers and epochs are called."""
        lines = self.body.splitlines()
        if self.language != "text":
            lines = [line for line in lines if not line.startswith("$ ")] if "$ " in self.body[:2] else []
        firsts = (re.split(r"\s{2,}|: ", line.strip())[0] for line in lines)
        return {word for first in firsts for word in re.findall(r"[A-Za-z][A-Za-z_.-]{2,}", first)}


def _is_command(line: str) -> bool:
    return re.match(r"(prune|pip|pytest|python|ruff|mypy|examples/\S+\.sh|zensical)\b", line) is not None


def _divided(words: list[str]) -> Iterator[list[str]]:
    """Commands joined by &&, without what is done with their output, and without `...` for what is left out."""
    command: list[str] = []
    for word in [*words, "&&"]:
        if word != "&&":
            command.append(word)
            continue
        end = next((index for index, part in enumerate(command) if part in (">", "|")), len(command))
        yield [part for part in command[:end] if part != "..."]
        command = []


@cache
def pages() -> dict[str, str]:
    """Text by name, of everything that readers read."""
    files = [
        *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
        REPOSITORY / "examples" / "plugin" / "README.md",
        *sorted(DOCS.rglob("*.md")),
    ]
    return {file.relative_to(REPOSITORY).as_posix(): file.read_text(encoding="utf-8") for file in files}


@cache
def tokens(page: str) -> list[Token]:
    """A page as Markdown."""
    return MarkdownIt("commonmark").enable("table").parse(pages()[page])


def mentioned_commands() -> Iterator[tuple[str, list[str]]]:
    """Commands in running text and in tables, with their page: `prune compare A B --fail-if ...`."""
    for page in pages():
        for token in tokens(page):
            for child in token.children or ():
                if child.type == "code_inline" and child.content.startswith("prune "):
                    yield page, shlex.split(child.content)


@cache
def blocks() -> tuple[Block, ...]:
    """All fenced blocks."""
    return tuple(
        Block(page, text[: match.start()].count("\n") + 1, match["mark"] or "", match["language"], match["body"])
        for page, text in pages().items()
        for match in _BLOCK.finditer(text)
    )


def relative(page: str, target: str) -> Path:
    """The file that a link on a page leads to."""
    return (REPOSITORY / page).parent / target
