"""All known model references, without importing any model library: completion needs them at once."""

from __future__ import annotations

from pathlib import Path

FILE = Path(__file__).with_name("fingerprints.tsv")


def known_references() -> list[str]:
    """Every "source:name" that the fingerprint table holds, sorted."""
    return sorted(line.partition("\t")[0] for line in FILE.read_text(encoding="utf-8").splitlines())
