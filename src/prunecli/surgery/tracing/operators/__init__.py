"""What each ATen operator does to channels: one rule per kind of operator.

A rule reads the labels of an operator's arguments, unifies what has to be the same channels and labels the results. An
operator without a rule freezes everything it touches and is named in the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from prunecli.surgery.axes import Term, fixed, freeze, unify
from prunecli.surgery.groups import Role
from prunecli.surgery.tracing.labels import Label, Labels

MODULES = (
    "layout",
    "contraction",
    "statistics",
    "pointwise",
    "indexing",
    "sampling",
    "spectral",
    "matrices",
    "sequences",
)
"""One module for each kind of operator, in this package."""


@dataclass
class Call:
    """One operator call as its rule sees it."""

    known: Labels
    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: list[Tensor]
    labels: tuple[Label, ...]
    out: Any
    results: list[Tensor]

    def dims(self, tensor: Tensor) -> list[Term]:
        """Terms of a tensor's dimensions."""
        return list(self.known.of(tensor).dims)

    def set(self, tensor: Tensor, dims: Sequence[Term], source: tuple[str, tuple[int, ...]] | None = None) -> None:
        """Labels a result."""
        self.known.set(tensor, dims, source=source)

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by index or name."""
        return self.args[index] if len(self.args) > index else self.kwargs.get(name, default)

    def role(self, weight: Tensor, dim: int, role: Role) -> None:
        """Notes that a dimension of a parameter writes ("producer") or reads ("consumer") channels."""
        label, followed = self.known.of(weight), self.known.followed
        if label.source is not None:
            followed.roles.setdefault((label.source[0], label.source[1][dim]), role)
            return
        for name in label.origins:  # a weight that is standardised or put together first
            sizes = [term.size for term in followed.parameters[name].dims]
            if sizes == list(weight.shape):
                followed.roles.setdefault((name, dim), role)


Rule = Callable[[Call], None]


@cache
def _rules() -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for module in MODULES:
        table.update(import_module(f"prunecli.surgery.tracing.operators.{module}").RULES)
    return table


def apply_rule(call: Call) -> None:
    """Labels the results of `call`."""
    rule = _rules().get(call.name) or _rules().get(call.name.removesuffix("_"))
    if rule is None and torch.Tag.pointwise in call.func.tags:
        rule = _rules()["pointwise"]
    if rule is None:
        _unknown(call)
    else:
        rule(call)


def _unknown(call: Call) -> None:
    where = call.known.module or "the model itself"
    reason = f"passes through operator {call.name} in {where}, which has no rule"
    for label in call.labels:
        for term in label.dims:
            freeze(term, reason)
    for result in call.results:
        if result not in call.known:
            call.set(result, [fixed(size, reason) for size in result.shape])


def data_dependent(call: Call) -> None:
    """Values are read: what the network computes next may depend on them.

    Equal values are read in the pruned network, because whatever they are computed from is equal. What is left is that
    other inputs lead to other branches, which `Reads` has tried. Where the number of results depends on
    values, no channels may be removed in between.
    """
    where = call.known.module or "the model itself"
    for result in call.results:
        for label in call.labels:
            for term in label.dims:
                freeze(term, f"{where} picks positions by their values (operator {call.name})")
        call.set(result, [fixed(size) for size in result.shape])
    if call.results and any(label.from_input and label.learned for label in call.labels):
        call.known.reads.noted(call.known.module)


def broadcast(call: Call, result: Tensor, operands: Sequence[Tensor]) -> list[Term]:
    """Terms of a broadcast result; dimensions that meet are unified."""
    terms: list[Term] = []
    for dim, size in enumerate(result.shape):
        back = result.dim() - dim
        meeting = [
            call.dims(operand)[operand.dim() - back]
            for operand in operands
            if operand.dim() >= back and operand.shape[operand.dim() - back] == size
        ]
        if size == 1 or not meeting:
            terms.append(fixed(size))
            continue
        for other in meeting[1:]:
            unify(meeting[0], other)
        terms.append(meeting[0])
    return terms
