"""What makes an export right or wrong: the graph, the comparison, and what is left when it fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Architecture, Manifest
from prunecli.errors import ModelError, RecipeError, ResourceError, VerificationError
from prunecli.exporting import hub, int8, staging
from prunecli.exporting.agreement import agreement
from prunecli.exporting.base import ExportRequest, RuntimeNetwork
from prunecli.exporting.configured_widths import as_configured
from prunecli.exporting.graph import graph_of, input_names, output_names
from prunecli.exporting.index import FORMATS, format_for
from prunecli.measure.neurons import without_memory
from prunecli.models.loading import LoadedModel
from prunecli.pipeline.export_inputs import batch_of


def loaded(network: nn.Module) -> LoadedModel:
    return LoadedModel(network, Manifest(architecture=Architecture(ref="")), path=Path("net.safetensors"))


def request(network: nn.Module, example: Any, **settings: Any) -> ExportRequest:
    return ExportRequest(loaded(network), example, **settings)


class Noisy(nn.Module):
    """Training mode would show: dropout, and statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Several(nn.Module):
    """Inputs by name, a flag among them, and outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, values: Tensor, mask: Tensor, doubled: bool = False) -> dict[str, Tensor]:
        hidden = self.layer(values) * mask.unsqueeze(-1)
        return {"scores": hidden.sum(1) * (2 if doubled else 1), "hidden": hidden}


def test_networks_leave_in_evaluation_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Noisy().train()
    FORMATS.load("torch-export").write(request(network, torch.randn(2, 6)), tmp_path / "net.pt2")
    run = FORMATS.load("torch-export").opened(tmp_path / "net.pt2")
    assert network.training, "the user's network stays as it was"
    assert run is not None
    found = agreement(network.eval(), run, [torch.randn(1, 6), torch.randn(5, 6)])
    assert found.largest == 0 and found.telling and found.batches == (1, 5)


def test_neurons_of_ones_own_begin_without_memory(tmp_path: Path) -> None:
    from spikingjelly.activation_based import neuron

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), neuron.LIFNode(v_threshold=0.3), nn.Linear(8, 3)).eval()
    x = torch.rand(4, 6)
    with torch.no_grad(), without_memory(network):
        first = network(x)
        assert not torch.equal(network(x), first), "it does not reset itself"
    network(x)  # what was left by an earlier call is not in the graph
    FORMATS.load("torch-export").write(request(network, x[:2]), tmp_path / "net.pt2")
    run = FORMATS.load("torch-export").opened(tmp_path / "net.pt2")
    assert run is not None
    assert torch.equal(run(x), first) and torch.equal(run(x), first)
    assert agreement(network, run, [x[:1], x[1:]], decides=True).moved == 0


def test_inputs_and_outputs_have_their_names_and_flags_stay() -> None:
    example = {"values": torch.randn(2, 3, 4), "mask": torch.ones(2, 3), "doubled": True}
    network = Several()
    graph = graph_of(request(network, example))
    assert graph.inputs == ("values", "mask") and graph.outputs == ("scores", "hidden")
    x, mask = torch.randn(5, 3, 4), torch.rand(5, 3)
    scores, _ = graph.program.module()(values=x, mask=mask)
    assert torch.allclose(scores, network(x, mask, doubled=True)["scores"])
    assert input_names(network, (x, mask)) == ("values", "mask") and output_names(torch.ones(1)) == ("output",)


def test_inputs_by_name_come_in_any_order() -> None:
    run = RuntimeNetwork(("values", "mask"), ("output",), lambda tensors: [tensors[0] - tensors[1]])
    one, other = torch.tensor([3.0]), torch.tensor([1.0])
    assert run(mask=other, values=one).item() == run(one, other).item() == 2
    for given in ({"values": one}, {"values": one, "other": other}):
        with pytest.raises(ModelError, match="it takes values, mask"):
            run(**given)


@torch.library.custom_op("prunecli_test::odd", mutates_args=())
def _odd(x: Tensor) -> Tensor:
    return x + 1


@_odd.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _odd(x)  # type: ignore[no-any-return]


def test_an_operator_that_onnx_lacks_is_named_with_its_module(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    network = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Odd()))
    with pytest.raises(ModelError, match=r"ONNX has no translation of prunecli_test\.odd in 1\.1 \(Odd\)"):
        FORMATS.load("onnx").write(request(network, torch.randn(2, 3)), tmp_path / "net.onnx")
    notes: list[str] = []
    FORMATS.load("torch-export").write(request(network, torch.randn(2, 3), note=notes.append), tmp_path / "net.pt2")
    assert "import prunecli_test before torch.export.load" in notes[0]


class Looking(nn.Module):
    """What it does depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if bool((x > 0).all()) else -x


