"""What a manifest may say about building an architecture: its arguments, and the size of a configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from pydantic import JsonValue

_INTEGERS = {
    "num_classes": (0, 1_000_000),
    "in_chans": (1, 4096),
    "T": (1, 1024),
    "depth": (1, 128),
    "dim": (8, 8192),
    "num_heads": (1, 512),
    "patch_size": (1, 64),
    "image_size": (1, 4096),
    "img_size": (1, 4096),
    "min_size": (16, 8192),
    "max_size": (16, 8192),
    "embed_dim": (8, 8192),
    "units": (1, 65_536),
    "layers": (1, 128),
    "embedding": (1, 65_536),
}
_FLOATS = {
    "width": (1e-3, 16.0),
    "mlp_ratio": (1e-2, 64.0),
    "tau": (1.0, 1e6),
    "v_threshold": (1e-6, 1e6),
    "v_reset": (-1e6, 1e6),
    "alpha": (1e-6, 1e6),
    "dropout": (0.0, 0.99),
    "snn_fraction": (0.0, 1.0),
}
_OPTIONAL = ("v_reset", "alpha")
"""Numbers that may be None."""
_SWITCHES = ("decay_input", "detach_reset", "tied")
_WORDS = ("neuron", "surrogate", "coding", "pool", "stem", "global_pool", "nonlinearity", "cell")
_WORD = re.compile(r"[a-z0-9-]{1,32}")
ARGUMENTS = (*_INTEGERS, *_FLOATS, *_SWITCHES, *_WORDS)
"""Arguments that an architecture may be built with. Others could make a library read or download files."""
_MAX_CONFIG = 1 << 20
_MAX_DEPTH = 16


def too_large(config: Mapping[str, JsonValue]) -> bool:
    """Whether a configuration is larger, or nested more deeply, than any that makes sense."""
    return _depth(dict(config)) > _MAX_DEPTH or len(json.dumps(config)) > _MAX_CONFIG


def _depth(value: JsonValue) -> int:
    """How deeply lists and mappings are nested."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return 1 + max(map(_depth, inner)) if inner else 0


def problem_with(name: str, value: JsonValue) -> str | None:
    """The problem with an argument for building an architecture; None if there is none."""
    if name in _INTEGERS:
        lowest, highest = _INTEGERS[name]
        valid = type(value) is int and lowest <= value <= highest
        return None if valid else f"{name} has to be an integer from {lowest} to {highest:,}"
    if name in _FLOATS:
        low, high = _FLOATS[name]
        valid = type(value) in (int, float) and low <= value <= high  # type: ignore[operator]
        valid = valid or (value is None and name in _OPTIONAL)
        return None if valid else f"{name} has to be a number from {low:g} to {high:g}"
    if name in _SWITCHES:
        return None if type(value) is bool else f"{name} has to be true or false"
    if name in _WORDS:
        valid = isinstance(value, str) and _WORD.fullmatch(value) is not None
        return None if valid else f"{name} has to be a word of up to 32 lower-case letters, digits and hyphens"
    return f"{name[:80]!r} is not an argument that a checkpoint may set"
