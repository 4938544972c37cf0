"""What plain modules say of the lists they hold: how many entries there are, and where timm finds features."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

_COUNTS = ("num_layers", "num_hidden_layers", "n_layers", "n_layer", "num_blocks", "n_blocks", "depth")
"""Attributes that hold how many entries a list of the same module has."""


def adjust_records(model: nn.Module, before: nn.Module, former: Mapping[str, str]) -> None:
    """Sets what plain modules say of their lists: how many entries, and where timm finds features.

    Args:
        model: The network without the blocks; changed in place.
        before: The network with them.
        former: From the names of its modules to those they had.
    """
    for name, module in model.named_modules():
        if name in former:
            _adjust_counts(module, before.get_submodule(former[name]))
    now = {old: new for new, old in former.items()}
    known = {name for name, _ in before.named_modules()}
    for name, module in model.named_modules():
        info = getattr(module, "feature_info", None)
        if isinstance(info, list) and all(isinstance(entry, dict) and "module" in entry for entry in info):
            prefix, own = (f"{owner}." if owner else "" for owner in (former.get(name, name), name))
            places = [f"{prefix}{entry['module']}" for entry in info]
            moved = [
                entry | {"module": now[place].removeprefix(own)} if place in now else entry
                for entry, place in zip(info, places, strict=True)
                if place in now or place not in known
            ]
            object.__setattr__(module, "feature_info", moved)


def _adjust_counts(module: nn.Module, before: nn.Module) -> None:
    lengths = {name: len(child) for name, child in before.named_children() if isinstance(child, nn.ModuleList)}
    for name, length in lengths.items():
        now = len(getattr(module, name))
        for count in _COUNTS:
            value = vars(module).get(count)
            if now < length and type(value) is int and value == length and len(lengths) == 1:
                object.__setattr__(module, count, now)
