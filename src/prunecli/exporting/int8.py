"""Eight-bit integers after pruning, by the quantizer of ONNX Runtime.

Weights use seven of the bits: on processors without VNNI, sums of two products of eight bits do not fit into sixteen,
and are cut off without a word. A small Llama came out wrong by a fifth so, and by a hundredth with seven bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prunecli.errors import ModelError, first_line
from prunecli.exporting.base import in_order, installed
from prunecli.exporting.quiet import without_words

_PACKAGE = "onnxruntime.quantization"


def require() -> None:
    """Checks that the quantizer is installed, with what it needs.

    Raises:
        ModelError: It is not.
    """
    for module in ("sympy", _PACKAGE):
        installed(module, "onnx --int8")


def quantise_statically(path: Path, quantised: Path, batches: Iterable[Any], names: Sequence[str]) -> None:
    """Weights and activations as integers: a scale for each channel of weights, and one for what a layer gives.

    Args:
        path: The network in ONNX.
        quantised: The file to write.
        batches: Inputs that scales of activations are measured on.
        names: Names of the network's inputs.

    Raises:
        ModelError: The quantizer fails.
    """
    library = installed(_PACKAGE, "onnx --int8")

    class Reader(library.CalibrationDataReader):  # type: ignore[name-defined, misc]
        """The batches, by name."""

        def __init__(self) -> None:
            self._left: Iterator[Any] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            """The next batch; None behind the last."""
            inputs = next(self._left, None)
            if inputs is None:
                return None
            arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in in_order(inputs, names)]
            return dict(zip(names, arrays, strict=True))

    def quantise(prepared: Path) -> None:
        library.quantize_static(
            prepared,
            quantised,
            Reader(),
            quant_format=library.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=library.QuantType.QUInt8,  # kernels for signed ones are ten times slower without VNNI
            weight_type=library.QuantType.QInt8,
        )

    _quantised(path, quantise)


def quantise_weights(path: Path, quantised: Path) -> None:
    """Weights as integers, and activations while it runs, for networks that read texts.

    Args:
        path: The network in ONNX.
        quantised: The file to write.

    Raises:
        ModelError: The quantizer fails.
    """
    library = installed(_PACKAGE, "onnx --int8")

    def quantise(prepared: Path) -> None:
        kind = library.QuantType.QInt8
        library.quantize_dynamic(prepared, quantised, per_channel=True, reduce_range=True, weight_type=kind)

    _quantised(path, quantise)


def _quantised(path: Path, quantise: Any) -> None:
    """Quantises a copy with the shapes of everything in it, and with normalisations folded into convolutions."""
    pre_processing = installed(f"{_PACKAGE}.shape_inference", "onnx --int8")
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, without_words():
        prepared = Path(folder) / "prepared.onnx"
        try:
            pre_processing.quant_pre_process(str(path), str(prepared), skip_symbolic_shape=False)
            quantise(prepared)
        except Exception as error:  # of many types
            raise ModelError(
                f"{path.name}: ONNX Runtime cannot quantise it: {first_line(error)}; leave out --int8"
            ) from error
