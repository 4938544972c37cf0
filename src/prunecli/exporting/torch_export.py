"""Programs of `torch.export`, which `torch.export.load` opens without the network's code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prunecli.exporting.base import ExportRequest, RuntimeNetwork
from prunecli.exporting.graph import graph_of
from prunecli.exporting.quiet import without_words

_NAMES = "prunecli.names"


class TorchExport:
    """See `prunecli.exporting.base.Format`."""

    suffix = ".pt2"
    label = "torch.export"
    also = ()
    described = True

    def require(self) -> None:
        """Nothing is needed beside torch."""

    def write(self, request: ExportRequest, path: Path) -> None:
        """Writes the program; it takes what the network takes, and returns a tuple of tensors."""
        graph = graph_of(request)
        names = "\n".join((",".join(graph.inputs), ",".join(graph.outputs)))
        with without_words():
            torch.export.save(graph.program, path, extra_files={_NAMES: names, **request.metadata})

    def opened(self, path: Path) -> nn.Module:
        """The program, run by torch."""
        extra = {_NAMES: ""}
        with without_words():
            program = torch.export.load(path, extra_files=extra)
            module = program.module()
        inputs, outputs = (line.split(",") for line in extra[_NAMES].split("\n"))
        _, by_name = program.example_inputs or ((), {})

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            with torch.no_grad():
                return list(module(**dict(zip(by_name, tensors, strict=True))) if by_name else module(*tensors))

        return RuntimeNetwork(inputs, outputs, run)


FORMAT = TorchExport()
