"""All collections. Torch-free; a collection's package is imported when one of its networks is asked for.

A collection is a `prunecli.studies.collections.network.Collection`: a built-in one is a file and one line here, an
installed package adds its own with an entry point in the group `prunecli.collections`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunecli.errors import ModelError
from prunecli.registry import Registry

if TYPE_CHECKING:
    from prunecli.studies.collections.network import Collection

_HERE = "prunecli.studies.collections"

COLLECTIONS: Registry[Collection] = Registry(
    "collection",
    "prunecli.collections",
    {
        "diffusers": f"{_HERE}.from_diffusers",
        "monai": f"{_HERE}.from_monai",
        "nnunet": f"{_HERE}.from_nnunet",
        "smp": f"{_HERE}.from_smp",
        "torchvision": f"{_HERE}.from_torchvision",
        "transformers": f"{_HERE}.from_transformers",
        "ultralytics": f"{_HERE}.from_ultralytics",
    },
    ModelError,
)
