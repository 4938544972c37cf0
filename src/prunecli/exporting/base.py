"""What a format is, and what it is given."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunecli.errors import ModelError, first_line
from prunecli.inputs import Inputs, output_tensors
from prunecli.models.loading import LoadedModel


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        format: Its name.
        path: The file or folder to write.
        batch: Samples that it always takes; None: any number.
        dynamic_size: Whether sizes of images, or lengths of texts, may differ.
        int8: Whether eight-bit integers are written too.
        calibration_images: Images that their scales are measured on.
        rounds: Paired timings; 0: none.
        force: Whether to replace files.
    """

    format: str
    path: Path
    batch: int | None = None
    dynamic_size: bool = False
    int8: bool = False
    calibration_images: int = 256
    rounds: int = 30
    force: bool = False


@dataclass(frozen=True)
class ExportRequest:
    """What is to be written.

    Attributes:
        loaded: The network, in single precision and evaluation mode.
        example: Inputs to trace it with; two different samples, or as many as `batch` says.
        batch: Samples that it always takes; None: any number.
        dynamic_size: Whether height and width of images, or the length of texts, may differ.
        metadata: What the file itself is to say of the network, where the format has room for it.
        note: Says something to the user.
    """

    loaded: LoadedModel
    example: Inputs
    batch: int | None = None
    dynamic_size: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    note: Callable[[str], None] = lambda text: None


class Format(Protocol):
    """A format.

    Attributes:
        suffix: How names of its files end; empty: it is a folder.
        label: What runs it, for tables; empty: nothing does but the packages that networks come from.
        also: Other formats whose runtimes open its files, too.
        described: Whether a JSON beside it says what the network takes and where it comes from.
    """

    suffix: str
    label: str
    also: tuple[str, ...]
    described: bool

    def require(self) -> None:
        """Checks, before any work, that what writes it is installed.

        Raises:
            ModelError: It is not; the message says what to install.
        """
        ...

    def write(self, request: ExportRequest, path: Path) -> None:
        """Writes the network, in a folder where nothing else is.

        Args:
            request: The network.
            path: The file or folder; more files may be written beside it.

        Raises:
            ModelError: The format cannot express the network.
        """
        ...

    def opened(self, path: Path) -> nn.Module | None:
        """What was written, as a module that runs it; None where nothing runs it."""
        ...


class RuntimeNetwork(nn.Module):
    """A network that another program runs, to be called as the original is.

    It returns its only output as a tensor, several by name. Copies are the same object: no copy of it has weights.

    Args:
        inputs: Names of its inputs, in order.
        outputs: Names of its outputs, in order.
        run: From the tensors of a batch to those of its outputs.
    """

    def __init__(
        self, inputs: Sequence[str], outputs: Sequence[str], run: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    ) -> None:
        super().__init__()
        self.inputs, self.outputs, self._run = tuple(inputs), tuple(outputs), run

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs it."""
        given = in_order(kwargs or args, self.inputs)
        results = self._run([tensor.detach().cpu().contiguous() for tensor in given])
        if len(results) == 1:
            return results[0]
        return dict(zip(self.outputs, results, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeNetwork:
        return self


def safe_name(name: str) -> str:
    """A name that every format takes."""
    return re.sub(r"\W", "_", name)


def in_order(inputs: Any, names: Sequence[str]) -> list[Tensor]:
    """The tensors of inputs in the order of a graph's inputs: those of a mapping may come in any.

    Args:
        inputs: Inputs of any form.
        names: Names of the graph's inputs.

    Raises:
        ModelError: They are others.
    """
    if not isinstance(inputs, Mapping):
        tensors = output_tensors(inputs)
    else:
        by_name = {safe_name(key): value for key, value in inputs.items() if isinstance(value, Tensor)}
        tensors = [by_name[name] for name in names if name in by_name] if len(by_name) == len(names) else []
    if len(tensors) != len(names):
        raise ModelError(f"it takes {', '.join(names)}, and was given something else")
    return tensors


def installed(module: str, needed_for: str) -> Any:
    """A package that an exporter needs.

    Raises:
        ModelError: It is not installed, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = (error.name or module).partition(".")[0]
        raise ModelError(
            f"--to {needed_for} needs {name} ({first_line(error, 120)}); pip install 'prunecli[export]'"
        ) from error


def threads() -> int:
    """How many threads a runtime gets: as many as torch, so that they can be compared."""
    return torch.get_num_threads()
