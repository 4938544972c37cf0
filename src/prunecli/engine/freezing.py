"""Holding the backbone still while a new or pruned head settles."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunecli.errors import RecipeError


class FrozenBackbone:
    """The backbone of a network, which can be held still and released.

    It is the module called `backbone` where the network has one (SegFormer's encoder), else everything but the
    classifier: timm's `get_classifier()`, or the last layer with `num_classes` outputs. A held backbone gets no
    gradients and runs in evaluation mode, so the statistics of its batch normalisations stay too. Parameters that were
    frozen before stay frozen after `release`.

    Args:
        model: The network.
        num_classes: Outputs of its classifier.

    Raises:
        RecipeError: It has neither a backbone nor such a classifier.
    """

    def __init__(self, model: nn.Module, num_classes: int) -> None:
        head = _head_parameters(model, num_classes)
        self._parameters = [p for p in model.parameters() if id(p) not in head and p.requires_grad]
        self._modules = [m for m in model.modules() if _only_outside(m, head)]
        self._held = False

    def hold(self) -> None:
        """Freezes the backbone; to be called again whenever the network was put into training mode."""
        self._held = True
        for parameter in self._parameters:
            parameter.requires_grad_(False)
        for module in self._modules:
            module.eval()

    def release(self) -> None:
        """Lets the backbone train again. What its parameters know of the optimizer begins here."""
        if self._held:
            for parameter in self._parameters:
                parameter.requires_grad_(True)
        self._held = False


def _only_outside(module: nn.Module, head: set[int]) -> bool:
    own = [id(parameter) for parameter in module.parameters()]
    return bool(own) and not head.intersection(own)


def _head_parameters(model: nn.Module, num_classes: int) -> set[int]:
    backbone = getattr(model, "backbone", None)
    if isinstance(backbone, nn.Module):
        inside = {id(parameter) for parameter in backbone.parameters()}
        return {id(parameter) for parameter in model.parameters()} - inside
    get_classifier: Any = getattr(model, "get_classifier", None)
    classifier = get_classifier() if callable(get_classifier) else None
    if not isinstance(classifier, nn.Module) or not list(classifier.parameters()):
        classifier = None
        for module in model.modules():
            width = getattr(module, "out_features", getattr(module, "out_channels", None))
            if width == num_classes and list(module.parameters(recurse=False)):
                classifier = module
    if classifier is None:
        raise RecipeError(
            f"freeze_backbone_epochs: no layer with {num_classes} outputs to train alone was found; leave it out"
        )
    return {id(parameter) for parameter in classifier.parameters()}
