"""The exceptions of `prune`: each has a one-line message and an exit code.

PruneError (1)
|-- RecipeError (2)        a recipe, flag or report is wrong
|-- ModelError (2)         a model, checkpoint or weights file is wrong
|   `-- DataDependentError a model computes differently depending on its input values
|-- MethodError (2)        a method is unknown or not applicable
|   `-- TargetError        a method cannot remove as much as it is asked to
|-- DataError (2)          a data set is missing or wrong
|-- VerificationError (1)  the pruned network differs from the masked one
|-- DivergedError (1)      training has left finite numbers
|-- ResourceError (1)      the disk, memory or a worker process failed
|-- RanksDiffer (1)        processes that work together do not have the same
|-- RankLost (1)           one of them is gone
|-- FailedElsewhere        one of them has failed and has said so
|-- Interrupted (130, 143) Ctrl-C or SIGTERM
`-- GateFailed (3)         a --fail-if condition holds
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


class PruneError(Exception):
    """Base of every error shown to users.

    Args:
        message: What is wrong and what to do about it, in one line.
    """

    exit_code = 1


class RecipeError(PruneError):
    """A recipe, command-line value or report is invalid."""

    exit_code = 2


class ModelError(PruneError):
    """A model reference, checkpoint or weights file is invalid."""

    exit_code = 2


class DataDependentError(ModelError):
    """A model's control flow depends on the values of its input, so a single trace does not represent it."""


class MethodError(PruneError):
    """A pruning method does not exist, or does not support the request."""

    exit_code = 2


class TargetError(MethodError):
    """A method cannot remove as much as it is asked to."""


class DataError(PruneError):
    """A data set does not exist or is invalid."""

    exit_code = 2


class VerificationError(PruneError):
    """The pruned network computes something other than the masked original."""


class DivergedError(PruneError):
    """The loss or a weight is no longer a finite number."""


class ResourceError(PruneError):
    """The disk is full, memory ran out, or a data-loading process died."""


class RanksDiffer(PruneError):
    """Processes that work on one run together do not have the same plan, weights or versions."""


class RankLost(PruneError):
    """Another process that works on the same run is gone, or could not be reached."""


class FailedElsewhere(PruneError):
    """Another process that works on the same run has failed; that one shows its error.

    Args:
        message: What it says.
        exit_code: Its exit code, which becomes this one's.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(PruneError):
    """A signal ended the run; its state has been saved where possible.

    Args:
        message: What was saved and how to resume.
        signal: Number of the signal, for instance 2 (Ctrl-C) or 15 (SIGTERM).
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


class Stopped(KeyboardInterrupt):
    """A signal that ends the command as Ctrl-C does. Not an `Exception`, so that error handlers do not swallow it.

    Args:
        signal: Number of the signal.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(f"signal {signal}")
        self.signal = signal


class GateFailed(PruneError):
    """The condition of --fail-if is true."""

    exit_code = 3


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to `count` of `choices` that resemble `name`, the best match first."""
    import difflib

    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.5)


def meant(close: Sequence[str]) -> str:
    """Returns the question whether one of these names was meant, for instance "did you mean 'l1', 'l2' or 'fpgm'?"."""
    *others, last = map(repr, close)
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"


def unknown(kind: str, name: str, choices: Iterable[str], see: str | None = None) -> str:
    """Returns the message about an unknown name.

    Args:
        kind: The kind of thing that the name refers to, for instance "method".
        name: The unknown name.
        choices: The names that exist.
        see: A command that lists the choices; without it the message lists them.
    """
    options = list(choices)
    close = nearest(name, options)
    if close:
        hint = meant(close)
    elif see:
        hint = f"run `{see}` for the list"
    else:
        hint = "choose from " + ", ".join(options)
    return f"unknown {kind} {name!r}: {hint}"


def with_article(name: str) -> str:
    """Returns a class's name after "a" or "an", as it is pronounced: an OrderedDict, a UNet, an MLP."""
    if re.match(r"[Uu](?:[A-Z]|net|ni|se)", name):
        return f"a {name}"
    spelt = re.match(r"[FHLMNRSX][B-DF-HJ-NP-TV-Z]+(?![a-z])", name)
    return f"an {name}" if spelt or name[:1] in "AEIOUaeiou" else f"a {name}"


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an exception's message, cut to `limit` characters; the name of its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


def described(error: BaseException, limit: int = 200) -> str:
    """An exception's type, with the first line of its message if it has one."""
    kind, first = type(error).__name__, first_line(error, limit)
    return kind if first == kind else f"{kind}: {first}"
