"""The documentation is true: what code knows is generated from it, links lead somewhere, every page can be found."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from prunecli.cli.reference.blocks import BLOCKS, filled
from prunecli.cli.verbs import VERBS
from prunecli.methods.index import METHODS
from prunecli.recipe.axes import settings_of
from prunecli.recipe.loader import parse_yaml
from prunecli.recipe.resolve import resolve
from prunecli.recipe.sweep_file import load_sweep
from prunecli.studies.sweeping.cells import CellMaker
from prunecli.studies.sweeping.search import grid
from tests.conftest import REPOSITORY
from tests.pages import DOCS, blocks, pages, relative, tokens

CONFIGURATION = REPOSITORY / "zensical.toml"
GENERATED = re.compile(r"<!-- generated: (\S+) ?(\S*) -->")


def test_generated_parts_are_what_the_code_says() -> None:
    stale = [page for page, text in pages().items() if filled(text) != text]
    assert stale == [], "run: python -m prunecli.cli.reference docs"
    used = {name for text in pages().values() for name, _ in GENERATED.findall(text)}
    assert used == set(BLOCKS)


def test_every_command_and_option_is_in_the_reference() -> None:
    text = pages()["docs/reference/commands.md"]
    for name in VERBS:
        assert f"\n## prune {name}\n" in text
    assert "| `--fail-if TEXT` |" in text and "| `-o TEXT`, `--out TEXT` |" in text


def test_every_method_has_one_card() -> None:
    cards = {name: page for page, text in pages().items() for kind, name in GENERATED.findall(text) if kind == "method"}
    assert set(cards) == set(METHODS.built_in)
    for name, page in cards.items():
        spec = METHODS.load(name)
        assert page == f"docs/methods/{spec.family}.md"
        _, _, card = pages()[page].partition(f"\n## {name}\n")
        card, _, _ = card.partition("\n## ")
        assert "**When not to use it.** " in card and "**Measured.** " in card and spec.summary.rstrip(".") in card, (
            name
        )


def test_figures_on_cards_stand_on_the_pages_that_they_link_to() -> None:
    figures = 0
    for page, text in pages().items():
        for paragraph in re.findall(r"^\*\*Measured\.\*\* .*", text, re.MULTILINE):
            linked = [
                relative(page, link.partition("#")[0]).read_text() for link in re.findall(r"\]\(([^)]+)\)", paragraph)
            ]
            for figure in re.findall(r"\d+\.\d+(?: ± \d+\.\d+)?", re.sub(r"`[^`]*`|\]\([^)]*\)", "", paragraph)):
                assert any(figure in target for target in linked), f"{page}: {figure}: {paragraph[:60]}"
                figures += 1
    assert figures > 80


def test_names_of_older_tools_are_on_the_page_for_those_who_come_from_them() -> None:
    text = pages()["docs/migration.md"]
    for method in ("sca", "unstructured"):
        for alias in METHODS.load(method).option_aliases:
            assert f"`{alias}" in text, f"{method}: {alias}"


def test_excerpts_of_files_stand_in_them() -> None:
    excerpts = [block for block in blocks() if block.mark.startswith("from: ")]
    assert len(excerpts) >= 6
    for block in excerpts:
        file = REPOSITORY / block.mark.removeprefix("from: ")
        assert block.body in file.read_text(), f"{block.page}:{block.line}: not in {file}"


def test_recipes_and_sweeps_on_pages_are_such(tmp_path: Path) -> None:
    written = [block for block in blocks() if block.language == "yaml" and block.body.startswith("version: 1\n")]
    recipes = [block for block in written if "\naxes:\n" not in block.body]
    assert recipes
    for block in recipes:
        resolve(parse_yaml(block.body, f"{block.page}:{block.line}"))
    assert len(recipes) < len(written)
    for block in (block for block in written if block not in recipes):
        (tmp_path / "sweep.yaml").write_text(block.body)
        sweep = load_sweep(tmp_path / "sweep.yaml")
        assert grid(sweep.axes, CellMaker(sweep, settings_of(sweep))).total > 1


def test_python_on_pages_compiles() -> None:
    for block in blocks():
        if block.language == "python" and not block.mark.startswith("from: "):
            compile(block.body, f"{block.page}:{block.line}", "exec")


def _navigated(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        yield from _navigated(list(entry.values()))
    else:
        for part in entry:
            yield from _navigated(part)


def test_every_page_is_in_the_navigation_once() -> None:
    navigation = list(_navigated(tomllib.loads(CONFIGURATION.read_text())["project"]["nav"]))
    assert sorted(navigation) == sorted(page.removeprefix("docs/") for page in pages() if page.startswith("docs/"))


def _links(page: str) -> Iterator[str]:
    for token in tokens(page):
        for child in token.children or ():
            if child.type == "link_open":
                yield str(child.attrs["href"])
            elif child.type == "image":
                yield str(child.attrs["src"])


@cache
def _anchors(page: str) -> set[str]:
    """Anchors of headings, as GitHub names them."""
    found: set[str] = set()
    for opened, inline in pairwise(tokens(page)):
        if opened.type == "heading_open":
            heading = "".join(child.content for child in inline.children or ())
            found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


def test_links_lead_somewhere() -> None:
    """On GitHub, where pages outside docs/ are read as well; the site checks its own below."""
    broken, checked = [], 0
    for page in pages():
        for link in _links(page):
            parts = urlsplit(link)
            if parts.scheme:
                assert parts.scheme in ("https", "http"), f"{page}: {link}"
                continue
            checked += 1
            target = relative(page, unquote(parts.path)) if parts.path else REPOSITORY / page
            name = target.resolve().relative_to(REPOSITORY).as_posix()
            if not target.exists() or (parts.fragment and parts.fragment not in _anchors(name)):
                broken.append(f"{page}: {link}")
    assert broken == [] and checked > 150


def test_pages_of_the_site_link_to_pages_of_the_site() -> None:
    """What is outside docs/ is not part of it."""
    outside = [
        f"{page}: {link}"
        for page in pages()
        if page.startswith("docs/")
        for link in _links(page)
        if not urlsplit(link).scheme and urlsplit(link).path
        if DOCS not in relative(page, urlsplit(link).path).resolve().parents
    ]
    assert outside == []


class _Page(HTMLParser):
    """What a built page links to and loads, its anchors, and the text of its paragraphs."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.paragraphs: list[str] = []
        self._inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loads.append(given["src"])
        elif tag == "link" and given.get("rel") != "canonical":
            self.loads.append(given.get("href", ""))
        if tag == "p":
            self._inside = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.paragraphs[-1] += data


