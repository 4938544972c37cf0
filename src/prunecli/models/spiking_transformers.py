"""Spiking transformers: Spikformer, QKFormer and the spike-driven transformer, on spikingjelly's blocks."""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import layer
from spikingjelly.activation_based.layer import attention
from spikingjelly.activation_based.model import qkformer, spike_driven_transformer, spikformer
from torch import Tensor, nn

from prunecli.errors import ModelError, unknown
from prunecli.measure.neurons import spiking_neurons
from prunecli.models.spiking_neurons import MultiStepOnly, NeuronConfig

SPIKFORMERS: dict[str, tuple[int, int, int, int]] = {
    "spikformer-1-32": (1, 32, 2, 4),
    "spikformer-2-64": (2, 64, 4, 4),
    "spikformer-2-128": (2, 128, 4, 4),
    "spikformer-2-384": (2, 384, 12, 4),
    "spikformer-4-256": (4, 256, 8, 4),
    "spikformer-4-384": (4, 384, 12, 4),
    "spikformer-8-384": (8, 384, 8, 16),
    "spikformer-6-512": (6, 512, 8, 16),
    "spikformer-8-512": (8, 512, 8, 16),
    "spikformer-8-768": (8, 768, 8, 16),
}
"""Blocks, width, heads and patch size; patches of 4 are for images of 32x32, of 16 for ImageNet's."""
QKFORMERS: dict[str, tuple[tuple[int, int, int], int, tuple[int, int, int]]] = {
    "qkformer-3-64": ((1, 1, 1), 64, (2, 2, 2)),
    "qkformer-4-384": ((1, 1, 2), 384, (6, 6, 6)),
    "qkformer-10-384": ((1, 2, 7), 384, (6, 6, 6)),
}
"""Blocks in each stage, width of the last one, heads in each."""
SPIKE_DRIVEN: dict[str, tuple[int, int, int, str]] = {
    "sdt-2-64": (2, 64, 4, "0011"),
    "sdt-2-512": (2, 512, 8, "0011"),
    "sdt-8-384": (8, 384, 8, "1111"),
}
"""Blocks, width, heads, and which of the stem's four stages halve the image."""
_STAGES = 4
_ATTENTION = "attn_lif"


class PoolAfter(spikformer.SpikformerConv2dBNLIF):  # type: ignore[misc]
    """A stage of the stem that pools spikes, not the neurons' input, as in the original Spikformer."""

    def __init__(self, in_channels: int, out_channels: int, spiking_neuron: Any) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, spiking_neuron=spiking_neuron)
        self.pool = layer.SeqToANNContainer(nn.MaxPool2d(3, stride=2, padding=1))

    def forward(self, x_seq: Tensor) -> Tensor:
        """(T, N, C, H, W) to (T, N, C', H / 2, W / 2)."""
        return self.pool(super().forward(x_seq))  # type: ignore[no-any-return]


class QKAttention(attention.QKAttention):  # type: ignore[misc]
    """Q-K token attention with a width of its own, independent of its input's."""

    def forward(self, x_seq: Tensor) -> Tensor:
        """(T, N, C, L) to the same shape."""
        steps, samples, _, tokens = x_seq.shape
        spikes = self.qk_lif(self.qk_conv_bn(x_seq)).reshape(steps, samples, 2, self.num_heads, -1, tokens)
        queries, keys = spikes.unbind(2)  # (T, N, heads, head_dim, L)
        kept = self.attn_lif(queries.sum(dim=3, keepdim=True)) * keys
        return self.proj_lif(self.proj_conv_bn(kept.flatten(2, 3)))  # type: ignore[no-any-return]


class SpikeDrivenSelfAttention(attention.SpikeDrivenSelfAttention):  # type: ignore[misc]
    """Spike-driven self-attention with a width of its own, independent of its input's.

    Keys times values are summed over tokens channel by channel, so heads make no difference.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(T, N, C, H, W) to the same shape."""
        spikes = self.shortcut_lif(x)
        queries, keys, values = (
            lif(norm(conv(spikes)))
            for conv, norm, lif in (
                (self.q_conv, self.q_bn, self.q_lif),
                (self.k_conv, self.k_bn, self.k_lif),
                (self.v_conv, self.v_bn, self.v_lif),
            )
        )
        mask = self.attn_lif((keys * values).sum(dim=(3, 4), keepdim=True))
        return self.proj_bn(self.proj_conv(queries * mask)) + x  # type: ignore[no-any-return]


