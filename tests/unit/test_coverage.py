"""Coverage of collections: what they bring, what is checked beside verification, and how reasons are counted."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Architecture, Manifest
from prunecli.errors import ModelError
from prunecli.methods.params import StructuralParams
from prunecli.methods.request import PruneRequest
from prunecli.pipeline.pruning import PruneResult, prune_model
from prunecli.report.coverage_tables import coverage_table, reasons_table
from prunecli.studies import candidates
from prunecli.studies.candidates import candidate, matching, parameters_of
from prunecli.studies.collections.index import COLLECTIONS
from prunecli.studies.collections.network import Collection, Network
from prunecli.studies.coverage import Coverage, attempt, cover
from prunecli.studies.independent_checks import Check, independent_checks
from prunecli.studies.shares import held_share, kind_of, kinds_of_reasons
from prunecli.surgery.tracing.trace import trace
from tests.unit.networks import Plain


class Skipping(Plain):
    """Has a head of its own in training mode, and noise that makes some layers useless at random."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(16, 10)
        self.skipped = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Any:
        scores = self.head(self.body(x))
        if not self.training:
            return scores
        first = self.auxiliary(self.body[:3](x).mean((2, 3)))
        return scores, self.skipped(first) if torch.rand(()) < 0.5 else first


def _network(build: Callable[[], nn.Module]) -> Network:
    return Network("own:net", build, lambda: torch.randn(1, 3, 16, 16), lambda: torch.randn(2, 3, 20, 16))


def _pruned(network: Network) -> tuple[nn.Module, PruneResult]:
    torch.manual_seed(0)
    model = network.build().eval()
    manifest = Manifest(architecture=Architecture(ref="", class_name=type(model).__name__))
    params = StructuralParams(ratio=0.5, scope="local", round_to=1, min_width=1)
    request = PruneRequest(method="l1", params=params, example_inputs=network.inputs())
    return model, prune_model(model, manifest, request)


def _checks(change: Callable[[Any], None] = lambda model: None, build: Any = Skipping) -> dict[str, Check]:
    network = _network(build)
    original, result = _pruned(network)
    changed = copy.deepcopy(result.model)
    change(changed)
    return dict(independent_checks(network, original, replace(result, model=changed)))


def test_what_is_right_passes_every_check() -> None:
    checks = _checks()
    assert list(checks) == ["restored", "second input", "training shapes", "gradients", "export"]
    assert {check.passed for check in checks.values()} == {True}, checks


def _only_one_sample(model: Any) -> None:
    model.head.fc.register_forward_hook(lambda module, args, output: output.reshape(1, 10))


def _other_numbers_for_two(model: Any) -> None:
    model.head.fc.register_forward_hook(lambda module, args, output: output * (1 if len(output) == 1 else 2))


def _fewer_auxiliary_classes(model: Any) -> None:
    model.auxiliary, model.skipped = nn.Linear(model.auxiliary.in_features, 6), nn.Linear(6, 6)


def _detached(model: Any) -> None:
    model.auxiliary.register_forward_pre_hook(lambda module, args: args[0].detach())
    model.body[0].register_forward_hook(lambda module, args, output: output.detach())


def _reads_values(model: Any) -> None:
    model.head.fc.register_forward_hook(lambda module, args, output: output if output.sum().item() < 1e9 else -output)


@pytest.mark.parametrize(
    ("change", "failing", "detail"),
    [
        (_only_one_sample, "second input", "invalid for input of size 20"),
        (_other_numbers_for_two, "second input", "differs from the masked original"),
        (_fewer_auxiliary_classes, "training shapes", "output 1 has shape (2, 6), the original's has (2, 10)"),
        (_detached, "gradients", "body.0.bias has no gradient"),
        (_reads_values, "export", "Could not guard on data-dependent expression"),
    ],
)
def test_each_fault_is_found_by_its_check(change: Callable[[Any], None], failing: str, detail: str) -> None:
    check = _checks(change)[failing]
    assert check.passed is False and detail in check.detail, check


