"""Numbers and names of the classes of texts, and of words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunecli.data.splits import ClassLabel
from prunecli.errors import DataError

_MOST_CLASSES = 10_000
_LONGEST_NAME = 200
_NAMED = 8


def named_classes(
    known: tuple[str, ...], labels: Sequence[int | str], found: Path, outputs: int | None = None
) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers.

    Args:
        known: Those that the network has learned, or the file lists; empty: they are made from the labels.
        labels: Numbers, or names, of which none is left out.
        found: Where they come from, for messages.
        outputs: How many classes a network has learned without names; None: there is no such network.

    Raises:
        DataError: There are too few or too many, or nothing says which name is which output.
    """
    names = known
    numbered = all(isinstance(label, int) for label in labels)
    if not names and outputs is not None:
        if not numbered:
            raise DataError(
                f"{found}: its labels are names, and the network has none for the {outputs:,} classes that it has "
                "learned: give labels as numbers, or the names in the network's configuration (id2label)"
            )
        names = tuple(map(str, range(outputs)))
    elif not names and numbered:
        highest = max(int(label) for label in labels)
        names = tuple(map(str, range(min(highest, _MOST_CLASSES) + 1)))
    elif not names:
        names = tuple(sorted(set(map(str, labels))))
    wrong = len(names) > _MOST_CLASSES or any(len(name) > _LONGEST_NAME for name in names)
    if wrong or len(names) < 2:
        what = "fewer than two classes" if len(names) < 2 else f"more classes than {_MOST_CLASSES:,}, or names too long"
        raise DataError(f"{found}: its labels are {what}; name the column with the classes with --label-column")
    return names


def class_numbers(
    labels: Sequence[int | str], recorded: tuple[str, ...], names: tuple[str, ...], found: Path
) -> NDArray[np.int64]:
    """Class indices of labels, shape (labels,).

    Args:
        labels: Numbers, or names, in upper or lower case.
        recorded: The names that the file lists for its numbers; empty: none.
        names: Those of the network.
        found: Where the labels come from, for messages.

    Raises:
        DataError: A label is none of the classes.
    """
    exact = {name: number for number, name in enumerate(names)}
    folded = {name.casefold(): number for number, name in enumerate(names)}
    if not all(name.casefold() in folded for name in recorded):
        recorded = ()
    numbers = []
    for label in labels:
        number: int | None
        if isinstance(label, int) and label < len(recorded):  # the file may count the classes in another order
            number = exact.get(recorded[label], folded[recorded[label].casefold()])
        elif isinstance(label, int):
            number = label if label < len(names) else None
        else:
            number = exact.get(label, folded.get(label.casefold()))
        if number is None:
            shown = ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")
            raise DataError(
                f"{found}: label {label!r:.60} is none of the {len(names)} classes ({shown}); they are those that the "
                "network has learned, or of the training texts: give a file with these"
            )
        numbers.append(number)
    return np.array(numbers, dtype=np.int64)


def class_shares(names: tuple[str, ...], labels: NDArray[np.int64]) -> tuple[ClassLabel, ...]:
    """Every class with its number and its share of the labels, shape (labels,)."""
    counts = np.bincount(labels, minlength=len(names))
    return tuple(
        ClassLabel(str(number), name, float(counts[number] / len(labels))) for number, name in enumerate(names)
    )
