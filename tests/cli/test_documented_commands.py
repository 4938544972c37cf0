"""Commands in README and docs are commands: all are parsed or planned, and those in blocks marked `run` are run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from prunecli.cli.app import run
from prunecli.cli.lazy import LazyGroup, built
from prunecli.cli.verbs import root
from tests.conftest import REPOSITORY, Finished, Prune
from tests.pages import Block, blocks, mentioned_commands

RUN = ("run", "run, slow", "run, data")
"""Marks of blocks that are run: always, with `-m slow`, and with it where PRUNE_DATA has weights and data."""
PARSED_ONLY = {
    "CONTRIBUTING.md": "writes files of the repository, which other tests compare with what it would write",
    "README.md": "weights and images that the reader has; docs/start.md and the tutorials run the same verbs",
    "docs/depth.md": "weights, texts and folders of the reader's; tutorials/depth.md runs both verbs",
    "docs/detection.md": "trains on MNIST in clutter; tests/cli/test_detection.py runs something smaller",
    "docs/distributed.md": "several processes that import torch; tests/cli/test_distributed.py forks such",
    "docs/auto.md": "an hour on the whole of CIFAR-10; test_auto.py runs the same on a small network",
    "docs/energy.md": "a network and data of the reader's; tutorials/spiking.md runs them",
    "docs/events.md": "recordings of the reader's",
    "docs/export.md": "networks of the reader's; tests/cli/test_export.py runs such",
    "docs/finetuning.md": "CIFAR-10; tutorials/channels.md runs it",
    "docs/importance.md": "a text of the reader's; tutorials/language.md runs it",
    "docs/language.md": "a text of the reader's; tutorials/language.md runs it",
    "docs/large-models.md": "a folder of the reader's; tests/cli/test_offload.py prunes a small one",
    "docs/migration.md": "weights and data of the reader's, and hundreds of epochs",
    "docs/networks.md": "folders and code of the reader's; tests/cli/test_own_code.py runs such",
    "docs/predict.md": "networks and images of the reader's; tests/cli/test_predict.py runs such",
    "docs/reports.md": "reports and networks of the reader's; tests/cli/test_report.py runs such",
    "docs/sca.md": "hundreds of epochs on CIFAR-10; tutorials/training.md runs it",
    "docs/scaling.md": "network namespaces, which take root, Ray and SLURM",
    "docs/sparse.md": "networks of the reader's; tutorials/weights.md runs it",
    "docs/start.md": "installs the package, which has happened",
    "docs/text.md": "texts and folders of the reader's; tests/cli/test_text.py runs small ones",
    "docs/tokens.md": "weights to download; tutorials/tokens.md runs it",
    "docs/tracking.md": "trackers that take a server or an account; tests/cli/test_tracking.py runs small ones",
    "docs/tutorials/index.md": "installs the package, which has happened",
    "docs/ultralytics.md": "weights and boxes of the reader's; tests/methods/test_yolo.py runs small ones",
    "docs/unstructured.md": "hundreds of epochs on CIFAR-10; tutorials/training.md runs it",
    "examples/plugin/README.md": "needs the package; tests/plugin installs it and runs these commands",
    "docs/plugins.md": "needs the package of the example; tests/plugin installs it and runs these commands",
}
"""Pages with commands that no test runs as they stand, and why."""
OF_THE_EXAMPLE = ("docs/plugins.md", "examples/plugin/README.md")
"""Pages whose verbs are there once the example is installed."""
PATIENCE = 1800.0
"""Seconds that a command on a page may take."""


def _is_run(block: Block) -> bool:
    return block.mark in RUN


def _commands() -> list[tuple[Block, list[str]]]:
    return [(block, words) for block in blocks() for words in block.commands()]


def _deepest(words: list[str]) -> tuple[Any, list[str]]:
    """The command that a command line names, and the words that are left for it."""
    command: Any = built(root())
    while isinstance(command, LazyGroup) and words and not words[0].startswith("-"):
        context = command.context_class(command, info_name="prune")
        _, command, words = command.resolve_command(context, words)
    return command, words


def test_every_command_is_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown verbs, options and choices fail, and plans resolve where a verb can say what it would do."""
    monkeypatch.chdir(REPOSITORY)
    planned = parsed = 0
    for block, words in _commands():
        if words[0] != "prune" or block.page in OF_THE_EXAMPLE:
            continue
        command, rest = _deepest(words[1:])
        options = {name for parameter in getattr(command, "params", ()) for name in parameter.opts}
        if "--dry-run" in options and words[1] != "compare" and not _is_written_earlier(rest):
            code = run([*words[1:], *([] if "--dry-run" in rest else ["--dry-run"])])
            shown, said = capsys.readouterr()
            resolved = code == 0 or (
                shown.startswith("key\tvalue\tfrom\n") and "no such f" in said
            )  # a file or a folder
            assert resolved, f"{block.page}:{block.line}: {' '.join(words)}: {said}"
            planned += 1
        elif words[1].startswith("-"):
            assert run(words[1:]) == 0
        else:
            command.make_context("prune", list(rest))
            parsed += 1
    assert planned > 70 and parsed > 20, (planned, parsed)


