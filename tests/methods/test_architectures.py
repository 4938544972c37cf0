"""Real architectures, whole: traced, half pruned, verified, saved, restored bit by bit, trained one step."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

from prunecli.models.catalog import build
from prunecli.studies.coverage import Coverage, cover
from prunecli.surgery.groups import ChannelGroup
from prunecli.surgery.proof.comparing import TOLERANCE
from prunecli.surgery.proof.verify import verify
from prunecli.surgery.removal.slice import remove
from prunecli.surgery.tracing.dependency_graph import dependency_groups
from prunecli.surgery.tracing.running import plain_kernels
from prunecli.surgery.tracing.trace import trace
from prunecli.surgery.tracing.traced import Trace
from prunecli.surgery.tracing.trial import half_of

QUICK = "test_resnet test_byobnet test_efficientnet_gn test_nfnet test_vit3 edgenext_xx_small".split()
REQUIRED = (
    "levit_128s pvt_v2_b0 convit_tiny ghostnet_050 "
    "test_convnext3 test_efficientnet test_mambaout test_vit test_vit4 mobilevit_xxs xcit_nano_12_p16_224 "
    "mixer_s32_224 fastvit_t8 poolformer_s12 efficientformer_l1 mobilenetv3_small_050 mixnet_s "
    "resnet50 resnext50_32x4d seresnet50 densenet121 vgg16_bn mobilenetv3_large_100 efficientnet_b0 regnety_008 "
    "convnext_tiny convnextv2_tiny inception_v4 hrnet_w18_small ghostnet_100 res2net50_26w_4s cspresnet50 nfnet_l0 "
    "repvgg_a2 vit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224 beit_base_patch16_224 "
    "eva02_tiny_patch14_224 cait_xxs24_224 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 pvt_v2_b1 mvitv2_tiny "
    "mobilevit_xs coatnet_0_rw_224 maxvit_tiny_tf_224 edgenext_small"
).split()
OTHERS = ["torchvision:resnet50", "torchvision:vit_b_32", "torchvision:swin_t", "torchvision:deeplabv3_resnet50"]
SEGFORMERS = ["segformer:b0", "segformer:b2"]


def _is_right(entry: Coverage) -> None:
    assert entry.status == "right", entry.reason
    assert entry.error <= TOLERANCE
    assert abs(entry.kept - entry.implied) <= 0.03
    assert entry.kept < 0.75


@pytest.mark.parametrize("name", QUICK)
def test_timm(name: str) -> None:
    _is_right(next(cover([f"timm:{name}"])))


@pytest.mark.slow
@pytest.mark.parametrize("ref", [*(f"timm:{name}" for name in REQUIRED), *OTHERS, *SEGFORMERS])
def test_large(ref: str) -> None:
    _is_right(next(cover([ref])))


def _half(model: nn.Module, inputs: torch.Tensor, *, heads: bool = False) -> tuple[nn.Module, Trace]:
    traced = trace(model, inputs, heads=heads)
    keep = half_of(traced.groups)
    pruned = copy.deepcopy(model)
    remove(pruned, traced.groups, keep)
    assert verify(model, pruned, traced, keep, inputs) <= TOLERANCE
    return pruned, traced


@pytest.mark.parametrize("batch", [1, 2])  # with two a linear layer becomes a product and an addition
def test_multihead_attention_shrinks_with_the_stream_it_reads(batch: int) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10).eval()
    pruned, traced = _half(model, torch.randn(batch, 3, 32, 32))
    attention = pruned.encoder.layers[0].self_attention
    assert attention.embed_dim < 32 and attention.embed_dim == attention.num_heads * attention.head_dim
    assert pruned.hidden_dim == attention.embed_dim and {g.kind for g in traced.groups} == {"channel", "head_dim"}


def test_whole_heads_are_a_choice_of_their_own() -> None:
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    example = torch.randn(1, 3, 160, 160)
    attention = model.blocks[0].attn
    by_dim, _ = _half(model, example)
    assert by_dim.blocks[0].attn.num_heads == attention.num_heads
    assert by_dim.blocks[0].attn.head_dim < attention.head_dim
    by_head, traced = _half(model, example, heads=True)
    assert by_head.blocks[0].attn.num_heads < attention.num_heads
    assert by_head.blocks[0].attn.head_dim == attention.head_dim
    assert any(group.kind == "head" for group in traced.groups)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_keeps_its_temperature(fused: bool) -> None:
    """Removed dimensions whose queries are zero change no score, so nothing may change: unless the scale did."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval().double()
    attention = model.blocks[0].attn
    old = attention.head_dim
    rows = attention.qkv.weight.data.view(3, attention.num_heads, old, -1)
    rows[0, :, 1::2] = 0
    rows[2, :, 1::2] = 0
    attention.qkv.bias.data.view(3, attention.num_heads, old)[:, :, 1::2] = 0
    for block in model.blocks:
        block.attn.fused_attn = fused
    example = torch.randn(1, 3, 160, 160).double()
    traced = trace(model, example)
    group = traced.group("blocks.0.attn.qkv")
    pruned = copy.deepcopy(model)
    remove(pruned, [group], {group.name: torch.arange(0, old, 2)})
    assert math.isclose(pruned.blocks[0].attn.scale, (old // 2) ** -0.5)
    with torch.no_grad():
        assert torch.allclose(pruned(example), model(example), rtol=1e-9, atol=1e-12)


def test_a_clip_tower() -> None:
    import open_clip
    from open_clip.transformer import VisionTransformer as Tower

    assert open_clip.__version__
    torch.manual_seed(0)
    tower = Tower(32, 8, width=32, layers=2, heads=4, mlp_ratio=2.0, output_dim=16).eval()
    pruned, _ = _half(tower, torch.randn(1, 3, 32, 32))
    assert pruned.proj.shape[0] < 32 and pruned.proj.shape[1] == 16
    assert pruned.class_embedding.shape == pruned.proj.shape[:1]


def test_segformer() -> None:
    """On a small image; `test_large` has the usual one."""
    model = build("segformer:b0").eval()
    pruned, _ = _half(model, torch.randn(1, 3, 64, 64))
    assert sum(p.numel() for p in pruned.parameters()) < 0.3 * sum(p.numel() for p in model.parameters())


def test_feature_info_and_widths_of_the_model_follow() -> None:
    import timm

    model = timm.create_model("test_vit").eval()
    pruned, _ = _half(model, torch.randn(1, 3, 160, 160))
    width = pruned.patch_embed.proj.out_channels
    assert pruned.num_features == pruned.embed_dim == pruned.head_hidden_size == width
    assert all(entry["num_chs"] == width for entry in pruned.feature_info)
    with torch.no_grad():
        assert pruned.forward_features(torch.randn(1, 3, 160, 160)).shape[-1] == width


def _channels(groups: list[ChannelGroup]) -> set[frozenset[tuple[str, int, int]]]:
    """Each unit as the set of all (tensor, dimension, position) that go with it."""
    return {
        frozenset((m.name, m.dim, int(position)) for m in group.members for position in m.index[unit])
        for group in groups
        for unit in range(group.units)
    }


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_efficientnet",
        "mobilenetv3_small_050",
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_the_second_tracer_agrees(name: str) -> None:
    """torch-pruning finds the same channels, member by member, where it is right."""
    import timm

    model = timm.create_model(name, num_classes=10).eval()
    example = torch.randn(1, 3, 96, 96)
    groups, refused = dependency_groups(model, example)
    assert not refused
    ours = _channels(list(trace(model, example, prune_stem=True).groups))
    assert ours and ours == _channels(groups)


def test_plain_kernels_puts_the_switch_back() -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    with plain_kernels():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() == before
