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
from torch.utils._pytree import tree_leaves, tree_map

from prunecli.errors import VerificationError
from prunecli.inputs import Inputs, call
from prunecli.surgery.axes import ChannelMasks, kept_mask
from prunecli.surgery.groups import ChannelGroup, Keep
from prunecli.surgery.proof.randomness import Draws, given_to, noting
from prunecli.surgery.tracing.labels import Followed, Label, Record
from prunecli.surgery.tracing.operators.statistics import NEEDS_KEPT_ALONE
from prunecli.surgery.tracing.running import plain_kernels, seeded
from prunecli.widened import memory_of

OTHER_OPERATORS = (
    "the model calls other operators than when it was traced, as values decide which, so it cannot be verified; "
    "nothing was saved; prune a part with `only`"
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
) -> Any:
    """The output of `model` without the removed channels; its dimensions keep their sizes, removed positions are zero.

    Args:
        model: In the mode to compare; its tensors are set to zero at removed positions.
        followed: From `follow` on a model of the same architecture and dtype.
        groups: The groups of the trace that `followed` belongs to.
        keep: Kept unit indices by group name.
        inputs: Inputs of the model's dtype.
        draws: Receives what random operators draw, without removed positions.

    Raises:
        OtherOperatorsError: The model does not call the same operators as when it was followed.
    """
    kept = channel_masks(groups, keep)
    draws = draws if draws is not None else []
    try:
        return _run(model, followed, kept, inputs, draws)
    except OtherOperatorsError:  # a network may compute something once and cache it
        with torch.no_grad(), plain_kernels(), seeded():
            call(model, inputs)
    draws.clear()
    return _run(model, followed, kept, inputs, draws)


def _run(model: nn.Module, followed: Followed, kept: ChannelMasks, inputs: Inputs, draws: Draws) -> Any:
    records = followed.records if not model.training else followed.training or []
    mode = _MaskedMode(records, kept, draws)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    with torch.no_grad(), plain_kernels(), seeded():
        for name, tensor in tensors.items():
            mode.silence(tensor.detach(), followed.parameters[name])
        with mode:
            output = call(model, inputs)
    if mode.position != len(records):
        raise OtherOperatorsError(OTHER_OPERATORS)
    return output


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
        self._masks: dict[Label, list[tuple[int, Tensor, Tensor]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        record = self.records[self.position] if self.position < len(self.records) else None
        if record is None or record.operator != func.overloadpacket.__name__:
            raise OtherOperatorsError(OTHER_OPERATORS)
        self.position += 1
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        concerned = [self._removed(label) for label in record.inputs]
        if record.operator in NEEDS_KEPT_ALONE and any(concerned):
            return self._kept_alone(record.operator, func, args, kwargs, inputs, record.inputs, record.outputs)
        labels = {id(tensor): label for tensor, label in zip(inputs, record.inputs, strict=True)}
        given = given_to(func, args, lambda tensor: self._kept(tensor, labels[id(tensor)]))
        out = func(*args, **kwargs)
        memories = {memory_of(tensor) for tensor in inputs}
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for result, label in zip(results, record.outputs, strict=True):
            if any(result is tensor for tensor in inputs) or memory_of(result) not in memories:
                self.silence(result, label)  # a view of a zeroed tensor is zeroed already
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
            removed_dims = []
            for dim, term in enumerate(label.dims):
                mask = torch.from_numpy(kept_mask(term, self.kept))
                if not bool(mask.all()):
                    removed_dims.append((dim, (~mask).nonzero().flatten(), mask.nonzero().flatten()))
            self._masks[label] = removed_dims
        return removed_dims

    def silence(self, tensor: Tensor, label: Label) -> None:
        """Sets removed positions to zero, in place."""
        for dim, removed, _ in self._removed(label):
            if tensor.shape[dim] == label.dims[dim].size and 0 not in tensor.stride():
                tensor.index_fill_(dim, removed, 0)

    def _kept_alone(
        self,
        name: str,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: Sequence[Tensor],
        labels: Sequence[Label],
        outputs: Sequence[Label],
    ) -> Any:
        by_id = {id(tensor): label for tensor, label in zip(tensors, labels, strict=True)}

        def compressed(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            for dim, _, kept in self._removed(by_id[id(value)]):
                value = value.index_select(dim, kept)
            return value

        small_args, small_kwargs = tree_map(compressed, args), tree_map(compressed, kwargs)
        small_args = _with_sizes(name, list(small_args), args, self._removed(labels[0]))
        small = [leaf for leaf in tree_leaves(func(*small_args, **small_kwargs)) if isinstance(leaf, Tensor)]
        out = func(*args, **kwargs)  # for its memory layout, on which later reshapes depend
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for result, right, label in zip(results, small, outputs, strict=True):
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
