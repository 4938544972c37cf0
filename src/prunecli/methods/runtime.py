"""Methods that change how a network runs but none of its weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from prunecli.checkpoint.manifest import Manifest, RuntimeChange
from prunecli.errors import MethodError, ModelError, PruneError
from prunecli.inputs import Inputs
from prunecli.methods.registry import get_method


@dataclass(frozen=True)
class Description:
    """What a method reports about a change, in addition to the usual measurements.

    Attributes:
        document: Entries of the JSON document.
        rows: Table rows: a label, and texts for the unpruned network, the pruned one, and the baseline.
    """

    document: Mapping[str, Any] = field(default_factory=dict)
    rows: Sequence[tuple[str, str, str, str]] = ()


class RuntimeMethod(ABC):
    """A method that changes how a network runs; `MethodSpec.entry` names the class.

    A *change* is what the method decided, as plain data (a mapping or a pydantic model), so that it can be applied to
    the same network again.

    Attributes:
        done: What the method has done to a network, as in "its tokens are pruned".
    """

    done: str = "it runs differently"

    @abstractmethod
    def plan(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        params: Any,
        seed: int,
        speedup_of: Callable[[Any], float],
    ) -> Any:
        """Decides on a change.

        Args:
            model: The network, in evaluation mode.
            example_inputs: One input, on its device.
            params: An instance of the method's parameter dataclass.
            seed: Seed of everything random.
            speedup_of: Measures how many times faster a change makes the network.

        Raises:
            MethodError: The network or the parameters do not allow it.
        """

    @abstractmethod
    def apply(self, model: nn.Module, change: Any) -> Callable[[], None]:
        """Applies the change in place and returns a function that undoes it.

        Raises:
            MethodError: The change does not fit the network.
        """

    def baseline(self, model: nn.Module, change: Any, seed: int) -> Any:
        """A random change of the same size, as the baseline to beat; None if there is no such thing."""
        return None

    def describe(self, model: nn.Module, changes: Mapping[str, Any], example_inputs: Inputs) -> Description:
        """Describes the changes, given by name: "unpruned" (None), "pruned" and perhaps "random"."""
        return Description()

    def record(self, manifest: Manifest, method: str, change: Any) -> Manifest:
        """Returns the manifest with the change recorded; `recorded_change` reads it back."""
        return manifest.model_copy(update={"runtime": RuntimeChange(method=method, change=dict(change))})

    @contextmanager
    def applied(self, model: nn.Module, change: Any) -> Iterator[nn.Module]:
        """A context in which the network runs with the change; None means no change."""
        undo = self.apply(model, change) if change is not None else None
        try:
            yield model
        finally:
            if undo is not None:
                undo()


class _RecordedChange(NamedTuple):
    """A change recorded in a manifest, and its method."""

    method: RuntimeMethod
    change: Any


def get_runtime(name: str) -> RuntimeMethod:
    """The method called `name`, which changes how a network runs.

    Raises:
        MethodError: There is none, or its package is broken.
    """
    spec = get_method(name)
    method = spec.load()()
    if not isinstance(method, RuntimeMethod):
        raise MethodError(f"method {name}: {spec.entry} is not a RuntimeMethod")
    return method


def recorded_change(manifest: Manifest) -> _RecordedChange | None:
    """The runtime change that a manifest records, if any.

    Raises:
        ModelError: The method is not installed.
    """
    if manifest.tokens is not None:
        return _RecordedChange(get_runtime("token"), manifest.tokens)
    if manifest.runtime is None:
        return None
    try:
        return _RecordedChange(get_runtime(manifest.runtime.method), manifest.runtime.change)
    except MethodError as error:
        raise ModelError(
            f"its manifest needs method {manifest.runtime.method!r}, which is not installed here; "
            "install the package that brings it"
        ) from error


def apply_recorded(model: nn.Module, manifest: Manifest) -> None:
    """Applies the recorded runtime change to a restored network.

    Raises:
        ModelError: The method is not installed, or the change does not fit the network.
    """
    recorded = recorded_change(manifest)
    if recorded is None:
        return
    try:
        recorded.method.apply(model, recorded.change)
    except ModelError:
        raise
    except PruneError as error:
        raise ModelError(str(error)) from error
