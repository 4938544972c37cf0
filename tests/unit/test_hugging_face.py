"""`hf:`: networks of transformers from folders, what their files may say, and pruning them end to end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as read_safetensors
from safetensors.torch import save_file
from torch import Tensor, nn

import prunecli
from prunecli.checkpoint.manifest import Architecture
from prunecli.errors import ModelError
from prunecli.inputs import call, output_tensors
from prunecli.models.catalog import build, build_dense, takes
from prunecli.models.hugging_face.folder import image_settings
from prunecli.models.loading import LoadedModel, load_file, load_reference, save

transformers = pytest.importorskip("transformers")
from prunecli.studies.collections.from_transformers import network  # noqa: E402 - where the library is

FAMILIES = (
    *(
        "bert",
        "gpt2",
        "llama",
        "gemma2",
        "qwen3-moe",
        "t5",
        "vit",
        "swin",
        "clip",
        "detr",
        "segformer",
        "whisper",
        "wav2vec2",
    ),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("bert-tokens", "bart", "mamba", "dinov2", "convnext", "siglip", "rt-detr", "yolos")
    ),
)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a small random network of a family as `save_pretrained` does."""

    def folder(name: str, **kwargs: Any) -> Path:
        torch.manual_seed(0)
        model: Any = network(name).build()
        model.save_pretrained(tmp_path / name, **kwargs)
        return tmp_path / name

    return folder