def test_what_a_new_network_does_not_repeat_is_not_restored() -> None:
    """The width of an attribute that the checkpoint does not hold comes from the network that is built anew."""
    scales = iter((1.0, 2.0))

    class Scaled(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.factor = torch.tensor(next(scales))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

    check = _checks(build=Scaled)["restored"]
    assert check.passed is False, check


def test_what_the_original_cannot_do_is_not_asked() -> None:
    class Fussy(Plain):
        def forward(self, x: Tensor) -> Tensor:
            if self.training or x.shape[2] != 16:
                raise ValueError("one size only")
            return super().forward(x)

    checks = _checks(build=Fussy)
    assert [name for name, check in checks.items() if check.passed is None] == [
        "second input", "training shapes", "gradients"
    ]  # fmt: skip
    assert checks["gradients"].detail == "the original fails: ValueError: one size only"


@pytest.mark.parametrize("name", ["resnet", "regnet"])
def test_networks_of_transformers_are_right(name: str) -> None:
    (entry,) = cover([f"transformers:{name}"])
    assert entry.status == "right", entry
    assert 0.2 < entry.kept < 0.5 and entry.processor_s > 0
    assert all(check.passed for check in entry.checks.values()) and "export" not in entry.checks


def test_results_get_more_complete_with_every_check() -> None:
    states = list(attempt("timm:test_resnet"))
    assert [len(state.checks) for state in states] == [0, 1, 2, 3, 4]
    assert {state.status for state in states} == {"right"} and len({state.kept for state in states}) == 1


def test_a_failed_check_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [("restored", Check(True)), ("gradients", Check(False, "a.weight has no gradient"))]
    monkeypatch.setattr("prunecli.studies.coverage.independent_checks", lambda *args, **kwargs: iter(found))
    (entry,) = cover(["timm:test_resnet"])
    assert entry.status == "wrong" and entry.reason == "gradients: a.weight has no gradient"
    assert entry.to_dict()["checks"]["gradients"] == {"passed": False, "detail": "a.weight has no gradient"}
    assert coverage_table([entry]).rows[0][-2:] == ("1 of 2", "gradients: a.weight has no gradient")


def test_collections_are_known_without_importing_their_packages() -> None:
    code = f"""
import sys
from prunecli.studies.collections.index import COLLECTIONS
assert "torch" not in sys.modules
from prunecli.studies.collections.network import Collection
for name in {[name for name in COLLECTIONS.built_in if name != "torchvision"]}:
    collection = COLLECTIONS.load(name)
    assert isinstance(collection, Collection) and len(set(collection.names())) == len(collection.names()) >= 6, name
packages = ("transformers", "ultralytics", "diffusers", "monai", "segmentation_models_pytorch")
print([package for package in packages if package in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_parameters_that_no_layer_holds_have_their_share() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.token, self.last = nn.Linear(4, 6), nn.Parameter(torch.ones(1, 1, 6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            joined = torch.cat([self.token.expand(len(x), -1, -1), self.first(x)], 1)
            picked: Tensor = self.last(joined.flip(2))
            return picked

    model = Token().eval()
    traced = trace(model, torch.randn(2, 3, 4))
    assert "token" in {entry.name for entry in traced.frozen}
    assert held_share(model, traced) > 0 and sum(kinds_of_reasons(model, traced).values()) > 0


def test_how_many_networks_there_are() -> None:
    counts = {name: len(COLLECTIONS.load(name).names()) for name in ("transformers", "ultralytics", "torchvision")}
    assert counts["transformers"] >= 60 and counts["ultralytics"] == 29 and counts["torchvision"] >= 100
    assert isinstance(COLLECTIONS.load("torchvision"), Collection)


def test_a_collection_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"^the networks of monai:\* need the package monai; pip install monai$"):
        matching("monai:*unet*")


def test_patterns_choose_from_a_collection() -> None:
    assert matching("transformers:bert-*") == ["transformers:bert-tokens", "transformers:bert-masked"]
    assert "torchvision:raft_small" in matching("torchvision:raft*") and "timm:test_vit" in matching("test_vit")
    with pytest.raises(ModelError, match="unknown architecture 'transformers:bertt': did you mean"):
        matching("transformers:bertt")
    with pytest.raises(ModelError, match="unknown architecture 'transformers:resnett'"):
        candidate("transformers:resnett")


def test_large_networks_are_not_tried() -> None:
    count = sum(p.numel() for p in COLLECTIONS.load("transformers").network("resnet").build().parameters())
    assert parameters_of("transformers:resnet") == count > 1e4
    (entry,) = cover(["transformers:resnet"], max_params=0.01)
    assert entry.status == "too large" and entry.checks == {}


def test_detectors_are_called_with_lists_of_images() -> None:
    network = COLLECTIONS.load("torchvision").network("maskrcnn_resnet50_fpn")
    assert network.varying and network.training is not None
    pictures, targets = network.training()  # type: ignore[misc]
    assert len(pictures) == len(targets) == 2 and set(targets[0]) == {"boxes", "labels", "masks"}


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("attention heads (--heads removes whole heads)", "attention heads (--heads removes whole heads)"),
        (
            "what bert computes depends on the values of its input (operator _local_scalar_dense), so a trace does not "
            "hold; what can be pruned: --only bert.encoder.layer.0.attention.self or --only bert.encoder.layer.1",
            "what ... computes depends on the values of its input (operator _local_scalar_dense), so a trace does not "
            "hold; what can be pruned: --only ...",
        ),
        ("layer1.0.conv2: mat1 and mat2 cannot be multiplied (4x16 and 32x10)",
         "...: mat1 and mat2 cannot be multiplied (N and N)"),
        ("differs by 1.3e-05 at head.fc", "differs by N at ..."),
    ],
)  # fmt: skip
def test_reasons_of_a_kind_are_counted_together(reason: str, kind: str) -> None:
    assert kind_of(reason) == kind


def test_kinds_of_reasons_are_a_table() -> None:
    entries = [
        Coverage("a:b", "right", held_by={"attention heads": 0.125}),
        Coverage("a:c", "right", held_by={"attention heads": 0.25, "no rule": 0.5}),
    ]
    assert reasons_table(entries).rows == [("no rule", "1", "50.0%"), ("attention heads", "2", "25.0%")]
