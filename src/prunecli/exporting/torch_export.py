"""Programs of `torch.export`, which `torch.export.load` opens without the network's code, and without its packages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from prunecli.exporting.base import ExportRequest, RuntimeNetwork
from prunecli.exporting.graph import graph_of
from prunecli.exporting.quiet import without_words

_NAMES = "prunecli.names"
_OWN = ("aten", "prims", "prim", "higher_order", "_c10d_functional", "c10d", "quantized", "quantized_decomposed")
"""Namespaces of operators that torch has."""


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
        program = graph.program
        with without_words():
            if foreign_operators(program):  # those of spikingjelly consist of torch's
                program = program.run_decompositions({})
            torch.export.save(program, path, extra_files={_NAMES: names, **request.metadata})
        left = foreign_operators(program)
        if left:
            packages = sorted({operator.partition(".")[0] for operator in left})
            request.note(
                f"{request.loaded.name}: has operators that are not torch's ({', '.join(left)}); import "
                f"{', '.join(packages)} before torch.export.load, or it cannot read the program"
            )

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


def foreign_operators(program: torch.export.ExportedProgram) -> list[str]:
    """Operators that torch does not have by itself."""
    found = (node.target for node in program.graph.nodes if node.op == "call_function")
    named = {str(target) for target in found if isinstance(target, torch._ops.OpOverload)}
    return sorted(name for name in named if name.partition(".")[0] not in _OWN)


FORMAT = TorchExport()
