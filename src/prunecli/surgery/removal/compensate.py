"""Folding removed channels into the ones that stay, by regression on what a layer reads.

A layer that read x = (x_kept, x_removed) now reads x_kept alone. With the regression x_removed ~ A x_kept + b over
calibration data, its weights become W_kept + W_removed A and its bias gains W_removed b: the least-squares choice among
all layers that read only what stays (the reconstruction of He et al., Channel Pruning for Accelerating Very Deep Neural
Networks, ICCV 2017, in closed form from second moments, so activations are never stored).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunecli.collective import in_turn
from prunecli.inputs import Inputs, run_batch
from prunecli.modes import evaluating
from prunecli.ranks import gathered, summed, together
from prunecli.surgery.groups import ChannelGroup, Keep, Member, Role, dropped_units
from prunecli.surgery.taps import (
    attended_positions,
    channels_last,
    counted_rows,
    is_flipped_linear,
    layer_input,
    shows,
    tapped,
)
from prunecli.widened import is_on_disk

Folding = Literal["none", "bias", "ls"]
Compensation = Literal["none", "bias", "ls", "reconstruct", "auto"]
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Candidate ridge strengths relative to the mean variance of the kept channels."""
_MAX_COLUMNS = 4096
"""Wider readers would need second moments of hundreds of megabytes; for them only the mean shift is compensated."""
_AT_ONCE = 0.25
"""Second moments that are held at once of a network on the disk, as a share of its weights while they are read."""


@dataclass
class _Moments:
    """Count, sum and second moments of a layer's input channels over some batches."""

    count: int
    total: Tensor
    products: Tensor | None

    def add(self, rows: Tensor) -> None:
        if rows.dtype in (torch.float16, torch.bfloat16):  # sums of squares soon leave their range
            rows = rows.float()
        self.count += len(rows)
        self.total += rows.sum(dim=0).cpu().double()
        if self.products is not None:
            self.products += (rows.T @ rows).cpu().double()

    def __add__(self, other: _Moments) -> _Moments:
        products = None
        if self.products is not None and other.products is not None:
            products = self.products + other.products
        return _Moments(self.count + other.count, self.total + other.total, products)

    def over_ranks(self) -> _Moments:
        """Those of all processes together."""
        if not together():
            return self
        sums = [torch.tensor([self.count]), self.total, *([] if self.products is None else [self.products])]
        count, total, *products = summed(sums)
        return _Moments(int(count), total, products[0] if products else None)

    def second(self, *, centred: bool) -> Tensor:
        """E[x x^T], or the covariance when `centred`."""
        assert self.products is not None
        mean = self.total / self.count
        return self.products / self.count - (torch.outer(mean, mean) if centred else 0)


