"""Loading somebody else's weights in Python: what the command line notes are warnings, its options arguments."""

from __future__ import annotations

import warnings
from pathlib import Path

from prunecli.errors import ModelError
from prunecli.models.loading import LoadedModel, load_file
from prunecli.models.precision import in_precision
from prunecli.naming import with_arguments
from prunecli.surgery.removal.rebuild import assign_tensors

_ARGUMENTS = ("arch", "weights_key", "strip_prefix")
_CALLER = 4
"""Frames up to whoever called `prunecli.load`."""


def load_foreign(
    file: Path, arch: str | None, weights_key: str | None, strip_prefix: str | None, allow_nonfinite: bool
) -> LoadedModel:
    """Somebody else's weights in the network that they belong to, each tensor as precise as in the file.

    Args:
        file: The file.
        arch: "source:name"; None: it is recognised.
        weights_key: Which set of weights in the file, by its keys joined by dots.
        strip_prefix: Take only tensors whose names begin with this, without it.
        allow_nonfinite: Whether weights may be NaN or infinite.

    Raises:
        ModelError: See `load_file`; the message names arguments of `prunecli.load`.
    """
    try:
        loaded = load_file(
            file, arch, weights_key=weights_key, strip_prefix=strip_prefix, allow_nonfinite=allow_nonfinite
        )
    except ModelError as error:
        raise ModelError(with_arguments(str(error), _ARGUMENTS)) from error
    for note in loaded.notes:
        warnings.warn(with_arguments(note, _ARGUMENTS), stacklevel=_CALLER)
    assign_tensors(loaded.model, in_precision(loaded.model))
    return loaded
