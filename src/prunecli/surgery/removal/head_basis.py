"""Attention heads in another basis, in which the dimensions that are removed matter least.

Queries and keys only meet in their product, and values only in what the output projection makes of them. With any
invertible T, queries q T and keys k T^-T have the same products, and values v T with a projection T^-1 W the same
output. So the dimensions of a head can be mixed before some of them are removed, and what removal takes away is then
not what a dimension happens to hold, but the least of all that can be taken away:

- With second moments E[q q'] = Q'Q and covariances of keys K'K, and the singular values Q K' = U S V', the T that keeps
  most of the scores q k' in its first dimensions is Q^-1 U S^(1/2) (Eckart and Young, 1936). A constant that is added
  to all keys moves all scores of a query alike, which softmax does not see.
- With covariances O'O of what the projection W reads, and O W = U S V', values are multiplied by O^-1 U.

What of this holds in a network is not guessed from its layers' names: it is done, and undone where the output of a
projection behind it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.inputs import Inputs, run_batch
from prunecli.modes import evaluating
from prunecli.ranks import from_first
from prunecli.surgery.groups import ChannelGroup, Keep, Member, dropped_units
from prunecli.surgery.removal.head_moments import Key, Sums, moments_within
from prunecli.surgery.taps import channels_last, is_layer

_RIDGE = 1e-6
"""The least variance of a head in any direction, relative to the mean."""
_CLOSE, _CLOSE_IN_HALF = 1e-3, 5e-2
"""How far rounding may move what a projection gives, relative to its deviation; a wrong reading moves it more."""
_IDLE = 1e-8
"""A head whose second moments are less than this share of the largest is left as it is: there is nothing to order."""


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
    """Two layers whose heads meet: queries and keys, or values and the projection that reads them.

    Attributes:
        first: Queries or values.
        second: Keys or the projection.
        order: Dimensions of a head, in the order in which they are to matter.
        reader: The projection behind both.
    """

    first: _Side
    second: _Side
    order: Tensor
    reader: str

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
    readings = [
        _readings(model, group, order[group.name].cpu())
        for group in groups
        if group.kind == "head_dim" and group.name in order
    ]
    pairs = [pair for ways in readings for way in ways for pair in way]
    if not pairs:
        return model, frozenset()
    with torch.no_grad(), evaluating(model):
        moments, few = moments_within(model, _places(pairs), batches)
        if few is None:
            return model, frozenset()
        result, readers = copied(model), sorted({pair.reader for pair in pairs})
        wanted = _given(model, few, readers)
        bases = {id(pair): _basis(model, pair, moments) for pair in pairs}
        changed: set[str] = set()
        for ways in readings:
            for way in ways:
                done = [pair for pair in way if _mixed(result, pair, bases[id(pair)], few, wanted)]
                changed.update(name for pair in done for name in pair.names)
                if done:
                    break
    return (result, frozenset(changed)) if changed else (model, frozenset())


def kept_first(groups: Sequence[ChannelGroup], keep: Keep) -> dict[str, Tensor]:
    """Units of each group that loses some, those that stay first."""
    return {
        group.name: torch.cat([keep[group.name].cpu(), dropped_units(group, keep[group.name]).cpu()])
        for group in groups
        if group.name in keep and len(keep[group.name]) < group.units
    }


def _readings(model: nn.Module, group: ChannelGroup, order: Tensor) -> list[list[_Pair]]:
    """Ways to read a group's layers as queries, keys and values; only trying shows which is right, if any."""
    writers, readers = _sides(model, group, reads=False), _sides(model, group, reads=True)
    if not writers or not readers or len(readers) > 1:
        return []
    reader = readers[0]
    ways = []
    for parts in _parts(writers, group, reader.positions.shape[1]):
        pairs = [_Pair(parts[-1], reader, order, reader.module)]
        if len(parts) == 3:
            pairs.insert(0, _Pair(parts[0], parts[1], order, reader.module))
        ways.append(pairs)
    return ways


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


def _parts(writers: Sequence[_Side], group: ChannelGroup, heads: int) -> list[list[_Side]]:
    """Queries, keys and values, or values alone, in every order that they may have; none for other numbers of them."""
    if len(writers) == 1:
        whole = writers[0]
        count = whole.positions.shape[1]
        if count == heads:
            return [[whole]]
        if count != 3 * heads:
            return []
        # Part by part, or head by head: query, key, value, query, ...
        columns = (
            [range(part * heads, (part + 1) * heads) for part in range(3)],
            [range(p, count, 3) for p in range(3)],
        )
        return [
            [_Side(whole.module, whole.tensors, whole.positions[:, list(chosen)]) for chosen in three]
            for three in columns
        ]
    if len(writers) != 3 or any(side.positions.shape[1] != heads for side in writers):
        return []
    queries = {scale.module for scale in group.scales}
    ordered = sorted(writers, key=lambda side: side.module not in queries)
    ways = [
        [ordered[first], ordered[second], ordered[last]] for first, second, last in ((0, 1, 2), (0, 2, 1), (1, 2, 0))
    ]
    return ways[:2] if len(queries) == 1 else ways


