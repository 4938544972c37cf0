"""ONNX, by torch's exporter, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import ModelError
from prunecli.exporting.base import ExportRequest, RuntimeNetwork, installed, threads
from prunecli.exporting.graph import graph_of, operator_and_module
from prunecli.exporting.quiet import without_words

_MODULES = ("onnx", "onnxscript", "onnxruntime")
_ERRORS_ONLY = 3


class Onnx:
    """See `prunecli.exporting.base.Format`. Weights of more than 2 GB are in a second file, NAME.onnx.data."""

    suffix = ".onnx"
    label = "ONNX Runtime"
    also = ("openvino",)
    described = True

    def require(self) -> None:
        """Checks that onnx, onnxscript and onnxruntime are installed."""
        for module in _MODULES:
            installed(module, "onnx")

    def write(self, request: ExportRequest, path: Path) -> None:
        """Writes the graph with its weights; axes that may differ have names."""
        graph = graph_of(request)
        with without_words():
            try:
                made: Any = torch.onnx.export(
                    graph.program,
                    input_names=list(graph.inputs),
                    output_names=list(graph.outputs),
                    dynamic_shapes=graph.axes,
                    dynamo=True,
                    verbose=False,
                )
            except torch.onnx.errors.OnnxExporterError as error:
                what = operator_and_module(error, graph, request.loaded.model)
                raise ModelError(
                    f"{request.loaded.name}: ONNX has no translation of {what}; --to torch-export has all operators"
                ) from error
        made.model.metadata_props.update(request.metadata)
        made.save(str(path))

    def opened(self, path: Path) -> nn.Module:
        """The network in ONNX Runtime, on the CPU."""
        runtime = installed("onnxruntime", "onnx")
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = threads(), _ERRORS_ONLY
        session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        inputs, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            given = {name: tensor.numpy() for name, tensor in zip(inputs, tensors, strict=True)}
            return [torch.from_numpy(array) for array in session.run(None, given)]

        return RuntimeNetwork(inputs, outputs, run)


FORMAT = Onnx()
