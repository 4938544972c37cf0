"""All tasks by the name that a data set gives. A new one is a module here and one line."""

from __future__ import annotations

from importlib import import_module

from prunecli.engine.tasks.base import Described, Task

_TASKS = {
    "classification": "classification:Classification",
    "segmentation": "segmentation:Segmentation",
    "detection": "detection:Detection",
    "retrieval": "retrieval:Retrieval",
    "unlabelled": "unlabelled:Unlabelled",
    "word-language": "language:WordLanguage",
    "character-language": "language:CharacterLanguage",
    "token-language": "language:TokenLanguage",
    "masked-language": "masked_language:MaskedLanguage",
    "token-classification": "tagging:Tagging",
}


def task_of(data: Described) -> Task:
    """The task that a data set is for."""
    module, _, name = _TASKS[data.task].partition(":")
    kind: type[Task] = getattr(import_module(f"prunecli.engine.tasks.{module}"), name)
    return kind(data)
