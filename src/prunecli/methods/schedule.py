"""How much has been removed after each step of a schedule."""

from __future__ import annotations

from prunecli.methods.params import Schedule

_RAMP_FROM, _RAMP_TO, _RAMP_INITIAL = 0.3, 0.7, 0.1


def amounts(kind: Schedule, steps: int, final: float, initial: float | None = None) -> list[float]:
    """Amount removed after each step, counted against the dense network; the last one is `final`.

    With p the share of the steps done and a0 the initial amount:

    - once: one step.
    - linear: final + (a0 - final) (1 - p).
    - cubic: final + (a0 - final) (1 - p)^3 (Zhu and Gupta, To Prune, or Not to Prune, 2017).
    - ramp: 0 before p = 0.3, then a straight line from a0 (default 0.1) to final at p = 0.7, then final.

    Args:
        kind: The schedule.
        steps: Number of steps; ignored for "once".
        final: Amount at the end, 0 to 1.
        initial: Amount at the beginning; more than `final` counts as `final`.
    """
    if kind == "once":
        return [final]
    start = min(final, initial if initial is not None else (_RAMP_INITIAL if kind == "ramp" else 0.0))
    amounts_by_step = []
    for step in range(1, steps + 1):
        progress = step / steps
        if kind == "ramp":
            along = (progress - _RAMP_FROM) / (_RAMP_TO - _RAMP_FROM)
            # 3 of 10 steps count as 30 %, despite binary rounding.
            amounts_by_step.append(0.0 if along < -1e-9 else start + (final - start) * min(1.0, max(0.0, along)))
        else:
            left = (1 - progress) ** (3 if kind == "cubic" else 1)
            amounts_by_step.append(final + (start - final) * left)
    return amounts_by_step