class Readings:
    """What the layers that lose inputs read in the dense network, over one pass of it; weights are folded by that.

    Grouped convolutions are not adjusted: the same column reads a different channel in each block. Nor are weights that
    several layers share, or that are computed from other parameters. In recurrent layers, weights that read the units
    of the step before are adjusted too, where the layer is one of torch's own.

    Of a network whose weights stay on the disk, second moments are not kept either: they are measured when weights are
    folded, for a few layers at a time, each time in a pass of its own.

    Args:
        dense: The network before removal; not changed.
        groups: The groups of the trace.
        keep: Kept unit indices by group name.
        batches: Batches of inputs without labels, in any form the network accepts; the same each time they are read.
        second: Whether second moments are measured too, which "ls" needs.
    """

    def __init__(
        self,
        dense: nn.Module,
        groups: Sequence[ChannelGroup],
        keep: Keep,
        batches: Iterable[Inputs],
        *,
        second: bool = True,
    ) -> None:
        self._dense, self._folds = dense, dict[tuple[str, bool], Tensor]()
        self._removed, self._written = self._masks(groups, keep)
        self._again: Iterable[Inputs] | None = None
        self._halves: dict[str, list[_Moments]] = {}
        self._normalised: set[str] = set()
        if second and len(list(_parts(dense, self._removed))) > 1:
            self._again = batches
        elif self._removed:
            self._halves, self._normalised = _measure(dense, self._removed, batches, second=second)

    def of(self, groups: Sequence[ChannelGroup], keep: Keep) -> Readings:
        """The same readings for another removal, from groups of which something was removed in the first."""
        other = copy(self)
        other._folds = {}
        other._removed, other._written = self._masks(groups, keep)
        return other

    def _masks(self, groups: Sequence[ChannelGroup], keep: Keep) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Removed columns and rows by weight."""
        removed, written = (_removed(self._dense, groups, keep, role) for role in ("consumer", "producer"))
        return {name: mask for name, mask in removed.items() if not _is_shared(self._dense, name)}, written

    def fold(self, pruned: nn.Module, mode: Folding, *, intercept: bool) -> int:
        """Adjusts the layers of `pruned` that read removed channels, in place.

        Args:
            pruned: The network after removal, not adjusted yet.
            mode: "ls" regression with a ridge chosen by held-out error, "bias" mean shift only, "none" nothing.
            intercept: Whether batch normalisation statistics are measured again afterwards, which absorbs a constant
                shift in a layer without a bias that feeds a normalisation directly.

        Returns:
            Number of adjusted layers.
        """
        if mode == "none":
            return 0
        if self._again is None:
            return self._fold(pruned, self._removed, mode, intercept=intercept)
        adjusted = 0
        for part in _parts(self._dense, self._removed) if mode == "ls" else [self._removed]:
            self._halves, self._normalised = _measure(self._dense, part, self._again, second=mode == "ls")
            adjusted += self._fold(pruned, part, mode, intercept=intercept)
            self._halves, self._folds = {}, {}
        return adjusted

    def _fold(self, pruned: nn.Module, removed: dict[str, Tensor], mode: Folding, *, intercept: bool) -> int:
        adjusted = 0
        for name, columns in removed.items():
            module, _, tensor = name.rpartition(".")
            after, flipped = pruned.get_submodule(module), is_flipped_linear(self._dense.get_submodule(module))
            weight, smaller = self._dense.get_parameter(name).detach(), after.get_parameter(tensor).detach()
            weight, smaller = (weight.T, smaller.T) if flipped else (weight, smaller)
            rows = ~self._written.get(name, torch.zeros(len(weight), dtype=torch.bool))
            reader = _Reader(smaller, getattr(after, tensor.replace("weight", "bias"), None))
            halves = self._halves[name]
            fold = None
            if mode == "ls" and halves[0].products is not None and halves[0].count:
                centred = reader.bias is not None or (intercept and module in self._normalised)
                if (name, centred) not in self._folds:
                    self._folds[name, centred] = _regression(halves, columns, centred=centred)
                fold = self._folds[name, centred]
            adjusted += _adjust(weight[rows.to(weight.device)], reader, columns, halves, fold)
        return adjusted


def compensate(
    dense: nn.Module,
    pruned: nn.Module,
    groups: Sequence[ChannelGroup],
    keep: Keep,
    batches: Iterable[Inputs],
    mode: Folding,
    *,
    intercept: bool,
) -> int:
    """Measures and folds at once; see `Readings`."""
    if mode == "none":
        return 0
    return Readings(dense, groups, keep, batches, second=mode == "ls").fold(pruned, mode, intercept=intercept)


@dataclass(frozen=True)
class _Reader:
    """A weight whose columns read channels, a view of the parameter, and the bias that is added to what it gives."""

    weight: Tensor
    bias: nn.Parameter | None


def _removed(dense: nn.Module, groups: Sequence[ChannelGroup], keep: Keep, role: Role) -> dict[str, Tensor]:
    """For each weight with removed columns (of a consumer) or rows (of a producer) a mask, True where removed."""
    masks: dict[str, Tensor] = {}
    for group in groups:
        dropped = dropped_units(group, keep[group.name]) if group.name in keep else torch.empty(0)
        for member in group.members:
            flipped = is_flipped_linear(dense.get_submodule(member.module))
            dim = int((role == "consumer") != flipped)
            if member.role != role or member.dim != dim or len(dropped) == 0 or not _is_reader(dense, member):
                continue
            weight = dense.get_parameter(member.name)
            mask = masks.setdefault(member.name, torch.zeros(weight.shape[dim], dtype=torch.bool))
            mask[member.index[dropped].flatten()] = True
    return masks


def _is_reader(model: nn.Module, member: Member) -> bool:
    """Whether a tensor is a weight of its own whose columns are input channels, of which is seen what they take in."""
    module = model.get_submodule(member.module)
    if module._parameters.get(member.tensor) is None:  # computed from others, so a change would not last
        return False
    grouped = isinstance(module, _ConvTransposeNd) or (isinstance(module, _ConvNd) and module.groups > 1)
    return shows(module, member.tensor) and not grouped


def _is_shared(model: nn.Module, name: str) -> bool:
    """Whether another layer, or the same one under another name, has a weight."""
    weight = model.get_parameter(name)
    return sum(parameter is weight for _, parameter in model.named_parameters(remove_duplicate=False)) > 1


def _parts(dense: nn.Module, removed: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Weights whose second moments are held at the same time: all, or of a network on the disk a few in a row."""
    weights = list(dense.parameters())
    if not any(map(is_on_disk, weights)):
        yield removed
        return
    most = _AT_ONCE * sum(weight.numel() * weight.element_size() for weight in weights)
    part: dict[str, Tensor] = {}
    held = 0
    for name, mask in removed.items():
        size = 2 * len(mask) ** 2 * torch.float64.itemsize if len(mask) <= _MAX_COLUMNS else 0
        if part and held + size > most:
            yield part
            part, held = {}, 0
        part[name] = mask
        held += size
    if part:
        yield part


