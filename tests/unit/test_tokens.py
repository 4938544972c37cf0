"""Leaving tokens out: right, per image, reversible."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional

import prunecli
from prunecli.checkpoint.manifest import TokenSelection, TokenStage
from prunecli.errors import MethodError
from prunecli.models.loading import load_reference, save
from prunecli.tokens import runtime
from prunecli.tokens.merging import merge_pairs
from prunecli.tokens.runtime import applied_selection, prune_tokens, remove_tokens, tokens_pruned
from prunecli.tokens.selectors import AttentionInputs, Choice, choose
from prunecli.tokens.towers import find_tower, token_count

SIDE = 32
TEXT = {"context_length": 8, "vocab_size": 100, "width": 16, "heads": 2, "layers": 1}


def clip(**vision: Any) -> nn.Module:
    torch.manual_seed(0)
    tower = {"image_size": SIDE, "layers": 3, "width": 32, "patch_size": 4, "head_width": 8, **vision}
    return CLIP(24, tower, TEXT).eval()  # type: ignore[arg-type, no-any-return]


def of_timm(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": SIDE, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 7}
    return timm.create_model(name, **{**sizes, **kwargs}).eval()


def of_transformers(kind: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "image_size": SIDE,
        "patch_size": 4,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    visions = {"CLIPVisionModelWithProjection": "CLIPVision", "SiglipVisionModel": "SiglipVision"}
    named = visions.get(kind, kind.partition("For")[0])
    config = getattr(transformers, f"{named}Config")(**{**sizes, **options})
    return getattr(transformers, kind)(config).eval()  # type: ignore[no-any-return]


MODELS: dict[str, Any] = {
    "clip": clip,
    "clip-avg": lambda: clip(pool_type="avg"),
    "clip-attentional": lambda: clip(attentional_pool=True, attn_pooler_queries=4, attn_pooler_heads=4),
    "clip-qk-norm": lambda: clip(block_type="custom", qk_norm=True, scale_attn=True, ls_init_value=0.5),
    "vit": lambda: of_timm("vit_tiny_patch16_224"),
    "vit-registers-avg": lambda: of_timm("vit_tiny_patch16_224", reg_tokens=2, global_pool="avg", init_values=0.5),
    "vit-no-class-token-map": lambda: of_timm("vit_tiny_patch16_224", class_token=False, global_pool="map"),
    "vit-qk-norm": lambda: of_timm("vit_tiny_patch16_224", qk_norm=True),
    "deit-distilled": lambda: of_timm("deit_tiny_distilled_patch16_224"),
    "beit": lambda: of_timm("beit_base_patch16_224", init_values=0.5),
    "beit-shared": lambda: of_timm("beit_base_patch16_224", use_shared_rel_pos_bias=True, use_rel_pos_bias=False),
    "eva": lambda: of_timm("eva02_tiny_patch14_224"),
    "eva-rope-and-positions": lambda: of_timm("vit_base_patch16_rope_ape_224"),
    "dinov3": lambda: of_timm("vit_small_patch16_dinov3"),
    "perception-encoder": lambda: of_timm("vit_pe_core_base_patch16_224"),
    "hf-vit": lambda: of_transformers("ViTForImageClassification", num_labels=7),
    "hf-vit-eager": lambda: of_transformers("ViTForImageClassification", attn_implementation="eager"),
    "hf-deit": lambda: of_transformers("DeiTForImageClassification", num_labels=7),
    "hf-dinov2": lambda: of_transformers("Dinov2ForImageClassification", num_labels=7),
    "hf-dinov2-registers": lambda: of_transformers("Dinov2WithRegistersForImageClassification", num_register_tokens=2),
    "hf-clip": lambda: of_transformers("CLIPVisionModelWithProjection", projection_dim=24),
    "hf-siglip": lambda: of_transformers("SiglipVisionModel"),
    "eva-fused": lambda: of_timm("eva_giant_patch14_224", mlp_ratio=2.0),
}
UNLIKE = ("clip", "vit-registers-avg", "beit", "eva", "hf-dinov2-registers")
"""The most different of them: every combination is tried on these, on the others one, and the rest takes longer."""
NO_MADE_UP_TOKENS = ("beit", "beit-shared", "eva", "eva-rope-and-positions", "dinov3", "perception-encoder")


def selection(model: nn.Module, kept: int, selector: str = "anchor", block: int = 1, **options: Any) -> TokenSelection:
    stage = TokenStage(block=block, kept=kept, anchors=options.pop("anchors", kept // 2))
    tokens = token_count(model, find_tower(model), like(model, images(1)))
    return TokenSelection(selector=selector, tokens=tokens, stages=(stage,), **options)  # type: ignore[arg-type]


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def like(model: nn.Module, x: Tensor) -> Tensor:
    return x.to(next(model.parameters()).dtype)


def features(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Any = model.encode_image(x) if hasattr(model, "encode_image") else model(x)  # type: ignore[operator]
    if isinstance(out, Tensor):
        return out
    named = ("logits", "image_embeds", "pooler_output")
    found: Tensor = next(value for name in named if (value := getattr(out, name, None)) is not None)
    return found


def perturbed(model: nn.Module) -> nn.Module:
    """Larger weights, and values where zeros stand at first, so that mistakes show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith(("transformer", "token_embedding", "text_projection")):
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def on_all(first: Any, *others: Any, names: Iterable[str] = MODELS) -> list[Any]:
    """Every network with every combination, most of them marked as slow for all but the most different networks."""
    rest = [pytest.param(n, *o, marks=() if n in UNLIKE else pytest.mark.slow) for n in names for o in others]
    return [*((name, *first) for name in names), *rest]


