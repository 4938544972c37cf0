"""From the values in masks to class indices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunecli.data.class_lists import CLASSES_FILE, color_name
from prunecli.data.splits import MaskLabel
from prunecli.errors import DataError

VOID = 255
"""Class index of pixels that losses and figures ignore, and the number in masks that means so by default."""
VALUES = 1 << 16
"""Class numbers in masks are below this."""
_UNKNOWN = -1
_ADD = f"add it to {CLASSES_FILE}, or count it as void: --void"
_ADD_COLOR = f"add it to {CLASSES_FILE}, `red,green,blue: name`, or as void: `red,green,blue: void`"


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Class indices of mask values.

    Attributes:
        class_names: One per class.
        codes: All values with a meaning, ascending.
        indices: Their class indices, `VOID` for void.
        colored: Whether values are colours.
        nearest: Whether other values mean what the nearest one means, as in masks of a lossy format.
        notes: What the user should know about the masks.
        rows: The same for people, with the share of pixels.
    """

    class_names: tuple[str, ...]
    codes: NDArray[np.int64]
    indices: NDArray[np.int16]
    colored: bool = False
    nearest: bool = False
    notes: tuple[str, ...] = ()
    rows: tuple[MaskLabel, ...] = ()

    def classes_of(self, values: NDArray[Any], path: Path) -> NDArray[np.uint8]:
        """Class indices and `VOID` of mask values, of the same shape.

        Raises:
            DataError: A value has no meaning.
        """
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
        values = np.arange(VALUES)
        if not self.nearest:
            return self._searched(values)
        closest = np.abs(values[: VOID + 1, None] - self.codes).argmin(axis=1)
        table: NDArray[np.int16] = self.indices[closest][np.minimum(values, VOID)]
        return table

    def no_class(self, value: int, path: Path) -> DataError:
        """The error for a value without a meaning."""
        classes = f"one of {len(self.class_names)} classes"
        if self.colored:
            return DataError(f"{path}: holds the colour {color_name(value)}, which is not {classes}; {_ADD_COLOR}")
        return DataError(f"{path}: holds the number {value}, which is not {classes}; correct the mask, or {_ADD}")
