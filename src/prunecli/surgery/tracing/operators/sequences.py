"""Sequences of different lengths, packed into one tensor."""

from __future__ import annotations

from prunecli.surgery.axes import fixed
from prunecli.surgery.tracing.operators import Call, Rule


def _pack(call: Call) -> None:
    """`pack_padded_sequence`: the first two dimensions, samples and steps, become rows; all others stay."""
    data, *sizes = call.results
    call.set(data, [fixed(data.shape[0]), *call.dims(call.args[0])[2:]])
    for result in sizes:
        call.set(result, [fixed(size) for size in result.shape])


RULES: dict[str, Rule] = {"_pack_padded_sequence": _pack}
