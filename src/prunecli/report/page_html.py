"""A page as one HTML file that needs nothing else: no network, no script, light and dark."""

from __future__ import annotations

import base64
import re
from functools import cache
from typing import TYPE_CHECKING, Any

from prunecli.report.page import Page, Picture
from prunecli.report.plots import SERIES, SOFT

if TYPE_CHECKING:
    from jinja2 import Environment

_VARIABLES = {colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)} | {
    SOFT: "var(--soft)",
    "#000000": "currentColor",
    "#ffffff": "none",
    "#b0b0b0": "var(--line)",
}
"""Colours of the plots, and what they are called in the page's style, which has others for dark screens."""
_COLOUR = re.compile("|".join(map(re.escape, _VARIABLES)))
_PIXELS = 4 / 3
"""Of a screen, for each point of a picture."""
_SIZE = re.compile(r'<svg [^>]*?viewBox="0 0 ([\d.]+) ([\d.]+)"[^>]*>', re.DOTALL)
_FONT = re.compile(r"font: ([\d.]+px) [^;\"]+")


def page_html(page: Page) -> str:
    """The page as HTML; everything that comes from files is escaped.

    Args:
        page: The page.
    """
    return _environment().get_template("page.html.j2").render(page=page, picture=_picture)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("prunecli.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["kind"] = lambda block: type(block).__name__
    return environment


def _picture(picture: Picture, key: str) -> Any:
    """The element of a picture: SVG in the colours of the page, or the bytes of a file.

    Args:
        picture: The picture.
        key: Unlike that of any other picture of the page.
    """
    from markupsafe import Markup, escape

    label = escape(f"{picture.caption}: {picture.description}")
    if picture.form != "svg" or b"<metadata" not in picture.content:  # not one that plots.py drew
        form = "svg+xml" if picture.form == "svg" else picture.form
        data = base64.b64encode(picture.content).decode("ascii")
        return Markup(f'<img alt="{label}" src="data:image/{form};base64,{data}">')
    return Markup(_inline(picture.content.decode("utf-8"), key, str(label)))


def _inline(svg: str, key: str, label: str) -> str:
    """An SVG drawn by matplotlib as an element of the page: its colours, its width, names that no other has."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    match = _SIZE.match(body)
    assert match is not None, "matplotlib writes its size first"
    width, height = match.groups()
    body = body[match.end() :]
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = re.sub(r"url\(#", f"url(#{key}-", body)
    body = re.sub(r'href="#', f'href="#{key}-', body)
    body = _FONT.sub(r"font-size: \1", body)
    body = _COLOUR.sub(lambda colour: _VARIABLES[colour.group()], body)
    pixels = f"{float(width) * _PIXELS:.0f}px"
    head = f'<svg role="img" aria-label="{label}" viewBox="0 0 {width} {height}" style="width:{pixels}">'
    return head + body
