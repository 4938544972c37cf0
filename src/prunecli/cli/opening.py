"""What `prune` says on its own, and to a first word that is no command. Imports nothing heavy."""

from __future__ import annotations

import shlex
from pathlib import Path

from prunecli.checkpoint import WEIGHT_SUFFIXES

OPENING = """\
Prune trained neural networks, with proof that the smaller network is the right one.

Three commands to begin with, each of which continues the one before:

  prune run quickstart
      Trains a small network, halves it and compares; a minute, nothing to download.
  prune l1 runs/quickstart/trained.safetensors --ratio 0.3 --data digits
      Removes 30 % of a network's channels and proves the result. Name your own file
      instead, and its data: folder:PATH for images in one folder per class.
  prune compare runs/quickstart/trained.safetensors trained-l1.safetensors
      Shows what became of its size, speed and accuracy.

Then: `prune recipe ls` for more examples, `prune methods` for other ways to prune,
`prune COMMAND --help` for one command, `prune --help` for all of them.
"""


def answer_to(word: str) -> str | None:
    """What to do with a first word that is no command, if it is something else that is known.

    Args:
        word: For instance "model.pt".

    Returns:
        One line; None if nothing is known of the word.
    """
    path, shown = Path(word).expanduser(), shlex.quote(word)
    if path.suffix in (".yaml", ".yml"):
        return f"{word} is a recipe, and a command comes first: prune run {shown}, or prune recipe check {shown}"
    if path.suffix == ".json":
        return f"{word} is no command; for a report write prune inspect {shown}, or prune compare {shown} OTHER"
    if path.suffix in (*WEIGHT_SUFFIXES, ".ckpt") or _is_reference(word):
        kind = "is a network" if ":" in word or path.exists() else "would be a network (there is no such file here)"
        return (
            f"{word} {kind}, and a command comes first: prune inspect {shown}, prune eval {shown} --data DATA, "
            f"prune predict {shown} IMAGES, "
            f"prune l1 {shown} --ratio 0.5 (or any method), prune finetune {shown} --data DATA"
        )
    if path.is_dir():
        if (path / "run.json").is_file():
            return f"{word} is the folder of a run, and a command comes first: prune report {shown}"
        if (path / "config.json").is_file():
            return f"{word} is a folder of a network, and a command comes first: prune l1 hf:{shown} --ratio 0.5"
        return f"{word} is a folder, and a command comes first; if it holds data: prune eval MODEL --data {shown}"
    if path.is_file():
        return f"{word} is a file, and a command comes first; for a network: prune inspect {shown}"
    from prunecli.recipe.shipped import shipped_names

    if word in shipped_names():
        return f"{word} is the name of a recipe, and a command comes first: prune run {word}"
    return None


def _is_reference(word: str) -> bool:
    from prunecli.models.index import SOURCES

    source, colon, _ = word.partition(":")
    return bool(colon) and source in SOURCES.names
