"""The library transformers: its classes by name and by head, imported when one is needed and not before."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from prunecli.errors import ModelError, first_line, unknown
from prunecli.models.source import Takes

_TABLE, _END = "MODEL_FOR_", "_MAPPING_NAMES"
_BARE = "MODEL_MAPPING_NAMES"
_PRETRAINING = "pretraining"
_MOST_MODULES = 300_000
"""Switch Transformer with 2048 experts, each of its own modules, has half as many."""


def transformers() -> Any:
    """The library.

    Raises:
        ModelError: It is not installed, or cannot be imported.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns of every process that loads data
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = import_module("transformers")
            import_module("transformers.modeling_utils")
    except Exception as error:  # of many types: transformers imports whatever else is installed
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "transformers":
            raise ModelError("hf: needs the library transformers; pip install 'prunecli[transformers]'") from error
        raise ModelError(
            f"hf: needs the library transformers, which cannot be imported ({first_line(error)}); `prune doctor` "
            "shows what does not match"
        ) from error
    return library


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what the library reports about loading; what matters is checked here."""
    logging = transformers().utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def isolated() -> Iterator[None]:
    """Builds without a word, without the hub, and without an end of modules, whatever a configuration asks for.

    Raises:
        ModelError: There are more modules than any network has.
    """
    from huggingface_hub import constants

    count = 0

    def counted(owner: nn.Module, name: str, module: nn.Module | None) -> None:
        nonlocal count
        count += 1
        if count > _MOST_MODULES:
            raise ModelError(f"it has over {_MOST_MODULES:,} modules, which no network has; the file was altered")

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    hook = register_module_module_registration_hook(counted)
    try:
        with quiet():
            yield
    finally:
        hook.remove()
        constants.HF_HUB_OFFLINE = before


@cache
def heads() -> dict[str, Mapping[str, str]]:
    """For each head, such as "causal-lm" or "image-classification", the class by type of model."""
    transformers()
    auto = import_module("transformers.models.auto.modeling_auto")
    tables = {
        name.removeprefix(_TABLE).removesuffix(_END).lower().replace("_", "-"): getattr(auto, name)
        for name in dir(auto)
        if name.startswith(_TABLE) and name.endswith(_END)
    }
    tables["none"] = getattr(auto, _BARE)
    return {
        head: {kind: entry if isinstance(entry, str) else entry[0] for kind, entry in table.items()}
        for head, table in tables.items()
    }


@cache
def class_names() -> tuple[str, ...]:
    """Every class that has a head, or none, sorted."""
    return tuple(sorted({name for table in heads().values() for name in table.values()}))


def class_for(model_type: str, head: str) -> str:
    """The class of a type of model with a head.

    Raises:
        ModelError: There is no such head, or the type of model has none.
    """
    if head not in heads():
        raise ModelError(unknown("head", head, sorted(heads())))
    if model_type not in heads()[head]:
        others = sorted(name for name, table in heads().items() if model_type in table and name != _PRETRAINING)
        raise ModelError(f"a {model_type} has no head {head}; it has {', '.join(others) or 'none'}")
    return heads()[head][model_type]


def class_named(name: str) -> Any:
    """The class called `name`.

    Raises:
        ModelError: There is none, or it needs a library that is missing.
    """
    if name not in class_names():
        raise ModelError(unknown("class of transformers", name, class_names()))
    library = transformers()
    try:
        kind = getattr(library, name)
        kind.config_class  # noqa: B018 - placeholders of classes that cannot be imported raise here
    except Exception as error:
        raise ModelError(f"hf:{name}: this version of transformers cannot import it: {first_line(error)}") from error
    return kind


def taken_by(kind: Any) -> Takes:
    """What networks of a class take."""
    accepted = set(inspect.signature(kind.forward).parameters)
    main = getattr(kind, "main_input_name", "input_ids")
    if main == "input_ids" and accepted.isdisjoint(("pixel_values", "decoder_input_ids", "bbox", "input_features")):
        return "tokens"
    if main == "pixel_values" and accepted.isdisjoint(("input_ids", "decoder_input_ids")):
        return "images"
    return "other"
