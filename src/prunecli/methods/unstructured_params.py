"""Parameters of `unstructured`, and the names that its options had elsewhere. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Lt
from prunecli.methods.params import TRAINING_ALIASES, TrainedParams


@dataclass(frozen=True)
class UnstructuredParams(TrainedParams):
    """Joint masks of weights and neurons, learned while the network trains."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012 - read by pydantic, never changed

    mask_weights: Annotated[bool, Doc("Whether weights are masked.")] = True
    mask_neurons: Annotated[bool, Doc("Whether spiking neurons are masked, each at its position.")] = True
    weight_layers: Annotated[
        tuple[str, ...],
        Doc("Layers whose weights are masked: indices, ranges (0-4) or name patterns, with commas; default: all."),
    ] = ()
    neuron_layers: Annotated[
        tuple[str, ...], Doc("Layers of neurons that are masked, counted in the order in which they run; default: all.")
    ] = ()
    connections: Annotated[
        float | None, Gt(0), Lt(1), Doc("Share of the connections to end with; the penalty follows by itself.")
    ] = None
    synops: Annotated[
        float | None, Gt(0), Lt(1), Doc("Or: share of the synaptic operations, by firing rates while training.")
    ] = None
    penalty: Annotated[
        float, Ge(0), Doc("Weight in the loss of the share of connections that is left; with a target, at the start.")
    ] = 1.0
    penalty_by: Annotated[
        Literal["connections", "synops"], Doc("synops: every connection counts as often as its neuron fires.")
    ] = "connections"
    temperatures: Annotated[
        tuple[float, ...],
        Doc(
            "Steepness of the masks: first,last; or first,last,FROM,TO in epochs; or, for weights and neurons apart, "
            "first,first,last,last,FROM,TO."
        ),
    ] = (5.0, 1000.0)
    mask_init: Annotated[
        tuple[float, ...], Doc("Mean of weights' masks, mean of neurons', and the two standard deviations.")
    ] = (0.0, 0.0, 0.0, 0.0)
    mask_optimizer: Annotated[Literal["adam", "sgd"], Doc("Optimizer of the masks.")] = "adam"
    mask_lr: Annotated[float, Gt(0), Doc("Its learning rate.")] = 0.01
    mask_weight_decay: Annotated[float, Ge(0), Doc("Its weight decay.")] = 0.0
    loss: Annotated[Literal["ce", "mse"], Doc("Cross entropy, or squared error to one-hot labels.")] = "ce"
    tet: Annotated[bool, Doc("Take the loss at every step, not of the mean over steps (Deng et al., ICLR 2022).")] = (
        False
    )
    tet_weight: Annotated[
        float, Ge(0), Lt(1), Doc("tet: weight of the squared distance of every score to --tet-level.")
    ] = 0.05
    tet_level: Annotated[float, Doc("tet: the score that a neuron that fires stands for.")] = 1.0
    squeeze: Annotated[bool, Doc("Remove channels that became dead, and verify the result.")] = False


ALIASES: dict[str, tuple[str, str | None]] = TRAINING_ALIASES | {
    "--TET": ("--tet", None),
    "--TET_phi": ("--tet-level", "value"),
    "--TET_lambda": ("--tet-weight", "value"),
    "--criterion": ("--loss", "value"),
    "--not_prune_weight": ("--no-mask-weights", None),
    "--not_prune_neuron": ("--no-mask-neurons", None),
    "--weight_prune_layers": ("--weight-layers", "list"),
    "--neuron_prune_layers": ("--neuron-layers", "list"),
    "--penalty_lmbda": ("--penalty", "value"),
    "--temp_scheduler": ("--temperatures", "list"),
    "--mask_init_factor": ("--mask-init", "list"),
    "--prune_optimizer": ("--mask-optimizer", "value"),
    "--prune_lr": ("--mask-lr", "value"),
    "--prune_weight_decay": ("--mask-weight-decay", "value"),
    "--accumulate_step": ("--accumulate", "value"),
    "--finetune_lr": ("--finetune-lr", "value"),
    "--epoch_finetune": ("--finetune-epochs", "value"),
    "--finetune_lr_scheduler": ("--finetune-schedule", "value"),
    "--save_latest": ("--finetuned=latest", None),
}
"""Options of an older tool: what they are called here, and whether a value or a list of values follows."""
