"""The JSON beside an exported network: what it takes, where it comes from, and what was measured."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_serializer
from pydantic import SerializerFunctionWrapHandler as Handler

from prunecli.report.numbers import count, fixed, interval, size
from prunecli.report.schema import Latency
from prunecli.report.table import Table

EXPORT_SCHEMA: Literal["prunecli.export/1"] = "prunecli.export/1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: Handler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


class WrittenFile(_Strict):
    """A file that was written: its name in this folder, its bytes and their hash."""

    name: str
    bytes: int
    sha256: str


class TensorInfo(_Strict):
    """An input or output: its name, kind of numbers, and dimensions, of which those with a name may differ."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Preparation(_Strict):
    """How images become inputs, in this order.

    Resize to `size` divided by `crop_pct`, by `interpolation`; cut out the middle (`crop_mode` "center"), change the
    proportions ("squash") or fill up ("border"); divide by 255, subtract `mean`, divide by `std`. Channels are red,
    green and blue, and come first.
    """

    channels: int
    size: tuple[int, int]
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    frames: dict[str, JsonValue] | None = None


class Origin(_Strict):
    """The network: what it is called here, its architecture, and the sha256 of the file that it was loaded from."""

    name: str
    ref: str
    sha256: str | None = None
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    params: int


class Checked(_Strict):
    """How far it is from what PyTorch computes; see `prunecli.exporting.agreement.Agreement`."""

    batches: tuple[int, ...]
    largest: float
    relative: float
    tolerance: float
    moved: int = 0
    telling: bool = True


class RuntimeLatency(_Strict):
    """Time of one sample, or of a fixed batch, in a runtime, and its ratio to PyTorch's, taken in turns."""

    runtime: str
    latency_ms: Latency
    ratio: float
    ratio_interval: tuple[float, float]


class Quantised(_Strict):
    """Eight-bit integers: how they were found, and what it costs.

    `largest` and `relative` are the differences from the network in single precision on test images, or on the texts of
    the check; images with other pixels than any that ranges were measured on are further off. Scores are those of the
    files, run by ONNX Runtime on the test images; None: there are none, and `reason` says why.
    """

    file: str
    kind: Literal["static", "dynamic"]
    calibration_images: int = 0
    largest: float
    relative: float
    score_name: str | None = None
    score: float | None = None
    single_score: float | None = None
    images: int | None = None
    data: str | None = None
    reason: str | None = None


class ExportRecord(_Strict):
    """All of it."""

    schema_name: Literal["prunecli.export/1"] = Field(EXPORT_SCHEMA, alias="schema")
    format: str
    files: tuple[WrittenFile, ...]
    network: Origin
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    preprocessing: Preparation | None = None
    class_names: tuple[str, ...] | None = None
    vocabulary: dict[str, JsonValue] | None = None
    check: Checked | None = None
    latency: tuple[RuntimeLatency, ...] = ()
    int8: Quantised | None = None
    widths: dict[str, JsonValue] | None = None
    environment: dict[str, str | int] = Field(default_factory=dict)
    seed: int = 0
    command: str = ""

    def to_json(self) -> str:
        """The document."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"


def export_tables(record: ExportRecord) -> list[Table]:
    """What was written and how right it is, and latencies side by side."""
    rows = [("network", record.network.name), ("format", record.format)]
    rows += [("file", f"{file.name}, {size(file.bytes)}") for file in record.files]
    rows += [("parameters", count(record.network.params))]
    rows += [("input", _tensor(value)) for value in record.inputs] + [("output", _tensor(v)) for v in record.outputs]
    if record.class_names is not None:
        rows.append(("classes", str(len(record.class_names))))
    if record.check is not None:
        rows.append(("largest error", _error(record.check)))
    if record.int8 is not None:
        rows += _int8_rows(record.int8)
    tables = [Table(("figure", "value"), rows)]
    if record.latency:
        cells = [
            (
                entry.runtime,
                f"{entry.latency_ms.median:.2f} ms {interval(*entry.latency_ms.interval)}",
                f"x{entry.ratio:.3f} {interval(*entry.ratio_interval, digits=3)}",
            )
            for entry in record.latency
        ]
        samples = record.latency[0].latency_ms.batch_size
        timed = "one sample" if samples == 1 else f"{samples} samples"
        tables.append(Table(("runtime", timed, "of PyTorch's"), cells, numeric=(1, 2)))
    return tables


def _tensor(value: TensorInfo) -> str:
    return f"{value.name}: {value.dtype} {' x '.join(map(str, value.shape)) or 'scalar'}"


def _error(check: Checked) -> str:
    batches = " and ".join(map(str, sorted(set(check.batches))))
    moved = f"; {check.moved} samples decided otherwise" if check.moved else ""
    return f"{check.largest:.2g} ({check.relative:.1e} of the largest output), batches of {batches}{moved}"


def _int8_rows(int8: Quantised) -> list[tuple[str, str]]:
    rows = [("int8 error", f"{int8.largest:.2g} ({int8.relative:.1e} of the largest output)")]
    if int8.score_name is not None:
        rows.append((f"{int8.score_name}, fp32", f"{fixed(int8.single_score)} on {int8.images} of {int8.data}"))
        rows.append((f"{int8.score_name}, int8", fixed(int8.score)))
    elif int8.reason is not None:
        rows.append(("int8 accuracy", f"not measured: {int8.reason}"))
    return rows
