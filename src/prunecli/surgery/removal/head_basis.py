"""Attention heads in another basis, in which the dimensions that are removed matter least.

Queries and keys only meet in their product, and values only in what the output projection makes of them. With any
invertible T, queries q T and keys k T^-T have the same products, and values v T with a projection T^-1 W the same
output. So the dimensions of a head can be mixed before some of them are removed, and what removal takes away is then
not what a dimension happens to hold, but the least of all that can be taken away:

- With second moments E[q q'] = Q'Q and covariances of keys K'K, and the singular values Q K' = U S V', the T that keeps
  most of the scores q k' in its first dimensions is Q^-1 U S^(1/2) (Eckart and Young, 1936). A constant that is added
  to all keys moves all scores of a query alike, which softmax does not see.
- With covariances O'O of what the projection W reads, and O W = U S V', values are multiplied by O^-1 U.

What of this holds in a network is not guessed from its layers' names: it is done, and undone where outputs change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, output_tensors, run_batch, take_samples
from prunecli.modes import evaluating
from prunecli.surgery.groups import ChannelGroup, Keep, Member, dropped_units
from prunecli.surgery.taps import attended_positions, channels_last, counted_rows, is_layer, layer_input

_RIDGE = 1e-6
"""The least variance of a head in any direction, relative to the mean."""
_CLOSE = 1e-3
"""How far outputs may move, relative to the largest, by rounding."""


@dataclass(frozen=True)
class _Side:
    """A layer that writes or reads heads.

    Attributes:
        module: Its name.
        tensors: Its weight, and its bias if heads are what it writes, each with the dimension that heads lie along.
        positions: Where they lie, shape (dimensions of a head, heads).
        reads: Whether it reads them.
    """

    module: str
    tensors: tuple[tuple[str, int], ...]
    positions: Tensor
    reads: bool = False


@dataclass(frozen=True)
class _Pair:
    """Two layers whose heads meet: queries and keys, or values and the projection that reads them."""

    first: _Side
    second: _Side
    order: Tensor

    @property
    def names(self) -> frozenset[str]:
        return frozenset(name for side in (self.first, self.second) for name, _ in side.tensors)


def concentrated(
    model: nn.Module, groups: Sequence[ChannelGroup], order: Mapping[str, Tensor], batches: Iterable[Inputs]
) -> tuple[nn.Module, frozenset[str]]:
    """A copy that computes the same, with what matters most of each head in the dimensions that stay.

    Whatever number of dimensions stays, they hold the most that as many can.

    Args:
        model: The network before removal; not changed.
        groups: The groups of the trace.
        order: By group name, all its units, in the order in which they are to matter; see `kept_first`. Groups without
            an entry stay as they are.
        batches: Calibration inputs.

    Returns:
        The copy and the names of the tensors that changed; the network itself where none did.
    """
    pairs = [
        pair
        for group in groups
        if group.kind == "head_dim" and group.name in order
        for pair in _pairs(model, group, order[group.name].cpu())
    ]
    if not pairs:
        return model, frozenset()
    with torch.no_grad(), evaluating(model):
        moments, few = _moments(model, pairs, batches)
        if few is None:
            return model, frozenset()
        result, wanted = copied(model), _outputs(model, few)
        bases = [(pair, basis) for pair in pairs if (basis := _basis(model, pair, moments)) is not None]
        for pair, basis in bases:
            _mix(result, pair, basis)
        if not _gives(result, few, wanted):
            bases = _harmless(model, result, bases, few, wanted)
    return (result, frozenset().union(*(pair.names for pair, _ in bases))) if bases else (model, frozenset())


def kept_first(groups: Sequence[ChannelGroup], keep: Keep) -> dict[str, Tensor]:
    """Units of each group that loses some, those that stay first."""
    return {
        group.name: torch.cat([keep[group.name].cpu(), dropped_units(group, keep[group.name]).cpu()])
        for group in groups
        if group.name in keep and len(keep[group.name]) < group.units
    }


def _pairs(model: nn.Module, group: ChannelGroup, order: Tensor) -> list[_Pair]:
    """What may meet in a group of head dimensions; only trying shows whether it does."""
    writers, readers = _sides(model, group, reads=False), _sides(model, group, reads=True)
    if writers is None or readers is None or len(readers) > 1:
        return []
    heads = readers[0].positions.shape[1] if readers else None
    parts = _parts(writers, group, heads)
    if parts is None:
        return []
    queries_keys = [_Pair(parts[0], parts[1], order)] if len(parts) > 1 else []
    values = [_Pair(parts[-1], readers[0], order)] if readers and len(parts) != 2 else []
    return [*queries_keys, *values]


def _sides(model: nn.Module, group: ChannelGroup, *, reads: bool) -> list[_Side] | None:
    """The layers that write a group's dimensions, or read them; None if a tensor among them is no layer's own."""
    members: dict[str, list[Member]] = {}
    for member in group.members:
        if member.role == ("consumer" if reads else "producer"):
            members.setdefault(member.module, []).append(member)
    sides = []
    for module, own in members.items():
        weight = next((member for member in own if member.tensor == "weight"), None)
        if weight is None or not is_layer(model.get_submodule(module)) or len(own) > 2:
            return None
        if any(not torch.equal(member.index, weight.index) for member in own):
            return None
        own.sort(key=lambda member: member.tensor != "weight")
        sides.append(_Side(module, tuple((m.name, m.dim) for m in own), weight.index.cpu(), reads))
    return sides


def _parts(writers: Sequence[_Side], group: ChannelGroup, heads: int | None) -> list[_Side] | None:
    """Queries, keys and values; queries and keys; or values alone; None if there are other numbers of them."""
    if len(writers) > 1:
        same = {side.positions.shape[1] for side in writers} == {heads or writers[0].positions.shape[1]}
        return list(writers) if same and len(writers) == (3 if heads else 2) else None
    if not writers:
        return None
    whole = writers[0]
    count = whole.positions.shape[1]
    several = count // heads if heads and count % heads == 0 else 2 if not heads and count % 2 == 0 else 0
    if several not in (1, 2, 3) or (several == 2 and heads):
        return None
    each = count // several
    own = (scale for scale in group.scales if f"{scale.module}.{scale.tensor}" == whole.tensors[0][0])
    queries = {int(place) for scale in own for place in scale.positions.flatten()}
    first = [int(whole.positions[0, column]) in queries for column in range(count)]
    if any(first) and first != [True] * each + [False] * (count - each):  # head by head: query, key, value, query, ...
        columns = [list(range(part, count, several)) for part in range(several)]
    else:
        columns = [list(range(part * each, (part + 1) * each)) for part in range(several)]
    return [_Side(whole.module, whole.tensors, whole.positions[:, chosen]) for chosen in columns]


_Mixing = tuple[_Pair, tuple[Tensor, Tensor]]
_Key = tuple[str, bool]
"""A layer, and whether what it reads is meant rather than what it writes."""


@dataclass
class _Sums:
    """Of all rows of one layer's channels: how many, their sum, and the sum of their products."""

    count: int
    total: Tensor
    products: Tensor

    def second(self, positions: Tensor, *, centred: bool) -> Tensor:
        """Second moments or covariances within each head, shape (heads, dimensions, dimensions)."""
        chosen = positions.T  # (heads, dimensions)
        products = self.products[chosen.unsqueeze(2), chosen.unsqueeze(1)] / self.count
        mean = self.total[chosen] / self.count
        return products - mean.unsqueeze(2) * mean.unsqueeze(1) if centred else products


