"""What operators alone do not show about a family of modules: one small file each, listed here by class name.

An adapter ties channels that the module's code assumes to be equally many, because it computes a width from another
tensor's shape.
"""

from __future__ import annotations

from importlib import import_module

from torch import nn

from prunecli.surgery.axes import Term, is_fixed, leaves, unify
from prunecli.surgery.tracing.labels import OUTPUT, Followed

ADAPTERS = {
    "MultiheadAttention": "multihead_attention",
    "RNNBase": "recurrent",
    "SegformerSequenceReduction": "segformer",
}


def tie_known_modules(model: nn.Module, followed: Followed) -> None:
    """Applies the adapter of every module whose class, or a class it derives from, is listed."""
    for name, module in model.named_modules():
        for kind in type(module).__mro__:
            if kind.__name__ in ADAPTERS:
                import_module(f"{__name__}.{ADAPTERS[kind.__name__]}").tie(name, module, followed)
                break


def tie_equal_widths(followed: Followed, module: str) -> None:
    """Ties all channel dimensions of one size that a module sees.

    For code such as `B, N, C = x.shape; ...; out.transpose(1, 2).reshape(B, N, C)`, which takes the width of what it
    writes from what it reads.
    """
    by_size: dict[int, list[Term]] = {}
    for term in followed.modules.get(module, ()):
        if term.size > 1 and (not is_fixed(term) or any(leaf.reason == OUTPUT for leaf in leaves(term))):
            by_size.setdefault(term.size, []).append(term)
    for terms in by_size.values():
        for other in terms[1:]:
            unify(terms[0], other)
