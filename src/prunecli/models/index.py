"""All model sources and the references known of them. Torch-free: completion and `prune models` need them at once.

A source is a `prunecli.models.source.ModelSource`: a built-in one is a file and one line here, an installed package
adds its own with an entry point in the group `prunecli.models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.errors import ModelError, nearest, unknown
from prunecli.registry import Registry

if TYPE_CHECKING:
    from prunecli.models.source import ModelSource

FINGERPRINTS = Path(__file__).with_name("fingerprints.tsv")

SOURCES: Registry[ModelSource] = Registry(
    "model source",
    "prunecli.models",
    {
        "cifar": "prunecli.models.cifar",
        "hf": "prunecli.models.hugging_face.source",
        "lm": "prunecli.models.language",
        "module": "prunecli.models.own_networks",
        "open_clip": "prunecli.models.from_open_clip",
        "segformer": "prunecli.models.segformer",
        "spiking": "prunecli.models.spiking",
        "timm": "prunecli.models.from_timm",
        "torchvision": "prunecli.models.from_torchvision",
        "ultralytics": "prunecli.models.yolo.source",
    },
    ModelError,
)

OPENING = {
    "hf": "hf:FOLDER, hf:OWNER/NAME or hf:CLASS: networks of transformers",
    "module": "module:package.file:function: networks that a function of yours builds",
    "ultralytics": "ultralytics:NAME, or a .pt or .yaml file: YOLO networks of ultralytics",
}
"""Built-in sources whose networks are not all listed, with a line about each; see `OpeningSource`."""

_LISTED = {"ultralytics": "prunecli.models.yolo.names"}
"""Of these, modules with `listed`, the names that are in the files of an installed package."""


def listed_references() -> list[str]:
    """Every "source:name" of installed packages whose names can be read from files; nothing heavy is imported."""
    return [f"{source}:{name}" for source, module in _LISTED.items() for name in import_module(module).listed()]


def known_references() -> list[str]:
    """Every "source:name" of the built-in sources, sorted; those with published weights as "name@tag" are left out."""
    return sorted(line.partition("\t")[0] for line in FINGERPRINTS.read_text(encoding="utf-8").splitlines())


def is_reference(path: Path) -> bool:
    """Whether an argument that may be a file means a network of the catalogue; a file of that name is a file."""
    return ":" in str(path) and path.suffix != ".json" and not path.exists()


PATTERN_HELP = "A reference, a part of one, or a shell pattern of references, where source: may be left out."


def matching_references(pattern: str, known: Sequence[str]) -> list[str]:
    """The references that a pattern means, the same to every command; see `PATTERN_HELP`.

    Args:
        pattern: For instance "timm:resnet50", "resnet", "vit*" or "segformer:b[0-2]".
        known: Every "source:name" that there is.

    Raises:
        ModelError: There are none.
    """
    if pattern in known:
        return [pattern]
    if any(mark in pattern for mark in "*?["):
        matches = [ref for ref in known if fnmatchcase(ref, pattern) or fnmatchcase(ref.partition(":")[2], pattern)]
    else:
        matches = [ref for ref in known if pattern in ref]
    if not matches:
        raise ModelError(unknown("architecture", pattern, known, see="prune models"))
    return matches


def what_was_meant(path: Path) -> str:
    """What to give in place of a weights file that does not exist, for the end of a message."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either; give a weights file or a reference such as timm:resnet50"
    same = [ref for ref in known_references() if ref.partition(":")[2] == path.name]
    if same and path.parent == Path():
        return f"for a network of the catalogue write {' or '.join(same[:3])}, --pretrained for its published weights"
    if close := nearest(path.name, [file.name for file in path.parent.iterdir() if file.suffix in WEIGHT_SUFFIXES], 2):
        return "did you mean " + " or ".join(str(path.parent / name) for name in close) + "?"
    return "give a weights file or a reference such as timm:resnet50"


def added_sources() -> list[str]:
    """Sources that installed packages add; what networks they have is known only once they are imported."""
    return [source for source in SOURCES.names if source not in SOURCES.built_in]
