"""`hf:...`: networks of transformers, by class, folder, or name on the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from prunecli.checkpoint.finite import check_finite
from prunecli.checkpoint.foreign_files import read_foreign
from prunecli.checkpoint.manifest import InputNormalisation, UsedTokenizer
from prunecli.errors import ModelError
from prunecli.models.hugging_face.configuration import checked, class_in, configured, read_json, recorded
from prunecli.models.hugging_face.examples import example_inputs
from prunecli.models.hugging_face.folder import (
    WeightFiles,
    find_folder,
    floating_dtypes,
    image_settings,
    tokenizer_of,
    weights_in,
)
from prunecli.models.hugging_face.library import class_named, class_names, isolated, taken_by
from prunecli.models.offloading import leave_in_files
from prunecli.models.source import Opened, OpenRequest, Takes
from prunecli.models.token_networks import purpose_named

__all__ = ["build", "example_inputs", "input_spec", "names", "open", "takes"]
_HEAD, _WEIGHTS = "head", "model.safetensors"
_SHOWN = 3
_LAYER = re.compile(r"\.\d+\.")


def names() -> list[str]:
    """All classes of transformers that build networks."""
    return list(class_names())


def takes(name: str) -> Takes:
    """What networks of a class take."""
    return taken_by(class_named(name)) if name in class_names() else "images"


def build(name: str, pretrained: bool, *, config: Mapping[str, Any] | None = None, **kwargs: Any) -> nn.Module:
    """Builds a network of a class with new weights, with attention that every kind of network has.

    Args:
        name: One of `names()`.
        pretrained: Not used; see `open`.
        config: What `configuration.recorded` returned for such a network.
        **kwargs: Entries of its configuration instead.

    Raises:
        ModelError: There is no such class, or it refuses the configuration.
    """
    kind, where = class_named(name), f"hf:{name}"
    said = dict(config or {})
    settings = checked(said.get("config", {}), where) | checked(_renamed(kwargs), where)
    model = _built(kind, configured(kind, settings, where), where)
    if said.get("generation") and hasattr(model, "generation_config"):
        try:
            settings_of: Any = type(model.generation_config)
            model.generation_config = settings_of.from_dict(dict(said["generation"]))
        except Exception as error:
            raise ModelError(f"{where}: its settings for generating are not valid: {str(error)[:120]}") from error
    return model


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation | None]:
    """Image height and width of its configuration, and ImageNet's statistics."""
    if takes(name) == "tokens":
        return None, None
    settings = image_settings(None, model.config)
    return settings.size, settings.normalisation


def open(name: str, request: OpenRequest) -> Opened:
    """Opens a class (with new weights), a folder, or a network of the hub.

    Args:
        name: `LlamaForCausalLM`, `PATH`, `OWNER/NAME` or `OWNER/NAME@REVISION`.
        request: Settings: entries of the configuration, and `head`, such as "sequence-classification".

    Raises:
        ModelError: There is no such network, it is code of its own, or its files are damaged.
    """
    settings = _renamed(request.kwargs)
    head = settings.pop(_HEAD, None)
    if name in class_names() and not Path(name).is_dir():
        return _new(name, settings, request)
    folder = find_folder(name)
    raw = read_json(folder / "config.json")
    if raw.get("library_name") == "prunecli":
        raise ModelError(
            f"{folder}: its widths are in no configuration; give the checkpoint in it, {folder / _WEIGHTS}"
        )
    kind = class_named(class_in(raw, head, str(folder)))
    count = request.num_classes if request.num_classes is not None else settings.pop("num_labels", None)
    config = checked(raw, str(folder)) | checked(settings, "--model-kwargs")
    own = configured(kind, config, str(folder))
    added = _has_new_classifier(kind, raw)
    if count is None and added:
        count = request.data_classes()
    changed = count is not None and count != getattr(own, "num_labels", None)
    if changed:
        own.num_labels = count
    model, notes = _loaded(kind, own, weights_in(folder), folder, raw, _Changes(changed, tuple(settings)))
    if request.scratch is not None:
        leave_in_files(model, request.scratch)
    check_finite(dict(model.named_parameters()), folder, request.allow_nonfinite)
    tokenizer, note = tokenizer_of(folder) if taken_by(kind) == "tokens" else (None, "")
    return _opened(model, folder, tokenizer, (*notes, *([note] if note else [])), new_classes=added or changed)


class _Changes(NamedTuple):
    """What is to be different from a folder's configuration: whether the number of classes, and which settings."""

    classes: bool
    settings: tuple[str, ...]


def _has_new_classifier(kind: Any, raw: Mapping[str, Any]) -> bool:
    """Whether a folder holds a network without the classifier that a class has."""
    saved = raw.get("architectures") or []
    return kind.__name__.endswith("Classification") and kind.__name__ not in saved


def _new(name: str, settings: dict[str, Any], request: OpenRequest) -> Opened:
    """A network with new weights; classes, or the vocabulary, as many as the data set has."""
    kind, where = class_named(name), f"hf:{name}"
    tokens, count = request.data_tokens(), request.num_classes or request.data_classes()
    if tokens is not None:
        # The library's defaults are tokens of a network's usual tokenizer. The one for padding is not learned.
        said = {"vocab_size": tokens.count, "pad_token_id": tokens.padding, "eos_token_id": tokens.end}
        settings = {**said, "bos_token_id": tokens.end, **settings}
    if count is not None and purpose_named(name) not in ("next token", "masked token"):
        settings.setdefault("num_labels", count)
    return _opened(
        _built(kind, configured(kind, checked(settings, where), where), where), None, None, (), new_classes=True
    )