class Spikformer(spikformer.Spikformer, MultiStepOnly):  # type: ignore[misc]
    """Spikformer (Zhou et al., 2023).

    Args:
        neurons: How neurons are made.
        depth: Number of blocks.
        dim: Width.
        num_heads: Number of attention heads.
        patch_size: 1, 2, 4, 8 or 16 pixels.
        mlp_ratio: Hidden units of a block's MLP, as a multiple of the width.
        pool: "after": pools spikes, as in the original; "before": pools the neurons' input, as in spikingjelly.
        num_classes: Number of classes.
        in_chans: Channels of an image.
        T: Number of steps.
        coding: See `SpikingNetwork`.
    """

    patch_embed: Any
    head: Any
    forward_features: Any
    _init_weights: Any

    def __init__(
        self,
        neurons: NeuronConfig,
        *,
        depth: int = 4,
        dim: int = 384,
        num_heads: int = 12,
        patch_size: int = 4,
        mlp_ratio: float = 4.0,
        pool: str = "before",
        num_classes: int = 10,
        in_chans: int = 3,
        T: int = 4,
        coding: str = "direct",
    ) -> None:
        _check_heads(dim, num_heads)
        pools = {1 << count: count for count in range(_STAGES + 1)}
        if patch_size not in pools:
            raise ModelError(f"patch_size {patch_size}: give 1, 2, 4, 8 or 16")
        if pool not in ("before", "after"):
            raise ModelError(unknown("pool", pool, ("before", "after")))
        if dim < 1 << _STAGES - 1:
            raise ModelError(f"dim {dim}: the stem's first stage has an eighth of it; give at least 8")
        make = neurons.factory()
        super().__init__(
            T=T,
            in_channels=in_chans,
            num_classes=num_classes,
            embed_dims=dim,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            depths=depth,
            spiking_neuron=make,
        )
        self.prepare(T, coding)
        stem = self.patch_embed
        stem.patch_size = patch_size
        channels = in_chans
        for stage in range(_STAGES):
            out = dim >> (_STAGES - 1 - stage)
            pooled = stage >= _STAGES - pools[patch_size]
            if pooled and pool == "after":
                stem.stages[stage] = PoolAfter(channels, out, make)
            else:
                stem.stages[stage] = spikformer.SpikformerConv2dBNLIF(
                    channels, out, 3, padding=1, pool=pooled, spiking_neuron=make
                )
            channels = out
        self._init_weights()
        _lower_thresholds(self)

    forward = MultiStepOnly.forward

    def simulate(self, steps: Tensor) -> Tensor:
        """See `SpikingNetwork`."""
        return self.head(self.forward_features(steps))  # type: ignore[no-any-return]


class QKFormer(qkformer.QKFormer, MultiStepOnly):  # type: ignore[misc]
    """QKFormer (Zhou et al., 2024): two stages of Q-K attention, then spiking self-attention."""

    stage1: Any
    stage2: Any
    head: Any

    def __init__(
        self,
        neurons: NeuronConfig,
        *,
        depths: tuple[int, int, int],
        heads: tuple[int, int, int],
        dim: int = 384,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        T: int = 4,
        coding: str = "direct",
    ) -> None:
        if dim % 4:
            raise ModelError(f"dim {dim}: QKFormer's stages have a quarter, a half and all of it; give a multiple of 4")
        for width, count in zip((dim // 4, dim // 2, dim), heads, strict=True):
            _check_heads(width, count)
        super().__init__(
            T=T,
            in_channels=in_chans,
            num_classes=num_classes,
            embed_dims=dim,
            num_heads=heads,
            depths=depths,
            mlp_ratio=mlp_ratio,
            spiking_neuron=neurons.factory(),
        )
        self.prepare(T, coding)
        self.num_classes = num_classes
        for stage, count, width in zip((self.stage1, self.stage2), heads, (dim // 4, dim // 2), strict=False):
            for block in stage:
                block.attn = QKAttention(width, count, "token", neurons.factory())
        _lower_thresholds(self)

    forward = MultiStepOnly.forward

    def simulate(self, steps: Tensor) -> Tensor:
        """See `SpikingNetwork`."""
        for stage in (1, 2, 3):
            steps = getattr(self, f"patch_embed{stage}")(steps)
            for block in getattr(self, f"stage{stage}"):
                steps = block(steps)
        return self.head(steps.flatten(3).mean(-1))  # type: ignore[no-any-return]


class SpikeDrivenTransformer(spike_driven_transformer.SpikeDrivenTransformer, MultiStepOnly):  # type: ignore[misc]
    """Spike-driven Transformer (Yao et al., 2023)."""

    patch_embed: Any
    blocks: Any
    head: Any
    head_lif: Any

    def __init__(
        self,
        neurons: NeuronConfig,
        *,
        pooling: str,
        depth: int = 8,
        dim: int = 384,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        T: int = 4,
        coding: str = "direct",
    ) -> None:
        _check_heads(dim, num_heads)
        super().__init__(
            T=T,
            in_channels=in_chans,
            num_classes=num_classes,
            embed_dims=dim,
            num_heads=num_heads,
            depths=depth,
            mlp_ratio=mlp_ratio,
            pooling_stat=pooling,
            spiking_neuron=neurons.factory(),
        )
        self.prepare(T, coding)
        self.num_classes = num_classes
        for block in self.blocks:
            block.attn = SpikeDrivenSelfAttention(dim, num_heads, neurons.factory())
        _lower_thresholds(self)

    forward = MultiStepOnly.forward

    def simulate(self, steps: Tensor) -> Tensor:
        """See `SpikingNetwork`."""
        steps = self.patch_embed(steps)
        for block in self.blocks:
            steps = block(steps)
        return self.head(self.head_lif(steps.flatten(3).mean(-1)))  # type: ignore[no-any-return]


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ModelError(f"{num_heads} heads do not divide a width of {dim}; give dim and num_heads that fit")


def _lower_thresholds(model: nn.Module) -> None:
    """Neurons after attention fire at half the threshold, as in the papers."""
    for name, module in spiking_neurons(model).items():
        if name.endswith(_ATTENTION):
            threshold: Any = module.v_threshold
            module.v_threshold = threshold / 2
