"""Recognising an architecture by the names and shapes of its weights.

`fingerprints.tsv` has a MinHash (Broder, 1997) of the "name:shape" set of every model in the catalogue, so a state dict
is compared with all of them in milliseconds. Write it again with `python -m prunecli.models.fingerprints` when timm or
torchvision add models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from prunecli.models.index import FINGERPRINTS

_HASHES = 24


def fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> NDArray[np.uint32]:
    """MinHash of a state dict, shape (24,): the share of equal entries estimates the share of common tensors."""
    tokens = [f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items()]
    digests = np.array(
        [np.frombuffer(hashlib.shake_128(token.encode()).digest(4 * _HASHES), dtype="<u4") for token in tokens]
    )
    lowest: NDArray[np.uint32] = digests.min(axis=0)
    return lowest


def nearest_references(shapes: Mapping[str, tuple[int, ...]], count: int) -> list[tuple[str, float]]:
    """The `count` most similar references with their estimated similarity in 0..1, best first."""
    references, table = _table()
    similarity = (table == fingerprint(shapes)).mean(axis=1)
    sizes = np.array([size for _, size in references])
    closeness = -np.abs(np.log(sizes / len(shapes)))
    order = np.lexsort((closeness, similarity))[::-1][:count]
    return [(references[i][0], float(similarity[i])) for i in order]


def may_have(ref: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a reference has as many tensors as a state dict, which may lack the counters of normalisations."""
    size = _sizes()[ref]
    counts = any(name.endswith("num_batches_tracked") for name in shapes)
    return size == len(shapes) or (not counts and size > len(shapes))


@cache
def _sizes() -> dict[str, int]:
    return dict(_table()[0])


@cache
def _table() -> tuple[list[tuple[str, int]], NDArray[np.uint32]]:
    references: list[tuple[str, int]] = []
    rows: list[NDArray[np.uint32]] = []
    for line in FINGERPRINTS.read_text(encoding="utf-8").splitlines():
        ref, size, packed = line.split("\t")
        references.append((ref, int(size)))
        rows.append(np.frombuffer(bytes.fromhex(packed), dtype="<u4"))
    return references, np.stack(rows)


def _write_table(references: Iterable[str]) -> int:
    """Writes the table for `references` and returns how many could be built on the meta device."""
    from prunecli.errors import ModelError
    from prunecli.models.catalog import build

    lines: list[str] = []
    for ref in references:
        try:
            state = build(ref, meta=True).state_dict()
        except ModelError:
            continue
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        lines.append(f"{ref}\t{len(shapes)}\t{fingerprint(shapes).astype('<u4').tobytes().hex()}")
    FINGERPRINTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


if __name__ == "__main__":
    from prunecli.models.catalog import source_names
    from prunecli.models.index import SOURCES

    everything = [
        f"{source}:{name}"
        for source in SOURCES.built_in
        for name in source_names(source)
        if "@" not in name  # the same architecture with published weights
    ]
    print(f"{_write_table(everything)} of {len(everything)} models written to {FINGERPRINTS.name}")
