"""The verb table: every command with its static help, and where it is."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from prunecli import __version__
from prunecli.cli.declared import Group, Verb
from prunecli.cli.opening import OPENING, answer_to
from prunecli.errors import PruneError
from prunecli.methods.registry import all_methods

_SUMMARY = "Prune trained neural networks, with proof that the smaller network is the right one."


def _command(module: str, attribute: str = "command", *arguments: Any) -> Callable[[], Any]:
    return lambda: getattr(import_module(f"prunecli.cli.commands.{module}"), attribute)(*arguments)


_WORK, _LOOK, _METHODS = "Work", "Look", "Methods (prune METHOD MODEL is prune prune MODEL --method METHOD)"

VERBS: dict[str, Verb] = {
    "run": Verb("Run all stages of a recipe.", _WORK, _command("run")),
    "sweep": Verb("Run a recipe with many settings; continue, compare.", _WORK, _command("sweep")),
    "train": Verb("Train a network.", _WORK, _command("train")),
    "prune": Verb("Prune a network with any method.", _WORK, _command("prune")),
    "finetune": Verb("Recover accuracy after pruning.", _WORK, _command("train", "finetune_command")),
    "auto": Verb("Find the smallest network within a drop, by itself.", _WORK, _command("auto")),
    "eval": Verb("Measure accuracy, size and speed; write a report.", _WORK, _command("eval")),
    "export": Verb("Write a network as ONNX, OpenVINO and others read it.", _WORK, _command("export")),
    "compare": Verb("Compare reports, networks or methods; gate on the result.", _LOOK, _command("compare")),
    "report": Verb("Write a page, Markdown or a model card about a run.", _LOOK, _command("report")),
    "predict": Verb("Show what a network says about your own images.", _LOOK, _command("predict")),
    "sensitivity": Verb("Measure what each layer costs; write ratios by layer.", _LOOK, _command("sensitivity")),
    "audit": Verb("Find out which method ranks channels best.", _LOOK, _command("audit")),
    "inspect": Verb("Show a network's layers, manifest and history.", _LOOK, _command("inspect")),
    "models": Verb("List architectures.", _LOOK, _command("models")),
    "methods": Verb("List pruning methods.", _LOOK, _command("methods")),
    "recipe": Verb("List, copy, check, show or start recipes.", _LOOK, _command("recipe")),
    "doctor": Verb("Check this installation.", _LOOK, _command("doctor")),
    "completion": Verb("Tab completion for bash, zsh and fish.", _LOOK, _command("completion")),
}


def verbs() -> dict[str, Verb]:
    """All verbs: the table and one for each method, whose names may not clash.

    Raises:
        PruneError: A method takes the name of a command.
    """
    table = dict(VERBS)
    for name, spec in all_methods().items():
        if name in VERBS:
            raise PruneError(f"method {name!r} takes the name of a command; its package has to rename it")
        table[name] = Verb(spec.summary, _METHODS, _command("prune", "method_command", name))
    return table


def root() -> Group:
    """The `prune` command."""
    return Group("prune", verbs(), _SUMMARY, __version__, OPENING, answer_to)