def _places(pairs: Sequence[_Pair]) -> dict[Key, list[Tensor]]:
    """Where heads lie in what layers read or write."""
    places: dict[Key, list[Tensor]] = {}
    for side in (side for pair in pairs for side in (pair.first, pair.second)):
        own = places.setdefault((side.module, side.reads), [])
        if not any(torch.equal(place, side.positions) for place in own):
            own.append(side.positions)
    return places


def _basis(model: nn.Module, pair: _Pair, moments: Mapping[Key, Sums]) -> tuple[Tensor, Tensor] | None:
    """What each head's dimensions are multiplied by on the two sides, both of shape (heads, dimensions, dimensions)."""
    first, second = pair.first, pair.second
    sums = [moments.get(key) for key in ((first.module, False), (second.module, second.reads))]
    known = [one for one in sums if one is not None and one.count and one.is_finite()]
    if len(known) < 2:
        return None
    if second.reads:
        covariances = known[1].second(second.positions, centred=True)
        root, inverse = _root(covariances)
        (name, dim), *_ = second.tensors
        weight = model.get_parameter(name).detach().cpu().double().movedim(dim, 0)
        read = weight[second.positions.T].flatten(2)  # (heads, dimensions, outputs)
        left = torch.linalg.svd(root @ read, full_matrices=False).U
        if left.shape[1] != left.shape[2]:
            return None  # a projection with fewer outputs than a head has dimensions
        size = root.square().sum((1, 2), keepdim=True).div(root.shape[1]).sqrt()
        return _where_active([covariances], inverse @ left * size, left.mT @ root / size)
    queries, keys = known[0].second(first.positions, centred=False), known[1].second(second.positions, centred=True)
    (query, query_inverse), (key, key_inverse) = _root(queries), _root(keys)
    left, values, right = torch.linalg.svd(query @ key.mT)
    half = values.clamp_min(1e-12 * values.amax(1, keepdim=True)).sqrt().unsqueeze(1)
    return _where_active([queries, keys], query_inverse @ (left * half), (key_inverse @ (right.mT * half)).mT)


def _where_active(moments: Sequence[Tensor], first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Bases of heads that do something; the identity for others."""
    traces = [own.diagonal(dim1=1, dim2=2).sum(1) for own in moments]
    active = torch.stack([trace > _IDLE * trace.max() for trace in traces]).all(0).reshape(-1, 1, 1)
    same = torch.eye(first.shape[1], dtype=first.dtype)
    return torch.where(active, first, same), torch.where(active, second, same)


def _root(moments: Tensor) -> tuple[Tensor, Tensor]:
    """R with R'R = moments, and its inverse, shape (heads, dimensions, dimensions)."""
    values, vectors = torch.linalg.eigh(moments)
    floor = (_RIDGE * values.mean(1, keepdim=True)).clamp_min(1e-30)  # some dimensions may be constant
    half = values.maximum(floor).sqrt()
    return half.unsqueeze(2) * vectors.mT, vectors / half.unsqueeze(1)


def _mixed(
    network: nn.Module,
    pair: _Pair,
    basis: tuple[Tensor, Tensor] | None,
    inputs: Inputs,
    wanted: Mapping[str, Sequence[Tensor]],
) -> bool:
    """Mixes heads in place, and puts them back if what is read from them changes."""
    if basis is None:
        return False
    before = {name: network.get_parameter(name).clone() for name in pair.names}
    _mix(network, pair, basis)
    given = _given(network, inputs, [pair.reader])[pair.reader]
    same = given and len(given) == len(wanted[pair.reader]) and all(map(_alike, wanted[pair.reader], given))
    if from_first(bool(same)):  # what is close enough is for one process to say
        return True
    for name, tensor in before.items():
        network.get_parameter(name).copy_(tensor)
    return False


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


def _alike(wanted: Tensor, given: Tensor) -> bool:
    """Whether a layer gives the same, up to rounding; what hardly varies cannot tell."""
    close = _CLOSE_IN_HALF if wanted.dtype in (torch.float16, torch.bfloat16) else _CLOSE
    if wanted.shape != given.shape:
        return False
    wanted, given = wanted.double().flatten(0, -2), given.double().flatten(0, -2)
    deviation = (wanted - wanted.mean(0)).square().mean().sqrt()  # a constant of each channel tells nothing
    off = (wanted - given).square().mean().sqrt()
    return bool((deviation > 0) & (off <= close * deviation))


def _given(network: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, list[Tensor]]:
    """What layers give for these inputs, each time they run, channels last."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(module: nn.Module, _: object, output: object, *, name: str) -> None:
        if isinstance(output, Tensor):
            seen[name].append(channels_last(module, output))

    hooks = [network.get_submodule(name).register_forward_hook(partial(hook, name=name)) for name in names]
    try:
        with evaluating(network):
            run_batch(network, inputs)
    finally:
        for own in hooks:
            own.remove()
    return seen
