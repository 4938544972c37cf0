"""Recurrent layers that run as one operator."""

from __future__ import annotations

from prunecli.surgery.axes import fixed, freeze, unify
from prunecli.surgery.tracing.labels import HIDDEN
from prunecli.surgery.tracing.operators import Call, Rule


def _layer(call: Call) -> None:
    """One direction of one LSTM layer: (input, weight_ih, weight_hh, bias_ih, bias_hh, h, c, ...) to (output, h, c)."""
    x, reading = call.args[:2]
    unify(call.dims(x)[-1], call.dims(reading)[1])
    call.role(reading, 1, "consumer")
    call.role(reading, 0, "producer")
    freeze(call.dims(reading)[0], HIDDEN)
    for tensor in call.tensors[2:7]:
        for term in call.dims(tensor):
            freeze(term, HIDDEN)
    dims = call.dims(x)[:-1]
    output, *states = call.results
    call.set(output, [*dims, fixed(output.shape[-1], HIDDEN)])
    for state in states:
        call.set(state, [fixed(size, HIDDEN) for size in state.shape])


RULES: dict[str, Rule] = {"mkldnn_rnn_layer": _layer}
