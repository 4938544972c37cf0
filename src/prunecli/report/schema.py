"""The report that `eval` writes and `compare` reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, create_model, model_validator

from prunecli.errors import RecipeError
from prunecli.report.scores import SCORES

REPORT_SCHEMA: Literal["prunecli.report/1"] = "prunecli.report/1"


_MAX_BYTES = 64 << 20
_HEAD = 256


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Latency(_Strict):
    """Milliseconds of a forward pass: the median and its 95 % interval."""

    median: float
    interval: tuple[float, float]
    batch_size: int
    runs: int


def _score_fields() -> dict[str, Any]:
    """The scores of each task, and after them their intervals."""
    fields: dict[str, Any] = {}
    for task in dict.fromkeys(score.task for score in SCORES):
        scores = [score for score in SCORES if score.task == task]
        fields |= {score.name: (float | None, None) for score in scores}
        fields |= {f"{s.name}_interval": (tuple[float, float] | None, None) for s in scores if s.has_interval}
    return fields


_UNBOUNDED = tuple(score.name for score in SCORES if score.less_is_better)


def _is_nonfinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


_Scores: Any = create_model("_Scores", __base__=_Strict, **_score_fields())


class Metrics(_Scores):
    """Figures of one model. What was not measured is absent; accuracies are percentages, with 95 % intervals.

    `miou` is the mean over the classes that occur; `class_iou` has those by name. With operators in `macs_uncounted`,
    which were run and could not be counted, `macs` is a lower bound. A loss that is no number is named in `nonfinite`.

    `map50_95` and `map50` are mean average precisions of `objects` boxes, counted as COCO and as Pascal VOC do;
    `class_ap` has the first one by class.

    `image_recall_5` is the share of captions whose image is among the best 5, `text_recall_5` that of images one of
    whose captions is.

    `macs` of a spiking network are those of all its `timesteps`, zero or not. What it really does was measured on
    `energy_images` images: `multiplied` multiply-accumulates and `accumulated` accumulates make `energy_nj`;
    `integer_...` are the same where sums of spikes are read as that many spikes. `synops` are all accumulates driven
    by spikes in that reading, `effective_macs` multiplications without zeros. Sparsities and rates are shares of one.
    """

    class_iou: dict[str, float] | None = None
    class_ap: dict[str, float] | None = None
    objects: int | None = None
    loss: float | None = None
    images: int | None = None
    captions: int | None = None
    tokens: int | None = None
    params: int | None = None
    params_nonzero: int | None = None
    macs: int | None = None
    macs_uncounted: tuple[str, ...] = ()
    latency_ms: Latency | None = None
    peak_memory_bytes: int | None = None
    size_bytes: int | None = None
    timesteps: int | None = None
    firing_rate: float | None = None
    silent_channels: int | None = None
    saturated_channels: int | None = None
    synops: float | None = None
    multiplied: float | None = None
    effective_macs: float | None = None
    accumulated: float | None = None
    energy_nj: float | None = None
    integer_multiplied: float | None = None
    integer_accumulated: float | None = None
    integer_energy_nj: float | None = None
    energy_images: int | None = None
    energy_uncounted: tuple[str, ...] = ()
    connection_sparsity: float | None = None
    activation_sparsity: float | None = None
    footprint_bytes: int | None = None
    nonfinite: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _name_nonfinite(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        wrong = [name for name in ("loss", *_UNBOUNDED) if _is_nonfinite(values.get(name))]
        return {**values, **dict.fromkeys(wrong), "nonfinite": tuple(wrong)} if wrong else values


METRIC_NAMES = tuple(
    name for name, field in Metrics.model_fields.items() if field.annotation in (float | None, int | None)
)
"""Figures that are one number."""


class ModelInfo(_Strict):
    """Which model the figures belong to; `arguments` are those it is built with, such as num_classes."""

    ref: str
    path: str | None = None
    sha256: str | None = None
    input_shape: tuple[int, ...]
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class DataInfo(_Strict):
    """Which images the accuracy was measured on: `images` that were read, without `skipped` that could not be.

    The fingerprint is that of the whole split; `task` is classification, zeroshot, linear-probe, retrieval,
    segmentation, detection, word-language, character-language, token-language, masked-language or
    token-classification. Of a text, `images` are sequences, and the metrics have its tokens: those that were scored.

    `classes` are as many as the list of their names has, in its order, of which `class_list` is a hash; where images
    are compared with prompts these are the words in them, and `templates` the prompts.
    """

    name: str
    split: str
    images: int
    fingerprint: str
    skipped: int = 0
    task: str | None = None
    classes: int | None = None
    class_list: str | None = None
    templates: tuple[str, ...] | None = None


class LayerEnergy(_Strict):
    """Operations and nanojoules of one layer for one image; see `measure.synops.LayerOperations`."""

    name: str
    arriving: Literal["spikes", "integers", "real"]
    dense: float
    macs: float
    effective_macs: float
    acs: float
    energy_nj: float
    integer_macs: float
    integer_acs: float
    integer_energy_nj: float


class NeuronRates(_Strict):
    """How a layer of neurons fires: its mean rate, quantiles over channels, and channels that say nothing."""

    name: str
    channels: int
    rate: float
    quantiles: dict[str, float]
    silent: tuple[int, ...] = ()
    saturated: tuple[int, ...] = ()


class Report(_Strict):
    """One evaluation: the figures, what they belong to, and how to make them again.

    Attributes:
        energy_formula: What energy is made of.
        layers: Operations of each layer, of a spiking network.
        neurons: How its layers of neurons fire.
        environment: On what it was measured: processor, threads, versions.
        seed: From which seed.
        command: The command line.
    """

    schema_name: Literal["prunecli.report/1"] = Field(REPORT_SCHEMA, alias="schema")
    model: ModelInfo
    data: DataInfo | None = None
    metrics: Metrics
    energy_formula: str | None = None
    layers: tuple[LayerEnergy, ...] | None = None
    neurons: tuple[NeuronRates, ...] | None = None
    environment: dict[str, str | int] = Field(default_factory=dict)
    seed: int = 0
    command: str = ""

    def to_json(self) -> str:
        """The report as indented JSON; figures that were not measured are left out."""
        return json.dumps(self.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2) + "\n"


def is_report(path: Path) -> bool:
    """Whether a file looks like a report, by its first lines; one that cannot be read does not."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return b'"prunecli.report/' in file.read(_HEAD)
    except OSError:
        return False


def read_report(path: Path) -> Report:
    """Reads a report written by `prune eval`.

    Raises:
        RecipeError: The file is missing, is not JSON, or has another schema.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecipeError(f"{path}: over {_MAX_BYTES:,} bytes, so no report; write one with `prune eval -o`")
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}); write a report with `prune eval -o`") from error
    except (ValueError, RecursionError) as error:  # a ValueError is also a number of over 4300 digits
        cause = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise RecipeError(f"{path}: not a readable JSON report ({cause}); write one with `prune eval -o`") from error
    found = raw.get("schema") if isinstance(raw, dict) else None
    found = found if isinstance(found, str) else None
    if found != REPORT_SCHEMA:
        raise RecipeError(
            f"{path}: schema is {found!r:.40}, expected {REPORT_SCHEMA!r}; write the report again with `prune eval -o`"
        )
    try:
        return Report.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(str(part)[:40] for part in first["loc"])
        raise RecipeError(f"{path}: {place}: {first['msg']}; write the report again with `prune eval -o`") from error
