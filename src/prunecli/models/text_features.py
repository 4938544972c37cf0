"""Features of prompts on disk: a text tower reads the 80,000 prompts of ImageNet once, not in every run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunecli.checkpoint.durable import write_atomically
from prunecli.errors import PruneError

_NAME = "features"
_IMAGE_TOWER = "visual."


def features_folder() -> Path:
    """Where they lie: text-features in PRUNE_CACHE, else in ~/.cache/prune. It can be deleted at any time."""
    return Path(os.environ.get("PRUNE_CACHE") or "~/.cache/prune").expanduser() / "text-features"


def remembered(
    ref: str, towers: nn.Module, tokens: Sequence[Tensor], device: torch.device, compute: Callable[[], Tensor]
) -> Tensor:
    """Features from the disk, or computed and written there.

    Args:
        ref: What the towers are, such as "open_clip:ViT-B-32".
        towers: Their text tower's weights say which features they are.
        tokens: The prompts as token numbers.
        device: Where the features are wanted.
        compute: Makes them.
    """
    path = features_folder() / f"{_key(ref, towers, tokens, device)}.safetensors"
    try:
        found: Tensor = load_file(path, device=str(device))[_NAME]
    except Exception:  # none there, or damaged: they are made again
        found = compute()
        with suppress(PruneError):  # a disk that takes nothing only means that they are made again next time
            write_atomically(path, lambda target: save_file({_NAME: found.cpu().contiguous()}, target))
    return found


def _key(ref: str, towers: nn.Module, tokens: Sequence[Tensor], device: torch.device) -> str:
    import open_clip

    hashed = hashlib.sha256(f"{ref} {open_clip.__version__} {torch.__version__} {device.type}".encode())
    weights = {name: value for name, value in towers.state_dict().items() if not name.startswith(_IMAGE_TOWER)}
    for name, value in (*weights.items(), *((str(place), value) for place, value in enumerate(tokens))):
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return hashed.hexdigest()[:32]
