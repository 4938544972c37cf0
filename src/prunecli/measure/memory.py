"""Peak memory of one forward pass or of other work, by accounting instead of sampling, so that it is reproducible."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunecli.inputs import Inputs, call
from prunecli.measure.counts import cpu_copy, cpu_inputs


def peak_memory_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Peak bytes of one inference pass on the CPU: weights, buffers, inputs and activations.

    Args:
        model: Any module, also on the meta device; it is not changed.
        inputs: Inputs of any form that it accepts.
    """
    tracked = cpu_copy(model)
    for parameter in tracked.parameters():  # the tracker puts gradient hooks on parameters, frozen ones too
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    moved = cpu_inputs(inputs)
    tracker = MemTracker()
    tracker.track_external(tracked)
    with torch.no_grad(), tracker:
        call(tracked, moved)
    peak = tracker.get_tracker_snapshot("peak")
    return int(sum(sizes["Total"] for device, sizes in peak.items() if device.type == "cpu"))


def peak_memory_of(work: Callable[[], object], model: nn.Module) -> int:
    """Peak bytes of all tensors that live while `work` runs: those it makes, and the weights and buffers of `model`.

    Storages are counted when an operator returns one, and no longer when they are freed. Unlike torch's MemTracker,
    which knows modules and expects each to run once before its backward pass, this allows any number of passes.

    Args:
        work: What to measure.
        model: The network it works on.
    """
    storages = _Storages()
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        storages.note(tensor)
    with storages:
        work()
    return storages.peak


class _Storages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of storages while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._living: set[int] = set()
        self._bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self.note(leaf)
        return out

    def note(self, tensor: Tensor) -> None:
        """Counts a tensor's storage, once."""
        if tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._living:
            self._living.add(key)
            self._bytes += size
            self.peak = max(self.peak, self._bytes)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._living.discard(key)
        self._bytes -= size
