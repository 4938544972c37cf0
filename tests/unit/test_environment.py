"""What is installed beside this package works, in the environment that its requirements make."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from tests.conftest import Prune
from tests.processes import Processes

_BERT = """
import sys
assert "transformers" not in sys.modules
import prunecli
import torch
from transformers import BertConfig, BertModel

config = BertConfig(
    vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)
hidden = BertModel(config).eval()(input_ids=torch.arange(6).reshape(2, 3)).last_hidden_state
print(tuple(hidden.shape), bool(torch.isfinite(hidden).all()))
"""


def test_networks_of_transformers_run_beside_this_package(new_processes: Processes, tmp_path: Path) -> None:
    """transformers imports torchaudio wherever it is installed, and fails with it."""
    done = new_processes.run((), tmp_path, code=_BERT)
    assert done.code == 0, done.err
    assert done.out == "(2, 3, 16) True\n"


def test_what_is_installed_meets_the_requirements() -> None:
    for text in metadata.requires("prunecli") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            assert metadata.version(requirement.name) in requirement.specifier, text


def test_doctor_names_a_torchaudio_that_cannot_be_imported(
    prune: Prune, new_processes: Processes, tmp_path: Path
) -> None:
    assert prune("doctor", "--json").json["problems"] == []
    (tmp_path / "torchaudio.py").write_text("raise RuntimeError('compiled for another torch')\n")
    done = new_processes.run(("doctor", "--json"), tmp_path, packages=tmp_path)
    assert done.code == 1, done.err
    (problem,) = json.loads(done.out)["problems"]
    assert problem.startswith("torchaudio does not match torch (compiled for another torch), and transformers cannot")