def edited(folder: Path, **changes: Any) -> Path:
    """Changes the configuration of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def outputs(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return output_tensors(call(model, inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_opened_pruned_saved_and_loaded_bit_by_bit(
    family: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, example = saved(family), network(family).inputs()
    loaded = load_reference(f"hf:{folder}")
    original: Any = type(loaded.model).from_pretrained(folder).eval()
    for ours, theirs in zip(outputs(loaded.model, example), outputs(original, example), strict=True):
        assert torch.equal(ours, theirs)
    assert str(folder) not in loaded.manifest.to_json()
    pruned = prunecli.prune(loaded.model, "l1", example_inputs=example, ratio=0.3)
    assert 0.25 < pruned.report.achieved < 0.45
    manifest = loaded.manifest.model_copy(update={"edits": list(pruned.report.edits)})
    save(tmp_path / "pruned.safetensors", pruned.model, manifest)
    again = load_file(tmp_path / "pruned.safetensors")
    for ours, theirs in zip(outputs(again.model, example), outputs(pruned.model, example), strict=True):
        assert torch.equal(ours, theirs)
    for mode in (again.model.train(), pruned.model.train()):
        assert outputs(mode, network(family).other())
    assert attention_of(again) == attention_of(loaded)


def attention_of(loaded: LoadedModel) -> Any:
    config: Any = loaded.model.config
    return config._attn_implementation, getattr(config, "_experts_implementation", None)


def test_generation_with_a_cache_equals_generation_without(saved: Callable[[str], Path], tmp_path: Path) -> None:
    for family in ("gpt2", "llama", "gemma3"):
        loaded = load_reference(f"hf:{saved(family)}")
        pruned: Any = prunecli.prune(
            loaded.model, "l1", example_inputs=torch.randint(5, 90, (1, 9)), ratio=0.4, round_to=1
        ).model
        tokens = torch.randint(5, 90, (2, 6))
        settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        cached = pruned.generate(tokens, use_cache=True, **settings)
        assert torch.equal(cached, pruned.generate(tokens, use_cache=False, **settings))


def test_half_precision_stays_so(saved: Callable[[str], Path], tmp_path: Path) -> None:
    folder = saved("llama")
    model: Any = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    loaded = load_reference(f"hf:{folder}")
    save(tmp_path / "x.safetensors", loaded.model, loaded.manifest)
    tensors = read_safetensors(tmp_path / "x.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight"].dtype is torch.bfloat16
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensors[name], tensor)


def test_shards_are_read_and_what_they_lack_is_said(saved: Callable[..., Path]) -> None:
    folder = saved("llama", max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    whole = load_reference(f"hf:{folder}").model.state_dict()
    index = folder / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    name, shard = next((n, s) for n, s in listed["weight_map"].items() if n.endswith("up_proj.weight"))
    tensors = read_safetensors(folder / shard)
    assert torch.equal(tensors[name], whole[name])
    kept = {key: value for key, value in tensors.items() if key != name}
    save_file(kept or {"other": torch.zeros(1)}, folder / shard, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors are missing from .*up_proj\.weight"):
        load_reference(f"hf:{folder}")
    (folder / shard).unlink()
    with pytest.raises(ModelError, match=r"shard .* is missing"):
        load_reference(f"hf:{folder}")
    listed["weight_map"][name] = "../elsewhere.safetensors"
    index.write_text(json.dumps(listed))
    with pytest.raises(ModelError, match="outside its folder"):
        load_reference(f"hf:{folder}")


def test_a_missing_tensor_of_a_whole_file_is_an_error_and_a_new_head_a_note(saved: Callable[[str], Path]) -> None:
    folder = saved("bert")
    path = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in read_safetensors(path).items() if name != "classifier.weight"}
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensors of BertForSequenceClassification are missing.*classifier\.weight"):
        load_reference(f"hf:{folder}")
    tagging = load_reference(f"hf:{folder}", head="token-classification", num_classes=7)
    assert tagging.model(torch.randint(0, 90, (1, 5))).logits.shape == (1, 5, 7)
    assert any("new weights, to be trained: classifier" in note for note in tagging.notes)


def test_another_number_of_classes_replaces_the_classifier(saved: Callable[[str], Path]) -> None:
    loaded = load_reference(f"hf:{saved('vit')}", num_classes=9)
    assert loaded.model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 9)
    assert any("another number of classes" in note for note in loaded.notes)


def test_files_of_torch_save_are_read_without_running_anything(saved: Callable[[str], Path]) -> None:
    folder = saved("bert")
    tensors = read_safetensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    loaded = load_reference(f"hf:{folder}")
    for name, tensor in tensors.items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "ran",))

    torch.save({**tensors, "x": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        load_reference(f"hf:{folder}")
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mine", "auto_map": {"AutoModel": "modeling.Mine"}}, "trust_remote_code.*--allow-code"),
        ({"model_type": "mine"}, "'mine' is unknown to transformers"),
        ({"model_type": None}, "without model_type"),
        ({"architectures": ["NoSuchClass"]}, "unknown class of transformers 'NoSuchClass'"),
        ({"quantization_config": {"bits": 4}}, "are quantised"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1,000,000"),
        ({"vocab_size": 10**15}, "vocab_size is"),
        ({"hidden_size": "wide"}, "does not accept its configuration|cannot be built|do not fit"),
        ({"hidden_size": 52}, "do not fit|cannot be built|other shapes"),
    ],
)
def test_configurations_that_cannot_be_used(
    changes: dict[str, Any], message: str, saved: Callable[[str], Path]
) -> None:
    with pytest.raises(ModelError, match=message):
        load_reference(f"hf:{edited(saved('bert'), **changes)}")


def test_folders_that_cannot_be_used(saved: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_reference("hf:./nowhere")
    with pytest.raises(ModelError, match=r"config\.json: no such file"):
        load_reference(f"hf:{tmp_path}")
    folder = saved("vit")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter"):
        load_reference(f"hf:{folder}")
    (folder / "adapter_config.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has a configuration and no weights"):
        load_reference(f"hf:{folder}")
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable as JSON"):
        load_reference(f"hf:{folder}")


def test_what_is_not_finite_is_refused(saved: Callable[[str], Path]) -> None:
    folder = saved("vit")
    tensors = read_safetensors(folder / "model.safetensors")
    tensors["classifier.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"classifier\.weight"):
        load_reference(f"hf:{folder}")
    assert load_reference(f"hf:{folder}", allow_nonfinite=True).model


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A small classifier of texts with three classes, as save_pretrained writes it."""
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=30, num_labels=3
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def _rewritten(folder: Path, change: Callable[[str, Tensor], tuple[str, Tensor] | None]) -> None:
    entries = [change(name, tensor) for name, tensor in read_safetensors(folder / "model.safetensors").items()]
    save_file(dict(entry for entry in entries if entry), folder / "model.safetensors", {"format": "pt"})


def test_only_a_head_is_replaced_for_another_number_of_classes(classifier: Path) -> None:
    assert load_reference(f"hf:{classifier}", num_classes=5).model.config.num_labels == 5
    with pytest.raises(ModelError, match="6 tensors have other shapes than its configuration says"):
        load_reference(f"hf:{classifier}", num_classes=5, intermediate_size=20)


