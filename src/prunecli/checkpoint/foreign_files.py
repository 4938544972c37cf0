"""Reading weights that other programs saved, without running anything in the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue
from torch import Tensor

from prunecli.checkpoint.beside import is_average, is_beside, is_teacher
from prunecli.checkpoint.finite import check_finite
from prunecli.checkpoint.inert import Plain, StoredModule
from prunecli.checkpoint.io import read_tensors
from prunecli.checkpoint.kinds import open_weights, refusal
from prunecli.checkpoint.records import printable
from prunecli.checkpoint.torch_files import read_torch_file
from prunecli.checkpoint.weight_sets import choose_weights, settings_in
from prunecli.errors import ModelError
from prunecli.stored import Scratch

_PREFIXES = ("module.", "_orig_mod.", "model.")
_EXTRAS = ("n_averaged", "total_ops", "total_params")
"""What torch's AveragedModel and thop's counters leave among the tensors, by their last names."""
_LOSSES = ("criterion.", "loss.", "loss_fn.", "loss_fun.")
_MAX_NAME = 1024
_LISTED = 16
TOP = "."
"""The prefix of names that have none: as they are, without averages and teachers beside them."""
_INSIDE = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""What torch puts into names where a part of a network is compiled or wrapped."""


@dataclass(frozen=True)
class Chosen:
    """Which weights were taken of a file that has others.

    Attributes:
        key: Keys of the set, joined by dots, as `--weights-key` takes them; empty: it is not in a dictionary.
        prefix: What names begin with, as `--strip-prefix` takes it; empty: nothing.
        aside: Keys and prefixes of the others.
    """

    key: str = ""
    prefix: str = ""
    aside: tuple[str, ...] = ()

    def to_json(self) -> dict[str, JsonValue]:
        """For a manifest, without what is empty."""
        aside: list[JsonValue] = list(self.aside[:_LISTED])
        named: dict[str, JsonValue] = {"weights_key": self.key, "strip_prefix": self.prefix, "aside": aside}
        return {name: value for name, value in named.items() if value}

    @classmethod
    def from_json(cls, value: Mapping[str, JsonValue]) -> Chosen:
        """What `to_json` gave; anything else in a manifest is left aside."""
        key, prefix = (value.get(name) for name in ("weights_key", "strip_prefix"))
        return cls(key if isinstance(key, str) else "", prefix if isinstance(prefix, str) else "")


def joined(first: Chosen | None, second: Chosen | None) -> Chosen | None:
    """What was chosen by a key, and then by a prefix."""
    if first is None or second is None:
        return first or second
    return Chosen(first.key or second.key, second.prefix or first.prefix, (*first.aside, *second.aside))


@dataclass(frozen=True)
class ForeignWeights:
    """Weights that another program saved.

    Attributes:
        tensors: The state dict.
        class_path: The class of a model pickled as a whole, for instance "torchvision.models.resnet.ResNet".
        modules: Class and settings of the modules of such a model, by name.
        attributes: What such a model itself holds in numbers and words, also nested ones: its configuration, for one.
        settings: Numbers and words in the file beside its weights.
        notes: What the user should know about what was taken.
        own: Whether each tensor has memory for itself, or stays in the file, so that a network may take it as it is.
        chosen: Which of the weights in the file they are, where it has others.
        access: What follows `torch.load(...)` in Python to get such a model.
    """

    tensors: dict[str, Tensor]
    class_path: str | None = None
    modules: Mapping[str, StoredModule] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Plain] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    own: bool = False
    chosen: Chosen | None = None
    access: str = ""

    def without_prefix(self, prefix: str) -> ForeignWeights:
        """The weights under `prefix`, without it."""
        return replace(
            self,
            tensors={n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)},
            modules={
                f"{name}.".removeprefix(prefix).removesuffix("."): module
                for name, module in self.modules.items()
                if f"{name}.".startswith(prefix)
            },
        )


