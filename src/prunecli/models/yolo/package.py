"""The package ultralytics: imported when a network needs it, offline, silent and without files outside.

On import it asks the network whether there is one, writes its settings into the user's folder, replaces `torch.save`
and `PIL.Image.open` (which then wants another package for files that are no images), and sets variables of the
environment. Later it would install what it misses, report what it is used for, and fetch weights. All that is decided
by what it finds on import, so it is shown an offline machine and a folder of its own. A program that has imported it
before keeps what it has.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image

from prunecli.errors import ModelError, first_line
from prunecli.models.yolo.names import INSTALL, folder

_NAME = "ultralytics"
_OFFLINE = {
    "YOLO_OFFLINE": "true",
    "YOLO_AUTOINSTALL": "false",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",
}


@cache
def tasks() -> Any:
    """The package's module of networks.

    Raises:
        ModelError: It is not installed, or cannot be imported.
    """
    folder()
    try:
        with _as_offline(), torch.device("cpu"):  # heads have tensors of their class, which are made on import
            return import_module("ultralytics.nn.tasks")
    except Exception as error:  # of many types: it imports whatever else is installed
        raise ModelError(
            f"ultralytics: the package cannot be imported ({first_line(error)}); install it again: {INSTALL}"
        ) from error


def module(name: str) -> Any:
    """Another module of the package.

    Args:
        name: Its name below the package, such as "utils.ops".

    Raises:
        ModelError: See `tasks`.
    """
    tasks()
    with torch.device("cpu"):
        return import_module(f"{_NAME}.{name}")


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what the package reports, and undoes what building a network leaves on its classes."""
    package = tasks()
    logger = logging.getLogger(_NAME)
    before = logger.level
    convolution, head = package.Conv, package.Detect
    activation, legacy = convolution.default_act, head.legacy
    logger.setLevel(logging.ERROR + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
        convolution.default_act, head.legacy = activation, legacy


@contextmanager
def _as_offline() -> Iterator[None]:
    """Shows the package an offline machine, and undoes what its import changes elsewhere."""
    if _NAME in sys.modules:  # the program's own import: its settings stay
        yield
        return
    environment, numbers = dict(os.environ), np.get_printoptions()
    save, opening = torch.save, Image.open
    printing = torch._tensor_str.PRINT_OPTS
    shown = {name: getattr(printing, name) for name in ("precision", "threshold", "edgeitems", "linewidth", "sci_mode")}
    private = tempfile.mkdtemp(prefix="prunecli-ultralytics-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    os.environ.update(_OFFLINE, YOLO_CONFIG_DIR=private)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.save, Image.open = save, opening
        torch.set_printoptions(**shown)  # type: ignore[no-untyped-call]
        np.set_printoptions(**numbers)