def _measure(
    dense: nn.Module, removed: dict[str, Tensor], batches: Iterable[Inputs], *, second: bool
) -> tuple[dict[str, list[_Moments]], set[str]]:
    """Moments of what every weight takes in over even and odd batches, and layers that feed a batch normalisation."""
    moments = {name: [_no_moments(len(mask), second=second) for _ in range(2)] for name, mask in removed.items()}
    half, attended = 0, None

    def see(name: str, values: Tensor) -> Tensor:
        channels = channels_last(dense.get_submodule(name.rpartition(".")[0]), values.detach())
        moments[name][half].add(counted_rows(channels, attended))
        return values

    outputs: dict[int, tuple[str, Tensor]] = {}  # keeping the tensors prevents their ids from being reused
    normalised: set[str] = set()

    def written(name: str) -> Callable[..., None]:
        return lambda module, args, output: outputs.update({id(output): (name, output)})

    def reads(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        writer = outputs.get(id(layer_input(args, kwargs)))
        if writer is not None:
            normalised.add(writer[0])

    modules = dict.fromkeys(name.rpartition(".")[0] for name in removed)
    hooks = [dense.get_submodule(name).register_forward_hook(written(name)) for name in modules]
    hooks += [
        module.register_forward_pre_hook(reads, with_kwargs=True)
        for module in dense.modules()
        if isinstance(module, _BatchNorm)
    ]
    try:
        with torch.no_grad(), evaluating(dense), tapped(dense, removed, see):
            for index, batch in in_turn(enumerate(batches)):
                half = index % 2
                outputs.clear()
                attended = attended_positions(batch)
                run_batch(dense, batch)
    finally:
        outputs.clear()
        for hook in hooks:
            hook.remove()
    joined = {name: [half.over_ranks() for half in halves] for name, halves in moments.items()}
    return joined, set().union(*gathered(normalised))


def _no_moments(size: int, *, second: bool) -> _Moments:
    products = torch.zeros(size, size, dtype=torch.float64) if second and size <= _MAX_COLUMNS else None
    return _Moments(0, torch.zeros(size, dtype=torch.float64), products)


def _adjust(weight: Tensor, after: _Reader, removed: Tensor, halves: list[_Moments], fold: Tensor | None) -> bool:
    """Adjusts one reader; `weight` has the dense layer's columns and the rows that are kept."""
    both, bias = halves[0] + halves[1], after.bias
    if both.count == 0:
        return False
    kept, gone = (mask.nonzero().flatten() for mask in (~removed, removed))
    lost = weight.cpu().index_select(1, gone).double()
    shift = (both.total / both.count)[gone]
    with torch.no_grad():
        if fold is not None:
            shift = shift - fold @ (both.total / both.count)[kept]
            after.weight.add_(torch.tensordot(lost, fold, dims=([1], [0])).movedim(-1, 1).to(weight))
        if bias is not None:
            # Each tap of a convolution reads the shift once; at zero-padded borders this slightly overcompensates.
            bias.add_((lost.flatten(2).sum(dim=2) if lost.dim() > 2 else lost).matmul(shift).to(bias))
    return fold is not None or bias is not None


def _regression(halves: list[_Moments], removed: Tensor, *, centred: bool) -> Tensor:
    """Coefficients A of shape (removed, kept); the ridge is the one that best predicts the other half of the data."""
    both = halves[0] + halves[1]
    kept, gone = (mask.nonzero().flatten() for mask in (~removed, removed))
    if min(half.count for half in halves) == 0:
        return _solve(both.second(centred=centred), kept, gone, _RIDGES[2])
    fitted, held_out = (half.second(centred=centred) for half in halves)
    errors = []
    for ridge in _RIDGES:
        fold = _solve(fitted, kept, gone, ridge)
        cross = held_out[gone][:, kept]
        errors.append(float(((fold @ held_out[kept][:, kept]) * fold).sum() - 2 * (fold * cross).sum()))
    return _solve(both.second(centred=centred), kept, gone, _RIDGES[errors.index(min(errors))])


def _solve(second: Tensor, kept: Tensor, gone: Tensor, ridge: float) -> Tensor:
    gram = second[kept][:, kept]
    strength = ridge * float(gram.diagonal().mean()) + torch.finfo(torch.float64).tiny
    regular = gram + strength * torch.eye(len(kept), dtype=gram.dtype)
    solution: Tensor = torch.linalg.solve(regular, second[kept][:, gone]).T
    return solution
