"""The network of a run in the runtime of another program, to be timed there."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from prunecli.exporting.agreement import agreement
from prunecli.exporting.base import ExportRequest
from prunecli.exporting.index import FORMATS, RUNTIMES
from prunecli.measure.environment import library_versions
from prunecli.pipeline.export_inputs import batch_of, decides_by_numbers, samples_for
from prunecli.pipeline.workspace import Workspace

_DISTRIBUTIONS = {"onnx": "onnxruntime"}


def in_runtime(space: Workspace, runtime: str) -> nn.Module:
    """The network as another program runs it: exported for one sample, and compared with the original.

    Args:
        space: The run.
        runtime: A name of `RUNTIMES`.

    Raises:
        ModelError: The program is not installed, or cannot run the network.
        VerificationError: It computes something else there.
    """
    kind, loaded, samples = FORMATS.load(runtime), space.model(), samples_for(space)
    kind.require()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"network{kind.suffix}"
        kind.write(ExportRequest(loaded, batch_of(samples, 1), 1), path)
        run = kind.opened(path)
        assert run is not None, "a format of `RUNTIMES` has something that runs it"
        batches = [batch_of([sample], 1) for sample in samples]
        name = f"{loaded.name} in {RUNTIMES[runtime]}"
        agreement(loaded.model.cpu().eval(), run, batches, decides=decides_by_numbers(space), name=name)
    return run


def version_of(runtime: str) -> str:
    """What a note calls a runtime."""
    distribution = _DISTRIBUTIONS.get(runtime, runtime)
    return f"{RUNTIMES[runtime]} {library_versions((distribution,)).get(distribution, '')}".strip()
