"""A page about networks as plain data: sections of text, tables and pictures, with no format yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prunecli.report.table import Table


@dataclass(frozen=True)
class Text:
    """A paragraph; a `caution` is something the reader should not miss."""

    text: str
    caution: bool = False


@dataclass(frozen=True)
class Code:
    """Lines to copy: commands, or a recipe."""

    text: str
    language: str = "sh"


@dataclass(frozen=True)
class Rows:
    """A table; one that is `long` is folded up where a format can do that."""

    table: Table
    caption: str = ""
    long: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture, and the same as text.

    Attributes:
        content: SVG of matplotlib, or the bytes of a picture file.
        form: "svg", "png" or "jpeg".
        caption: What is to be seen.
        description: For those who do not see it: what it says, with its figures.
        data: The figures that were drawn.
    """

    content: bytes
    form: str
    caption: str
    description: str
    data: Table | None = None


Block = Text | Code | Rows | Picture


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        key: Its anchor.
        title: Its heading.
        blocks: Its content, in order.
    """

    key: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """One main figure: what it is, its 95 % interval, what it was before, and the change."""

    label: str
    value: str
    interval: str = ""
    before: str = ""
    change: str = ""


@dataclass(frozen=True)
class Page:
    """Everything that a report says.

    Attributes:
        title: What it is about.
        subtitle: What was done, in a sentence.
        tiles: Main figures.
        sections: The rest.
        made_by: The version that wrote it.
    """

    title: str
    subtitle: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    made_by: str
