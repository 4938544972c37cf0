"""Operators on whole matrices: diagonals, triangles, decompositions, cross products."""

from __future__ import annotations

from prunecli.surgery.axes import Term, fixed, freeze, unify
from prunecli.surgery.tracing.operators import Call, Rule, broadcast

_MIXED = "a function of a whole matrix mixes its rows and columns"
_OFF_DIAGONAL = "rows are compared with columns by their positions"
_CROSSED = "it holds the three coordinates of a vector"


def _diagonal(call: Call) -> None:
    """The positions at which two dimensions agree."""
    x = call.args[0]
    dims = call.dims(x)
    first, second = call.arg(2, "dim1", 0) % x.dim(), call.arg(3, "dim2", 1) % x.dim()
    along = _meeting(dims[first], dims[second], call.arg(1, "offset", 0), call.results[0].shape[-1])
    call.set(call.results[0], [*(term for dim, term in enumerate(dims) if dim not in (first, second)), along])


def _meeting(rows: Term, columns: Term, offset: int, size: int) -> Term:
    """The term of a diagonal; without an offset rows and columns are the same channels."""
    if offset == 0 and rows.size == columns.size:
        unify(rows, columns)
        return rows
    freeze(rows, _OFF_DIAGONAL)
    freeze(columns, _OFF_DIAGONAL)
    return fixed(size, _OFF_DIAGONAL)


def _diag_embed(call: Call) -> None:
    """The last dimension as the diagonal of two."""
    result = call.results[0]
    dims = call.dims(call.args[0])
    along = dims.pop()
    offset = call.arg(1, "offset", 0)
    first, second = sorted((call.arg(2, "dim1", -2) % result.dim(), call.arg(3, "dim2", -1) % result.dim()))
    if offset:
        freeze(along, _OFF_DIAGONAL)
        along = fixed(result.shape[first], _OFF_DIAGONAL)
    dims.insert(first, along)
    dims.insert(second, along)
    call.set(result, dims)


def _trace(call: Call) -> None:
    """The sum along the diagonal."""
    unify(*call.dims(call.args[0]))
    call.set(call.results[0], [])


def _triangle(call: Call) -> None:
    """`tril` and `triu` compare the positions of rows and columns."""
    x = call.args[0]
    dims = call.dims(x)
    _meeting(dims[-2], dims[-1], call.arg(1, "diagonal", 0), 0)
    for result in call.results:
        if result is not x:
            call.set(result, dims)


def _function_of_matrices(call: Call) -> None:
    """Inverses, determinants and decompositions: the last two dimensions stay, those of the batch pass."""
    batch = call.dims(call.args[0])[:-2]
    for tensor in call.tensors:
        dims = call.dims(tensor)
        lead = max(0, min(len(batch), len(dims) - 1))
        passing = [term.size for term in dims[:lead]] == [term.size for term in batch]
        for term, other in zip(dims[:lead], batch, strict=False) if passing else ():
            unify(term, other)
        for term in dims[lead:] if passing else dims:
            freeze(term, _MIXED)
    for result in call.results:
        own = batch if list(result.shape[: len(batch)]) == [term.size for term in batch] else []
        call.set(result, [*own, *(fixed(size, _MIXED) for size in result.shape[len(own) :])])


def _cross(call: Call) -> None:
    """Vectors of three coordinates along one dimension."""
    result = call.results[0]
    dims = broadcast(call, result, call.tensors)
    freeze(dims[call.arg(2, "dim", -1)], _CROSSED)
    call.set(result, dims)


MATRIX_FUNCTIONS = (
    "linalg_inv_ex", "_linalg_det", "_linalg_slogdet", "_linalg_svd", "_linalg_eigh", "_linalg_eigvals", "linalg_eig",
    "linalg_qr", "linalg_lu", "linalg_lu_factor_ex", "lu_unpack", "linalg_cholesky_ex", "cholesky_inverse",
    "cholesky_solve", "_cholesky_solve_helper", "linalg_matrix_exp", "linalg_pinv", "_linalg_solve_ex",
    "linalg_solve_triangular", "triangular_solve", "linalg_lstsq", "linalg_ldl_factor_ex", "linalg_ldl_solve",
    "linalg_lu_solve", "linalg_householder_product",
)  # fmt: skip
"""Operators that fail or are infinite on matrices of zeros."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(("diagonal", "diagonal_copy"), _diagonal),
    "diag_embed": _diag_embed,
    "trace": _trace,
    **dict.fromkeys(("tril", "triu"), _triangle),
    "linalg_cross": _cross,
    **dict.fromkeys(MATRIX_FUNCTIONS, _function_of_matrices),
}
