"""What has left finite numbers ends a training, before it is saved as if it were a result."""

from __future__ import annotations

import math

from prunecli.engine.resuming import Position
from prunecli.engine.tasks.base import Figures
from prunecli.errors import DivergedError


def require_finite_loss(figures: Figures, position: Position) -> None:
    """Checks the loss of a validation: finite weights can still compute what is not a number.

    Raises:
        DivergedError: It is NaN or infinite.
    """
    loss = figures.logged.get("loss", 0.0)
    if not math.isfinite(loss) and getattr(figures, "tokens", None) != 0:  # of no tokens there is no mean
        raise DivergedError(
            f"the validation loss is {loss} after epoch {position.epoch}, although the weights are finite; lower the "
            "learning rate (--lr), or limit the gradients (--clip-grad)"
        )
