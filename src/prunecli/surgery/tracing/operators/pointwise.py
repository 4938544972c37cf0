"""Operators that work position by position, and newly created tensors."""

from __future__ import annotations

from torch import Tensor

from prunecli.surgery.axes import Axis, fixed, unify
from prunecli.surgery.tracing.operators import Call, Rule, broadcast, data_dependent


def _pointwise(call: Call) -> None:
    """Channels meet channels, with broadcasting; in place the first operand is also the result."""
    for result in call.results:
        operands = [tensor for tensor in call.tensors if tensor is not result]
        if any(result is tensor for tensor in call.tensors):
            broadcast(call, result, [result, *operands])
        else:
            source = None
            if len(call.tensors) == 1 and call.tensors[0].shape == result.shape:
                source = call.labels[0].source if call.name in _SAME_VALUES else None
            call.set(result, broadcast(call, result, operands), source)


def _uniform(call: Call) -> None:
    """A tensor with equal entries, or entries from one distribution, adapts to the dimensions it meets."""
    for result in call.results:
        if not any(result is tensor for tensor in call.tensors):
            like = next((t for t in call.tensors if t.shape == result.shape), None)
            call.set(result, call.dims(like) if like is not None else [Axis(size) for size in result.shape])


def _constant(call: Call) -> None:
    """A tensor with entries that depend on their position cannot shrink."""
    for result in call.results:
        call.set(result, [fixed(size) for size in result.shape])


def _first_alone(call: Call) -> None:
    """Every result has the dimensions of the first tensor, such as dropout's output and mask."""
    for result in call.results:
        if not any(result is tensor for tensor in call.tensors):
            x = call.tensors[0]
            call.set(result, call.dims(x) if x.shape == result.shape else [fixed(size) for size in result.shape])


def _unchanged(call: Call) -> None:
    """Assertions, and limits on the norm of looked-up rows: nothing is tied and nothing computed."""
    for result in call.results:
        if result not in call.known:
            call.set(result, [fixed(size) for size in result.shape])


def _copied(call: Call) -> None:
    """`copy_`: source and target have the same channels."""
    target, value = call.args[0], call.args[1]
    if isinstance(value, Tensor):
        terms, others = call.dims(target), call.dims(value)
        for from_end in range(1, value.dim() + 1):
            if terms[-from_end].size == others[-from_end].size:
                unify(terms[-from_end], others[-from_end])


_SAME_VALUES = ("_to_copy", "clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "contiguous")

_CHECKS = ("_assert_async", "_functional_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_print",
           "_linalg_check_errors", "embedding_renorm")  # fmt: skip

RULES: dict[str, Rule] = {
    "pointwise": _pointwise,
    **dict.fromkeys(_SAME_VALUES, _pointwise),
    **dict.fromkeys(
        (
            "where",
            "masked_fill",
            "mish",
            "celu",
            "logit",
            "rrelu_with_noise",
            "prelu",
            "_prelu_kernel",
            "dropout",
            "lerp",
            "hardswish",
            "hardsigmoid",
            "hardtanh",
            "relu6",
            "softplus",
            "nan_to_num",
            "threshold",
            "heaviside",
            "copysign",
            "floor_divide",
            "rsub",
            "xlogy",
            "gelu",
            "abs",
            "complex",
            "polar",
            *("eq", "ne", "lt", "le", "gt", "ge", "gcd", "lcm", "__irshift__"),
            *("_conj", "_conj_physical", "_neg_view", "resolve_conj", "resolve_neg"),
        ),
        _pointwise,
    ),
    **dict.fromkeys(
        (
            "zeros",
            "ones",
            "full",
            "empty",
            "new_zeros",
            "new_ones",
            "new_full",
            "new_empty",
            "zeros_like",
            "ones_like",
            "full_like",
            "empty_like",
            "rand",
            "randn",
            "rand_like",
            "randn_like",
            "bernoulli",
            "uniform",
            "normal",
            "fill",
            "zero",
            "scalar_tensor",
            "empty_strided",
            "new_empty_strided",
            "exponential",
            "randint",
            "randint_like",
            "empty_permuted",
            "poisson",
            "geometric",
            "cauchy",
            "log_normal",
        ),
        _uniform,
    ),
    **dict.fromkeys(
        ("arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices", "randperm", "hann_window"), _constant
    ),
    **dict.fromkeys(("native_dropout", "log_sigmoid_forward"), _first_alone),
    **dict.fromkeys(_CHECKS, _unchanged),
    "copy": _copied,
    **dict.fromkeys(
        (
            "_local_scalar_dense",
            "item",
            "nonzero",
            "masked_select",
            "_unique2",
            "unique_dim",
            "_unique",
            "unique_consecutive",
            "is_nonzero",
            "equal",
        ),
        data_dependent,
    ),
}
