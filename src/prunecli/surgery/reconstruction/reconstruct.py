"""Each layer of a pruned network gives again what it gave in the dense one, as far as its inputs still tell.

In the order in which they run, layers are solved for the output that they had in the dense network, from what the
pruned network, with all earlier layers solved, gives them to read. All weights of a layer are solved, over channels and
kernel taps alike, and all layers behind the first that lost inputs. A layer whose output is added to a shortcut is
asked for what the shortcut has lost as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.collective import in_turn
from prunecli.inputs import Inputs, run_batch, sample_count, take_samples
from prunecli.measure.environment import memory_bytes
from prunecli.modes import evaluating
from prunecli.phases import reached
from prunecli.ranks import from_first, gathered
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.reconstruction.addends import Addend, Layers, layers_of
from prunecli.surgery.reconstruction.equations import Sums, solve
from prunecli.surgery.reconstruction.lockstep import Arrival, Pass
from prunecli.surgery.reconstruction.rows import (
    by_group,
    channel_dim,
    computes_products,
    groups_of,
    is_solvable,
    pair,
    pass_over,
    row_count,
    set_weights,
    weights_of,
)
from prunecli.surgery.removal.slice import kept_positions
from prunecli.surgery.taps import attended_positions, is_flipped_linear, layer_input

_MOST_COLUMNS = 4608
"""Wider layers would need sums of hundreds of megabytes."""
_LEAST_SAMPLES = 2
_ROWS = 8
"""Rows for each column that are enough; of more, as many are drawn."""
_LEAST_ROWS = 4096
_SMALLEST_SCALE = 1e-3
"""A channel that is multiplied by less than this on its way to a sum cannot make up for anything there."""
_HELD = 6
"""Tensors as large as a layer's input and output together that a pass holds while it waits, at most."""
_MEMORY_SHARE = 0.3


@dataclass(frozen=True)
class Reconstructed:
    """What was done.

    Attributes:
        solved: Layers whose weights were replaced.
        unchanged: Layers whose weights were as good already.
        too_wide: Layers with more than 4,608 weights for each output, which were left alone.
        samples: How many samples were used.
        wanted: For layers with more weights for each output than half of the samples have positions, how many samples
            would have as many; with fewer, the ridge keeps such a layer near what it was.
    """

    solved: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    too_wide: tuple[str, ...] = ()
    samples: int = 0
    wanted: Mapping[str, int] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """What a report says about it."""
        return {
            "samples": self.samples,
            "layers": len(self.solved),
            "unchanged": list(self.unchanged),
            "too_wide": list(self.too_wide),
            "wanted_samples": dict(self.wanted),
        }


