"""Functions of the user's own that build networks and data sets: run where the user names them, and only then.

A reference is "package.file:function". What a recipe, checkpoint or report names is somebody else's word: it runs only
after `allow` was called for its module, which the command line does for --allow-code and for what is typed on it. Then
only what the user's package defines runs: what a module imports, such as `os.system`, has to be typed.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from prunecli.errors import PruneError, described, unknown
from prunecli.naming import allow_code

PREFIX = "module:"
_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
_allowed: set[str] = set()


def allow(module: str) -> None:
    """Lets functions of a module run in this process.

    Args:
        module: Its dotted name, also with the name of a function behind a colon.
    """
    reference = module.removeprefix(PREFIX)
    _allowed.update((reference, reference.partition(":")[0]))


def is_reference(reference: str) -> bool:
    """Whether this is written as "package.file:function"."""
    return _REFERENCE.fullmatch(reference) is not None


def load_function(reference: str, error: type[PruneError], option: str) -> Callable[..., Any]:
    """Imports a function of the user's; modules in the current folder are found first, as with `python -m`.

    Args:
        reference: "package.file:function".
        error: What to raise.
        option: The option that names such a function, for messages.

    Raises:
        PruneError: Of type `error`: the reference is malformed, not allowed, or there is no such function.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None or match[1].endswith(".py"):
        raise error(f"{PREFIX}{reference}: write it as {option} {PREFIX}package.file:function, dotted and without .py")
    module, name = match.groups()
    if module not in _allowed:
        raise error(
            f"{PREFIX}{reference} is code, which is not run because a file names it: if you trust it, "
            f"{allow_code(module)}"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        loaded = import_module(module)
    except Exception as failure:  # whatever the user's module raises
        if isinstance(failure, ModuleNotFoundError) and f"{module}.".startswith(f"{failure.name}."):
            raise error(
                f"{PREFIX}{reference}: no module {failure.name} in this folder or installed; run where it can be found"
            ) from failure
        raise error(f"{PREFIX}{reference}: importing {module} fails: {described(failure)}") from failure
    function = getattr(loaded, name, None)
    if not callable(function):
        known = [key for key, value in vars(loaded).items() if callable(value) and not key.startswith("_")]
        raise error(f"{PREFIX}{reference}: {unknown('function', name, known)} (of {module})")
    if reference not in _allowed and not _defined_in(function, module):
        raise error(
            f"{PREFIX}{reference}: {module} only imports it, so that it is not run because a file names it: if you "
            f"trust it, {allow_code(reference)}"
        )
    return function  # type: ignore[no-any-return]


def _defined_in(function: Any, module: str) -> bool:
    """Whether a function or class is of the package that a module is in."""
    origin = getattr(function, "__module__", None)
    return isinstance(origin, str) and origin.partition(".")[0] == module.partition(".")[0]


def called(function: Callable[..., Any], reference: str, error: type[PruneError], **kwargs: Any) -> Any:
    """Calls a function of the user's.

    Raises:
        PruneError: Of type `error`: it fails.
    """
    try:
        return function(**kwargs)
    except Exception as failure:
        shown = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise error(f"{PREFIX}{reference}({shown[:120]}) fails: {described(failure)}; --debug shows where") from failure


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function by name; none where Python cannot tell."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # of a class written in C
        return {}


def allowed_modules() -> tuple[str, ...]:
    """What may run in this process, for other processes that work for it."""
    return tuple(sorted(_allowed))
