"""Parameters of methods that set single weights to zero. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Lt


@dataclass(frozen=True)
class SparseParams:
    """How many single weights become zero, where, and in how many steps."""

    sparsity: Annotated[
        float, Gt(0), Lt(1), Doc("Share of the weights in masked layers that is zero afterwards, between 0 and 1.")
    ] = 0.5
    scope: Annotated[
        Literal["auto", "global", "layer"],
        Doc("global: one ranking over all layers; layer: the same share in every layer; auto: as the method's paper."),
    ] = "auto"
    pattern: Annotated[
        str, Doc("N:M, such as 2:4: of every M weights in a row along the inputs at most N stay; it sets the sparsity.")
    ] = ""
    schedule: Annotated[Literal["once", "linear", "cubic"], Doc("once; linear or cubic: in steps.")] = "once"
    steps: Annotated[int, Ge(1), Doc("Steps of a schedule.")] = 5
    rewind: Annotated[
        str | None,
        Doc("Checkpoint of the same network, from early in its training, whose weights are put back after each step."),
    ] = None
    csr: Annotated[bool, Doc("Time the largest linear layers as sparse matrices (CSR) on the CPU.")] = False