@torch.no_grad()
def reconstruct(
    dense: nn.Module,
    pruned: nn.Module,
    groups: Sequence[ChannelGroup],
    keep: Keep,
    batches: Iterable[Inputs],
    seed: int,
    *,
    statistics: bool = False,
) -> Reconstructed:
    """Solves the layers of a pruned network, in place.

    Args:
        dense: The network before removal; not changed.
        pruned: The network after removal.
        groups: The groups of the trace.
        keep: Kept units by group name.
        batches: Batches of inputs without labels.
        seed: Of the rows that are drawn where there are more than needed.
        statistics: Whether normalisations behind layers get the mean and variance of what these give now. What is
            predicted varies less than what it stands for, layer after layer; else only means are kept as they were.

    Raises:
        MethodError: The network does not run on a batch.
    """
    coming = iter(batches)
    given = [batch for batch in islice(coming, 2) if sample_count(batch) > 0]
    count = sum(map(sample_count, given))
    if count < _LEAST_SAMPLES:
        return Reconstructed()
    if len(given) == 1:
        given = [take_samples(given[0], 0, count // 2), take_samples(given[0], count // 2, count)]
    with evaluating(dense, pruned):
        few = take_samples(given[0], 0, 2)
        names = _own_weights(pruned)
        theirs, ours = ({name: network.get_submodule(name) for name in names} for network in (dense, pruned))
        plain = from_first(_computing_products(pruned, names, few))  # what is close enough is for one to say
        before, after = layers_of(dense, theirs, few), layers_of(pruned, ours, few)
        used = [*given, *_affordable(pruned, ours, few, coming, count)]
    positions = kept_positions(dense, groups, keep)
    order = [name for name in _after_first_loss(_running_once(before, after), ours, positions) if name in plain]
    wide = tuple(name for name in order if weights_of(ours[name]).shape[1] > _MOST_COLUMNS)
    todo = [name for name in order if name not in wide]
    targets = {name: _Target(ours[name], _kept_rows(name, ours[name], positions), before, after, name) for name in todo}
    for name, factor in _factors(groups, keep).items():
        if name in targets:
            targets[name].factor = factor
    samples, generator = sum(map(sample_count, used)), torch.Generator().manual_seed(seed)
    with closing(_Passes(dense, pruned, targets, used)) as passes:
        solved, wanted = _solved_in_order(passes, ours, after, generator, samples, measured=statistics)
    return Reconstructed(tuple(solved), tuple(n for n in todo if n not in solved), wide, samples, wanted)


def _solved_in_order(
    passes: _Passes,
    layers: Mapping[str, nn.Module],
    seen: Layers,
    generator: torch.Generator,
    samples: int,
    *,
    measured: bool,
) -> tuple[list[str], dict[str, int]]:
    """Solves layer after layer; the layers that changed, and how many samples others want (see `Reconstructed`)."""
    solved: list[str] = []
    wanted: dict[str, int] = {}
    for number, name in enumerate(passes.names):
        reached(number, len(passes.names), "layer")
        halves = passes.sums(name, generator)
        if halves is None:
            break
        columns, rows = weights_of(layers[name]).shape[1], max(min(half.count for half in halves), 1)
        if rows < columns:
            wanted[name] = -(-samples * columns // rows)
        if _solve(layers[name], halves, seen.statistics.get(name), measured=measured):
            solved.append(name)
    return solved, wanted


def _own_weights(pruned: nn.Module) -> list[str]:
    """Layers that can be solved and whose parameters no other layer shares."""
    uses = Counter(id(p) for _, p in pruned.named_parameters(remove_duplicate=False))
    return [
        name
        for name, module in pruned.named_modules()
        if is_solvable(module) and all(uses[id(p)] == 1 for p in module._parameters.values() if p is not None)
    ]


def _computing_products(network: nn.Module, names: Sequence[str], inputs: Inputs) -> set[str]:
    """Those of the layers that give products of their weights with what they read, whenever they run."""
    plain: dict[str, bool] = {}

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, *, name: str) -> None:
        read = layer_input(args, kwargs)
        checked = read is not None and isinstance(output, Tensor) and computes_products(module, read, output)
        plain[name] = plain.get(name, True) and checked

    hooks = [
        network.get_submodule(name).register_forward_hook(partial(hook, name=name), with_kwargs=True) for name in names
    ]
    try:
        run_batch(network, inputs)
    finally:
        for own in hooks:
            own.remove()
    return {name for name, checked in plain.items() if checked}


def _running_once(before: Layers, after: Layers) -> list[str]:
    """Layers that run exactly once in both networks, in the order in which they do."""
    counts = Counter(before.order), Counter(after.order)
    order = [name for name in after.order if all(count[name] == 1 for count in counts)]
    return order if order == [name for name in before.order if name in set(order)] else []


def _after_first_loss(
    order: Sequence[str], layers: Mapping[str, nn.Module], positions: Mapping[str, Mapping[int, Tensor]]
) -> list[str]:
    """The layers from the first on that lost inputs; what those before read has not changed."""
    for index, name in enumerate(order):
        columns = 0 if is_flipped_linear(layers[name]) else 1
        lost = positions.get(f"{name}.weight", {})
        if columns in lost or (groups_of(layers[name]) > 1 and 0 in lost):
            return list(order[index:])
    return []


def _kept_rows(name: str, module: nn.Module, positions: Mapping[str, Mapping[int, Tensor]]) -> Tensor | None:
    return positions.get(f"{name}.weight", {}).get(1 if is_flipped_linear(module) else 0)


def _factors(groups: Sequence[ChannelGroup], keep: Keep) -> dict[str, tuple[Tensor, float]]:
    """By layer, which of its dense outputs are queries of fewer head dimensions, and by what these were multiplied."""
    return {
        scale.module: (scale.positions, (len(keep[group.name]) / group.units) ** 0.5)
        for group in groups
        for scale in group.scales
        if scale.tensor == "weight" and group.name in keep
    }


def _affordable(
    network: nn.Module, layers: Mapping[str, nn.Module], few: Inputs, coming: Iterable[Inputs], count: int
) -> Iterator[Inputs]:
    """As many more batches as can wait at the same time, beside `count` samples."""
    largest = [0]

    def hook(module: nn.Module, args: tuple[object, ...], output: Tensor) -> None:
        read = layer_input(args, {})
        largest[0] = max(largest[0], output.nbytes + (read.nbytes if read is not None else 0))

    hooks = [layer.register_forward_hook(hook) for layer in layers.values()]
    try:
        run_batch(network, few)
    finally:
        for own in hooks:
            own.remove()
    most = from_first(_MEMORY_SHARE * memory_bytes() / (2 * _HELD * max(largest[0], 1)) * sample_count(few))
    for batch in coming:
        count += sample_count(batch)
        if count > most:
            return
        yield batch


class _Target:
    """What a layer of the pruned network is to give.

    Args:
        module: The layer.
        rows: Which of the dense layer's outputs stay; None: all.
        before: What a run of the dense network showed.
        after: What a run of the pruned network showed.
        name: The layer's name.
    """

    def __init__(self, module: nn.Module, rows: Tensor | None, before: Layers, after: Layers, name: str) -> None:
        self._module, self._rows = module, rows
        self.lost, self.left = before.addends.get(name), after.addends.get(name)
        self.factor: tuple[Tensor, float] | None = None

    def of(self, dense: Arrival, pruned: Arrival, first: Pass, second: Pass) -> Tensor:
        """The dense layer's output at the channels that stay, and what the shortcut behind it has lost."""
        output, dim = dense.values.detach(), channel_dim(self._module, dense.values)
        if self.factor is not None:
            positions, ratio = self.factor
            output = output.index_copy(
                dim, positions.to(output.device), output.index_select(dim, positions.to(output.device)) * ratio
            )
        output = self._kept(output, dim)
        if self.lost is None or self.left is None:
            return output
        if dense.operators != self.lost.end or pruned.operators != self.left.begin:
            return output  # not the operators that were counted before: which one is the shortcut is not known
        was, now = first.noted.kept.pop(self.lost.operator, None), second.noted.kept.pop(self.left.operator, None)
        if was is None or now is None:
            return output
        was = self._kept(was, dim) if was.shape != now.shape else was
        if was.shape != now.shape or now.shape != output.shape:
            return output
        return output + _divided(was - now, self.left, dim)

    def _kept(self, values: Tensor, dim: int) -> Tensor:
        if self._rows is None or values.shape[dim] <= int(self._rows.max()):
            return values
        return values.index_select(dim, self._rows.to(values.device))


def _divided(values: Tensor, addend: Addend, dim: int) -> Tensor:
    """Values of a sum at the output of the layer whose channels are scaled on the way to it."""
    if addend.scale is None:
        return values
    inverse = torch.where(addend.scale.abs() < _SMALLEST_SCALE, 0, 1 / addend.scale)
    shape = [1] * values.dim()
    shape[dim] = -1
    return values * inverse.reshape(shape)


class _Passes:
    """Both networks on all batches, waiting at the same layer; processes that work together share the batches.

    Args:
        dense: Stops behind layers.
        pruned: Stops before them.
        targets: By layer, what it is to give.
        batches: Inputs.
    """

    def __init__(
        self, dense: nn.Module, pruned: nn.Module, targets: Mapping[str, _Target], batches: Sequence[Inputs]
    ) -> None:
        self.names, self._targets, self._count = tuple(targets), targets, len(batches)
        self._batches = dict(in_turn(enumerate(batches)))
        lost = frozenset(t.lost.operator for t in targets.values() if t.lost is not None)
        left = frozenset(t.left.operator for t in targets.values() if t.left is not None)
        self._passes = {
            index: (
                Pass(dense, batch, targets, before=False, wanted=lost),
                Pass(pruned, batch, targets, before=True, wanted=left),
            )
            for index, batch in self._batches.items()
        }
        self._layers = {name: pruned.get_submodule(name) for name in targets}

    def sums(self, name: str, generator: torch.Generator) -> tuple[Sums, Sums] | None:
        """Sums of one layer over the even and the odd batches; None if a pass does not come to it next."""
        module = self._layers[name]
        shape = weights_of(module).shape
        halves = Sums.empty(*shape), Sums.empty(*shape)
        most = max(_LEAST_ROWS, _ROWS * shape[1]) // self._count + 1
        arrivals = {index: self._arrivals(index, name) for index in self._batches}
        rows = {
            index: row_count(module, both[1].values, attended_positions(self._batches[index])) if both else None
            for index, both in arrivals.items()
        }
        everywhere = {index: count for own in gathered(rows) for index, count in own.items()}
        if None in everywhere.values():
            return None
        for index, count in sorted(everywhere.items()):
            both = arrivals.get(index)
            if both is None:
                pass_over(count or 0, most, generator)
                continue
            target = self._targets[name].of(*both, *self._passes[index])
            attended = attended_positions(self._batches[index])
            inputs, outputs = pair(module, both[1].values, target, attended, most, generator)
            halves[index % 2].add(inputs, by_group(outputs, shape[0]))
        return halves[0].over_ranks(), halves[1].over_ranks()

    def _arrivals(self, index: int, name: str) -> tuple[Arrival, Arrival] | None:
        """Where the passes on a batch come to a layer; None if one of them does not come to it next."""
        theirs, ours = (one.advance() for one in self._passes[index])
        if theirs is None or ours is None or theirs.layer != name or ours.layer != name:
            return None
        return theirs, ours

    def close(self) -> None:
        """Ends all passes."""
        for pair_of in self._passes.values():
            for one in pair_of:
                one.close()


def _solve(
    module: nn.Module, halves: tuple[Sums, Sums], statistics: tuple[Tensor, Tensor] | None, *, measured: bool
) -> bool:
    """Solves one layer; whether its weights changed."""
    both = halves[0] + halves[1]
    if not both.is_finite():
        return False
    bias = module._parameters.get("bias")
    shifted = bias is not None or statistics is not None
    weights = solve(halves, weights_of(module), shifted=shifted)
    if weights is not None:
        set_weights(module, weights)
    if shifted:
        shift = both.shift(weights_of(module)).flatten()
        if bias is not None:
            bias.copy_(shift)
        elif statistics is not None and not measured:
            statistics[0].sub_(shift.to(statistics[0]))
    if statistics is not None and measured:
        mean, variance = both.statistics(weights_of(module))
        statistics[0].copy_(mean + (bias.to(mean) if bias is not None else 0))
        statistics[1].copy_(variance)
    return weights is not None