@pytest.mark.parametrize(
    "change",
    [
        lambda name, tensor: None if ".layer.1." in name else (name, tensor),
        lambda name, tensor: (f"module.{name}", tensor),
    ],
)
def test_a_folder_that_lacks_more_than_a_head_is_refused(classifier: Path, change: Any) -> None:
    _rewritten(classifier, change)
    with pytest.raises(ModelError, match="more than a new head"):
        load_reference(f"hf:{classifier}", head="token-classification")


def test_folders_of_several_precisions_lose_no_digits(classifier: Path) -> None:
    before = read_safetensors(classifier / "model.safetensors")
    _rewritten(classifier, lambda name, tensor: (name, tensor.bfloat16() if "embeddings" in name else tensor))
    after = load_reference(f"hf:{classifier}").model.state_dict()
    assert torch.equal(after["classifier.weight"], before["classifier.weight"])


def test_pickled_weights_may_begin_with_integers(classifier: Path) -> None:
    """Those of BERT began with the numbers of positions for years."""
    tensors = {
        "bert.embeddings.position_ids": torch.arange(512)[None],
        **read_safetensors(classifier / "model.safetensors"),
    }
    (classifier / "model.safetensors").unlink()
    torch.save(tensors, classifier / "pytorch_model.bin")
    loaded = load_reference(f"hf:{classifier}")
    assert torch.equal(loaded.model.state_dict()["classifier.weight"], tensors["classifier.weight"])


def test_a_hub_name_that_is_not_cached_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"not in the cache.*HF_HUB_OFFLINE is set.*hf download nobody/nothing"):
        load_reference("hf:nobody/nothing")


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "someone/kernel", "_attn_implementation": "someone/kernel"},
        {"auto_map": {"AutoModel": "modeling.Mine"}},
        {"_name_or_path": "someone/else", "transformers_weights": "elsewhere.safetensors"},
    ],
)
def test_manifests_cannot_make_the_library_fetch_anything(config: dict[str, Any]) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model: Any = build("hf:BertModel", config={"config": {**small, **config}})
    assert model.config._attn_implementation in ("sdpa", "eager") and model.config._name_or_path == ""
    with pytest.raises(ModelError, match="unknown class of transformers"):
        build("hf:../../BertModel")
    with pytest.raises(ModelError, match="would have to be fetched"):
        build("hf:DetrForObjectDetection", config={"config": {"backbone": "someone/net", "use_timm_backbone": False}})


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("DetrForObjectDetection", {"backbone_config": {"model_type": "timm_backbone", "backbone": "hf-hub:some/one"}}),
        ("TimmWrapperModel", {"num_classes": 2, "label_names": ["a", "b"], "architecture": "local-dir:/etc"}),
        ("TimmWrapperModel", {"num_classes": 2, "label_names": ["a", "b"], "model_args": {"checkpoint_path": "x.pth"}}),
        (
            "LlavaModel",
            {"vision_config": {"model_type": "timm_wrapper", "num_classes": 2, "architecture": "hf-hub:some/one"}},
        ),
    ],
)
def test_networks_of_timm_at_any_depth_are_built_from_nothing_but_their_names(
    kind: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """timm's names may be places on the hub or folders, and its arguments files."""
    from timm.models import _factory

    asked: list[Any] = []
    for name in ("load_model_config_from_hf", "load_model_config_from_path", "load_checkpoint"):
        monkeypatch.setattr(_factory, name, lambda *args, **kwargs: asked.append(args))
    with pytest.raises(ModelError, match=r"would have to be fetched|could read files"):
        build(f"hf:{kind}", config={"config": config}, meta=True)
    assert not asked


def test_the_hub_is_not_asked_for_a_backbone_that_timm_has(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.backbone_utils

    def unreachable() -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr(transformers.backbone_utils, "hf_api", unreachable)
    config = {"backbone": "resnet18", "use_timm_backbone": True, "backbone_kwargs": {"out_indices": [1, 2, 3, 4]}}
    model: Any = build("hf:DetrForObjectDetection", config={"config": config}, meta=True)
    assert model.config.backbone_config.backbone == "resnet18"


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("BertForSequenceClassification", {"num_labels": 200_000_000}),
        ("SwitchTransformersModel", {"num_experts": 50_000_000}),
        ("BertModel", {"rows": [[1 << 40]]}),
    ],
)
def test_numbers_that_would_fill_the_memory_are_refused(kind: str, config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="makes sense; the file was altered"):
        build(f"hf:{kind}", config={"config": config}, meta=True)


