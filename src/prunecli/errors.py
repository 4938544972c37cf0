"""The exceptions of `prune`: each is one clear line and knows its exit code.

PruneError (1)
|-- RecipeError (2)        a recipe, flag or report is wrong
|-- ModelError (2)         a model, checkpoint or weights file is wrong
|   `-- DataDependentError a model takes another course for other inputs
|-- MethodError (2)        a method cannot do what was asked
|-- DataError (2)          a data set is missing or wrong
|-- VerificationError (1)  the pruned network is not the masked one
|-- ResourceError (1)      the disk, the memory or a helper process failed
|-- Interrupted (130, 143) Ctrl-C or SIGTERM
`-- GateFailed (3)         a --fail-if condition holds
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PruneError(Exception):
    """Base of every error a user is meant to read.

    Args:
        message: What is wrong and what to do about it, in one line.
    """

    exit_code = 1


class RecipeError(PruneError):
    """A recipe, command line value or report is invalid."""

    exit_code = 2


class ModelError(PruneError):
    """A model reference, checkpoint or weights file is invalid."""

    exit_code = 2


class DataDependentError(ModelError):
    """What a model computes depends on the values of its input, so no single trace holds."""


class MethodError(PruneError):
    """A pruning method does not exist or cannot do what was asked."""

    exit_code = 2


class DataError(PruneError):
    """A data set does not exist or is invalid."""

    exit_code = 2


class VerificationError(PruneError):
    """The pruned network does not compute what the masked original computes."""


class ResourceError(PruneError):
    """The disk is full, memory ran out, or a process that loads data has died."""


class Interrupted(PruneError):
    """A signal asked for the end; what was done is saved.

    Args:
        message: What was saved and how to go on.
        signal: Number of the signal, for instance 2 (Ctrl-C) or 15 (SIGTERM).
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


class Stopped(KeyboardInterrupt):
    """A signal that ends the command like Ctrl-C does. No Exception, so nothing that handles failures swallows it.

    Args:
        signal: Its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal


class GateFailed(PruneError):
    """A condition given with --fail-if holds."""

    exit_code = 3


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to `count` of `choices` that resemble `name`, best first."""
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.5)


def unknown(kind: str, name: str, choices: Iterable[str], see: str | None = None) -> str:
    """Words an error about a name that does not exist.

    Args:
        kind: What the name should have been, for instance "method".
        name: What was given.
        choices: The names that exist.
        see: A command that lists the choices; without it they are listed here.
    """
    options = list(choices)
    close = nearest(name, options)
    if close:
        hint = "did you mean " + " or ".join(repr(option) for option in close) + "?"
    elif see:
        hint = f"run `{see}` for the list"
    else:
        hint = "choose from " + ", ".join(options)
    return f"unknown {kind} {name!r}: {hint}"
