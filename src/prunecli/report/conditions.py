"""Conditions over figures, such as 'top1_drop > 1.0 or macs_ratio > 0.6'."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from prunecli.errors import RecipeError, unknown

_OPERATORS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


@dataclass(frozen=True)
class Part:
    """One comparison in a condition, such as "top1_drop > 1.0".

    Attributes:
        text: The comparison.
        true: Whether it is true.
        decisive: Whether the condition has its value because of it.
        values: The figures that it names.
    """

    text: str
    true: bool
    decisive: bool
    values: Mapping[str, float]


class Condition:
    """A condition over figures.

    Args:
        text: Comparisons of names and numbers, joined by and, or, not and parentheses.
        names: The figures that it may name.
        option: The option or recipe key that it comes from, for messages.
        example: A valid condition, for messages.

    Raises:
        RecipeError: It is not a valid condition, or a name is unknown.
    """

    def __init__(self, text: str, names: Collection[str], option: str, example: str) -> None:
        self.text = text
        self._names, self._option, self._example = names, option, example
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise RecipeError(f"{option} {text!r}: not a valid condition; for example {example!r}") from error
        self._check(self._tree, boolean=True)

    @property
    def named(self) -> tuple[str, ...]:
        """The figures that it names, without repetitions."""
        return tuple(dict.fromkeys(node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)))

    def true_of(self, figures: Mapping[str, Any]) -> bool:
        """Evaluates the condition.

        Args:
            figures: Figures by name; "name" is what the message calls their source.

        Raises:
            RecipeError: A figure that it needs was not measured.
        """
        return self._evaluate(self._tree, figures)

    def parts_of(self, figures: Mapping[str, Any]) -> tuple[Part, ...]:
        """The comparisons that it is made of, in their order.

        Args:
            figures: As for `true_of`.

        Raises:
            RecipeError: A figure that it needs was not measured.
        """
        return self._parts(self._tree, figures, decisive=True)

    def _parts(self, node: ast.AST, figures: Mapping[str, Any], *, decisive: bool) -> tuple[Part, ...]:
        true = self._evaluate(node, figures)
        if isinstance(node, ast.UnaryOp):
            return self._parts(node.operand, figures, decisive=decisive)
        if isinstance(node, ast.BoolOp):
            # What differs from the whole did not decide it: the false parts of an `or` that is true.
            inner = [(value, decisive and self._evaluate(value, figures) == true) for value in node.values]
            return tuple(part for value, decides in inner for part in self._parts(value, figures, decisive=decides))
        names = dict.fromkeys(each.id for each in ast.walk(node) if isinstance(each, ast.Name))
        return (Part(ast.unparse(node), true, decisive, {name: float(figures[name]) for name in names}),)

    def _check(self, node: ast.AST, *, boolean: bool) -> None:
        if boolean and isinstance(node, ast.BoolOp):
            for value in node.values:
                self._check(value, boolean=True)
        elif boolean and isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            self._check(node.operand, boolean=True)
        elif boolean and isinstance(node, ast.Compare) and all(type(op) in _OPERATORS for op in node.ops):
            for value in (node.left, *node.comparators):
                self._check(value, boolean=False)
        elif not boolean and isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            self._check(node.operand, boolean=False)
        elif not boolean and isinstance(node, ast.Name):
            if node.id not in self._names:
                raise RecipeError(f"{self._option}: {unknown('figure', node.id, self._names)}")
        elif boolean or not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
            raise RecipeError(f"{self._option} {self.text!r}: not a valid condition; for example {self._example!r}")

    def _evaluate(self, node: ast.AST, figures: Mapping[str, Any]) -> bool:
        if isinstance(node, ast.BoolOp):
            values = [self._evaluate(value, figures) for value in node.values]
            return all(values) if isinstance(node.op, ast.And) else any(values)
        if isinstance(node, ast.UnaryOp):
            return not self._evaluate(node.operand, figures)
        assert isinstance(node, ast.Compare)
        numbers = [self._number(value, figures) for value in (node.left, *node.comparators)]
        pairs = zip(numbers[:-1], node.ops, numbers[1:], strict=True)
        return all(_OPERATORS[type(op)](left, right) for left, op, right in pairs)

    def _number(self, node: ast.AST, figures: Mapping[str, Any]) -> float:
        if isinstance(node, ast.UnaryOp):
            value = self._number(node.operand, figures)
            return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]
        assert isinstance(node, ast.Name)
        if figures[node.id] is None:
            raise RecipeError(
                f"{self._option}: {node.id} of {figures['name']} was not measured, so the condition cannot be evaluated"
            )
        return float(figures[node.id])
