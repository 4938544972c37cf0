"""Parameters of each method family, from which options and recipe validation are made. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Le, Lt

Share = Annotated[float, Ge(0), Lt(1)]
Scope = Literal["auto", "global", "local", "isomorphic", "measured"]
ScopeOption = Annotated[
    Scope,
    Doc(
        "global: one ranking over all layers; local: the same ratio in every layer; isomorphic: one ranking for "
        "each set of alike layers; measured: what costs least when each layer alone is cut on trial; auto: "
        "isomorphic with attention or layer normalisation, else global."
    ),
]
Schedule = Literal["once", "linear", "cubic", "ramp"]
TARGETS = ("params", "macs", "latency", "synops", "energy")
"""Figures that a target can be set for, by the name of their parameter."""


@dataclass(frozen=True)
class StructuralParams:
    """What every method that removes whole channels understands."""

    ratio: Annotated[float, Gt(0), Lt(1), Doc("Share of the prunable channels to remove, between 0 and 1.")] = 0.5
    params: Annotated[
        float | None, Gt(0), Lt(1), Doc("Instead of a ratio: share of the parameters that the result has; 0.5 halves.")
    ] = None
    macs: Annotated[
        float | None, Gt(0), Lt(1), Doc("Instead of a ratio: share of the multiply-accumulates that the result has.")
    ] = None
    latency: Annotated[
        float | None, Gt(0), Lt(1), Doc("Instead of a ratio: share of the measured time that the result takes.")
    ] = None
    synops: Annotated[
        float | None, Gt(0), Lt(1), Doc("Instead of a ratio: share of a spiking network's synaptic operations.")
    ] = None
    energy: Annotated[
        float | None, Gt(0), Lt(1), Doc("Instead of a ratio: share of a spiking network's energy at 45 nm.")
    ] = None
    layer_ratio: Annotated[
        Mapping[str, Share],
        Doc("Instead of a ratio: PATTERN=RATIO for layers by name, may be given again; layers not named stay."),
    ] = field(default_factory=dict)
    scope: ScopeOption = "auto"
    normalise: Annotated[
        Literal["mean", "none"], Doc("Before ranking divide each layer's scores by their mean, or take them raw.")
    ] = "mean"
    round_to: Annotated[
        int,
        Ge(0),
        Doc(
            "Widths become multiples of this; 0: 8, and less in layers under 64 channels; with --latency those that "
            "this machine runs fast."
        ),
    ] = 0
    max_ratio: Annotated[float, Gt(0), Le(1), Doc("The most that one layer may lose.")] = 0.9
    min_width: Annotated[int, Ge(1), Doc("The fewest channels that a layer keeps.")] = 4
    prune_stem: Annotated[bool, Doc("Whether the first layer may shrink too.")] = False
    only: Annotated[str, Doc("Prune this module alone, for instance backbone; the rest stays as it is.")] = ""
    heads: Annotated[bool, Doc("Shrink attention by whole heads, instead of by the same dimensions of every head.")] = (
        False
    )
    outputs: Annotated[
        tuple[str, ...],
        Doc("Outputs that keep their width, such as logits,pred_boxes; default: all but hidden states beside them."),
    ] = ()
    schedule: Annotated[
        Schedule,
        Doc(
            "once; linear or cubic: in steps up to the ratio; ramp: nothing for 30 % of the steps, a straight line "
            "until 70 %, then hold."
        ),
    ] = "once"
    steps: Annotated[int, Ge(1), Doc("Steps of a schedule.")] = 5
    initial_ratio: Annotated[
        float | None, Ge(0), Lt(1), Doc("Where a schedule begins; default: 0, and 0.1 for ramp.")
    ] = None


@dataclass(frozen=True)
class TrainedParams:
    """How methods that prune while a network trains train it, beside epochs, learning rate and optimizer."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012 - read by pydantic, never changed

    momentum: Annotated[float, Ge(0), Lt(1), Doc("Momentum of sgd.")] = 0.9
    weight_decay: Annotated[float, Ge(0), Doc("Weight decay, not applied to biases and norms.")] = 5e-4
    lr_schedule: Annotated[str, Doc("A timm schedule for those epochs: constant, cosine, step ...")] = "constant"
    decay_epochs: Annotated[int, Ge(1), Doc("With step: epochs until the rate falls to a tenth, and again.")] = 90
    clip_grad: Annotated[float | None, Gt(0), Doc("Largest gradient norm.")] = None
    accumulate: Annotated[int, Ge(1), Doc("Batches whose gradients make one step.")] = 1
    finetune_epochs: Annotated[int, Ge(0), Doc("Epochs of finetuning once the pruning is decided.")] = 0
    finetune_lr: Annotated[float | None, Gt(0), Doc("Learning rate of finetuning; default: a tenth.")] = None
    finetune_schedule: Annotated[str, Doc("A timm schedule for finetuning: cosine, step ...")] = "cosine"
    finetuned: Annotated[
        Literal["best", "latest"], Doc("Keep the finetuning epoch that is best on validation images, or the last.")
    ] = "best"


TRAINING_ALIASES: dict[str, tuple[str, str | None]] = {
    "--learning_rate": ("--lr", "value"),
    "--weight_decay": ("--weight-decay", "value"),
    "--scheduler": ("--lr-schedule", "value"),
    "--batch_size": ("--batch-size", "value"),
    "--data_dir": ("--data-root", "value"),
    "--dataset_name": ("--data", "value"),
}
"""Options of training in an older tool: what they are called here, and that a value follows."""


TokenSelector = Literal["anchor", "cls", "diversity", "random", "evit", "tome"]


@dataclass(frozen=True)
class TokenParams:
    """Which tokens of a vision transformer stay, and where; exactly one kind of budget may be given."""

    keep_share: Annotated[float | None, Gt(0), Lt(1), Doc("Share of all tokens that stays; default: 0.5.")] = None
    tokens: Annotated[int | None, Ge(2), Doc("Or: how many stay, the class token and its like included.")] = None
    speedup: Annotated[
        float | None, Gt(1), Doc("Or: as few as make it this many times as fast, by measured latency of one batch.")
    ] = None
    k_anchors: Annotated[
        int | None, Ge(1), Doc("Anchors of selector anchor and diversity; default: half of the patch tokens that stay.")
    ] = None
    top_m: Annotated[int | None, Ge(0), Doc("Or, with --k-anchors: tokens that stay beside anchors.")] = None
    stages: Annotated[
        tuple[str, ...], Doc("Or: BLOCK:SHARE of the tokens there that stays, with commas or given again: 3:0.7,6:0.7.")
    ] = ()
    merge: Annotated[int | None, Ge(1), Doc("Or, of selector tome: pairs that are merged in each block.")] = None
    selector: Annotated[
        TokenSelector,
        Doc(
            "anchor: attention from, and unlikeness to, tokens that matter most; cls: attention of the class token; "
            "diversity: unlikeness alone; random; evit: as cls, the others fused into one; tome: merge alike pairs."
        ),
    ] = "anchor"
    alpha: Annotated[float, Ge(0), Le(1), Doc("anchor: weight of attention against unlikeness.")] = 0.5
    to_anchors: Annotated[bool, Doc("anchor: attention that tokens pay to anchors, not what they get from them.")] = (
        False
    )
    block: Annotated[int, Ge(0), Doc("First block with fewer tokens, counted from 0; the ones before see all.")] = 1
    inside: Annotated[
        bool, Doc("Choose inside that block, between its attention and its MLP, not before it; faster at block 0.")
    ] = False
    batch: Annotated[int, Ge(1), Doc("Images in a batch whose latency is measured, beside that of one image.")] = 8
