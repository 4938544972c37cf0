"""Freezing the backbone while a new or pruned head settles."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunecli.engine.hooks import Hook, Training
from prunecli.errors import RecipeError


class FreezeBackbone(Hook):
    """Freezes the backbone for the first epochs.

    The backbone is the module called `backbone` where the network has one (SegFormer's encoder), else everything but
    the classifier: timm's `get_classifier()`, or the last layer with `num_classes` outputs. A frozen backbone gets no
    gradients and runs in evaluation mode, so the statistics of its batch normalisations stay too; the optimizer has no
    state for it until it is released. Parameters that were frozen before stay frozen.

    Args:
        epochs: How many epochs to freeze it for.

    Raises:
        RecipeError: In `begin`: the network has neither a backbone nor such a classifier.
    """

    name = "freeze-backbone"
    works_sharded = True

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._parameters: list[nn.Parameter] = []
        self._modules: list[nn.Module] = []

    def begin(self, training: Training) -> None:
        """Finds the backbone."""
        head = _head_parameters(training.model, training.num_classes)
        self._parameters = [p for p in training.model.parameters() if id(p) not in head and p.requires_grad]
        self._modules = [m for m in training.model.modules() if _only_outside(m, head)]

    def epoch_start(self, epoch: int, batch: int) -> None:
        """Freezes the backbone, which has just been put into training mode, or releases it."""
        frozen = epoch <= self._epochs
        self._require_gradients(not frozen)
        for module in self._modules if frozen else ():
            module.eval()

    def end(self) -> None:
        """Releases the backbone."""
        self._require_gradients(True)

    def _require_gradients(self, required: bool) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(required)


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
            f"freeze_backbone_epochs: the network has no layer with {num_classes} outputs to train alone; leave it out"
        )
    return {id(parameter) for parameter in classifier.parameters()}
