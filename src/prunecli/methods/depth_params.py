"""Parameters of removing whole blocks. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Lt


@dataclass(frozen=True)
class DepthParams:
    """How many residual blocks go, and which."""

    ratio: Annotated[float, Gt(0), Lt(1), Doc("Share of the residual blocks to remove, between 0 and 1.")] = 0.25
    blocks: Annotated[int | None, Ge(1), Doc("Instead of a ratio: how many blocks to remove.")] = None
    drop: Annotated[
        tuple[str, ...], Doc("Instead of a ratio: names or patterns of the blocks to remove, may be given again.")
    ] = ()
    score: Annotated[
        Literal["loss", "cosine", "random"],
        Doc(
            "loss: what the loss rises by without the block; cosine: how little it turns its input, also without "
            "images; random: the baseline to beat."
        ),
    ] = "loss"
    greedy: Annotated[bool, Doc("Remove one block at a time, and score those that remain again after each.")] = False

    @property
    def chooses(self) -> bool:
        """Whether scores decide, and not names."""
        return not self.drop
