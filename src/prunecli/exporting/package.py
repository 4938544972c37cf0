"""From networks to files of the packages that they come from."""

from __future__ import annotations

from pathlib import Path

from prunecli.copying import copied
from prunecli.errors import ModelError
from prunecli.exporting.base import ExportRequest
from prunecli.models.catalog import split_reference, writing_source
from prunecli.models.loading import LoadedModel
from prunecli.models.precision import in_precision
from prunecli.surgery.removal.rebuild import assign_tensors


def export(loaded: LoadedModel, path: Path) -> None:
    """Writes a network as its own package does, in the precision of the file that it was loaded from.

    Args:
        loaded: The network, dense or pruned.
        path: The file to write, replaced if it exists.

    Raises:
        ModelError: Its package has no file for a network of other widths, or the network runs in a way of its own.
    """
    manifest = loaded.manifest
    architecture = manifest.architecture
    source = split_reference(architecture.ref)[0] if architecture.ref else ""
    writer = writing_source(source)
    if writer is None:
        raise ModelError(
            f"{loaded.name}: {source or 'a network of your own'} has no file of its own for networks of other widths; "
            "checkpoints are what prunecli.load opens, and --to names formats of other programs"
        )
    if manifest.tokens is not None or manifest.runtime is not None:
        raise ModelError(
            f"{loaded.name}: leaves out tokens while it runs, which {source} does not; export the file before"
        )
    network = copied(loaded.model)
    assign_tensors(network, in_precision(loaded.model))
    writer.write(network, architecture.config, loaded.fixed_size, path)


class Package:
    """The file of a network's own package; see `prunecli.exporting.base.Format`."""

    suffix = ".pt"
    label = ""
    also = ()
    described = False

    def require(self) -> None:
        """What is needed is there, or the network could not have been loaded."""

    def write(self, request: ExportRequest, path: Path) -> None:
        """Writes it."""
        export(request.loaded, path)

    def opened(self, path: Path) -> None:
        """Its package runs it in ways of its own."""


FORMAT = Package()
