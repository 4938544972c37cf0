"""From the values in masks to class indices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunecli.data.class_lists import color_name
from prunecli.data.mask_survey import is_lossy
from prunecli.data.splits import ClassLabel
from prunecli.errors import DataError

VOID = 255
"""Class index of pixels that losses and figures ignore, and the number in masks that means so by default."""
VALUES = 1 << 16
"""Class numbers in masks are below this."""
_UNKNOWN = -1
_ADD = "add it to the file that names the classes, or count it as void: --void"
_ADD_COLOR = "add it, or void with this colour, to the file that names the classes"


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Class indices of mask values.

    Attributes:
        class_names: One per class.
        codes: All values with a meaning, ascending.
        indices: Their class indices, `VOID` for void.
        colored: Whether values are colours.
        nearest: Whether in masks of a lossy format other values mean what the nearest one means.
        notes: What the user should know about the masks.
        rows: The same for people, with the share of pixels.
    """

    class_names: tuple[str, ...]
    codes: NDArray[np.int64]
    indices: NDArray[np.int16]
    colored: bool = False
    nearest: bool = False
    notes: tuple[str, ...] = ()
    rows: tuple[ClassLabel, ...] = ()

    def classes_of(self, values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
        """Class indices and `VOID` of mask values, of the same shape.

        Raises:
            DataError: A value has no meaning.
        """
        if self.nearest and is_lossy(path):
            between = (self.codes[1:] + self.codes[:-1]) / 2
            closest: NDArray[np.uint8] = self.indices[np.searchsorted(between, values)].astype(np.uint8)
            return closest
        greys = not self.colored and int(values.max(initial=0)) < VALUES
        mapped: NDArray[np.int16] = self._table[values] if greys else self._searched(values)
        if (mapped == _UNKNOWN).any():
            raise self.no_class(values[mapped == _UNKNOWN].min(), path)
        return mapped.astype(np.uint8)

    def _searched(self, values: NDArray[Any]) -> NDArray[np.int16]:
        positions = np.searchsorted(self.codes, values).clip(max=len(self.codes) - 1)
        mapped: NDArray[np.int16] = np.where(self.codes[positions] == values, self.indices[positions], _UNKNOWN)
        return mapped

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        return self._searched(np.arange(VALUES))

    def no_class(self, value: int, path: Path) -> DataError:
        """The error for a value without a meaning."""
        classes = f"one of {len(self.class_names)} classes"
        if self.colored:
            return DataError(f"{path}: holds the colour {color_name(value)}, which is not {classes}; {_ADD_COLOR}")
        return DataError(f"{path}: holds the number {value}, which is not {classes}; correct the mask, or {_ADD}")