def test_a_network_without_a_graph_is_refused_with_the_module() -> None:
    network = nn.Sequential(nn.Linear(3, 3), Looking())
    with pytest.raises(ModelError, match=r"no graph that torch\.export can record: 1 \(Looking\)"):
        graph_of(request(network, torch.randn(2, 3)))
    with pytest.raises(ModelError, match="takes a list of images"):
        graph_of(request(network, [torch.randn(3, 3)]))


class OfOneSize(nn.Module):
    """Looks at the size of images, as embeddings of patches do."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2:] == (8, 8)
        return x.mean((2, 3))


def test_sizes_that_are_fixed_are_no_dynamic_ones() -> None:
    network = nn.Sequential(OfOneSize(), nn.Linear(3, 2))
    with pytest.raises(ModelError, match=r"fixes the size of its inputs \(8x8\)"):
        graph_of(request(network, torch.randn(2, 3, 8, 8), dynamic_size=True))


def runs(function: Any) -> nn.Module:
    return RuntimeNetwork(("input",), ("output",), lambda tensors: [function(tensors[0])])


def test_a_comparison_finds_what_is_wrong() -> None:
    torch.manual_seed(0)
    network = nn.Linear(4, 3).eval()
    batches = [torch.randn(1, 4), torch.randn(3, 4)]
    assert agreement(network, runs(lambda x: network(x) * (1 + 1e-6)), batches).relative < 1e-5
    for wrong in (
        lambda x: network(x) * 1.01,
        lambda x: network(x.flip(0)),  # another sample's outputs, which a batch of one does not show
        lambda x: network(x) * torch.nan,
    ):
        with pytest.raises(VerificationError, match="differs by"):
            agreement(network, runs(wrong), batches, name="net")
    with pytest.raises(VerificationError, match="gives outputs"):
        agreement(network, runs(lambda x: network(x)[:1]), batches)
    assert not agreement(
        nn.Sequential(network, nn.Threshold(9e9, 0.0)), runs(lambda x: x.new_zeros(len(x), 3)), batches
    ).telling


def test_single_decisions_may_fall_otherwise_where_rounding_decides() -> None:
    network = nn.Identity().eval()
    batches = [torch.randn(1, 2), torch.randn(3, 2)]

    def moved(x: Tensor) -> Tensor:
        return torch.cat([x[:-1], x[-1:] + 1]) if len(x) == 3 else x

    found = agreement(network, runs(moved), batches, decides=True)
    assert found.moved == 1 and found.largest == 0
    with pytest.raises(VerificationError):
        agreement(network, runs(moved), batches)
    with pytest.raises(VerificationError, match="in 4 of 4 samples"):
        agreement(network, runs(lambda x: x + 1), batches, decides=True)


def test_batches_are_of_different_samples() -> None:
    one, other = {"a": torch.zeros(1, 2), "b": torch.tensor(5.0)}, {"a": torch.ones(1, 2), "b": torch.tensor(5.0)}
    batch = batch_of([one, other], 3)
    assert batch["a"][:, 0].tolist() == [0, 1, 0] and batch["b"].shape == ()


def test_nothing_is_left_of_an_export_that_fails(tmp_path: Path) -> None:
    with pytest.raises(VerificationError), staging.staged(tmp_path / "net.onnx") as folder:
        (folder / "net.onnx").write_text("wrong")
        raise VerificationError("it differs")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("kept")
    with pytest.raises(RecipeError, match="is a folder of other files"):
        staging.check_free([tmp_path / "photos"], True)
    old = tmp_path / "export"
    old.mkdir()
    (old / staging.RECORD).write_text("{}")
    (old / "shard-2").write_text("of the old one")
    staging.check_free([old], True)
    with staging.staged(old) as folder:
        (folder / "export").mkdir()
        (folder / "export" / staging.RECORD).write_text("new")
        assert staging.publish(folder, old, True) == [old]
    assert [path.name for path in old.iterdir()] == [staging.RECORD], "nothing of the old one is left"
    assert [path.name for path in tmp_path.iterdir()].count("export") == 1 and len(list(tmp_path.iterdir())) == 2


def test_files_of_an_earlier_export_go_with_it(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    for name in ("net.onnx", "net.int8.onnx", "notes.onnx"):
        (tmp_path / name).write_text("old")
    old = ["net.onnx", "net.int8.onnx", "notes.onnx", "../elsewhere"]
    (tmp_path / "net.onnx.json").write_text(json.dumps({"files": [{"name": name} for name in old]}))
    with staging.staged(target) as folder:
        (folder / "net.onnx").write_text("new")
        staging.publish(folder, target, True)
    assert target.read_text() == "new" and not (tmp_path / "net.int8.onnx").exists()
    assert (tmp_path / "notes.onnx").read_text() == "old", "no export writes that beside it"


@pytest.mark.parametrize(("name", "module"), [("onnx", "onnxscript"), ("openvino", "openvino")])
def test_what_is_not_installed_is_said_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModelError, match=rf"--to {name} needs {module} .*pip install 'prunecli\[export\]'"):
        FORMATS.load(name).require()


def test_the_format_is_that_of_the_name(tmp_path: Path) -> None:
    assert format_for(Path("a.onnx"), None) == "onnx" and format_for(Path("a.xml"), "onnx") == "onnx"
    assert format_for(tmp_path, None) == "hf" and format_for(Path("folder"), None) == "hf"
    with pytest.raises(RecipeError, match="which format"):
        format_for(Path("a.tflite"), None)


def test_who_is_not_logged_in_uploads_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE is set"):
        hub.require("me/net")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(RecipeError, match="nobody is logged in"):
        hub.require("me/net")
    for name in ("net", "a/b/c", "me/--net"):
        with pytest.raises(RecipeError, match="USER/NAME"):
            hub.require(name)
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    hub.require("me/net")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "net.onnx").write_text("it")
    with pytest.raises(ResourceError, match="stays here: upload it with `hf upload me/net"):
        hub.push("me/net", [tmp_path / "net.onnx"], "message")


def test_a_configuration_with_the_widths_is_found() -> None:
    transformers = pytest.importorskip("transformers")
    kind = transformers.BertForSequenceClassification
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
    torch.manual_seed(0)
    dense = kind(transformers.BertConfig(intermediate_size=24, max_position_embeddings=24, **sizes)).eval()
    x = torch.randint(32, (1, 7))
    pruned = kind(transformers.BertConfig(intermediate_size=10, max_position_embeddings=24, **sizes)).eval()
    wanted = pruned(x).logits
    pruned.config.intermediate_size = 24  # as pruning leaves it; 24 is a number of positions, too
    found = as_configured(pruned, x)
    assert found is not None and found.config.intermediate_size == 10  # type: ignore[union-attr]
    assert torch.equal(found(x).logits, wanted)
    uneven = dense
    uneven.bert.encoder.layer[0].intermediate.dense = nn.Linear(16, 9)
    uneven.bert.encoder.layer[0].output.dense = nn.Linear(9, 16)
    assert as_configured(uneven, x) is None and as_configured(nn.Linear(1, 1), torch.ones(1, 1)) is None


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_integers_are_near_the_network_on_any_processor(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    path, small = tmp_path / "net.onnx", tmp_path / "net.int8.onnx"
    FORMATS.load("onnx").write(request(network, torch.rand(2, 64)), path)
    if kind == "static":
        int8.quantise_statically(path, small, (torch.rand(32, 64) for _ in range(4)), ["input"])
    else:
        int8.quantise_weights(path, small)
    run, x = FORMATS.load("onnx").opened(small), torch.rand(64, 64)
    assert run is not None
    wanted = network(x)
    error = float((run(x) - wanted).norm() / wanted.norm())
    assert 1e-4 < error < 0.03, "sums that overflow are further off"
