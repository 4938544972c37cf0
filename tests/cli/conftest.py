"""What tests of several commands need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunecli.models.loading import load_reference, save
from tests.processes import Processes


@pytest.fixture(scope="session")
def tiny_clip(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image and text towers as small as they get, with 32 features and weights that nobody has trained."""
    processes.preload("open_clip")
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "base.safetensors"
    loaded = load_reference("open_clip:tiny", dim=32, depth=2)
    save(path, loaded.model, loaded.manifest)
    return path
