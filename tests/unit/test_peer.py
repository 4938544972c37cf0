"""torch-pruning on architectures, next to ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from prunecli.report.coverage_tables import coverage_table, peer_table, status_counts
from prunecli.studies.coverage import cover
from prunecli.studies.peer import try_torch_pruning
from prunecli.studies.torch_pruning import try_architecture, try_network
from tests.unit.networks import Plain


def test_a_plain_network_is_right_and_equals_the_masked_one() -> None:
    outcome = try_network(Plain((16, 24, 32)).eval(), torch.randn(1, 3, 16, 16))
    assert outcome["status"] == "ran" and outcome["masked"] and 0.2 < outcome["kept"] < 0.35


def test_a_padded_shortcut_goes_wrong() -> None:
    """Zeros are padded on both sides of the old channels, and torch-pruning does not move what stays to fit them."""
    outcome = try_architecture("cifar:resnet20")
    assert outcome["status"] == "wrong" and outcome["masked"]
    assert "differs from the masked original by" in outcome["reason"]


def test_what_does_not_run_afterwards_has_crashed() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3)).reshape(-1, 16))

    outcome = try_network(Fixed().eval(), torch.randn(1, 3, 8, 8))
    assert outcome["status"] == "crashed" and outcome["reason"].startswith("forward: RuntimeError: ")


def test_results_stand_next_to_ours() -> None:
    entries = list(cover(["timm:test_resnet"], peer=True))
    (entry,) = entries
    assert entry.status == "right" and entry.peer is not None
    assert entry.peer.status == "right" and entry.peer.masked and entry.peer.seconds is not None
    assert entry.peer.kept == pytest.approx(entry.kept, abs=0.03)
    assert entry.to_dict()["peer"]["status"] == "right"
    (row,) = peer_table(entries).rows
    assert row[:2] == ("timm:test_resnet", "right") and row[4] == "right"
    assert len(coverage_table(entries).rows) == 1
    assert status_counts(entries) == "1 right; torch-pruning: 1 right"


def test_networks_with_other_inputs_than_a_tensor_are_tried_too() -> None:
    outcome = try_architecture("transformers:resnet")
    assert outcome["status"] == "ran" and 0.2 < outcome["kept"] < 0.4, outcome


def test_a_process_is_ended_in_time() -> None:
    peer = try_torch_pruning("cifar:resnet20", None, limit_s=0.2)
    assert peer.status == "timeout" and peer.reason == "took more than 0.2 s" and peer.kept is None


def test_a_process_that_dies_has_crashed() -> None:
    peer = try_torch_pruning("cifar:resnet0", None)
    assert peer.status == "crashed" and peer.reason.startswith("the process died: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ref", "status"),
    [("timm:ghostnet_100", "under-pruned"), ("timm:resnet50", "right"), ("timm:levit_128s", "crashed"),
     ("timm:coatnet_0_rw_224", "timeout")],
)  # fmt: skip
def test_larger_architectures(ref: str, status: str) -> None:
    (entry,) = cover([ref], peer=True)
    assert entry.status == "right" and entry.peer is not None and entry.peer.status == status, entry.peer
