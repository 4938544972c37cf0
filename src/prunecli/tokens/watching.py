"""Looking at a vision transformer while it runs: which tokens stay, and what they pay attention to."""

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
from prunecli.tokens.runtime import STEP, Forget, Pass, Step, applied_selection, tokens_pruned
from prunecli.tokens.selectors import Seen
from prunecli.tokens.towers import Tower, find_tower


def kept_places(model: nn.Module, selection: TokenSelection, images: Tensor) -> Tensor | None:
    """Which patches are left after the last stage.

    Args:
        model: A network that runs with `selection`, or one without token pruning, which is put on meanwhile.
        selection: Which tokens stay where.
        images: Shape (N, C, H, W).

    Returns:
        Places among all patches, shape (N, K), `runtime.NOWHERE` for what others were fused into; None where tokens are
        merged, as all of them go on in some token.

    Raises:
        MethodError: The network runs with another selection, or it has no tokens to leave out.
    """
    if selection.selector == "tome":
        return None
    running = applied_selection(model) == selection
    with nullcontext() if running else tokens_pruned(model, selection), torch.no_grad():
        last = model.get_submodule(find_tower(model).blocks[-1])
        reading = _Places(next(hook.current for hook in last._forward_hooks.values() if isinstance(hook, Forget)))
        handle = last.register_forward_hook(reading, prepend=True)  # what the pass has chosen is forgotten after that
        try:
            call(model, images)
        finally:
            handle.remove()
    return reading.found


def attention_maps(model: nn.Module, images: Tensor, blocks: Sequence[int]) -> dict[str, Tensor]:
    """What the tokens in some blocks pay attention to, as the network runs: with token pruning if it is on.

    Args:
        model: A network with a vision transformer.
        images: Shape (N, C, H, W).
        blocks: Which blocks, counted from 0; the weights of others are never made.

    Returns:
        For each block, as in "block_03", the attention weights (N, heads, L, L) that each of its L tokens (rows) gives
        to each.

    Raises:
        MethodError: There is no such block, or its attention is of a kind that is not known.
    """
    tower = find_tower(model)
    check_blocks(tower, blocks)
    found: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        for place in blocks:
            block = model.get_submodule(tower.blocks[place])
            hook = _Attention(tower, found, f"block_{place:02d}")  # behind those that leave tokens out
            hooks.callback(block.register_forward_pre_hook(hook, with_kwargs=True).remove)
        call(model, images)
    return found


def check_blocks(tower: Tower, blocks: Sequence[int]) -> None:
    """Whether a tower has such blocks.

    Raises:
        MethodError: It has not.
    """
    for place in blocks:
        if not 0 <= place < len(tower.blocks):
            raise MethodError(
                f"attention of block {place} is asked for and the network has blocks 0 to {len(tower.blocks) - 1}; "
                "give one of these"
            )


@dataclass(eq=False)
class _Places:
    """A hook of the last block that keeps what a pass has chosen."""

    current: Pass
    found: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.found = self.current.places


@dataclass(eq=False)
class _Attention:
    """A hook before a block that makes its attention weights from what the block is given."""

    tower: Tower
    found: dict[str, Tensor]
    name: str
    _step: Step = field(init=False)

    def __post_init__(self) -> None:
        self._step = Step(self.tower, Pass())

    def __call__(self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        x, attention = args[0], block.attn
        assert isinstance(attention, nn.Module)
        bias = self._step.bias_of(attention, options)
        step: Step | None = block.__dict__.get(STEP)
        if step is not None and step.current.sizes is not None:  # of merged tokens, and those have no places
            bias = step.current.sizes.log()[:, None, None, :]
        seen = Seen(
            attention,
            x,
            attention_input(block, x),
            self.tower.prefix,
            self.tower.by_class_token,
            options.get("rope"),
            bias,
        )
        self.found[self.name] = attention_by_head(seen.queries(), seen.keys(), seen.bias)
