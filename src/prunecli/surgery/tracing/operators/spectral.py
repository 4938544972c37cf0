"""Fourier transforms and complex numbers."""

from __future__ import annotations

from prunecli.surgery.axes import fixed, freeze
from prunecli.surgery.tracing.operators import Call, Rule

_TRANSFORMED = "a Fourier transform runs along it"
_PAIRS = "its two positions are the parts of a complex number"


def _transform(call: Call) -> None:
    """Along the transformed dimensions every position depends on all; the others pass."""
    dims, result = call.dims(call.args[0]), call.results[0]
    for dim in call.args[1]:
        freeze(dims[dim], _TRANSFORMED)
        dims[dim] = fixed(result.shape[dim], _TRANSFORMED)
    call.set(result, dims)


def _as_pairs(call: Call) -> None:
    """A complex tensor as a real one with a last dimension of two."""
    call.set(call.results[0], [*call.dims(call.args[0]), fixed(2, _PAIRS)])


def _as_complex(call: Call) -> None:
    """The reverse: the last dimension of two disappears."""
    dims = call.dims(call.args[0])
    freeze(dims.pop(), _PAIRS)
    call.set(call.results[0], dims)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), _transform),
    "view_as_real": _as_pairs,
    "view_as_complex": _as_complex,
}
