"""Networks timed in turns by a stage, with notes on what a reader could not see in their figures."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from prunecli.collective import first_decides
from prunecli.inputs import Inputs
from prunecli.measure.latency import PairedTiming, few_rounds, time_paired
from prunecli.pipeline.workspace import Workspace

_VISIBLE = 0.02
"""A ratio that is further than this from the ratio of the medians beside it seems wrong to whoever divides them."""


def timed_in_turns(space: Workspace, networks: Sequence[nn.Module], inputs: Inputs, rounds: int) -> PairedTiming:
    """Times networks on the first process and tells the others; see `time_paired`.

    Args:
        space: Its device, and where notes go.
        networks: Ratios refer to the first.
        inputs: For each of them.
        rounds: How often each is timed.
    """
    each = [inputs] * len(networks)
    return first_decides(lambda: time_paired(networks, each, rounds=rounds, device=space.device))


def note_timings(space: Workspace, timings: Sequence[PairedTiming]) -> None:
    """Notes what `timing_notes` says."""
    for note in timing_notes(timings):
        space.sink.note(note)


def timing_notes(timings: Sequence[PairedTiming]) -> list[str]:
    """That few rounds were timed, and why ratios are not those of the medians, where that can be seen; each once."""
    notes = {few_rounds(timing.rounds) for timing in timings}
    if any(_unlike_medians(timing) for timing in timings):
        notes.add("latencies are medians; their ratio is that of the least disturbed runs, taken in turns")
    return sorted(note for note in notes if note is not None)


def _unlike_medians(timing: PairedTiming) -> bool:
    first = timing.timings[0].median
    return any(
        abs(ratio * first / one.median - 1) > _VISIBLE for ratio, one in zip(timing.ratios, timing.timings, strict=True)
    )
