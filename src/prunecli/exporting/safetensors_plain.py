"""Tensors alone, for programs that build the network themselves; its widths are in the JSON beside the file."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunecli.checkpoint.manifest import Manifest
from prunecli.errors import VerificationError
from prunecli.exporting.base import ExportRequest
from prunecli.models.loading import LoadedModel
from prunecli.models.precision import in_precision


class SafetensorsPlain:
    """See `prunecli.exporting.base.Format`."""

    suffix = ".safetensors"
    label = ""
    also = ()
    described = True

    def require(self) -> None:
        """Nothing is needed."""

    def write(self, request: ExportRequest, path: Path) -> None:
        """Writes the state dict; tensors under several names are there under each, so that it loads strictly."""
        tensors = plain_tensors(request.loaded)
        save_file(tensors, path, metadata={"format": "pt"})
        check_equal(tensors, load_file(path), request.loaded.name)

    def opened(self, path: Path) -> None:
        """Tensors are not run."""


def plain_tensors(loaded: LoadedModel) -> dict[str, Tensor]:
    """The state dict of a network, in the precision of its file, each tensor with memory of its own."""
    every = in_precision(loaded.model)
    named = {name for name, value in loaded.model.state_dict().items() if isinstance(value, Tensor)}
    return {name: every[name].detach().cpu().clone().contiguous() for name in sorted(named)}


def widths_of(manifest: Manifest) -> dict[str, JsonValue]:
    """What was removed, for those who build the network: blocks, then channels; an edit's indices refer to the last."""
    content = manifest.model_dump(mode="json", include={"blocks", "forms", "edits", "attributes"})
    return {name: value for name, value in content.items() if value}


def check_equal(written: dict[str, Tensor], read: dict[str, Tensor], name: str) -> None:
    """Checks that tensors come back from a file bit by bit.

    Raises:
        VerificationError: They do not.
    """
    other = [key for key in written if key not in read or not _same(written[key], read[key])]
    if other or written.keys() != read.keys():
        raise VerificationError(
            f"{name}: {(other or sorted(read.keys() - written.keys()))[0]} was not written as it is"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


FORMAT = SafetensorsPlain()
