"""Observing a vision transformer while it runs: which tokens stay, and what they attend to."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import TokenSelection
from prunecli.errors import MethodError
from prunecli.inputs import call
from prunecli.tokens.attention import attention_by_head
from prunecli.tokens.blocks import attention_input
from prunecli.tokens.runtime import STEP, ClearPass, Pass, Step, applied_selection, tokens_pruned
from prunecli.tokens.selectors import AttentionInputs
from prunecli.tokens.towers import Tower, attention_of, find_tower


def kept_patches(model: nn.Module, selection: TokenSelection, images: Tensor) -> Tensor | None:
    """Which patches are left after the last stage.

    Args:
        model: A network that runs with `selection`, or one without token pruning, to which it is applied meanwhile.
        selection: Which tokens stay at which block.
        images: Shape (N, C, H, W).

    Returns:
        Indices among all patches, shape (N, K), `runtime.FUSED` for a token that others were fused into; None if tokens
        are merged, because every patch then lives on in some token.

    Raises:
        MethodError: The network runs with another selection, or it has no tokens to leave out.
    """
    if selection.selector == "tome":
        return None
    running = applied_selection(model) == selection
    with nullcontext() if running else tokens_pruned(model, selection), torch.no_grad():
        last = model.get_submodule(find_tower(model).blocks[-1])
        reading = _KeptPatches(
            next(hook.current for hook in last._forward_hooks.values() if isinstance(hook, ClearPass))
        )
        handle = last.register_forward_hook(reading, prepend=True)  # before the pass is cleared
        try:
            call(model, images)
        finally:
            handle.remove()
    return reading.patches


def attention_maps(model: nn.Module, images: Tensor, blocks: Sequence[int]) -> dict[str, Tensor]:
    """Attention weights in some blocks, as the network runs: with token pruning if that is applied.

    Args:
        model: A network with a vision transformer.
        images: Shape (N, C, H, W).
        blocks: Indices of the blocks, from 0; weights of others are not computed.

    Returns:
        By name of the block, such as "block_03", its attention weights (N, heads, L, L); rows are the tokens that pay
        attention.

    Raises:
        MethodError: There is no such block, or the class of its attention is unknown.
    """
    tower = find_tower(model)
    check_blocks(tower, blocks)
    maps: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for index in blocks:
            block = model.get_submodule(tower.blocks[index])
            hook = _Attention(tower, maps, f"block_{index:02d}")  # runs after those that leave tokens out
            hooks.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
        call(model, images)
    return maps


def check_blocks(tower: Tower, blocks: Sequence[int]) -> None:
    """Checks that a tower has such blocks.

    Raises:
        MethodError: It does not.
    """
    for index in blocks:
        if not 0 <= index < len(tower.blocks):
            raise MethodError(
                f"there is no attention of block {index}: the network has blocks 0 to {len(tower.blocks) - 1}"
            )


@dataclass(eq=False)
class _KeptPatches:
    """A hook of the last block that keeps the choices of a pass."""

    current: Pass
    patches: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.patches = self.current.patches


@dataclass(eq=False)
class _Attention:
    """A hook before a block that computes its attention weights from the block's inputs."""

    tower: Tower
    maps: dict[str, Tensor]
    name: str
    _step: Step = field(init=False)

    def __post_init__(self) -> None:
        self._step = Step(self.tower, Pass())

    def __call__(self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        x, attention = args[0], attention_of(block)
        bias = self._step.bias_of(attention, options)
        step: Step | None = block.__dict__.get(STEP)
        if step is not None and step.current.sizes is not None:  # merged tokens have no positions
            bias = step.current.sizes.log()[:, None, None, :]
        inputs = AttentionInputs(
            attention,
            x,
            attention_input(block, x),
            self.tower.prefix,
            self.tower.by_class_token,
            options.get("rope"),
            bias,
        )
        self.maps[self.name] = attention_by_head(inputs.queries(), inputs.keys(), inputs.bias)
