"""What settings are called in messages: `--layer-ratio` for who types commands, `layer_ratio=` for who calls Python.

Everything that is reached from both asks here, and nothing else decides it. `prunecli.prune` and `prunecli.load` speak
Python while they run; everything else speaks as the command line does.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_python = ContextVar("_python", default=False)
_NO_VALUE = object()


@contextmanager
def python_names() -> Iterator[None]:
    """Names settings as Python's arguments for as long as it lasts."""
    token = _python.set(True)
    try:
        yield
    finally:
        _python.reset(token)


def option(name: str, value: Any = _NO_VALUE) -> str:
    """A setting, by its name alone or with a value.

    Args:
        name: As in Python, for instance "layer_ratio".
        value: What it is set to; a Boolean is a flag on the command line, such as --no-greedy.
    """
    if _python.get():
        if value is _NO_VALUE:
            return name
        return f"{name}={value:g}" if isinstance(value, float) else f"{name}={value!r}"
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    if value is _NO_VALUE:
        return f"--{flag}"
    return f"--{flag} {value:g}" if isinstance(value, float) else f"--{flag} {value}"


def give_data() -> str:
    """What to do where data is missing."""
    return "give calibration batches as data=" if _python.get() else "name a data set with --data"


def more_samples() -> str:
    """What to do where there is too little of it."""
    return "give more in data=" if _python.get() else "give more with --calibration-images"


def layer_list() -> str:
    """Where the names of a network's layers are to be found."""
    return "dict(model.named_modules())" if _python.get() else "prune inspect MODEL --layers"


def plain_weights() -> str:
    """How weights are loaded that have no manifest."""
    how = (
        "build the network and give it these with load_state_dict"
        if _python.get()
        else "load plain weights with --arch"
    )
    return f"holds no pruning manifest, and so no hashes; {how}"


def allow_code(reference: str) -> str:
    """How code is allowed that a file names."""
    return f"call prunecli.own_code.allow({reference!r})" if _python.get() else f"add --allow-code {reference}"


def with_arguments(text: str, names: Collection[str]) -> str:
    """A text that names options and their values, with Python's arguments in their place.

    Args:
        text: For instance "take others with --strip-prefix net.".
        names: Of the arguments that the caller has.
    """

    def argument(found: re.Match[str]) -> str:
        name = found[1].replace("-", "_")
        if name not in names:
            return found[0]
        return f'{name}="{found[2]}"' if found[2] else name

    return re.sub(r"--([a-z]+(?:-[a-z]+)*)(?: ([^\s,;]+))?", argument, text)


def spoken(reason: str) -> str:
    """A reason that reports keep, which names flags, as the error that shows it has to say it."""
    if not _python.get():
        return reason
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", lambda flag: f"{flag[1].replace('-', '_')}=True", reason)
