"""Hyperparameters of training. Torch-free, because recipes and the command line read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Le, Lt


@dataclass(frozen=True)
class FitConfig:
    """Hyperparameters of training. Optimizers, schedules and augmentation policies go by their names in timm."""

    epochs: Annotated[int, Ge(1), Doc("Passes over the training images.")] = 10
    lr: Annotated[float, Gt(0), Doc("Peak learning rate.")] = 0.1
    optimizer: Annotated[str, Doc("A timm optimizer: sgd, adamw, lamb ...")] = "sgd"
    momentum: Annotated[float, Ge(0), Lt(1), Doc("Momentum of sgd.")] = 0.9
    weight_decay: Annotated[float, Ge(0), Doc("Weight decay, not applied to biases and norms.")] = 5e-4
    schedule: Annotated[str, Doc("A timm schedule: cosine, constant, step ...")] = "cosine"
    warmup_epochs: Annotated[int, Ge(0), Doc("Epochs during which the learning rate rises.")] = 0
    decay_epochs: Annotated[int, Ge(1), Doc("With step: epochs until the rate falls to a tenth, and again.")] = 90
    min_lr: Annotated[float, Ge(0), Doc("Learning rate at the end of the schedule.")] = 0.0
    label_smoothing: Annotated[float, Ge(0), Lt(1), Doc("Share of each target spread over all classes.")] = 0.0
    mixup: Annotated[float, Ge(0), Doc("Mixup alpha; 0 is off.")] = 0.0
    cutmix: Annotated[float, Ge(0), Doc("CutMix alpha; 0 is off.")] = 0.0
    auto_augment: Annotated[str | None, Doc("A timm policy such as rand-m9-mstd0.5.")] = None
    color_jitter: Annotated[float, Ge(0), Doc("Strength of colour jitter.")] = 0.0
    random_erasing: Annotated[float, Ge(0), Le(1), Doc("Probability of erasing a rectangle.")] = 0.0
    freeze_backbone_epochs: Annotated[
        int, Ge(0), Doc("Epochs at the start in which only the head (decoder, classifier) is trained.")
    ] = 0
    clip_grad: Annotated[float | None, Gt(0), Doc("Largest gradient norm.")] = None
    accumulate: Annotated[int, Ge(1), Doc("Batches whose gradients make one step.")] = 1
    amp: Annotated[bool, Doc("Mixed precision on a GPU.")] = True
    sharding: Annotated[
        Literal["none", "fsdp2"],
        Doc(
            "fsdp2: several processes divide weights, gradients and optimizer states among themselves, for networks "
            "of which one device does not hold them (docs/distributed.md)."
        ),
    ] = "none"
    patience: Annotated[int | None, Ge(1), Doc("Stop after this many epochs without a better validation score.")] = None

    def batches_in_step(self, index: int, last: int) -> int:
        """Batches whose gradients are averaged in the step that one belongs to; the last step may have fewer.

        Args:
            index: Its index in the epoch.
            last: That of the epoch's last batch.
        """
        first = index - index % self.accumulate
        return min(self.accumulate, last - first + 1)
