"""The pruning manifest: how a checkpoint was created, and how to rebuild its network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)

from prunecli.checkpoint.arguments import problem_with, too_large
from prunecli.errors import ModelError

MANIFEST_SCHEMA: Literal["prunecli.manifest/1"] = "prunecli.manifest/1"

_MAX_DIMENSIONS = 8
_MAX_LENGTH = 1 << 20
MAX_TOKENS = 1 << 21
_MAX_NUMBERS = 1 << 26
_MAX_CHANNELS = 4096
_MAX_NAME = 1000
_MAX_REMOVED = 100_000
_MAX_TOKENIZER = 1 << 27

_Channels = Annotated[tuple[float, ...], Field(max_length=_MAX_CHANNELS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)
    _rare: ClassVar[tuple[str, ...]] = ()
    """Fields that few files need: the others leave them out, and keep their bytes."""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        for name in self._rare:
            if getattr(self, name) == type(self).model_fields[name].get_default(call_default_factory=True):
                content.pop(name, None)
        return content


class Architecture(_Strict):
    """A model reference such as "timm:resnet50", and the arguments that build it unpruned.

    An empty `ref` stands for the user's own model, which has to be passed to `prunecli.load`.

    Attributes:
        ref: "source:name".
        kwargs: Arguments that every source may take.
        config: Of sources that build networks from a configuration: that configuration, which the source checks.
        input_shape: Shape of one sample; empty where the inputs are no single tensor.
        integer_inputs: Whether a network of the user's own takes whole numbers.
        class_name: The class of the network.
    """

    _rare = ("config", "integer_inputs")
    ref: str
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    config: dict[str, JsonValue] = Field(default_factory=dict)
    input_shape: tuple[int, ...] = ()
    integer_inputs: bool = False
    class_name: str = ""

    @field_validator("kwargs")
    @classmethod
    def _check_arguments(cls, kwargs: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name, value in kwargs.items():
            problem = problem_with(name, value)
            if problem is not None:
                raise ValueError(problem)
        return kwargs

    @field_validator("config")
    @classmethod
    def _check_config(cls, config: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if too_large(config):
            raise ValueError("the configuration is too large, or nested too deeply")
        return config

    @field_validator("input_shape")
    @classmethod
    def _check_shape(cls, shape: tuple[int, ...]) -> tuple[int, ...]:
        if len(shape) > _MAX_DIMENSIONS or not all(1 <= length <= _MAX_LENGTH for length in shape):
            raise ValueError("not a valid input shape")
        if math.prod(shape) > _MAX_NUMBERS:
            raise ValueError(f"over {_MAX_NUMBERS:,} numbers")
        return shape


class InputNormalisation(_Strict):
    """How images were prepared for this network.

    Attributes:
        mean: Per channel, of pixels from 0 to 1.
        std: Per channel.
        interpolation: Of resizing.
        crop_pct: Share of the resized image that is used.
        crop_mode: What happens to other proportions: "center" cuts them off, "squash" changes them, "border" fills up.
    """

    _rare = ("crop_mode",)
    mean: _Channels
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(max_length=_MAX_CHANNELS)]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    crop_pct: float = Field(1.0, ge=0.05, le=2.0)
    crop_mode: Literal["center", "squash", "border"] = "center"


class TokenStage(_Strict):
    """One pruning stage: the block, how many patch tokens are kept, and how many of these are anchors."""

    block: int = Field(ge=0, lt=1000)
    kept: int = Field(ge=1, le=_MAX_LENGTH)
    anchors: int = Field(0, ge=0, le=_MAX_LENGTH)


class TokenSelection(_Strict):
    """How a vision transformer drops tokens while it runs; its weights do not change.

    Attributes:
        selector: See `prunecli.tokens.selectors`; "tome" merges `merged` pairs in every block from its single stage on.
        tokens: Number of tokens without pruning, including those before the patches.
        stages: The stages, in order.
        inside: Prune between the attention and the MLP of the block instead of before it.
        alpha: Weight of attention against distance.
        to_anchors: Score tokens by the attention they pay to anchors instead of the attention they receive.
        seed: Seed of random choices.
        merged: Pairs merged in each block.
    """

    selector: Literal["anchor", "cls", "diversity", "random", "evit", "tome"]
    tokens: int = Field(ge=2, le=_MAX_LENGTH)
    stages: tuple[TokenStage, ...] = Field(min_length=1, max_length=1000)
    inside: bool = False
    alpha: float = Field(0.5, ge=0, le=1)
    to_anchors: bool = False
    seed: int = 0
    merged: int = Field(0, ge=0, le=_MAX_LENGTH)


class RuntimeChange(_Strict):
    """How a network runs differently, by a method that an installed package brings; its weights do not change."""

    method: str = Field(max_length=200)
    change: dict[str, JsonValue]


class Masks(_Strict):
    """What is held at zero.

    Attributes:
        weights: Parameters with masked weights. The file has a tensor of bits for each, named by `masks.bits_name`.
        spikes: Modules whose spikes are masked, and the shape of the mask, which is a buffer of the module.
    """

    weights: list[str] = Field(default_factory=list, max_length=_MAX_LENGTH)
    spikes: dict[str, tuple[Annotated[int, Field(ge=1, le=_MAX_LENGTH)], ...]] = Field(default_factory=dict)

    def joined(self, before: Masks | None) -> Masks:
        """These masks and earlier ones, which hold on."""
        if before is None:
            return self
        names = dict.fromkeys((*before.weights, *self.weights))
        return Masks(weights=list(names), spikes=before.spikes | self.spikes)

    @field_validator("spikes")
    @classmethod
    def _check_shapes(cls, spikes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        if any(len(shape) > _MAX_DIMENSIONS or math.prod(shape) > _MAX_NUMBERS for shape in spikes.values()):
            raise ValueError("not the shape of a mask")
        return spikes


class UsedVocabulary(_Strict):
    """Which token of a text has which number; see `prunecli.data.vocabulary.Vocabulary`."""

    level: Literal["word", "char"]
    tokens: Annotated[tuple[str, ...], Field(max_length=_MAX_LENGTH)]

    @field_validator("tokens")
    @classmethod
    def _check_tokens(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(tokens)) < len(tokens) or "<unk>" not in tokens:
            raise ValueError("not a vocabulary: every token once, and <unk> among them")
        return tokens


class UsedTokenizer(_Strict):
    """The tokenizer that a network reads texts with; the file has its definition as a tensor of bytes.

    Attributes:
        tokens: How many different tokens it has.
        size: Bytes of its definition.
        padding: The token that fills up short texts; None: none.
        end: The token behind the end of a text; None: none.
    """

    tokens: int = Field(ge=1, le=MAX_TOKENS)
    size: int = Field(ge=2, le=_MAX_TOKENIZER)
    padding: int | None = Field(None, ge=0, le=MAX_TOKENS)
    end: int | None = Field(None, ge=0, le=MAX_TOKENS)
    _definition: str = PrivateAttr("")

    @property
    def definition(self) -> str:
        """The definition, as JSON; empty where only the manifest was read."""
        return self._definition

    def with_definition(self, definition: str) -> UsedTokenizer:
        """The same with its definition, which is in memory alone."""
        copied = self.model_copy()
        copied._definition = definition
        return copied


class Edit(_Strict):
    """One group of channels that was sliced. `keep_indices` refer to the width before this edit."""

    kind: Literal["slice"] = "slice"
    group: str
    width_before: int
    width_after: int
    keep_indices: list[int]
    layers: list[str]


class RemovedBlock(_Strict):
    """One module that was taken out of the network.

    Attributes:
        name: Its name in the network as it was just before: the entries of a list move up when one is taken out.
        left: What is in its place: nothing, in lists, or a module that passes on what it is given.
    """

    name: str = Field(max_length=_MAX_NAME)
    left: Literal["nothing", "identity"] = "nothing"


class Untouched(_Strict):
    """A layer or group that was pruned less than requested, or not at all, and why."""

    name: str
    channels: int
    reason: str


class UsedLabel(_Strict):
    """What one value in masks meant: a number, or a colour as "red,green,blue"; no name stands for void."""

    value: str = Field(pattern=r"^\d{1,5}$|^\d{1,3}(,\d{1,3}){2}$")
    name: str | None = Field(max_length=200)
    share: float = Field(ge=0, le=1)


class UsedData(_Strict):
    """The images that a stage used."""

    _rare = ("labels",)
    name: str
    split: str = "train"
    images: int = 0
    fingerprint: str = ""
    labels: list[UsedLabel] = Field(default_factory=list)


class Step(_Strict):
    """One stage in the history of a checkpoint: what was done, with which data and settings, to which file."""

    _rare = ("parent_weights",)
    stage: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    seed: int = 0
    data: UsedData | None = None
    parent: str | None = None
    parent_sha256: str | None = None
    parent_weights: dict[str, JsonValue] = Field(default_factory=dict)  # of several: `Chosen`, without what is empty
    figures: dict[str, JsonValue] = Field(default_factory=dict)
    untouched: list[Untouched] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    command: str = ""


class Manifest(_Strict):
    """Everything in a checkpoint other than its tensors.

    Attributes:
        sha256: Hash of the file's header with zeros in this field; empty in files of versions that wrote none.
        blocks: Modules that were taken out, in order.
        forms: Recurrent layers by name, and the other form that they have.
        attributes: By module, attributes that differ from those of a fresh build.
        extra_state: What modules keep besides tensors.
        edits: Groups of channels that were sliced, in order.
        history: What was done to it, in order.
        frozen_parameters: Parameters that training leaves alone.
        aliases: Names of tensors that are another one, and that one's.
        tensor_sha256: Hash of each tensor.
    """

    _rare = ("blocks", "forms", "extra_state", "runtime", "masks", "vocabulary", "tokenizer")
    schema_name: Literal["prunecli.manifest/1"] = Field(MANIFEST_SCHEMA, alias="schema")
    sha256: str = ""
    architecture: Architecture
    normalisation: InputNormalisation | None = None
    blocks: list[RemovedBlock] = Field(default_factory=list, max_length=_MAX_REMOVED)
    forms: dict[str, Literal["stack", "cell"]] = Field(default_factory=dict)
    attributes: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)
    extra_state: dict[str, JsonValue] = Field(default_factory=dict)
    edits: list[Edit] = Field(default_factory=list)
    tokens: TokenSelection | None = None
    runtime: RuntimeChange | None = None
    masks: Masks | None = None
    vocabulary: UsedVocabulary | None = None
    tokenizer: UsedTokenizer | None = None
    history: list[Step] = Field(default_factory=list)
    frozen_parameters: list[str] = Field(default_factory=list)
    aliases: dict[str, str] = Field(default_factory=dict)
    tensor_sha256: dict[str, str] = Field(default_factory=dict)

    def to_json(self) -> str:
        """Compact JSON with a stable key order, so that equal manifests give equal bytes."""
        return self.model_dump_json(by_alias=True)

    def last(self, stage: str) -> Step | None:
        """The most recent step of that stage, if any."""
        return next((step for step in reversed(self.history) if step.stage == stage), None)


def parse_manifest(text: str, path: Path, *, intact: bool) -> Manifest:
    """Reads a manifest from its JSON text.

    Args:
        text: The text.
        path: The file, for messages.
        intact: Whether the hash of the file's header is correct.

    Raises:
        ModelError: It is damaged, has another schema, or sets something that no checkpoint needs.
    """
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: its header is damaged (the manifest is not valid JSON); {_AGAIN}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    schema = schema if isinstance(schema, str) else None
    if schema is None:
        raise ModelError(f"{path}: its header is damaged (the manifest has no schema); {_AGAIN}")
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
        return "it is nested too deeply"
    first = error.errors(include_input=False)[0]
    location = ".".join(str(part)[:40] for part in first["loc"])
    message = f"{location}: {first['msg']}"[:200]
    return "".join(character if character.isprintable() else "?" for character in message)


def as_json(value: Any) -> JsonValue:
    """Converts a value to JSON: tuples become lists, unknown objects become text."""
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)
