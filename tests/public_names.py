"""Counts what a newcomer has to learn: `python tests/public_names.py [SRC ...]`.

A public name is a function or class at module level without a leading underscore; Torch-Pruning 1.6.1 has 19 of them
per 1,000 lines by this definition. Constants, type aliases, methods and properties of public classes are reported
apart ("with members"); dataclass fields, imports and local names never count. Lines are all lines of the Python files,
blank ones and comments included. A function's length runs from `def` to its last line, docstring included.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Figures:
    """Size of a source tree.

    Attributes:
        lines: All lines of its modules.
        names: Public functions and classes as "path:name", with the module's path relative to the tree.
        members: Public constants and type aliases, and methods and properties of public classes, in the same form.
        modules: Lines by module.
        functions: Lines by function or method.
    """

    lines: int
    names: tuple[str, ...]
    members: tuple[str, ...]
    modules: dict[str, int]
    functions: dict[str, int]

    @property
    def names_per_1000_lines(self) -> float:
        """Public names for every 1,000 lines."""
        return 1000 * len(self.names) / self.lines

    @property
    def median_module(self) -> float:
        """Lines of the median module; empty ones are left out."""
        return median(count for count in self.modules.values() if count)

    @property
    def longest_module(self) -> tuple[int, str]:
        """Lines and path."""
        return max((count, name) for name, count in self.modules.items())

    @property
    def longest_function(self) -> tuple[int, str]:
        """Lines and name."""
        return max((count, name) for name, count in self.functions.items())


def measure(src: Path) -> Figures:
    """Measures all Python files under `src`."""
    names: list[str] = []
    members: list[str] = []
    modules: dict[str, int] = {}
    functions: dict[str, int] = {}
    for path in sorted(src.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        module = path.relative_to(src).as_posix()
        tree = ast.parse(text)
        modules[module] = len(text.splitlines())
        for name, node in _definitions(tree.body).items():
            (names if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) else members).append(f"{module}:{name}")
            if isinstance(node, ast.ClassDef):
                methods = (part for part, child in _definitions(node.body).items() if isinstance(child, _FUNCTIONS))
                members += [f"{module}:{name}.{method}" for method in methods]
        functions |= {f"{module}:{name}": length for name, length in _lengths(tree)}
    return Figures(sum(modules.values()), tuple(names), tuple(members), modules, functions)


def _definitions(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    """What a module's or class's statements define under a public name, those inside `if` and `try` included."""
    definitions: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            definitions[node.name] = node
        elif isinstance(node, (ast.If, ast.Try)):
            definitions |= _definitions([*node.body, *node.orelse])
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for part in (part for target in targets for part in ast.walk(target)):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    definitions[part.id] = node
    return {name: node for name, node in definitions.items() if not name.startswith("_")}


def _lengths(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            if isinstance(child, _FUNCTIONS):
                yield prefix + child.name, (child.end_lineno or child.lineno) - child.lineno + 1
            yield from _lengths(child, f"{prefix}{child.name}.")
        else:
            yield from _lengths(child, prefix)


def main(arguments: list[str]) -> None:
    """Prints the figures of each source tree named; of this project without one."""
    default = Path(__file__).resolve().parents[1] / "src" / "prunecli"
    for src in [Path(argument) for argument in arguments] or [default]:
        figures = measure(src)
        print(f"{src}")
        print(f"  lines                        {figures.lines:,} in {len(figures.modules)} modules")
        print(f"  public names                 {len(figures.names):,}")
        print(f"  public names per 1,000 lines {figures.names_per_1000_lines:.1f}")
        print(f"  with members                 {len(figures.names) + len(figures.members):,}")
        print(f"  median module                {figures.median_module:g} lines")
        print("  longest module               {} lines, {}".format(*figures.longest_module))
        print("  longest function             {} lines, {}".format(*figures.longest_function))


if __name__ == "__main__":
    main(sys.argv[1:])
