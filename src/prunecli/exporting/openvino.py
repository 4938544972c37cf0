"""OpenVINO's intermediate representation, converted from ONNX, in single precision."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.errors import ModelError, first_line
from prunecli.exporting.base import ExportRequest, RuntimeNetwork, installed, threads
from prunecli.exporting.onnx import FORMAT as ONNX
from prunecli.exporting.quiet import without_words

_REPORTS = "openvino_telemetry"


class OpenVino:
    """See `prunecli.exporting.base.Format`. Weights are in a second file, NAME.bin."""

    suffix = ".xml"
    label = "OpenVINO"
    also = ()
    described = True

    def require(self) -> None:
        """Checks that openvino is installed, and what writes ONNX."""
        _library()
        ONNX.require()

    def write(self, request: ExportRequest, path: Path) -> None:
        """Writes the graph; weights keep their precision, which OpenVINO would halve by itself."""
        library = _library()
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            between = Path(folder) / "network.onnx"
            ONNX.write(request, between)
            with without_words():
                try:
                    converted = library.Core().read_model(str(between))
                except Exception as error:  # of types of its own
                    raise ModelError(
                        f"{request.loaded.name}: OpenVINO does not convert it: {first_line(error)}; --to onnx writes it"
                    ) from error
                for key, value in request.metadata.items():
                    converted.set_rt_info(value, [f"prunecli_{key}"])
                library.save_model(converted, str(path), compress_to_fp16=False)

    def opened(self, path: Path) -> nn.Module:
        """The network in OpenVINO, on the CPU and in single precision, which it would lower where that is faster."""
        library = _library()
        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        with without_words():
            compiled: Any = library.Core().compile_model(str(path), "CPU", settings)
        inputs = [port.get_any_name() for port in compiled.inputs]
        outputs = [port.get_any_name() for port in compiled.outputs]

        def run(tensors: Sequence[Tensor]) -> list[Tensor]:
            results = compiled([tensor.numpy() for tensor in tensors])
            return [torch.from_numpy(results[port].copy()) for port in compiled.outputs]

        return RuntimeNetwork(inputs, outputs, run)


def _library() -> Any:
    """OpenVINO, imported without the module by which it reports to Intel that it was imported.

    Raises:
        ModelError: It is not installed.
    """
    if "openvino" in sys.modules or _REPORTS in sys.modules:  # the user's program has imported it
        return installed("openvino", "openvino")
    sys.modules[_REPORTS] = None  # type: ignore[assignment]
    try:
        return installed("openvino", "openvino")
    finally:
        del sys.modules[_REPORTS]


FORMAT = OpenVino()
