"""Where the network of a plan would come from, and whether it is there: nothing is loaded or fetched. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from prunecli.checkpoint.header import read_header
from prunecli.checkpoint.kinds import open_weights
from prunecli.errors import ModelError
from prunecli.models.index import SOURCES, what_was_meant
from prunecli.report.numbers import size

_WRITTEN_BY = {"torch": "written by torch.save", "legacy": "written by an old torch.save"}
_FILES_OF_ULTRALYTICS = (".pt", ".yaml", ".yml")


class Whereabouts(NamedTuple):
    """What is known of a network before it is loaded.

    Attributes:
        text: Where it comes from.
        missing: What to do if it is not there; else nothing.
    """

    text: str
    missing: str = ""


def whereabouts(weights: str | None, ref: str | None, *, pretrained: bool = False) -> Whereabouts | None:
    """Where a network would come from; None if none is named.

    Args:
        weights: Its file.
        ref: Its architecture.
        pretrained: Whether published weights are asked for.
    """
    if weights is not None:
        return _file(Path(weights), ref)
    if ref is None:
        return None
    source, _, name = ref.partition(":")
    path = Path(name).expanduser()
    if source == "hf":
        return _of_transformers(name, path)
    if source == "ultralytics" and path.suffix in _FILES_OF_ULTRALYTICS and (path.is_file() or "/" in name):
        return _file(path, None)
    if source == "module":
        return Whereabouts(f"code of yours: {name.rpartition(':')[2]} in the module {name.rpartition(':')[0]}")
    if source not in SOURCES.names:
        return Whereabouts(f"unknown: no source of networks is called {source!r}")
    origin = f"catalogue of {SOURCES.package(source) or source}"
    if pretrained or "@" in name:
        return Whereabouts(f"{origin}, with its published weights: from the cache, or fetched")
    return Whereabouts(f"{origin}, a new network with random weights")


def _file(path: Path, ref: str | None) -> Whereabouts:
    if path.is_dir():
        return Whereabouts("a folder, not a weights file")  # loading says what to write for it
    if not path.is_file():
        return Whereabouts("file that does not exist", f"{path}: no such file; {what_was_meant(path)}")
    architecture = f", architecture {ref}" if ref is not None else ""
    return Whereabouts(f"file, {size(path.stat().st_size)}, {_kind(path)}{architecture}")


def _kind(path: Path) -> str:
    try:
        with open_weights(path) as (_, kind):
            if kind != "safetensors":
                return _WRITTEN_BY[kind]
        return "checkpoint of prune" if read_header(path).is_ours else "safetensors of another program"
    except ModelError:
        return "no weights file that can be read"


def _of_transformers(name: str, path: Path) -> Whereabouts:
    if path.is_dir():
        return Whereabouts("folder of transformers on this machine")
    if name.startswith(("/", "./", "../", "~")):
        return Whereabouts("folder that does not exist", f"{name}: no such folder; give one that transformers wrote")
    from huggingface_hub import constants, try_to_load_from_cache

    repository, _, revision = name.partition("@")
    try:
        cached = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except ValueError:  # no name that the hub could have
        cached = None
    if isinstance(cached, str):
        return Whereabouts("cache of the Hugging Face hub, where it lies")
    if name.isidentifier() and name[0].isupper():
        return Whereabouts(f"transformers, a new network of the class {name} with random weights")
    offline = ", and HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ", to be fetched"
    return Whereabouts(f"Hugging Face hub: no folder of that name, not in the cache{offline}")
