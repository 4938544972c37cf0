"""SegFormer: the catalogue's networks, and other people's names for their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from prunecli.errors import ModelError
from prunecli.measure.counts import count_macs, parameter_count
from prunecli.models.catalog import build
from prunecli.models.dialects.dialect import ForeignRequest
from prunecli.models.dialects.index import translate
from prunecli.models.dialects.segformer import reference_of
from prunecli.models.loading import load_file, restore, save
from prunecli.models.recognition import architecture_for, recognise
from tests.processes import Processes

pytest.importorskip("transformers")

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """B0 with five classes, whose statistics are not those of a new network."""
    torch.manual_seed(3)
    model = build("segformer:b0", num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    norm = model.decode_head.batch_norm
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return model.eval()


def _hub(state: State) -> State:
    """The names files on the hub have, by plain replacement from ours."""
    words = [
        (".attention.q_proj.", ".attention.self.query."),
        (".attention.k_proj.", ".attention.self.key."),
        (".attention.v_proj.", ".attention.self.value."),
        (".attention.sequence_reduction.sequence_reduction.", ".attention.self.sr."),
        (".attention.sequence_reduction.layer_norm.", ".attention.self.layer_norm."),
        (".attention.o_proj.", ".attention.output.dense."),
        (".mlp.fc1.", ".mlp.dense1."),
        (".mlp.fc2.", ".mlp.dense2."),
        (".layernorm_before.", ".layer_norm_1."),
        (".layernorm_after.", ".layer_norm_2."),
        ("decode_head.linear_projections.", "decode_head.linear_c."),
    ]
    renamed: State = {}
    for name, tensor in state.items():
        for ours, theirs in words:
            name = name.replace(ours, theirs)
        for stage in range(4):
            base = f"segformer.stages.{stage}."
            name = name.replace(base + "blocks.", f"segformer.encoder.block.{stage}.")
            name = name.replace(base + "patch_embeddings.", f"segformer.encoder.patch_embeddings.{stage}.")
            name = name.replace(base + "layer_norm.", f"segformer.encoder.layer_norm.{stage}.")
        renamed[name] = tensor
    return renamed


def _port(state: State) -> State:
    """bubbliiiing's names: from the hub's, with keys and values in one layer."""
    words = [
        (".attention.self.query.", ".attn.q."),
        (".attention.self.sr.", ".attn.sr."),
        (".attention.self.layer_norm.", ".attn.norm."),
        (".attention.output.dense.", ".attn.proj."),
        (".mlp.dense1.", ".mlp.fc1."),
        (".mlp.dense2.", ".mlp.fc2."),
        (".layer_norm_1.", ".norm1."),
        (".layer_norm_2.", ".norm2."),
        ("decode_head.linear_fuse.weight", "decode_head.linear_fuse.conv.weight"),
        ("decode_head.batch_norm.", "decode_head.linear_fuse.bn."),
        ("decode_head.classifier.", "decode_head.linear_pred."),
    ]
    renamed: State = {}
    hub = _hub(state)
    for name, tensor in hub.items():
        if ".self.value." in name:
            continue
        if ".self.key." in name:
            tensor = torch.cat([tensor, hub[name.replace(".self.key.", ".self.value.")]])
            name = name.replace(".attention.self.key.", ".attn.kv.")
        for ours, theirs in words:
            name = name.replace(ours, theirs)
        for stage in range(4):
            name = name.replace(f"segformer.encoder.block.{stage}.", f"backbone.block{stage + 1}.")
            name = name.replace(f"segformer.encoder.layer_norm.{stage}.", f"backbone.norm{stage + 1}.")
            embedding = f"segformer.encoder.patch_embeddings.{stage}."
            name = name.replace(embedding + "layer_norm.", f"backbone.patch_embed{stage + 1}.norm.")
            name = name.replace(embedding, f"backbone.patch_embed{stage + 1}.")
            name = name.replace(f"decode_head.linear_c.{stage}.", f"decode_head.linear_c{stage + 1}.")
        renamed[name] = tensor
    return renamed


def _nvidia(state: State) -> State:
    unused = {"decode_head.conv_seg.weight": torch.randn(5, 128, 1, 1), "decode_head.conv_seg.bias": torch.randn(5)}
    return {**_port(state), **unused}


@pytest.mark.parametrize(
    ("size", "params", "macs"),
    [("b0", 3_752_694, 8.388e9), ("b1", 13_715_798, 15.878e9), ("b2", 27_461_974, 62.338e9)],
)
def test_networks_have_the_published_sizes(size: str, params: int, macs: float) -> None:
    model = build(f"segformer:{size}", meta=True)
    assert parameter_count(model) == params
    assert count_macs(model, torch.zeros(1, 3, 512, 512)).total == pytest.approx(macs, rel=1e-3)


@pytest.mark.parametrize(("size", "blocks", "millions"), [("b3", 28, 47.3), ("b4", 41, 64.1), ("b5", 52, 84.7)])
def test_larger_networks_have_the_published_sizes(size: str, blocks: int, millions: float) -> None:
    model = build(f"segformer:{size}", meta=True)
    assert sum(len(stage.blocks) for stage in model.segformer.stages) == blocks  # type: ignore[union-attr, arg-type]
    assert parameter_count(model) / 1e6 == pytest.approx(millions, abs=0.1)


def test_scores_are_those_of_transformers(network: nn.Module) -> None:
    from transformers import SegformerConfig
    from transformers.models.segformer.modeling_segformer import SegformerForSemanticSegmentation

    reference = SegformerForSemanticSegmentation(SegformerConfig(num_labels=5)).eval()
    reference.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        scores = network(images)
        assert scores.shape == (2, 5, 16, 24)
        assert torch.equal(scores, reference(images).logits)


@pytest.mark.parametrize(
    ("layout", "origin", "block_eps", "head_eps"),
    [(_hub, "Hugging Face", 1e-5, 1e-5), (_nvidia, "NVIDIA", 1e-6, 1e-5), (_port, "bubbliiiing", 1e-6, 1e-3),
     (dict, "Hugging Face", 1e-5, 1e-5)],
)  # fmt: skip
def test_every_layout_loads_the_same_weights(
    layout: object, origin: str, block_eps: float, head_eps: float, network: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    theirs = layout(network.state_dict())  # type: ignore[operator]
    torch.save({"state_dict": theirs}, path)
    loaded = load_file(path)
    assert loaded.manifest.architecture.ref == "segformer:b0"
    assert loaded.manifest.architecture.kwargs == {"num_classes": 5}
    assert any(note.startswith(origin) for note in loaded.notes)
    state = loaded.model.state_dict()
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())
    assert loaded.model.segformer.stages[0].blocks[0].layernorm_before.eps == block_eps
    assert loaded.model.segformer.stages[0].patch_embeddings.layer_norm.eps == 1e-5
    assert loaded.model.decode_head.batch_norm.eps == head_eps


def test_fused_keys_and_values_are_split_as_they_were_read(network: nn.Module, tmp_path: Path) -> None:
    """NVIDIA reshapes the fused output to (2, heads, head_dim); attention over it has to give what ours gives."""
    theirs = _nvidia(network.state_dict())
    path = tmp_path / "weights.pth"
    torch.save(theirs, path)
    attention = load_file(path).model.segformer.stages[3].blocks[0].attention  # type: ignore[union-attr, index]
    tokens, heads = torch.randn(2, 12, 256), 8
    prefix = "backbone.block4.0.attn."

    def layer(name: str) -> Tensor:
        return nn.functional.linear(tokens, theirs[f"{prefix}{name}.weight"], theirs[f"{prefix}{name}.bias"])

    query = layer("q").reshape(2, 12, heads, 32).permute(0, 2, 1, 3)
    key, value = layer("kv").reshape(2, 12, 2, heads, 32).permute(2, 0, 3, 1, 4)
    mixed = ((query @ key.transpose(-2, -1)) * 32**-0.5).softmax(-1) @ value
    mixed = mixed.transpose(1, 2).reshape(2, 12, 256)
    expected = nn.functional.linear(mixed, theirs[f"{prefix}proj.weight"], theirs[f"{prefix}proj.bias"])
    with torch.no_grad():
        assert torch.allclose(attention(tokens, 3, 4)[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", ["b1", "b2", "b3", "b4", "b5"])
def test_the_size_is_read_from_the_weights(size: str) -> None:
    path = Path("x.pth")
    state = build(f"segformer:{size}", meta=True).state_dict()
    tensors = translate(_nvidia(state), ForeignRequest(path)).tensors
    assert reference_of(tensors, path) == f"segformer:{size}"
    assert architecture_for(f"segformer:{size}", tensors, path).ref == f"segformer:{size}"


def test_a_size_that_nobody_published_is_refused(network: nn.Module, tmp_path: Path) -> None:
    state = {name: t for name, t in network.state_dict().items() if ".stages.2.blocks.1." not in name}
    torch.save(_nvidia(state), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"\[2, 2, 1, 2\] blocks .* not one of b0 to b5"):
        load_file(tmp_path / "weights.pth")


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_imagenet_weights_load_as_the_encoder_of_a_new_network(prefix: str, network: nn.Module, tmp_path: Path) -> None:
    theirs = {n.replace("backbone.", prefix): t for n, t in _port(network.state_dict()).items() if "decode" not in n}
    theirs |= {"head.weight": torch.randn(1000, 256), "head.bias": torch.randn(1000)}
    torch.save(theirs, tmp_path / "mit_b0.pth")
    loaded = load_file(tmp_path / "mit_b0.pth", data_classes=lambda: 7)
    assert loaded.manifest.architecture.kwargs == {"num_classes": 7}
    assert any("encoder alone" in note for note in loaded.notes)
    for name, tensor in network.segformer.state_dict().items():  # type: ignore[union-attr]
        assert torch.equal(loaded.model.state_dict()[f"segformer.{name}"], tensor)
    assert loaded.model.decode_head.classifier.out_channels == 7  # type: ignore[union-attr]


def test_a_new_classifier_is_made_for_other_classes(network: nn.Module, tmp_path: Path) -> None:
    torch.save(_nvidia(network.state_dict()), tmp_path / "weights.pth")
    loaded = load_file(tmp_path / "weights.pth", num_classes=9)
    assert loaded.manifest.architecture.kwargs == {"num_classes": 9}
    assert any("classifier for 5 classes is replaced" in note for note in loaded.notes)
    different = [n for n, t in loaded.model.state_dict().items() if not torch.equal(t, network.state_dict()[n])]
    assert different == ["decode_head.classifier.weight", "decode_head.classifier.bias"]
    same = load_file(tmp_path / "weights.pth", num_classes=5, data_classes=lambda: 9)
    assert torch.equal(same.model.decode_head.classifier.weight, network.decode_head.classifier.weight)


def test_a_live_network_is_recognised(network: nn.Module) -> None:
    architecture = recognise(network)
    assert (architecture.ref, architecture.kwargs) == ("segformer:b0", {"num_classes": 5})


def test_loaded_epsilons_survive_a_checkpoint(network: nn.Module, tmp_path: Path) -> None:
    torch.save(_port(network.state_dict()), tmp_path / "weights.pth")
    loaded = load_file(tmp_path / "weights.pth")
    save(tmp_path / "ours.safetensors", loaded.model, loaded.manifest)
    again, manifest = restore(tmp_path / "ours.safetensors")
    images = torch.randn(1, 3, 64, 64)
    assert manifest.attributes["decode_head.batch_norm"] == {"eps": 1e-3}
    with torch.no_grad():
        assert torch.equal(again(images), loaded.model(images))
        assert not torch.equal(again(images), network(images))


def test_without_transformers_one_line_says_what_to_install(new_processes: Processes, tmp_path: Path) -> None:
    code = (
        "import sys; assert 'transformers' not in sys.modules; sys.modules['transformers'] = None\n"
        "from prunecli.cli.app import run; sys.exit(run(['eval', 'segformer:b0']))"
    )
    done = new_processes.run((), tmp_path, code=code)
    assert done.code == 2, done.err
    assert "pip install 'prunecli[segmentation]'" in done.err and len(done.err.strip().splitlines()) == 1


def test_transformers_is_imported_when_a_network_is_built(new_processes: Processes, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom prunecli.models.catalog import build, source_names\nsource_names('segformer')\n"
        "assert 'transformers' not in sys.modules\nbuild('segformer:b0', meta=True)\n"
        "from transformers import BertModel"
    )
    done = new_processes.run((), tmp_path, code=code)
    assert done.code == 0, done.err


def test_what_keeps_transformers_from_being_imported_is_named(new_processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "torchaudio.py").write_text("raise RuntimeError('compiled for another torch')\n")
    code = (
        "import sys; assert 'torchaudio' not in sys.modules\n"
        "from prunecli.cli.app import run; code = run(['eval', 'segformer:b0'])\n"
        "assert 'torchaudio' not in sys.modules; sys.exit(code)"
    )
    done = new_processes.run((), tmp_path, packages=tmp_path, code=code)
    assert done.code == 2, done.err
    assert "cannot be imported (compiled for another torch); `prune doctor`" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_published_weights_are_not_fetched() -> None:
    with pytest.raises(ModelError, match="nothing is downloaded"):
        build("segformer:b0", pretrained=True)
