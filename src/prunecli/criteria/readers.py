"""Watching the inputs of a channel's readers, which are the channel after normalisation, activation and gating."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunecli.criteria.base import OwnShare, Paired, member_tensor, role_of, sum_by_unit
from prunecli.inputs import Inputs, output_tensors, run_batch
from prunecli.modes import evaluating
from prunecli.surgery.groups import ChannelGroup, Member
from prunecli.surgery.reconstruction.rows import pass_over, row_count, unfolded_inputs
from prunecli.surgery.taps import attended_positions, channels_last, counted_rows, is_layer, shows, tapped
from prunecli.surgery.tracing.running import without_fastpath

_POSITIONS = 2048
"""Of each batch, where taps are columns of their own."""
UNSEEN = "no layer that reads it can be watched"


def readers_of(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The consumers of `group` that take in nothing but what a hook on their layer sees: linear, convolutions."""
    return [
        member
        for member in group.members
        if role_of(model, member) == "consumer"
        and member.tensor == "weight"
        and is_layer(model.get_submodule(member.module))
    ]


def tappable(model: nn.Module, group: ChannelGroup) -> list[Member]:
    """The weights that read `group` and show what they take in: of linear layers, convolutions, recurrent layers."""
    return [
        member
        for member in group.members
        if role_of(model, member) == "consumer" and shows(model.get_submodule(member.module), member.tensor)
    ]


def by_unit(model: nn.Module, member: Member, values: Tensor) -> Tensor:
    """Adds up the values of a reader's input channels by unit: shape (..., input channels) to (..., units).

    Every block of a grouped convolution reads a channel of its own with the same column of the weight.
    """
    columns = int(getattr(model.get_submodule(member.module), member.tensor).shape[member.dim])
    if values.shape[-1] != columns:
        values = values.reshape(*values.shape[:-1], -1, columns).sum(dim=-2)
    return sum_by_unit(values, member)


def column_norms(model: nn.Module, member: Member) -> Tensor:
    """Euclidean norms of the weights that read each input channel, shape (input channels,), float64."""
    weight, module = member_tensor(model, member).detach().cpu().double(), model.get_submodule(member.module)
    if member.dim == 0 or not isinstance(module, _ConvNd):  # a transposed convolution's weight begins with its inputs
        alone: Tensor = torch.linalg.vector_norm(weight.movedim(member.dim, 0).flatten(1), dim=1)
        return alone
    by_block = weight.reshape(module.groups, -1, weight.shape[1], max(weight[0, 0].numel(), 1))
    norms: Tensor = by_block.square().sum(dim=(1, 3)).sqrt()
    return norms.flatten()


def exact(values: Tensor) -> Tensor:
    """Values in float64, on the CPU where the device has none."""
    return values.cpu().double() if values.device.type == "mps" else values.double()


def watch_readers(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    calibration: Paired,
    see: Callable[[str, Tensor], None],
    unfolded: Collection[str] = (),
) -> None:
    """Runs all calibration batches in evaluation mode and passes to `see` what each reader takes in.

    Args:
        model: Its mode is restored afterwards.
        groups: The groups to watch the readers of.
        calibration: The data, or this process's share of them.
        see: Called with the name of the reader's weight (`Member.name`) and its input, shape (positions of all
            samples, input channels), without padding; for what a recurrent layer's weights read of its own units, once
            a step.
        unfolded: Weights of convolutions for which `see` gets what all of their taps read, shape (positions, input
            channels * taps), at some positions of each batch.
    """
    modules: dict[str, Any] = {
        member.name: model.get_submodule(member.module) for group in groups for member in tappable(model, group)
    }
    attended: Tensor | None = None
    mine, draws = True, _Draws()

    def tap(name: str, values: Tensor) -> Tensor:
        if name in unfolded:
            rows = draws.of(modules[name], values.detach())
            if mine:
                see(name, rows)
        elif mine:
            channels = channels_last(modules[name], values.detach())
            see(name, counted_rows(channels, attended))
        return values

    marked: Iterator[tuple[tuple[Inputs, Any], bool]] = ((pair, True) for pair in calibration.pairs())
    if isinstance(calibration, OwnShare):
        marked = calibration.marked()
    with torch.no_grad(), evaluating(model), without_fastpath(), tapped(model, modules, tap):
        for (inputs, _), mine in marked:
            if not mine and (not unfolded or draws.passed_over(inputs)):
                continue
            attended = attended_positions(inputs)
            draws.begin(inputs)
            run_batch(model, inputs)


class _Draws:
    """Positions of one batch after the other, the same whichever process looks at which batch.

    What is drawn depends on all batches before. Of another process's batch it is drawn, and left, without running the
    network on it, where a batch of its shapes was run before.
    """

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._counts: dict[tuple[torch.Size, ...], list[int]] = {}
        self._now: list[int] = []

    def begin(self, inputs: Inputs) -> None:
        """The batch that is run next."""
        self._now = self._counts[_shapes(inputs)] = []

    def of(self, module: nn.Module, values: Tensor) -> Tensor:
        """What a convolution reads at some positions, shape (positions, input channels * taps)."""
        assert isinstance(module, _ConvNd)
        self._now.append(row_count(module, values, None))
        return unfolded_inputs(module, values, _POSITIONS, self._generator)

    def passed_over(self, inputs: Inputs) -> bool:
        """Draws for a batch that is not run; False if it is not known what."""
        counts = self._counts.get(_shapes(inputs))
        for count in counts or ():
            pass_over(count, _POSITIONS, self._generator)
        return counts is not None


def _shapes(inputs: Inputs) -> tuple[torch.Size, ...]:
    return tuple(tensor.shape for tensor in output_tensors(inputs))
