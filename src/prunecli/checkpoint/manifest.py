"""The pruning manifest: how a checkpoint was made and how to rebuild its network."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from prunecli.errors import ModelError

MANIFEST_SCHEMA: Literal["prunecli.manifest/1"] = "prunecli.manifest/1"


_WHOLE = {
    "num_classes": (0, 1_000_000),
    "in_chans": (1, 4096),
    "T": (1, 1024),
    "depth": (1, 128),
    "dim": (8, 8192),
    "num_heads": (1, 512),
    "patch_size": (1, 64),
    "image_size": (1, 4096),
    "img_size": (1, 4096),
    "embed_dim": (8, 8192),
}
_NUMBERS = {
    "width": (1e-3, 16.0),
    "mlp_ratio": (1e-2, 64.0),
    "tau": (1.0, 1e6),
    "v_threshold": (1e-6, 1e6),
    "v_reset": (-1e6, 1e6),
    "alpha": (1e-6, 1e6),
}
_OPEN = ("v_reset", "alpha")
"""Numbers that may be left out (None)."""
_SWITCHES = ("decay_input", "detach_reset")
_WORDS = ("neuron", "surrogate", "coding", "pool", "stem")
_WORD = re.compile(r"[a-z0-9-]{1,32}")
ARGUMENTS = (*_WHOLE, *_NUMBERS, *_SWITCHES, *_WORDS)
"""What an architecture may be built with. Other arguments could make a library read or fetch files."""
_MAX_DIMENSIONS = 8
_MAX_LENGTH = 1 << 20
_MAX_NUMBERS = 1 << 26
_MAX_CHANNELS = 4096

Channels = Annotated[tuple[float, ...], Field(max_length=_MAX_CHANNELS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class Architecture(_Strict):
    """A model reference such as "timm:resnet50" and the arguments to build it dense.

    An empty `ref` is a model of the user's own, which `prunecli.load` needs to be given.
    """

    ref: str
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    input_shape: tuple[int, ...] = ()
    class_name: str = ""

    @field_validator("kwargs")
    @classmethod
    def _check_arguments(cls, kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name, value in kwargs.items():
            problem = _problem(name, value)
            if problem is not None:
                raise ValueError(problem)
        return kwargs

    @field_validator("input_shape")
    @classmethod
    def _check_shape(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) > _MAX_DIMENSIONS or not all(1 <= length <= _MAX_LENGTH for length in shape):
            raise ValueError("no shape of an input")
        if math.prod(shape) > _MAX_NUMBERS:
            raise ValueError(f"over {_MAX_NUMBERS:,} numbers")
        return shape


class InputNormalisation(_Strict):
    """How images were prepared for this network."""

    mean: Channels
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=_MAX_CHANNELS)]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop_pct: float = Field(1.0, ge=0.05, le=2.0)


class TokenStage(_Strict):
    """One place where tokens are left out: a block, how many patch tokens stay, and how many of these are anchors."""

    block: int = Field(ge=0, lt=1000)
    kept: int = Field(ge=1, le=_MAX_LENGTH)
    anchors: int = Field(0, ge=0, le=_MAX_LENGTH)


class TokenSelection(_Strict):
    """How a vision transformer leaves tokens out while it runs; its weights do not change.

    Attributes:
        selector: See `prunecli.tokens.selectors`; "tome" merges `merged` pairs in every block from the only stage on.
        tokens: All tokens that the network has without it, those before the patches included.
        stages: Where, in order.
        inside: Between the attention and the MLP of the block, not before it.
        alpha: Weight of attention against distance.
        to_anchors: Attention that tokens pay to anchors counts, instead of what they get.
        seed: Of random places.
        merged: Pairs that are merged in each block.
    """

    selector: Literal["anchor", "cls", "diversity", "random", "evit", "tome"]
    tokens: int = Field(ge=2, le=_MAX_LENGTH)
    stages: tuple[TokenStage, ...] = Field(min_length=1, max_length=1000)
    inside: bool = False
    alpha: float = Field(0.5, ge=0, le=1)
    to_anchors: bool = False
    seed: int = 0
    merged: int = Field(0, ge=0, le=_MAX_LENGTH)


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


class UsedData(_Strict):
    """The images that a stage worked with."""

    name: str
    split: str = "train"
    images: int = 0
    fingerprint: str = ""


class Step(_Strict):
    """One stage in the life of a checkpoint: what was done, with what, to which file."""

    stage: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int = 0
    data: UsedData | None = None
    parent: str | None = None
    parent_sha256: str | None = None
    figures: dict[str, JsonValue] = Field(default_factory=dict)
    untouched: list[Untouched] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""


class Manifest(_Strict):
    """Everything beside the tensors that a checkpoint holds.

    `sha256` is that of the file's header with zeros in its place; it is empty in files of versions that wrote none.
    """

    schema_name: Literal["prunecli.manifest/1"] = Field(MANIFEST_SCHEMA, alias="schema")
    sha256: str = ""
    architecture: Architecture
    normalisation: InputNormalisation | None = None
    attributes: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    edits: list[Edit] = Field(default_factory=list)
    tokens: TokenSelection | None = None
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


def _problem(name: str, value: JsonValue) -> str | None:
    """What is wrong with an argument that an architecture is to be built with."""
    if name in _WHOLE:
        lowest, highest = _WHOLE[name]
        right = type(value) is int and lowest <= value <= highest
        return None if right else f"{name} has to be a whole number from {lowest} to {highest:,}"
    if name in _NUMBERS:
        low, high = _NUMBERS[name]
        right = type(value) in (int, float) and low <= value <= high  # type: ignore[operator]
        right = right or (value is None and name in _OPEN)
        return None if right else f"{name} has to be a number from {low:g} to {high:g}"
    if name in _SWITCHES:
        return None if type(value) is bool else f"{name} has to be true or false"
    if name in _WORDS:
        right = isinstance(value, str) and _WORD.fullmatch(value) is not None
        return None if right else f"{name} has to be a word"
    return f"{name[:80]!r} is no argument that a checkpoint may set"


def parse_manifest(text: str, path: Path, *, intact: bool) -> Manifest:
    """Reads a manifest from its JSON text.

    Args:
        text: The text.
        path: Its file, for messages.
        intact: Whether the hash of the file's header is right.

    Raises:
        ModelError: It is damaged, of another schema, or asks for something that no checkpoint needs.
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its header is damaged (the manifest is no valid JSON); {_AGAIN}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    schema = schema if isinstance(schema, str) else None
    if schema is None:
        raise ModelError(f"{path}: its header is damaged (the manifest names no schema); {_AGAIN}")
    if schema != MANIFEST_SCHEMA:
        raise ModelError(
            f"{path}: its manifest is not one this version reads (schema {schema!r:.40}); "
            "it was written by another version of prune or altered"
        )
    if "sha256" in content and not intact:
        raise ModelError(f"{path}: its header is damaged (its sha256 differs); {_AGAIN}")
    try:
        return Manifest.model_validate(content)
    except (ValidationError, RecursionError) as error:
        damaged = "" if intact else "its header is damaged, or "
        raise ModelError(
            f"{path}: {damaged}its manifest is not one this version reads ({_cause(error)}); "
            "it was written by another version of prune or altered"
        ) from error


_AGAIN = "fetch or make the file again"


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _cause(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "it is nested too deep"
    first = error.errors(include_input=False)[0]
    place = ".".join(str(part)[:40] for part in first["loc"])
    return "".join(letter if letter.isprintable() else "?" for letter in f"{place}: {first['msg']}"[:200])


def as_json(value: Any) -> JsonValue:
    """Turns tuples into lists and leaves JSON values as they are."""
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
