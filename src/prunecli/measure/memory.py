"""Peak memory of one forward pass, by accounting rather than by sampling: it repeats exactly."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from prunecli.inputs import Inputs, call, cast_inputs


def peak_memory_bytes(model: nn.Module, inputs: Inputs) -> int:
    """Bytes held at the worst moment of one inference pass on the CPU: weights, buffers, inputs and activations."""
    tracked = copy.deepcopy(model).cpu().eval()
    moved = cast_inputs(inputs, device="cpu")
    tracker = MemTracker()
    tracker.track_external(tracked)
    with torch.no_grad(), tracker:
        call(tracked, moved)
    peak = tracker.get_tracker_snapshot("peak")
    return int(sum(sizes["Total"] for device, sizes in peak.items() if device.type == "cpu"))