def _build(folder: Path) -> tuple[int, str]:
    """The exit code, and what was printed."""
    words = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    plain = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr).partition("Traceback")[0]
    return done.returncode, plain


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical")
    folder = tmp_path_factory.mktemp("documentation")
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(CONFIGURATION, folder)
    return folder


@pytest.fixture(scope="module")
def site(source: Path) -> dict[str, _Page]:
    """The pages of the built site by their path."""
    code, printed = _build(source)
    assert code == 0, printed
    built = source / "build" / "site"
    return {
        page.relative_to(built).as_posix(): _Page(page.read_text(encoding="utf-8"))
        for page in built.rglob("*.html")
        if page.name != "404.html"
    }


def test_the_site_has_every_page_and_needs_no_other(site: dict[str, _Page]) -> None:
    expected = {
        page.removeprefix("docs/").removesuffix(".md") + ".html" for page in pages() if page.startswith("docs/")
    }
    assert set(site) == expected
    for name, page in site.items():
        elsewhere = [load for load in page.loads if urlsplit(load).netloc]
        assert elsewhere == [], f"{name} loads {elsewhere}"


def test_links_of_the_site_lead_somewhere(site: dict[str, _Page], source: Path) -> None:
    built, broken = source / "build" / "site", []
    for name, page in site.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = ((built / name).parent / unquote(parts.path)).resolve() if parts.path else built / name
            target = target / "index.html" if target.is_dir() else target
            reached = site.get(target.relative_to(built.resolve()).as_posix()) if built in target.parents else None
            fragment = unquote(parts.fragment)
            if reached is None or (fragment and fragment not in reached.anchors and fragment != "__skip"):
                broken.append(f"{name}: {link}")
    assert broken == []


def test_lists_and_tables_of_the_site_are_lists_and_tables(site: dict[str, _Page]) -> None:
    """Python's Markdown wants a blank line before either, GitHub's does not."""
    wrong = [
        f"{name}: {line[:60]}"
        for name, page in site.items()
        for paragraph in page.paragraphs
        for line in paragraph.splitlines()
        if re.match(r"(- |\d+\. |\|)", line)
    ]
    assert wrong == []


def test_broken_links_fail_the_build(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "docs" / "start.md").open("a") as file:
        file.write("\n[x](nowhere.md) [y](index.md#nowhere)\n")
    code, printed = _build(tmp_path)
    assert code != 0 and "page does not exist" in printed and "anchor does not exist" in printed
