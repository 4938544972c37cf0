"""The pruning manifest: how a checkpoint was made and how to rebuild its network."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

MANIFEST_SCHEMA: Literal["prunecli.manifest/1"] = "prunecli.manifest/1"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Architecture(_Strict):
    """A model reference such as "timm:resnet50" and the arguments to build it dense.

    An empty `ref` is a model of the user's own, which `prunecli.load` needs to be given.
    """

    ref: str
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    input_shape: tuple[int, ...] = ()
    class_name: str = ""


class InputNormalisation(_Strict):
    """How images were prepared for this network."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0


class Edit(_Strict):
    """One group of channels that was sliced. `keep_indices` are units of the layer's width before this edit."""

    kind: Literal["slice"] = "slice"
    group: str
    width_before: int
    width_after: int
    keep_indices: list[int]
    layers: list[str]


class Untouched(_Strict):
    """A layer or group whose width did not change, or not as far as asked, and why."""

    name: str
    channels: int
    reason: str


class Step(_Strict):
    """One stage in the life of a checkpoint: what was done, with what, to which file."""

    stage: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int = 0
    data: dict[str, JsonValue] | None = None
    parent: str | None = None
    parent_sha256: str | None = None
    figures: dict[str, JsonValue] = Field(default_factory=dict)
    untouched: list[Untouched] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""


class Manifest(_Strict):
    """Everything beside the tensors that a checkpoint holds."""

    schema_name: Literal["prunecli.manifest/1"] = Field(MANIFEST_SCHEMA, alias="schema")
    architecture: Architecture
    normalisation: InputNormalisation | None = None
    attributes: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    edits: list[Edit] = Field(default_factory=list)
    history: list[Step] = Field(default_factory=list)
    frozen_parameters: list[str] = Field(default_factory=list)
    aliases: dict[str, str] = Field(default_factory=dict)
    tensor_sha256: dict[str, str] = Field(default_factory=dict)

    def to_json(self) -> str:
        """The manifest as compact JSON with a stable key order, so equal manifests are equal bytes."""
        return self.model_dump_json(by_alias=True)

    def last(self, stage: str) -> Step | None:
        """The most recent step of that kind, if any."""
        return next((step for step in reversed(self.history) if step.stage == stage), None)


def as_json(value: Any) -> JsonValue:
    """Turns tuples into lists and leaves JSON values as they are."""
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
