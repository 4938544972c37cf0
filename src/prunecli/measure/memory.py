"""Peak memory of one forward pass, by accounting instead of sampling, so that it is reproducible."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

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
