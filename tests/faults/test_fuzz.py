"""Thousands of mutated files let nothing but a PruneError escape."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.fuzzing import GUIDED, TARGETS, Escaped, outcome, reader, run_coverage_guided, run_fuzz, seeds

_guided = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_files_are_read_or_refused(target: str, tmp_path: Path) -> None:
    counts = run_fuzz(target, 400, 0, tmp_path)
    assert counts.total() == 400 and counts["refused"] > 20
    assert target != "checkpoint" or counts["read"] == 0  # a changed checkpoint is never read


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_mutated_files_are_read_or_refused(target: str, tmp_path: Path) -> None:
    counts = run_fuzz(target, 10_000, 1, tmp_path)
    assert counts.total() == 10_000
    assert target != "checkpoint" or counts["read"] == 0


@st.composite
def mutated(draw: st.DrawFn, target: str) -> bytes:
    """A seed with up to four runs of bytes replaced."""
    content = draw(st.sampled_from(seeds(target)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        removed = draw(st.integers(0, 16))
        content = content[:place] + draw(st.binary(max_size=16)) + content[place + removed :]
    return content


def _check(target: str, examples: int, folder: Path) -> None:
    path, read = folder / "file", reader(target)

    @settings(
        max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(mutated(target))
    def check(content: bytes) -> None:
        outcome(target, content, path, read)

    check()


@pytest.mark.parametrize("target", TARGETS)
def test_files_of_hypothesis_are_read_or_refused(target: str, tmp_path: Path) -> None:
    _check(target, 100, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_many_files_of_hypothesis_are_read_or_refused(target: str, tmp_path: Path) -> None:
    _check(target, 2_000, tmp_path)


@_guided
def test_files_found_by_coverage_are_read_or_refused() -> None:
    assert run_coverage_guided("weights", 500, 1).total() >= 500


@_guided
@pytest.mark.slow
@pytest.mark.parametrize("target", GUIDED)
def test_many_files_found_by_coverage_are_read_or_refused(target: str) -> None:
    assert run_coverage_guided(target, 5_000, 1).total() >= 5_000


def test_what_escapes_is_noticed(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise ValueError("oh")

    with pytest.raises(Escaped, match="weights: ValueError: oh from b'abc'"):
        outcome("weights", b"abc", tmp_path / "x", fails)
