"""Running a network as if some of its channels did not exist, without changing any shape.

This is the reference that `verify` compares a pruned network with. The original runs operator by operator; whatever an
operator writes to a removed channel is set to zero at once, so nothing that follows can see it. Where zeros would still
count, as in the mean of a layer normalisation or in a softmax over channels, the operator gets the kept channels
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from prunecli.errors import VerificationError
from prunecli.inputs import Inputs, call
from prunecli.surgery.axes import Axis, ChannelMasks, Term, kept_mask, resolve
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.proof.alike import Alike
from prunecli.surgery.proof.depthwise import applied
from prunecli.surgery.proof.randomness import Draws, given_to, is_random, noting
from prunecli.surgery.tracing.labels import Followed, Label, Record
from prunecli.surgery.tracing.operators.statistics import NEEDS_KEPT_ALONE
from prunecli.surgery.tracing.running import plain_kernels, seeded, tensors_in
from prunecli.widened import memory_of

OTHER_OPERATORS = (
    "the model calls other operators than when it was traced, as values decide which, so it cannot be verified; "
    "nothing was saved; prune a part with --only"
)


class OtherOperatorsError(VerificationError):
    """The model does not call the operators that were recorded."""


def run_masked(
    model: nn.Module,
    followed: Followed,
    groups: Sequence[ChannelGroup],
    keep: Keep,
    inputs: Inputs,
    draws: Draws | None = None,
    least: int | None = None,
    *,
    zeroed: bool = False,
) -> Any:
    """The output of `model` without the removed channels; its dimensions keep their sizes, removed positions are zero.

    Args:
        model: In the mode to compare; its tensors are set to zero at removed positions.
        followed: From `follow` on a model of the same architecture and dtype.
        groups: The groups of the trace that `followed` belongs to.
        keep: Kept unit indices by group name.
        inputs: Inputs of the model's dtype.
        draws: Receives what random operators draw, without removed positions.
        least: For inputs of other sizes than when it was followed: how long dimensions have to be at least, unless they
            were shorter then. Sizes that are tied to channels, and parameters, have to be the same.
        zeroed: Whether the model's tensors are zero already at removed positions.

    Raises:
        OtherOperatorsError: The model does not call the same operators as when it was followed.
    """
    kept = channel_masks(groups, keep)
    draws = draws if draws is not None else []
    try:
        return _run(model, followed, kept, inputs, draws, least, zeroed=zeroed)
    except OtherOperatorsError:  # a network may compute something once and cache it
        if least is not None:
            raise
        with torch.no_grad(), plain_kernels(), seeded():
            call(model, inputs)
    draws.clear()
    return _run(model, followed, kept, inputs, draws, None)


def _run(
    model: nn.Module,
    followed: Followed,
    kept: ChannelMasks,
    inputs: Inputs,
    draws: Draws,
    least: int | None,
    *,
    zeroed: bool = False,
) -> Any:
    records = followed.records if not model.training else followed.training or []
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    mode = _MaskedMode(records, kept, draws)
    if least is not None:
        mode.alike = Alike({id(tensor): followed.parameters[name] for name, tensor in tensors.items()}, least)
    with torch.no_grad(), plain_kernels(), seeded():
        for name, tensor in () if zeroed else tensors.items():
            mode.silence(tensor.detach(), followed.parameters[name])
        with mode:
            output = call(model, inputs)
    if mode.position != len(records):
        raise OtherOperatorsError(OTHER_OPERATORS)
    return output


def _is_view(result: Tensor, tensors: Sequence[Tensor]) -> bool:
    memory = memory_of(result)
    return any(memory == memory_of(tensor) for tensor in tensors)


def channel_masks(groups: Sequence[ChannelGroup], keep: Keep) -> ChannelMasks:
    """For each axis that loses channels, True for those that are kept, shape (channels,)."""
    return {group.axis: _mask(group, keep) for group in groups if group.name in keep and group.axis is not None}


def _mask(group: ChannelGroup, keep: Keep) -> NDArray[np.bool_]:
    mask = np.zeros(group.units, dtype=bool)
    mask[keep[group.name].cpu().numpy()] = True
    return mask


class _MaskedMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, records: Sequence[Record], kept: ChannelMasks, draws: Draws) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.records = records
        self.kept = kept
        self.position = 0
        self._draws = draws
        self.alike: Alike | None = None
        self._masks: dict[Label, list[tuple[int, Tensor, Tensor]]] = {}
        self._positions: dict[Term, tuple[Tensor, Tensor] | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        record = self.records[self.position] if self.position < len(self.records) else None
        if record is None or record.operator != func.overloadpacket.__name__:
            raise OtherOperatorsError(OTHER_OPERATORS)
        self.position += 1
        inputs = tensors_in(args, kwargs)
        if self.alike is not None and not self.alike.reads_the_same(inputs, record.inputs):
            raise OtherOperatorsError(OTHER_OPERATORS)
        if record.operator in NEEDS_KEPT_ALONE and any(self._removed(label) for label in record.inputs):
            return self._kept_alone(record, func, args, kwargs, inputs)
        random = is_random(func)
        if random:
            labels = {id(tensor): label for tensor, label in zip(inputs, record.inputs, strict=True)}
            given = given_to(func, args, lambda tensor: self._kept(tensor, labels[id(tensor)]))
        out = applied(func, args, kwargs)
        results = tensors_in(out)
        if self.alike is not None:
            self._refuse_other_sizes(self.alike, record, inputs, results)
        for result, label in zip(results, record.outputs, strict=True):
            if self._removed(label) and (any(result is tensor for tensor in inputs) or not _is_view(result, inputs)):
                self.silence(result, label)  # a view of a zeroed tensor is zeroed already
        if random:
            noting(self._draws, func, given, results, lambda index, result: self._kept(result, record.outputs[index]))
        return out

    def _kept(self, tensor: Tensor, label: Label) -> Tensor:
        """A tensor without its removed positions."""
        for dim, _, kept in self._removed(label):
            if tensor.shape[dim] == label.dims[dim].size:
                tensor = tensor.index_select(dim, kept)
        return tensor

    def _removed(self, label: Label) -> list[tuple[int, Tensor, Tensor]]:
        """(dimension, removed positions, kept positions) of each dimension that loses some."""
        removed_dims = self._masks.get(label)
        if removed_dims is None:
            found = ((dim, self._positions_of(term)) for dim, term in enumerate(label.dims))
            removed_dims = [(dim, *positions) for dim, positions in found if positions is not None]
            self._masks[label] = removed_dims
        return removed_dims

    def _positions_of(self, term: Term) -> tuple[Tensor, Tensor] | None:
        """Removed and kept positions of a dimension; None where it loses none."""
        resolved = resolve(term)
        if isinstance(resolved, Axis) and resolved not in self.kept:
            return None
        if resolved not in self._positions:
            mask = kept_mask(resolved, self.kept)
            removed, left = (torch.from_numpy(np.flatnonzero(positions)) for positions in (~mask, mask))
            self._positions[resolved] = (removed, left) if removed.numel() else None
        return self._positions[resolved]

    def silence(self, tensor: Tensor, label: Label) -> None:
        """Sets removed positions to zero, in place."""
        for dim, removed, _ in self._removed(label):
            if tensor.shape[dim] == label.dims[dim].size and 0 not in tensor.stride():
                tensor.index_fill_(dim, removed, 0)

    def _refuse_other_sizes(
        self, alike: Alike, record: Record, inputs: Sequence[Tensor], results: Sequence[Tensor]
    ) -> None:
        """Refuses tensors that are smaller than when the network was followed in a way that counts.

        Raises:
            OtherOperatorsError: With the module.
        """
        labelled = [*zip(inputs, record.inputs, strict=True), *zip(results, record.outputs, strict=bool(results))]
        for tensor, label in labelled:
            if not alike.has_its_size(tensor, label, {dim for dim, _, _ in self._removed(label)}):
                raise OtherOperatorsError(f"{record.module} works on too little")
        for result, output in zip(results, record.outputs, strict=bool(results)):
            channels = {dim for dim, _, _ in self._removed(output)}
            if inputs and not alike.grows_alike(inputs[0], record.inputs[0], result, output, channels):
                raise OtherOperatorsError(f"{record.module} repeats what it gets")

    def _kept_alone(
        self, record: Record, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: Sequence[Tensor]
    ) -> Any:
        by_id = {id(tensor): label for tensor, label in zip(tensors, record.inputs, strict=True)}

        def compressed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            for dim, _, kept in self._removed(by_id[id(value)]):
                value = value.index_select(dim, kept)
            return value

        if self.alike is not None:
            self._refuse_other_sizes(self.alike, record, tensors, ())
        small_args, small_kwargs = tree_map(compressed, args), tree_map(compressed, kwargs)
        small_args = _with_sizes(record.operator, list(small_args), args, self._removed(record.inputs[0]))
        small = tensors_in(func(*small_args, **small_kwargs))
        out = func(*args, **kwargs)  # for its memory layout, on which later reshapes depend
        results = tensors_in(out)
        for result, right, label in zip(results, small, record.outputs, strict=True):
            result.copy_(self._expanded(right, label))
        return out

    def _expanded(self, result: Tensor, label: Label) -> Tensor:
        for dim, _, kept in self._removed(label):
            size = list(result.shape)
            size[dim] = label.dims[dim].size
            result = result.new_zeros(size).index_copy_(dim, kept, result)
        return result


def _with_sizes(
    name: str, arguments: list[Any], args: tuple[Any, ...], removed: list[tuple[int, Tensor, Tensor]]
) -> list[Any]:
    """Arguments that repeat the input's shape, for the compressed input."""
    x: Tensor = arguments[0]
    if name in ("native_layer_norm", "_fused_rms_norm", "layer_norm"):
        arguments[1] = list(x.shape[x.dim() - len(args[1]) :])
    elif name == "native_group_norm":
        channels, groups = args[0].shape[1], int(args[6])
        kept = next((kept for dim, _, kept in removed if dim == 1), torch.arange(channels))
        left = torch.unique(kept // (channels // groups)).numel()
        arguments[3:7] = [x.shape[0], x.shape[1], x.shape[2:].numel(), left]
    return arguments
