"""What operators alone do not show about a family of modules: one small file each, listed here by class name.

An adapter ties channels that the module's code assumes to be equally many, because it computes a width from another
tensor's shape where that cannot be watched, and names attributes that hold a width although no forward pass reads them.
"""

from __future__ import annotations

from importlib import import_module

from torch import nn

from prunecli.surgery.tracing.labels import Followed

ADAPTERS = {
    ("torch", "MultiheadAttention"): "multihead_attention",
    ("transformers", "SegformerSequenceReduction"): "segformer",
}
"""By package and name of a class."""
CONVENTIONS = {("reset_classifier", "get_classifier", "forward_features"): "timm_models"}
"""By the methods that a module has."""


def tie_known_modules(model: nn.Module, followed: Followed) -> None:
    """Applies the adapter of every module whose class, or a class it derives from, is listed."""
    for name, module in model.named_modules():
        kinds = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(module).__mro__)
        listed = [ADAPTERS[kind] for kind in kinds if kind in ADAPTERS][:1]
        listed += [file for methods, file in CONVENTIONS.items() if all(hasattr(module, one) for one in methods)]
        for file in listed:
            import_module(f"{__name__}.{file}").tie(name, module, followed)