def read_foreign(
    path: Path,
    *,
    key: str | None = None,
    prefix: str | None = None,
    allow_nonfinite: bool = False,
    scratch: Scratch | None = None,
) -> ForeignWeights:
    """Reads weights from a safetensors file or one of torch.save that holds a state dict or a whole model.

    Nested dictionaries (`state_dict`, `model`, `model_ema` and the like) are unwrapped, exponential averages first,
    and prefixes that all keys share (`module.`, `_orig_mod.`) are removed. Nothing in the file is executed, and no
    class named in it is imported.

    Args:
        path: The file; its name does not matter.
        key: Which set of weights in the file, by its keys joined by dots.
        prefix: Take only tensors whose names begin with this, without it; `TOP`: those beside averages and teachers.
        allow_nonfinite: Whether tensors may hold NaN or infinity.
        scratch: If given, large tensors stay in the file, and what is computed of them goes here.

    Raises:
        ModelError: The file holds no state dict, or several, is damaged, or claims more than it holds; or it is one of
            torch.save, of which tensors cannot stay in the file.
    """
    with open_weights(path) as (file, kind):
        if kind == "safetensors":
            if key is not None:
                raise ModelError(f"{path}: --weights-key is for files of torch.save; a safetensors file has one set")
            weights = ForeignWeights(read_tensors(path, scratch), own=True)
        else:
            if scratch is not None:
                raise ModelError(
                    f"{path}: --offload disk leaves weights in files of safetensors, and this is one of torch.save; "
                    "save its state dict with safetensors.torch.save_file, or leave --offload out"
                )
            content = read_torch_file(file, path, legacy=kind == "legacy")
            chosen, notes = choose_weights(content, path, key)
            weights = ForeignWeights(
                chosen.tensors,
                chosen.class_path,
                chosen.modules or {},
                chosen.attributes or {},
                settings_in(content),
                notes,
                chosen=Chosen(chosen.key, aside=chosen.aside) if chosen.aside or key else None,
                access=chosen.access,
            )
    if not weights.tensors:
        raise ModelError(f"{path}: holds no tensors; give a file of weights")
    weights = _only(weights, prefix, path) if prefix is not None else _without_prefixes(_without_extras(weights))
    for name, tensor in weights.tensors.items():
        if len(name) > _MAX_NAME:
            raise refusal(path, f"has a tensor name of {len(name):,} characters", "fetch or save the file again")
        if tensor.is_sparse or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
            raise refusal(path, f"tensor {printable(name)} is not dense", "save dense tensors")
    check_finite(weights.tensors, path, allow_nonfinite)
    return weights


def _only(weights: ForeignWeights, prefix: str, path: Path) -> ForeignWeights:
    """The tensors under a prefix that the user gave, with or without what wrappers put before it.

    Raises:
        ModelError: There are none.
    """
    prefix = prefix if prefix.endswith(".") else f"{prefix}."
    under = weights.without_prefix(prefix) if prefix != TOP else _at_the_top(_without_prefixes(weights))
    if not under.tensors:
        under = _without_prefixes(weights).without_prefix(prefix)
    if not under.tensors:
        common = Counter(name.partition(".")[0] + "." for name in weights.tensors if "." in name)
        shown = ", ".join(printable(name) for name, _ in common.most_common(6))
        raise ModelError(f"{path}: --strip-prefix {prefix}: no name begins with it; names begin with {shown}")
    left = len(weights.tensors) - len(under.tensors)
    where = "at the top" if prefix == TOP else f"under {prefix}"
    notes = (f"left out {left} tensors of {path.name} that are not {where}",) if left else ()
    chosen = replace(weights.chosen or Chosen(), prefix=prefix)
    return replace(_without_extras(under), notes=(*weights.notes, *notes), chosen=chosen)


def _at_the_top(weights: ForeignWeights) -> ForeignWeights:
    """The weights without averages, teachers, losses and metrics that are named so first."""
    kept: dict[str, Tensor] = {}
    for name, tensor in weights.tensors.items():
        first = name.partition(".")[0]
        if not (is_average(first) or is_teacher(first) or is_beside(first, leaf="." not in name)):
            kept[name] = tensor
    return replace(weights, tensors=kept)


def _without_prefixes(weights: ForeignWeights) -> ForeignWeights:
    """Removes what wrappers put before all names, repeatedly, and what torch puts into some."""
    for part in _INSIDE:
        tensors = {name.replace(part, ""): tensor for name, tensor in weights.tensors.items()}
        if tensors.keys() != weights.tensors.keys() and len(tensors) == len(weights.tensors):
            weights = replace(
                weights,
                tensors=tensors,
                modules={f"{n}.".replace(part, "").removesuffix("."): module for n, module in weights.modules.items()},
            )
    while True:
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in weights.tensors)), None)
        if prefix is None:
            return weights
        weights = weights.without_prefix(prefix)


def _without_extras(weights: ForeignWeights) -> ForeignWeights:
    """Removes counters that tools leave in a state dict, and the tensors of a loss."""
    kept = {name: t for name, t in weights.tensors.items() if name.rpartition(".")[2] not in _EXTRAS}
    losses = [name for name in kept if name.startswith(_LOSSES)]
    notes = weights.notes
    if losses and len(losses) < len(kept):
        first = printable(losses[0])
        said = f"1 tensor of a loss, {first}" if len(losses) == 1 else f"{len(losses)} tensors of a loss, first {first}"
        notes += (f"left out {said}",)
        kept = {name: tensor for name, tensor in kept.items() if name not in losses}
    return replace(weights, tensors=kept or weights.tensors, notes=notes)
