"""What differs between two weights files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunecli.checkpoint.contents import Contents, digests
from prunecli.checkpoint.manifest import Manifest
from prunecli.report.contents_tables import difference_tables, tree_table
from prunecli.report.table import Table


@dataclass(frozen=True)
class Difference:
    """What differs between two weights files.

    Attributes:
        first: One file.
        second: The other one.
        same: For tensors that both have in one shape and type, whether their bytes are the same.
    """

    first: Contents
    second: Contents
    same: dict[str, bool]

    def tables(self) -> list[Table]:
        """Returns figures of both files, then tensors and stages that differ."""
        one, other = self.first, self.second
        numbers = [sum(tensor.numbers for tensor in contents.tensors.values()) for contents in (one, other)]
        figures = [
            ("tensors", str(len(one.tensors)), str(len(other.tensors))),
            ("numbers", f"{numbers[0]:,}", f"{numbers[1]:,}"),
            ("bytes", f"{one.size:,}", f"{other.size:,}"),
        ]
        facts = _facts(one.manifest), _facts(other.manifest)
        figures += [
            (key, facts[0].get(key, "-"), facts[1].get(key, "-"))
            for key in dict.fromkeys((*facts[0], *facts[1]))
            if facts[0].get(key) != facts[1].get(key)
        ]
        head = Table(("figure", one.path.name, other.path.name), figures)
        return [head, *difference_tables(one.tensors, other.tensors, self.same)]

    def document(self) -> dict[str, Any]:
        """Returns everything as one JSON document."""
        one, other = self.first.tensors, self.second.tensors
        common = [name for name in one if name in other]
        return {
            "first": str(self.first.path),
            "second": str(self.second.path),
            "only_first": [name for name in one if name not in other],
            "only_second": [name for name in other if name not in one],
            "shape": {n: [list(one[n].shape), list(other[n].shape)] for n in common if one[n].shape != other[n].shape},
            "dtype": {n: [one[n].dtype, other[n].dtype] for n in common if one[n].dtype != other[n].dtype},
            "values": [name for name, alike in self.same.items() if not alike],
            "same": sum(self.same.values()),
            "manifest": {
                "first": _facts(self.first.manifest),
                "second": _facts(self.second.manifest),
            },
        }

    @property
    def alike(self) -> bool:
        """Whether the tensors of both are the same."""
        return set(self.first.tensors) == set(self.second.tensors) == set(self.same) and all(self.same.values())


def difference_of(first: Contents, second: Contents) -> Difference:
    """Compares two files, by hashes of the tensors that could be the same."""
    one, other = first.tensors, second.tensors
    form = {name: (tensor.shape, tensor.dtype) for name, tensor in one.items()}
    shared = [name for name, tensor in other.items() if form.get(name) == (tensor.shape, tensor.dtype)]
    hashes = [digests(contents, shared) for contents in (first, second)]
    return Difference(first, second, {name: hashes[0][name] == hashes[1][name] for name in shared})


def tree_of(contents: Contents, depth: int | None) -> Table:
    """The tensors of a file as a tree of modules, with the channels that layers kept."""
    return tree_table(list(contents.tensors.values()), contents.kept(), depth)


def contents_document(contents: Contents) -> dict[str, Any]:
    """The tensors of a file, and what its layers kept, as plain data."""
    return {
        "path": str(contents.path),
        "format": contents.kind,
        "bytes": contents.size,
        "tensors": [vars(tensor) | {"shape": list(tensor.shape)} for tensor in contents.tensors.values()],
        "kept": {name: {"width": width, "indices": indices} for name, (width, indices) in contents.kept().items()},
        "manifest": contents.manifest.model_dump(mode="json", by_alias=True) if contents.manifest is not None else None,
    }


def _facts(manifest: Manifest | None) -> dict[str, str]:
    """What distinguishes checkpoints besides their tensors."""
    if manifest is None:
        return {}
    facts = {"architecture": manifest.architecture.ref, "channel groups cut": str(len(manifest.edits))}
    facts |= {f"stage {number}": step.stage for number, step in enumerate(manifest.history, start=1)}
    facts |= {f"stage {n}, command": step.command for n, step in enumerate(manifest.history, start=1) if step.command}
    return facts
