"""Parameters of removing experts. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Lt


@dataclass(frozen=True)
class ExpertsParams:
    """How many experts of each layer go, and which."""

    ratio: Annotated[float, Gt(0), Lt(1), Doc("Share of each layer's experts to remove, between 0 and 1.")] = 0.25
    experts: Annotated[int | None, Ge(1), Doc("Instead of a ratio: how many experts of each layer to remove.")] = None
    score: Annotated[
        Literal["probability", "frequency", "loss", "norm", "random"],
        Doc(
            "probability: mean softmax of the router's logits; frequency: share of the tokens sent to it; loss: what "
            "the loss rises by without it; norm: of its weights, also without data; random: the baseline to beat."
        ),
    ] = "probability"
