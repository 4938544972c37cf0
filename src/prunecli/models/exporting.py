"""From networks to files of the packages that they come from."""

from __future__ import annotations

from pathlib import Path

from prunecli.copying import copied
from prunecli.errors import ModelError
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
            "checkpoints are what prunecli.load opens"
        )
    if manifest.tokens is not None or manifest.runtime is not None:
        raise ModelError(
            f"{loaded.name}: leaves out tokens while it runs, which {source} does not; export the file before"
        )
    network = copied(loaded.model)
    assign_tensors(network, in_precision(loaded.model))
    writer.write(network, architecture.config, loaded.fixed_size, path)
