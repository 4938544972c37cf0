"""Two processes that work together, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ranks.processes import Ranks


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    folder: Path = tmp_path_factory.mktemp("pair")
    ranks = Ranks(2, folder)
    yield ranks
    ranks.close()
