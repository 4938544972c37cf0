"""A classifier made of an image and a text tower: classes are texts, and an image belongs to the nearest one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.data.prompts import prompts
from prunecli.errors import ModelError
from prunecli.models.catalog import split_reference
from prunecli.models.text_features import remembered

_LARGEST_SCALE = 100.0
"""As open_clip bounds it in training (Radford et al., 2021, section 2.5)."""


class PromptClassifier(nn.Module):
    """Class scores of images by the likeness of their features to those of prompts.

    In training mode one template, drawn for each batch, stands for all; in evaluation mode a class is the mean of
    its prompts' features, computed once (open_clip's `build_zero_shot_classifier`).

    Attributes:
        towers: The model with both towers; it is not copied.

    Args:
        towers: With `encode_image`, `encode_text` and `logit_scale`.
        tokenizer: Turns prompts into tokens.
        texts: What each class is called.
        templates: Prompts with `{}` for the class.
        remembered_as: What the towers are called on disk, where features of classes come from and go to; None for
            features that are always computed.
    """

    def __init__(
        self,
        towers: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        texts: Sequence[str],
        templates: Sequence[str],
        remembered_as: str | None = None,
    ) -> None:
        super().__init__()
        self._remembered_as = remembered_as
        self.towers = towers
        self._tokenizer, self._texts, self._templates = tokenizer, tuple(texts), tuple(templates)
        self._tokens = [tokenizer(prompts(texts, template)) for template in templates]
        self._frozen: Tensor | None = None
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> PromptClassifier:
        """Training changes the text tower, so features of classes are forgotten."""
        if mode:
            self._frozen = None
        super().train(mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Scores of images (N, C, H, W), shape (N, classes)."""
        return self.scores(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """Unit features of images, shape (N, D)."""
        towers: Any = self.towers
        found: Tensor = towers.encode_image(images, normalize=True)
        return found

    def scores(self, features: Tensor) -> Tensor:
        """Scores (N, classes) of unit features (N, D)."""
        towers: Any = self.towers
        scale = towers.logit_scale.exp().clamp(max=_LARGEST_SCALE)
        found: Tensor = scale * features @ self.class_features(features.device)
        return found

    def class_features(self, device: torch.device) -> Tensor:
        """Unit features of every class, shape (D, classes)."""
        towers: Any = self.towers
        if self.training:
            drawn = int(torch.randint(len(self._tokens), (1,)))
            features: Tensor = towers.encode_text(self._tokens[drawn].to(device), normalize=True)
            return features.T
        if self._frozen is None or self._frozen.device != device:
            if self._remembered_as is None:
                self._frozen = self._computed(device)
            else:
                self._frozen = remembered(
                    self._remembered_as, towers, self._tokens, device, lambda: self._computed(device)
                )
        return self._frozen

    def _computed(self, device: torch.device) -> Tensor:
        from open_clip import build_zero_shot_classifier

        # Its own way with texts is str.format, which takes every brace for its own.
        wordings = [partial(_worded, template) for template in self._templates]
        with torch.no_grad():
            found: Tensor = build_zero_shot_classifier(
                self.towers, self._tokenizer, self._texts, wordings, num_classes_per_batch=50, device=device
            )
        return found


def _worded(template: str, text: str) -> str:
    (prompt,) = prompts([text], template)
    return prompt


def _forget(module: Any, keys: Any) -> None:
    """Other weights make other features."""
    module._frozen = None


def has_text_tower(model: nn.Module) -> bool:
    """Whether a model compares images with texts."""
    return all(hasattr(model, name) for name in ("encode_image", "encode_text", "logit_scale"))


def prompt_classifier(
    ref: str, towers: nn.Module, texts: Sequence[str], templates: Sequence[str], remember: bool = False
) -> PromptClassifier:
    """The classifier of a network that `open_clip:...` names.

    With `remember` the features of classes come from the disk, see `text_features`.

    Raises:
        ModelError: It has no text tower, or its tokenizer cannot be fetched.
    """
    source = ref.partition(":")[0]
    if source != "open_clip" or not has_text_tower(towers):
        raise ModelError(f"{ref or 'a model of your own'} has no text tower, so its classes cannot be texts")
    from prunecli.models.from_open_clip import tokenizer

    tokens_of = tokenizer(split_reference(ref)[1], towers)
    return PromptClassifier(towers, tokens_of, texts, templates, ref if remember else None)
