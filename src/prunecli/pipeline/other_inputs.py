"""Inputs of the current network where it takes neither images nor tokens alone."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.data.events import Binning
from prunecli.data.loader import evaluation_batches
from prunecli.data.preparation import Preprocessing
from prunecli.data.splits import SampleSplit
from prunecli.errors import DataError, RecipeError, first_line
from prunecli.models.catalog import example_inputs
from prunecli.pipeline.model_inputs import ModelInputs
from prunecli.recipe.sizes import parse_shape


class OtherInputs(ModelInputs):
    """Inputs that the source of the network makes.

    Args:
        state: The run.
    """

    noun = "inputs"
    size_option = "example"

    def shape(self) -> tuple[int, ...]:
        """A report names no shape: there are several."""
        return ()

    def example_shape(self) -> tuple[int, ...]:
        """As `shape`."""
        return ()

    def preprocessing(self) -> Preprocessing:
        """Inputs are taken as they are."""
        return Preprocessing((0, 0, 0), (), ())

    def binning(self) -> Binning | None:
        """There are no recordings."""
        return None

    def example(self) -> Any:
        """Seeded inputs, a mapping of keyword arguments."""
        state = self._state
        loaded = state.model()
        return example_inputs(loaded.manifest.architecture.ref, loaded.model, state.recipe.seed)

    def normalisation(self) -> InputNormalisation | None:
        """As it was loaded."""
        return self._state.model().manifest.normalisation

    def check(self) -> None:
        """Refuses data sets that do not have the inputs ready.

        Raises:
            DataError: This is one.
        """
        data = self._state.data()
        if isinstance(data.test, SampleSplit):
            return  # inputs of its own
        raise DataError(
            f"{self._state.model().name} takes several inputs, which {self._state.data().name} does not have: leave "
            "--data out, or give a data set of your own with --data module:FILE:FUNCTION"
        )


class GivenInputs(OtherInputs):
    """Inputs of a network of the user's own: an example file or shape, or the first sample of his data set.

    Args:
        state: The run.
    """

    size_option = "example-shape"

    def shape(self) -> tuple[int, ...]:
        """Shape of one sample where it is a tensor, as in an image; else none."""
        example = self.example()
        return tuple(example.shape[1:]) if isinstance(example, torch.Tensor) else ()

    def example_shape(self) -> tuple[int, ...]:
        """As `shape`."""
        return self.shape()

    @cached_property
    def _example(self) -> Any:
        state, section = self._state, self._state.recipe.model
        if section.example is not None:
            return read_example(Path(section.example).expanduser())
        generator = torch.Generator().manual_seed(state.recipe.seed)
        if section.example_shape is not None:
            shape = parse_shape(section.example_shape)
            return drawn(shape.lengths, shape.integers, generator)
        if state.data_name() is not None:
            batch, _ = next(iter(evaluation_batches(state.data().test, self.preprocessing(), 1)))
            return batch
        recorded = state.model().manifest.architecture
        if recorded.input_shape:
            return drawn((1, *recorded.input_shape), recorded.integer_inputs, generator)
        raise RecipeError(
            f"{state.model().name}: what does it take? Give --example-shape 1x3x64x64 (with the batch; 1x128:int64 for "
            "whole numbers), --example FILE.npz, or a data set"
        )

    def integers(self) -> bool:
        """Whether its one input holds whole numbers."""
        example = self.example()
        return isinstance(example, torch.Tensor) and example.dtype == torch.int64

    def example(self) -> Any:
        """One seeded input, or what the file has."""
        return self._example


def drawn(shape: Sequence[int], integers: bool, generator: torch.Generator) -> torch.Tensor:
    """Random numbers of a shape: normal ones, or 0 and 1, which are tokens of any vocabulary."""
    return torch.randint(2, shape, generator=generator) if integers else torch.randn(*shape, generator=generator)


def read_example(path: Path) -> Any:
    """Inputs in a NumPy file: keyword arguments by their names, or positional ones as `numpy.savez` names them.

    Raises:
        RecipeError: It is missing, or no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise RecipeError(
            f"--example {path}: no such file; write one with numpy.savez(FILE, argument=array)"
        ) from error
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise RecipeError(
            f"--example {path}: no .npz file of plain arrays ({first_line(error, 120)}); use numpy.savez"
        ) from error
    tensors = {name: _tensor(array, path, name) for name, array in arrays.items()}
    if not tensors:
        raise RecipeError(f"--example {path}: holds no arrays; write them with numpy.savez(FILE, argument=array)")
    if all(name == f"arr_{index}" for index, name in enumerate(tensors)):
        values = tuple(tensors.values())
        return values[0] if len(values) == 1 else values
    return tensors


def _tensor(array: Any, path: Path, name: str) -> torch.Tensor:
    if array.dtype.kind not in "fiub":
        raise RecipeError(f"--example {path}: {name} is {array.dtype}; arrays of numbers are needed")
    wide = {"f": np.float32, "i": np.int64, "u": np.int64, "b": np.bool_}[array.dtype.kind]
    return torch.from_numpy(np.ascontiguousarray(array.astype(wide)))