SELECTORS = ("anchor", "cls", "diversity", "random", "evit")


@pytest.mark.parametrize(
    ("name", "selector", "inside"), on_all(*((selector, inside) for selector in SELECTORS for inside in (False, True)))
)
def test_an_image_does_not_depend_on_its_batch_and_removal_is_exact(name: str, selector: str, inside: bool) -> None:
    model = perturbed(MODELS[name]())
    if selector == "evit" and name in NO_MADE_UP_TOKENS:
        with pytest.raises(MethodError, match="makes tokens that have no position"):
            prune_tokens(model, selection(model, 20, selector))
        return
    x = images()
    before, names = features(model, x), set(model.state_dict())
    with tokens_pruned(model, selection(model, 20, selector, inside=inside)):
        assert set(model.state_dict()) == names
        together = features(model, x)
        assert (together - before).abs().max() > 1e-3
        for order in ([3, 1, 0, 2], [2]):
            assert torch.allclose(features(model, x[order]), together[order], atol=1e-5)
        twin = copy.deepcopy(model)
        assert torch.equal(features(twin, x), together)
    assert torch.equal(features(model, x), before)
    assert applied_selection(model) is None and applied_selection(twin) is not None
    assert all("forward" not in module.__dict__ for module in model.modules())


@pytest.mark.parametrize(("name", "inside"), on_all((False,), (True,)))
def test_keeping_every_token_reproduces_the_network(name: str, inside: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may ask for it, and it shows that taking blocks apart and picking patches changes nothing by itself."""
    monkeypatch.setattr(runtime, "check_selection", lambda *args: None)
    model = perturbed(MODELS[name]())
    dense = features(model, images())
    every = token_count(model, find_tower(model), images(1)) - find_tower(model).prefix
    for selector in ("anchor", "cls", "diversity", "random"):
        with tokens_pruned(model, selection(model, every, selector, inside=inside)):
            assert (features(model, images()) - dense).abs().max() <= 2e-6 * dense.abs().max(), selector


@pytest.mark.parametrize(
    ("name", "inside"), on_all((True,), (False,), names=[name for name in MODELS if "eager" not in name])
)
def test_leaving_tokens_out_is_forbidding_to_attend_to_them(
    name: str, inside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places, rotary embeddings and biases stay those of the tokens that are left."""
    model = perturbed(MODELS[name]()).double()
    tower, x = find_tower(model), images(3).double()
    last = model.get_submodule(tower.blocks[-1])
    outputs: dict[str, Tensor] = {}
    hook = last.register_forward_hook(lambda m, a, out: outputs.__setitem__("tokens", out))
    stages = (TokenStage(block=1, kept=30, anchors=10), TokenStage(block=2, kept=20, anchors=5))
    chosen = selection(model, 30, inside=inside).model_copy(update={"stages": stages})
    kept: list[Tensor] = []
    take = runtime.choose

    def remember(*args: Any) -> tuple[Tensor, Tensor | None]:
        patches, importance = take(*args)
        kept.append(patches if not kept else kept[0].gather(1, patches))
        return patches, importance

    monkeypatch.setattr(runtime, "choose", remember)
    with tokens_pruned(model, chosen):
        features(model, x)
    pruned, calls, attend = outputs["tokens"], [0], functional.scaled_dot_product_attention

    def masked(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
        block, calls[0] = calls[0], calls[0] + 1
        if block < len(tower.blocks):
            allowed = torch.ones(len(x), k.shape[2], dtype=torch.bool)
            for stage, patches in zip(stages, kept, strict=True):
                if block >= stage.block + inside:
                    allowed[:, tower.prefix :] = torch.zeros_like(allowed[:, tower.prefix :]).scatter(1, patches, True)
            forbidden = torch.zeros(allowed.shape, dtype=q.dtype).masked_fill(~allowed, -torch.inf)[:, None, None]
            attn_mask = forbidden if attn_mask is None else attn_mask + forbidden
        return attend(q, k, v, attn_mask, *rest, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", masked)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        features(model, x)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
        hook.remove()
    assert calls[0] >= len(tower.blocks)
    everything = outputs["tokens"]
    before = everything[:, : tower.prefix]
    patches = everything[:, tower.prefix :].gather(1, kept[-1].unsqueeze(-1).expand(-1, -1, everything.shape[-1]))
    assert torch.allclose(pruned, torch.cat([before, patches], dim=1), rtol=1e-9, atol=1e-9)


def by_loop(attention: Any, x: Tensor, normed: Tensor, prefix: int, choice: Choice) -> list[int]:
    """The anchor rule for one image (L, C), number by number; attention is timm's plain one."""
    heads, length = attention.num_heads, len(x)
    qkv = (normed @ attention.qkv.weight.T + attention.qkv.bias).reshape(length, 3, heads, -1)

    def paid(query: int) -> list[float]:
        total = [0.0] * length
        for head in range(heads):
            logits = [float(qkv[query, 0, head] @ qkv[key, 1, head]) / qkv.shape[-1] ** 0.5 for key in range(length)]
            top = max(logits)
            powers = [math.exp(value - top) for value in logits]
            for key in range(length):
                total[key] += powers[key] / sum(powers) / heads
        return total

    from_class = paid(0)
    anchors = sorted(range(prefix, length), key=lambda i: -from_class[i])[: choice.anchors]
    rest = [i for i in range(prefix, length) if i not in anchors]
    rows = {i: paid(i) for i in range(length)}
    importance = {i: sum(rows[i][a] if choice.to_anchors else rows[a][i] for a in anchors) / len(anchors) for i in rest}
    distance = {i: 1 - max(float(functional.cosine_similarity(x[i], x[a], dim=0)) for a in anchors) for i in rest}

    def spread(values: dict[int, float]) -> dict[int, float]:
        low, high = min(values.values()), max(values.values())
        return {i: (value - low) / (high - low) for i, value in values.items()}

    by_attention, by_distance = spread(importance), spread(distance)
    alpha = choice.alpha if choice.selector == "anchor" else 0.0
    score = {i: alpha * by_attention[i] + (1 - alpha) * by_distance[i] for i in rest}
    best = sorted(rest, key=lambda i: -score[i])[: choice.kept - choice.anchors]
    return sorted(i - prefix for i in (*anchors, *best))


@pytest.mark.parametrize("to_anchors", [False, True])
@pytest.mark.parametrize(("selector", "alpha"), [("anchor", 0.0), ("anchor", 0.3), ("anchor", 1.0), ("diversity", 0.5)])
def test_anchors_against_a_plain_loop(selector: str, alpha: float, to_anchors: bool) -> None:
    model: Any = perturbed(of_timm("vit_tiny_patch16_224")).double()
    block, choice = model.blocks[0], Choice(selector, 14, anchors=5, alpha=alpha, to_anchors=to_anchors)
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(images(3).double())))
        normed = block.norm1(x)
        patches, _ = choose(choice, AttentionInputs(block.attn, x, normed, 1, by_class_token=True))
        for image in range(3):
            assert patches[image].tolist() == by_loop(block.attn, x[image], normed[image], 1, choice)


@pytest.mark.parametrize(
    "name", ["clip", "clip-qk-norm", "vit", "vit-no-class-token-map", "hf-dinov2", "hf-clip", "eva-fused"]
)
def test_merging_is_per_image_and_none_changes_nothing(name: str) -> None:
    model = perturbed(MODELS[name]())
    tower, x = find_tower(model), images()
    chosen = selection(model, 20, "tome", block=0, merged=9)
    with tokens_pruned(model, chosen):
        counts = []
        hooks = [
            model.get_submodule(block).register_forward_hook(lambda m, a, out: counts.append(out.shape[1]))
            for block in tower.blocks
        ]
        together = features(model, x)
        for hook in hooks:
            hook.remove()
        assert torch.allclose(features(model, x[[2]]), together[[2]], atol=1e-5)
    assert counts == [chosen.tokens - 9 * (block + 1) for block in range(3)]


def test_merged_tokens_are_weighted_means_of_the_most_alike() -> None:
    """Against the definition, pair by pair."""
    torch.manual_seed(0)
    x, metric, sizes = torch.randn(1, 9, 4), torch.randn(1, 9, 3), torch.rand(1, 9) + 1
    merged, new_sizes = merge_pairs(x, sizes, metric, 2, prefix=1)
    even, odd = [1, 3, 5, 7], [2, 4, 6, 8]
    alike = {(i, j): float(functional.cosine_similarity(metric[0, i], metric[0, j], dim=0)) for i in even for j in odd}
    best = {i: max(odd, key=lambda j: alike[i, j]) for i in even}
    going = sorted(even, key=lambda i: -alike[i, best[i]])[:2]
    expected = {j: (x[0, j] * sizes[0, j], sizes[0, j]) for j in odd}
    for i in going:
        total, weight = expected[best[i]]
        expected[best[i]] = (total + x[0, i] * sizes[0, i], weight + sizes[0, i])
    rows = [
        x[0, 0],
        *(x[0, i] for i in even if i not in going),
        *(total / weight for total, weight in expected.values()),
    ]
    assert torch.allclose(merged[0], torch.stack(rows), atol=1e-6)
    assert torch.allclose(new_sizes.sum(), sizes.sum())


def test_gradients_flow_and_a_copy_after_them_is_clean() -> None:
    for chosen in ("anchor", "evit", "tome"):
        model = perturbed(MODELS["vit"]())
        pruning = prune_tokens(model, selection(model, 20, chosen, merged=5 if chosen == "tome" else 0))
        model(images()).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        copy.deepcopy(model)
        pruning.remove()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kept": 64}, "nothing would be pruned"),
        ({"kept": 100}, "nothing would be pruned"),
        ({"kept": 10, "anchors": 11}, "11 anchors of 10"),
        ({"kept": 10, "block": 3}, "of 0 to 2"),
        ({"kept": 10, "selector": "tome", "merged": 40}, "give 1 to 32"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    model = MODELS["vit"]()
    with pytest.raises(MethodError, match=said):
        prune_tokens(model, selection(model, **options))
    assert applied_selection(model) is None


def test_other_networks_are_refused() -> None:
    for model, name in (
        (timm.create_model("resnet18"), "ResNet"),
        (timm.create_model("swin_tiny_patch4_window7_224"), "SwinTransformer"),
        (of_timm("vit_relpos_small_patch16_224"), "VisionTransformerRelPos"),
        (CLIP(24, {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8}, TEXT), "ModifiedResNet"),  # type: ignore[arg-type]
    ):
        with pytest.raises(MethodError, match=f"{name} is not a vision transformer"):
            find_tower(model)
    model = MODELS["vit"]()
    with (
        tokens_pruned(model, selection(model, 20)),
        pytest.raises(MethodError, match="intermediate feature maps need every token"),
    ):
        model.forward_intermediates(images())
    with tokens_pruned(model, selection(model, 20)), pytest.raises(MethodError, match="pruned already"):
        prune_tokens(model, selection(model, 20))


@pytest.mark.parametrize(
    "name",
    [
        "cait_xxs24_224",  # its class token joins behind these blocks
        "vit_dwee_patch16_reg1_gap_256",  # differential attention
        "vit_small_patch16_rope_mixed_224",  # each block has rotary embeddings of its own
        "vit_srelpos_small_patch16_224",  # a bias passed to the blocks
        "qwen3_vit_88m_enc",  # four neighbours become one behind the blocks
    ],
)
def test_attention_of_other_kinds_is_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, depth=2)
    with pytest.raises(
        MethodError, match="is not a vision transformer of timm, open_clip or transformers that can leave tokens out"
    ):
        find_tower(model)


def test_it_is_on_once_whichever_part_is_asked() -> None:
    """Putting it on a tower that its model has it on already would leave the one, or the other, half done."""
    model = MODELS["clip"]()
    tower: nn.Module = model.visual
    chosen = selection(model, 20, inside=True)
    dense = features(model, images())
    with tokens_pruned(model, chosen):
        assert applied_selection(tower) == chosen
        with pytest.raises(MethodError, match="pruned already"):
            prune_tokens(tower, chosen)
    with tokens_pruned(tower, chosen), pytest.raises(MethodError, match="pruned already"):
        prune_tokens(model, chosen)
    assert torch.equal(features(model, images()), dense) and not remove_tokens(model)


@pytest.mark.parametrize("name", ["clip", "beit", "eva"])
def test_it_comes_off_a_copy(name: str, tmp_path: Path) -> None:
    """Of a copy, and of a whole saved network, alone; the first one goes on without some of its tokens."""
    model = perturbed(MODELS[name]())
    dense = features(model, images())
    pruning = prune_tokens(model, selection(model, 20, inside=True))
    fewer = features(model, images())
    torch.save(model, tmp_path / "whole.pt")  # a whole network, and our own file, so it may run what is in it
    for twin in (copy.deepcopy(model), torch.load(tmp_path / "whole.pt", weights_only=False)):
        assert torch.equal(features(twin, images()), fewer)
        assert remove_tokens(twin) and not remove_tokens(twin) and applied_selection(twin) is None
        assert torch.equal(features(twin, images()), dense)
        twin.visual.forward_intermediates(images()) if name == "clip" else twin.forward_intermediates(images())
        assert torch.equal(features(model, images()), fewer)
    pruning.remove()
    assert torch.equal(features(model, images()), dense)


def test_gradient_checkpointing_is_refused() -> None:
    model = MODELS["vit"]()
    chosen = selection(model, 20)
    model.set_grad_checkpointing()
    with pytest.raises(MethodError, match=r"call set_grad_checkpointing\(False\)"):
        prune_tokens(model, chosen)
    assert applied_selection(model) is None


def test_fused_tokens_may_be_chosen_again() -> None:
    model = MODELS["vit"]()
    stages = (TokenStage(block=0, kept=30), TokenStage(block=1, kept=31), TokenStage(block=2, kept=10))
    with pytest.raises(MethodError, match="nothing would be pruned"):
        prune_tokens(model, selection(model, 30, "evit").model_copy(update={"stages": stages}))
    stages = (stages[0], TokenStage(block=1, kept=20), stages[2])
    with tokens_pruned(model, selection(model, 30, "evit").model_copy(update={"stages": stages})):
        assert features(model, images()).isfinite().all()


@pytest.mark.parametrize("selector", ["anchor", "cls", "random", "evit"])
def test_a_smaller_image_with_fewer_tokens_than_are_to_stay_is_one_line(selector: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, img_size=64).eval()
    chosen = TokenSelection(selector=selector, tokens=17, stages=(TokenStage(block=0, kept=10, anchors=4),))  # type: ignore[arg-type]
    with tokens_pruned(model, chosen):
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
        with pytest.raises(MethodError, match=r"10 patch tokens are to stay and there are 4: .* --image-size"):
            model(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("clip", False),
        ("eva", True),
        ("vit", True),
        *(
            pytest.param(name, inside, marks=pytest.mark.slow)
            for name, inside in (("clip", True), ("eva", False), ("vit", False), ("beit", False), ("beit", True))
        ),
    ],
)
def test_compiled_and_exported_networks_choose_the_same(name: str, inside: bool) -> None:
    model = perturbed(MODELS[name]())
    tower: nn.Module = model.visual if name == "clip" else model  # type: ignore[assignment]
    with tokens_pruned(model, selection(model, 20, inside=inside)), torch.no_grad():
        expected = tower(images())
        assert torch.allclose(torch.compile(tower, backend="eager")(images()), expected, atol=1e-5)
        batch = torch.export.Dim("batch", min=2, max=64)
        exported = torch.export.export(tower, (images(2),), dynamic_shapes=({0: batch},), strict=False).module()
        for count in (2, 4):
            assert torch.allclose(exported(images()[:count]), expected[:count], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "selector"), [("clip", "anchor"), ("vit", "tome"), pytest.param("eva", "anchor", marks=pytest.mark.slow)]
)
def test_onnx_runtime_gives_the_same_at_two_batch_sizes(name: str, selector: str, tmp_path: Path) -> None:
    runtimes = pytest.importorskip("onnxruntime", reason="pip install 'prunecli[export]'")
    pytest.importorskip("onnxscript", reason="pip install 'prunecli[export]'")
    model = perturbed(MODELS[name]())
    tower: nn.Module = model.visual if name == "clip" else model  # type: ignore[assignment]
    with (
        tokens_pruned(model, selection(model, 20, selector, **({"merged": 9} if selector == "tome" else {}))),
        torch.no_grad(),
    ):
        expected = tower(images())
        shapes = ({0: torch.export.Dim("batch", min=2, max=64)},)
        torch.onnx.export(
            tower, (images(2),), str(tmp_path / "net.onnx"), dynamo=True, dynamic_shapes=shapes, verbose=False
        )
    session = runtimes.InferenceSession(str(tmp_path / "net.onnx"))
    for count in (2, 4):
        (scores,) = session.run(None, {session.get_inputs()[0].name: images()[:count].numpy()})
        assert torch.allclose(torch.from_numpy(scores), expected[:count], atol=1e-4)


def test_a_checkpoint_leaves_tokens_out_from_python_too(tmp_path: Path) -> None:
    """`prunecli.load` gives the network as its manifest describes it, and it comes off."""
    loaded = load_reference("open_clip:tiny", dim=32, depth=3)
    dense = features(loaded.model, images())
    chosen = selection(loaded.model, 20)
    with tokens_pruned(loaded.model, chosen):
        fewer = features(loaded.model, images())
    save(tmp_path / "fewer.safetensors", loaded.model, loaded.manifest.model_copy(update={"tokens": chosen}))
    again = prunecli.load(tmp_path / "fewer.safetensors")
    assert applied_selection(again) == chosen
    assert torch.equal(features(again, images()), fewer)
    assert remove_tokens(again) and torch.equal(features(again, images()), dense)
