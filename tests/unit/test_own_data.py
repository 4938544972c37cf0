"""`module:` data sets: labels that are what their items say, and nothing that is read wrongly without a word."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from prunecli import own_code
from prunecli.data.own import load
from prunecli.data.splits import DataSet
from prunecli.errors import DataError

Make = Callable[[Any], DataSet]


class _Own(Dataset[Any]):
    def __init__(self, labels: Any, item: Any = None, **attributes: Any) -> None:
        self.labels, self.item = labels, torch.zeros(3, 4, 4) if item is None else item
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Any:
        return self.item, self.labels[index]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Make:
    def load_returned(returned: Any) -> DataSet:
        module = ModuleType("own_sets")
        function = lambda: returned  # noqa: E731 - of that module
        function.__module__ = "own_sets"
        vars(module)["data"] = function
        monkeypatch.setitem(sys.modules, "own_sets", module)
        own_code.allow("own_sets")
        return load("own_sets:data", tmp_path, False)

    return load_returned


def test_labels_are_those_of_the_items_where_a_list_has_others(made: Make) -> None:
    mapped = _Own([1, 0, 1], targets=[5, 3, 5], target_transform=lambda label: label % 2)
    assert made({"test": mapped}).test.labels.tolist() == [1, 0, 1]
    assert made({"test": _Own([1, 0, 1], targets=[0, 0, 1])}).test.labels.tolist() == [1, 0, 1]
    listed = _Own([1, 0, 1], targets=torch.tensor([1, 0, 1]))
    assert made({"test": listed}).test.labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "labels", [[0.3, 1.9], [0, -1], [torch.tensor([0, 1])] * 2, np.array([[0, 1], [1, 0]]), [float("nan"), 1.0]]
)
def test_labels_that_are_no_class_numbers_are_refused(made: Make, labels: Any) -> None:
    with pytest.raises(DataError, match="a label is no class number"):
        made({"test": _Own(labels, targets=labels)})


def test_labels_may_be_tensors_and_whole_floats(made: Make) -> None:
    assert made({"test": _Own([torch.tensor(1), np.int64(0), 1.0])}).test.labels.tolist() == [1, 0, 1]


def test_splits_whose_numbers_mean_other_classes_are_refused(made: Make) -> None:
    """Folders of images count the classes that they have: with one missing, all others get another number."""
    train = _Own([0, 1, 2], classes=["ant", "bee", "cat"])
    with pytest.raises(DataError, match="different classes"):
        made({"train": train, "test": _Own([0, 1], classes=["ant", "cat"])})
    assert made({"train": train, "test": _Own([0, 1])}).class_names == ("ant", "bee", "cat")


def test_splits_that_are_prepared_differently_are_refused(made: Make) -> None:
    with pytest.raises(DataError, match="prepared alike"):
        made({"train": _Own([0, 1]), "test": _Own([0, 1], Image.new("RGB", (4, 4)))})
