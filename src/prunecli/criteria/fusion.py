"""Several rankings made into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import nnls
from torch import Tensor

from prunecli.criteria.ablation import Unit
from prunecli.criteria.ranks import ranks
from prunecli.errors import MethodError
from prunecli.naming import option
from prunecli.surgery.groups import ChannelGroup

_FEWEST_EACH = 4
"""Units of one group that are ablated, so that there is a ranking among them."""


def fused(scores: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted mean of ranks, shape (units,), between 0 and 1.

    Only orders count: any increasing function of a member's scores gives the same. Equal scores share the mean of
    their ranks.

    Args:
        scores: For each member its scores of the units of one group, each of shape (units,).
        weights: For each member its weight, none negative; where all are 0 every member counts alike.
    """
    total = sum(weights[name] for name in scores)
    shares = {name: weights[name] / total if total > 0 else 1 / len(scores) for name in scores}
    return torch.stack([shares[name] * ranks(values) for name, values in scores.items()]).sum(dim=0)


def units_to_ablate(groups: Sequence[ChannelGroup], count: int, generator: torch.Generator) -> list[Unit]:
    """Draws units from as many groups as there can be at least four of each.

    Raises:
        MethodError: There are fewer units.
    """
    large = [group for group in groups if group.units >= _FEWEST_EACH]
    order = torch.randperm(len(large), generator=generator).tolist()
    chosen = [large[place] for place in order[: max(1, count // _FEWEST_EACH)]]
    total = sum(group.units for group in chosen)
    if count > total:
        raise MethodError(f"{option('ablations', count)}: there are {total} units to remove one by one; ask for fewer")
    left = {group.name: torch.randperm(group.units, generator=generator).tolist() for group in chosen}
    units: list[Unit] = []
    while len(units) < count:
        for name, indices in left.items():
            if indices and len(units) < count:
                units.append(Unit(name, indices.pop()))
    return units


def learned_weights(
    parts: Mapping[str, Mapping[str, Tensor]], units: Sequence[Unit], rises: Sequence[float]
) -> dict[str, float]:
    """Weights, none negative, whose fused ranks come nearest to the ranks of ablations (least squares).

    Ranks and ablations are compared within groups, where both are centred.

    Args:
        parts: For each member its scores by group.
        units: The units that were removed one by one.
        rises: By how much the loss rose without each.

    Returns:
        Weights that add up to 1, or all 0 where no member has to do with the ablations.
    """
    rows: list[Tensor] = []
    targets: list[Tensor] = []
    for name in dict.fromkeys(unit.group for unit in units):
        places = [place for place, unit in enumerate(units) if unit.group == name]
        indices = torch.tensor([units[place].index for place in places])
        own = [
            ranks(scores[name])[indices] if name in scores else torch.zeros(len(indices), dtype=torch.float64)
            for scores in parts.values()
        ]
        columns = torch.stack(own, dim=1)
        target = ranks(torch.tensor([rises[place] for place in places], dtype=torch.float64))
        rows.append(columns - columns.mean(dim=0))
        targets.append(target - target.mean())
    weights = torch.from_numpy(nnls(torch.cat(rows).numpy(), torch.cat(targets).numpy())[0])
    total = float(weights.sum())
    return dict(zip(parts, (weights / total if total > 0 else weights).tolist(), strict=True))