def test_a_network_of_endless_modules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from prunecli.models.hugging_face import library

    monkeypatch.setattr(library, "_MOST_MODULES", 60)
    with pytest.raises(ModelError, match="over 60 modules"):
        build("hf:BertModel", config={"config": {"num_hidden_layers": 40, "hidden_size": 12}}, meta=True)


def test_new_networks_by_class_and_settings() -> None:
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    loaded = load_reference("hf:BertForSequenceClassification", data_classes=lambda: 4, vocab_size=30, **settings)
    assert loaded.new and loaded.model(torch.zeros(1, 3, dtype=torch.long)).logits.shape == (1, 4)
    architecture = Architecture.model_validate_json(loaded.manifest.architecture.model_dump_json())
    again = build_dense(architecture, meta=True)
    shapes = {name: tensor.shape for name, tensor in loaded.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in again.state_dict().items()} == shapes
    assert takes("hf:BertForSequenceClassification") == "tokens"
    assert takes("hf:ViTForImageClassification") == "images"
    assert takes("hf:CLIPModel") == takes("hf:T5ForConditionalGeneration") == "other"


def test_images_are_prepared_as_the_processor_says(tmp_path: Path) -> None:
    config = transformers.ConvNextConfig()
    said = {
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "resample": 3, "do_center_crop": True,
        "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "rescale_factor": 1 / 127.5,
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    settings = image_settings(tmp_path, config)
    assert settings.size == (224, 224) and settings.normalisation.interpolation == "bicubic"
    assert settings.normalisation.crop_pct == pytest.approx(0.875)
    pixel = torch.tensor(200.0)
    theirs = (pixel / 127.5 - 0.5) / 0.25
    ours = (pixel / 255 - settings.normalisation.mean[0]) / settings.normalisation.std[0]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


def test_a_weights_file_of_tied_weights_goes_into_a_named_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**settings, intermediate_size=24, tie_word_embeddings=True)
    model: Any = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    loaded: Any = load_file(tmp_path / "model.safetensors", f"hf:{tmp_path}").model
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    tensors = read_safetensors(tmp_path / "model.safetensors")
    save_file({name: t for name, t in tensors.items() if "up_proj" not in name}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"they lack .*up_proj\.weight"):
        load_file(tmp_path / "w.safetensors", f"hf:{tmp_path}")


def test_a_weights_file_is_prepared_for_as_the_named_folder_says(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model: Any = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path)
    processor: Any = transformers.ViTImageProcessor(
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6], size={"height": 16, "width": 16}
    )
    processor.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    loaded = load_file(tmp_path / "weights.pt", f"hf:{tmp_path}")
    used = loaded.manifest.normalisation
    assert used is not None and used.mean == (0.1, 0.2, 0.3) and used.crop_mode == "squash"
    assert loaded.fixed_size == (16, 16)
    assert load_reference(f"hf:{tmp_path}").manifest.normalisation == used


def test_a_folder_of_a_pruned_network_is_not_taken_for_a_dense_one(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=3
    )
    model: Any = transformers.BertForSequenceClassification(config).eval()
    ids = torch.zeros(1, 8, dtype=torch.long)
    prunecli.prune(model, "l1", ratio=0.5, example_inputs={"input_ids": ids}).model.save_pretrained(tmp_path)
    for settings in ({}, {"num_classes": 5}, {"num_labels": 5}):
        with pytest.raises(ModelError, match=r"tensors have other shapes .* give the checkpoint that prune wrote"):
            load_reference(f"hf:{tmp_path}", **settings)


def test_settings_that_the_weights_do_not_have_are_named(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, num_labels=3
    )
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"leave out of --model-kwargs .*: intermediate_size"):
        load_reference(f"hf:{tmp_path}", intermediate_size=48)
    loaded: Any = load_reference(f"hf:{tmp_path}", num_labels=5)
    assert loaded.model.classifier.out_features == 5 and "another number of classes" in " ".join(loaded.notes)
