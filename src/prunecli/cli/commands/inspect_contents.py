"""What `prune inspect --tree` and `--diff` do: look into files without building a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunecli.cli.options import option
from prunecli.cli.output import Output
from prunecli.errors import RecipeError

CONTENTS_OPTIONS = [
    option(
        "tree", bool, "Show what the file holds as a tree of modules; of safetensors only the header is read.", "--tree"
    ),
    option("depth", int, "Levels of the tree; default: all."),
    option("zeros", bool, "Count zeros in the tree, for which all tensors are read.", "--zeros"),
    option("diff", str, "Show how MODEL differs from this file.", "--diff"),
]


def show_tree(output: Output, path: Path, values: dict[str, Any]) -> None:
    """Shows the tensors of a file.

    Raises:
        RecipeError: There is no such file.
        ModelError: It is no weights file.
    """
    from prunecli.checkpoint.contents import contents_of
    from prunecli.studies.contents import contents_document, tree_of

    _check(path)
    if values["depth"] is not None and values["depth"] < 1:
        raise RecipeError(f"--depth has to be at least 1 (got {values['depth']})")
    contents = contents_of(path, key=values["weights_key"], zeros=bool(values["zeros"]))
    output.document(contents_document(contents))
    output.table(tree_of(contents, values["depth"]))


def show_difference(output: Output, first: Path, second: Path, values: dict[str, Any]) -> None:
    """Shows how the second file differs from the first.

    Raises:
        RecipeError: One of them does not exist.
        ModelError: One of them is no weights file.
    """
    from prunecli.checkpoint.contents import contents_of
    from prunecli.studies.contents import difference_of

    for path in (first, second):
        _check(path)
    difference = difference_of(*(contents_of(path, key=values["weights_key"]) for path in (first, second)))
    output.document(difference.document())
    for table in difference.tables():
        output.table(table)
    if difference.alike:
        output.note("all tensors are the same")


def _check(path: Path) -> None:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise RecipeError(f"{path}: {problem}; --tree and --diff look into weights files")