def _moments(
    model: nn.Module, pairs: Sequence[_Pair], batches: Iterable[Inputs]
) -> tuple[dict[_Key, _Sums], Inputs | None]:
    """Sums over all batches, and two samples of the first."""
    sums: dict[_Key, _Sums] = {}
    attended: list[Tensor | None] = [None]

    def add(key: _Key, module: nn.Module, values: Tensor) -> None:
        rows = counted_rows(channels_last(module, values), attended[0]).float()
        if key not in sums:
            width = rows.shape[1]
            zeros = torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
            sums[key] = _Sums(0, *zeros)
        own = sums[key]
        own.count += len(rows)
        own.total += rows.sum(0).cpu().double()
        own.products += (rows.T @ rows).cpu().double()

    def watch(name: str, reads: bool) -> Any:
        module = model.get_submodule(name)
        if reads:

            def before(layer: nn.Module, args: Any, kwargs: Any) -> None:
                values = layer_input(args, kwargs)
                if values is not None:
                    add((name, True), layer, values)

            return module.register_forward_pre_hook(before, with_kwargs=True)

        def behind(layer: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                add((name, False), layer, output)

        return module.register_forward_hook(behind)

    sides = {(side.module, side.reads) for pair in pairs for side in (pair.first, pair.second)}
    hooks = [watch(name, reads) for name, reads in sorted(sides)]
    few: Inputs | None = None
    try:
        for batch in batches:
            few = take_samples(batch, 0, 2) if few is None else few
            attended[0] = attended_positions(batch)
            run_batch(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return sums, few


def _basis(model: nn.Module, pair: _Pair, moments: Mapping[_Key, _Sums]) -> tuple[Tensor, Tensor] | None:
    """What each head's dimensions are multiplied by on the two sides, both of shape (heads, dimensions, dimensions)."""
    first, second = pair.first, pair.second
    known = moments.get((second.module, True)) if second.reads else moments.get((first.module, False))
    others = known if second.reads else moments.get((second.module, False))
    if known is None or others is None or known.count == 0:
        return None
    if second.reads:
        root, inverse = _root(known.second(second.positions, centred=True))
        (name, dim), *_ = second.tensors
        weight = model.get_parameter(name).detach().cpu().double().movedim(dim, 0)
        read = weight[second.positions.T].flatten(2)  # (heads, dimensions, outputs)
        left = torch.linalg.svd(root @ read, full_matrices=False).U
        if left.shape[1] != left.shape[2]:
            return None  # a projection with fewer outputs than a head has dimensions
        size = root.square().sum((1, 2), keepdim=True).div(root.shape[1]).sqrt()
        return inverse @ left * size, left.mT @ root / size
    query, query_inverse = _root(known.second(first.positions, centred=False))
    key, key_inverse = _root(others.second(second.positions, centred=True))
    left, values, right = torch.linalg.svd(query @ key.mT)
    half = values.clamp_min(1e-12 * values.amax(1, keepdim=True)).sqrt().unsqueeze(1)
    return query_inverse @ (left * half), (key_inverse @ (right.mT * half)).mT


def _root(moments: Tensor) -> tuple[Tensor, Tensor]:
    """R with R'R = moments, and its inverse, shape (heads, dimensions, dimensions)."""
    values, vectors = torch.linalg.eigh(moments)
    floor = (_RIDGE * values.mean(1, keepdim=True)).clamp_min(1e-30)  # some dimensions may be constant
    half = values.maximum(floor).sqrt()
    return half.unsqueeze(2) * vectors.mT, vectors / half.unsqueeze(1)


def _harmless(
    model: nn.Module, result: nn.Module, bases: Sequence[_Mixing], inputs: Inputs, wanted: Sequence[Tensor]
) -> list[_Mixing]:
    """Leaves in `result` what changes no output, one after the other."""
    _put(result, {name: model.get_parameter(name) for pair, _ in bases for name in pair.names})
    harmless = []
    for pair, basis in bases:
        before = {name: result.get_parameter(name).clone() for name in pair.names}
        _mix(result, pair, basis)
        if _gives(result, inputs, wanted):
            harmless.append((pair, basis))
        else:
            _put(result, before)
    return harmless


def _put(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        network.get_parameter(name).copy_(tensor)


def _mix(network: nn.Module, pair: _Pair, basis: tuple[Tensor, Tensor]) -> None:
    """Multiplies what a head's entries are by a basis, the first of which go where the first of `order` are."""
    for side, mixing in zip((pair.first, pair.second), (basis[0].mT, basis[1]), strict=True):
        source, target = side.positions.T, side.positions[pair.order].T
        for name, dim in side.tensors:
            parameter = network.get_parameter(name)
            entries = parameter.detach().cpu().double().movedim(dim, 0)
            mixed = mixing @ entries[source].reshape(*source.shape, -1)
            entries[target] = mixed.reshape(*target.shape, *entries.shape[1:])
            parameter.copy_(entries.movedim(0, dim))


def _gives(network: nn.Module, inputs: Inputs, wanted: Sequence[Tensor]) -> bool:
    """Whether a network gives these outputs, up to rounding."""
    with evaluating(network):
        return all(
            first.shape == second.shape
            and bool((first - second).abs().max() <= _CLOSE * first.abs().max() + torch.finfo(torch.float32).tiny)
            for first, second in zip(wanted, _outputs(network, inputs), strict=True)
            if first.numel()
        )


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    return [tensor.float() for tensor in output_tensors(run_batch(model, inputs))]
