"""All model sources and the references known of them. Torch-free: completion and `prune models` need them at once.

A source is a `prunecli.models.source.ModelSource`: a built-in one is a file and one line here, an installed package
adds its own with an entry point in the group `prunecli.models`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from prunecli.errors import ModelError
from prunecli.registry import Registry

if TYPE_CHECKING:
    from prunecli.models.source import ModelSource

FINGERPRINTS = Path(__file__).with_name("fingerprints.tsv")

SOURCES: Registry[ModelSource] = Registry(
    "model source",
    "prunecli.models",
    {
        "cifar": "prunecli.models.cifar",
        "open_clip": "prunecli.models.from_open_clip",
        "segformer": "prunecli.models.segformer",
        "spiking": "prunecli.models.spiking",
        "timm": "prunecli.models.from_timm",
        "torchvision": "prunecli.models.from_torchvision",
    },
    ModelError,
)


def known_references() -> list[str]:
    """Every "source:name" of the built-in sources, sorted; those with published weights as "name@tag" are left out."""
    return sorted(line.partition("\t")[0] for line in FINGERPRINTS.read_text(encoding="utf-8").splitlines())


def added_sources() -> list[str]:
    """Sources that installed packages add; what networks they have is known only once they are imported."""
    return [source for source in SOURCES.names if source not in SOURCES.built_in]