def test_commands_in_running_text_have_their_options() -> None:
    wrong, options = [], 0
    for page, words in mentioned_commands():
        if words[1].isupper() or page in ("CHANGELOG.md", *OF_THE_EXAMPLE):
            continue
        command, rest = _deepest(words[1:])
        if isinstance(command, LazyGroup) and not words[1].startswith("-"):
            continue
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        known |= {"--help", *getattr(command, "aliases", ())}
        given = [word.partition("=")[0] for word in rest if word.startswith("-") and not word[1:2].isdigit()]
        wrong += [f"{page}: {' '.join(words)}: {option}" for option in given if option not in known]
        options += len(given)
    assert wrong == ["docs/benchmarks.md: prune l1 --ra: --ra"]  # which completion is asked to complete
    assert options > 50


def _is_written_earlier(rest: list[str]) -> bool:
    """A recipe that an earlier command on the page writes; those in `recipes/` have to be there."""
    return rest[0].endswith(".yaml") and not rest[0].startswith("recipes/")


def test_pages_whose_commands_are_only_parsed_say_why() -> None:
    pages = {block.page for block, words in _commands() if not _is_run(block)}
    assert pages == set(PARSED_ONLY)


def _stories() -> list[Any]:
    """What is to be done on each page, in order, with what it shows in between; with `-m slow` all of it."""
    stories = []
    for page, group in groupby(blocks(), key=lambda block: block.page):
        told = list(group)
        for name, marks in (("", ("run",)), ("slow", ("run", "run, slow")), ("data", ("run, data",))):
            story = list(_told(told, marks))
            if any(block.mark == marks[-1] for block in story):
                label = f"{page}, {name}" if name else page
                stories.append(pytest.param(story, id=label, marks=pytest.mark.slow if name else ()))
    return stories


def _told(page: list[Block], marks: tuple[str, ...]) -> Iterator[Block]:
    """Blocks with these marks, files, and what is shown behind a block with one of the marks: its output."""
    run = False
    for block in page:
        run = block.mark in marks if _is_run(block) else run
        if run or block.mark.startswith("file: "):
            yield block


TRAINED: dict[tuple[str, ...], tuple[Finished, dict[str, bytes]]] = {}
"""What a command that begins several pages has printed and written, by its words."""


def _do(prune: Prune, words: list[str], folder: Path) -> Finished:
    if words[0] == "pip":  # what is installed here is for whoever runs the tests to decide
        return Finished(0, "", "")
    if words[0] == "python":
        done = subprocess.run([sys.executable, *words[1:]], cwd=folder, capture_output=True, text=True, check=False)
        return Finished(done.returncode, done.stdout, done.stderr)
    assert words[0] == "prune", words
    if words[1] != "train":
        return prune(*words[1:], patience=PATIENCE)
    key = tuple(words)
    if key not in TRAINED:
        before = set(folder.iterdir())
        done = prune(*words[1:], patience=PATIENCE)
        TRAINED[key] = done, {path.name: path.read_bytes() for path in set(folder.iterdir()) - before}
    finished, written = TRAINED[key]
    for name, content in written.items():
        (folder / name).write_bytes(content)
    return finished


def _prepare(story: list[Block], folder: Path) -> None:
    """Puts there what a reader has: the recipes, and for commands on real data weights by their published names."""
    shutil.copytree(REPOSITORY / "recipes", folder / "recipes")
    if any(block.mark == "run, data" for block in story):
        data = Path(os.environ.get("PRUNE_DATA") or "nowhere").resolve()
        if not (data / "weights").is_dir():
            pytest.skip("PRUNE_DATA is not set to the folder of real data")
        for file in (data / "weights").iterdir():
            (folder / file.name).symlink_to(file)


@pytest.mark.parametrize("story", _stories())
def test_what_pages_show_can_be_done(story: list[Block], prune: Prune, tmp_path: Path) -> None:
    """Every command ends well, and what pages show of its output is called so in it."""
    _prepare(story, tmp_path)
    printed: list[str] = []
    for block in story:
        where = f"{block.page}:{block.line}"
        if block.mark.startswith("file: "):
            (tmp_path / block.mark.removeprefix("file: ")).write_text(block.body)
        for words in block.commands() if _is_run(block) else ():
            done = _do(prune, words, tmp_path)
            assert done.code == 0, f"{where}: {' '.join(words)}: {done.err}"
            printed += [done.out, done.err]
        if printed:
            missing = {label for label in block.labels() if label not in "".join(printed)}
            assert not missing, f"{where}: not printed: {missing}"