def _renamed(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by the names that transformers has for them."""
    own = {"num_classes": "num_labels", "in_chans": "num_channels"}
    return {own.get(key, key): value for key, value in kwargs.items()}


def _built(kind: Any, config: Any, where: str) -> nn.Module:
    config._name_or_path = ""
    try:
        with isolated():
            model: nn.Module = kind(config)
    except Exception as error:
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{where}: cannot be built: {first}") from error
    return model


def _loaded(
    kind: Any, config: Any, weights: WeightFiles, folder: Path, raw: Mapping[str, Any], changes: _Changes
) -> tuple[nn.Module, tuple[str, ...]]:
    """A network with the weights of a folder, in their precision.

    Raises:
        ModelError: They do not fit.
    """
    state = None
    if weights.pickled:
        state = {name: tensor for file in weights.files for name, tensor in read_foreign(file).tensors.items()}
    dtypes = floating_dtypes(weights.files) if state is None else {t.dtype for t in state.values()}
    try:
        with isolated():
            model, info = kind.from_pretrained(
                None if state is not None else str(folder),
                config=config,
                state_dict=state,
                dtype=_widest(dtypes),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are checked below, and named
                output_loading_info=True,
            )
    except Exception as error:
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{folder}: its weights do not fit {kind.__name__}: {first}") from error
    model.config._name_or_path = ""
    object.__setattr__(model, "name_or_path", "")
    notes = _checked_keys(model, info, folder, raw, changes)
    if weights.pickled:
        notes.append(f"{folder}: read from files of torch.save, without running anything in them")
    return model, tuple(notes)


def _checked_keys(
    model: Any, info: Mapping[str, Any], folder: Path, raw: Mapping[str, Any], changes: _Changes
) -> list[str]:
    """Notes on tensors that a folder lacks, or has for nothing.

    Raises:
        ModelError: It lacks some of the network that was saved, or more of it than a head has another size.
    """
    kind = type(model)
    missing, surplus = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    replaced = sorted(name for name, *_ in info["mismatched_keys"])
    notes: list[str] = []
    if missing:
        named = raw.get("architectures") or []
        if named[:1] == [kind.__name__]:
            raise ModelError(
                f"{folder}: {len(missing)} tensors of {kind.__name__} are missing, first {missing[0]!r}; fetch it again"
            )
        _check_new(model, missing, folder)
        notes.append(f"{folder}: new weights, to be trained: {_some(missing)}")
    classes = model.config.num_labels
    other = [
        name for name, old, new in info["mismatched_keys"] if not (changes.classes and _by_classes(old, new, classes))
    ]
    if other:
        remedy = (
            f"leave out of --model-kwargs what its weights do not have: {', '.join(changes.settings)}"
            if changes.settings
            else "a pruned network leaves by save_pretrained without its widths: give the checkpoint that prune wrote"
        )
        raise ModelError(
            f"{folder}: {len(other)} tensors have other shapes than its configuration says, first {min(other)!r}; "
            f"{remedy}"
        )
    if replaced:
        notes.append(f"{folder}: another number of classes, so new weights, to be trained: {_some(replaced)}")
    if surplus:
        notes.append(
            f"{folder}: {len(surplus)} tensors that {kind.__name__} does not have were left out: {_some(surplus)}"
        )
    return notes


def _by_classes(stored: Sequence[int], built: Sequence[int], classes: int) -> bool:
    """Whether two shapes differ in the number of classes alone; detectors have one more, for nothing."""
    pairs = [(a, b) for a, b in zip(stored, built, strict=False) if a != b]
    return len(stored) == len(built) and len(pairs) == 1 and pairs[0][1] in (classes, classes + 1)


def _check_new(model: nn.Module, missing: Sequence[str], folder: Path) -> None:
    """Refuses a network whose new part is more than a head.

    Raises:
        ModelError: Layers are missing of which there are others, or hardly anything was found.
    """
    sizes = {name: tensor.numel() for name, tensor in model.state_dict().items()}
    alike = {_LAYER.sub(".*.", name) for name in sizes.keys() - set(missing) if _LAYER.search(name)}
    gone = [name for name in missing if _LAYER.search(name) and _LAYER.sub(".*.", name) in alike]
    new = sum(sizes.get(name, 0) for name in missing)
    if gone or 2 * new > sum(sizes.values()):
        raise ModelError(
            f"{folder}: {len(gone or missing)} tensors of {type(model).__name__} are missing, first "
            f"{(gone or missing)[0]!r}, which is more than a new head; fetch it again, or give the class it has"
        )


def _widest(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """The dtype that holds all floating tensors as they are."""
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    return reduce(torch.promote_types, floating) if floating else torch.float32


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _opened(
    model: nn.Module, folder: Path | None, tokenizer: UsedTokenizer | None, notes: tuple[str, ...], *, new_classes: bool
) -> Opened:
    kind = type(model)
    size, normalisation = None, None
    if taken_by(kind) != "tokens":
        images = image_settings(folder, model.config)
        size, normalisation, notes = images.size, images.normalisation, (*notes, *images.notes)
    return Opened(
        kind.__name__, recorded(model), model, folder, size=size, normalisation=normalisation, tokenizer=tokenizer,
        notes=notes, new=folder is None, new_classes=new_classes,
    )  # fmt: skip
