"""Leaving tokens out while a network runs: with removable hooks, and without changing weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunecli.checkpoint.manifest import TokenSelection
from prunecli.errors import MethodError
from prunecli.tokens.attention import gather_bias, gather_rope, gather_tokens, projected
from prunecli.tokens.blocks import attention_half, attention_input, mlp_half
from prunecli.tokens.hugging_face import is_masked
from prunecli.tokens.merging import merge_pairs
from prunecli.tokens.selectors import AttentionInputs, Choice, choose
from prunecli.tokens.towers import Tower, attention_of, find_tower

_APPLIED = "_prunecli_tokens"
STEP = "_prunecli_step"
FUSED = -1
"""Patch index of a token that others were fused into."""
_UNBATCHED = 3
_CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing")
_INTERMEDIATES = ("forward_intermediates", "get_intermediate_layers")


@dataclass(eq=False)
class Pass:
    """The choices of one forward pass so far; empty between passes.

    Attributes:
        patches: Indices, among all patches, of the patch tokens that are left, shape (N, K); None if all are.
        sizes: Number of patches that each token stands for, shape (N, L), if tokens are merged.
    """

    patches: Tensor | None = None
    sizes: Tensor | None = None


@dataclass(eq=False)
class ClearPass:
    """A hook that clears the choices of a pass."""

    current: Pass

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.current.patches = self.current.sizes = None


@dataclass(eq=False)
class Step:
    """What happens at one block; copied together with the network."""

    tower: Tower
    current: Pass
    choice: Choice | None = None
    inside: bool = False
    merged: int = 0
    first: bool = False

    def __call__(self, block: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Runs before the block and changes its inputs."""
        if self.first:
            self.current.patches = self.current.sizes = None
        x: Tensor = args[0]
        if is_masked(block, args, options):
            raise MethodError("its attention is masked, and this mask knows every token; run it without one")
        if self.choice is not None and not self.inside:
            x = self.select(block, x, x, self._for_kept(options))
        return (x, *args[1:]), self._for_kept(options)

    def forward(self, block: nn.Module, x: Tensor, options: dict[str, Any]) -> Tensor:
        """Runs the block itself, with fewer tokens after its attention."""
        if self.merged:
            return self._merging(block, x, options)
        attended = attention_half(block, x, options)
        return mlp_half(block, self.select(block, x, attended, options))

    def select(self, block: nn.Module, x: Tensor, result: Tensor, options: dict[str, Any]) -> Tensor:
        """The tokens of `result` that stay, chosen by the block's attention on x."""
        assert self.choice is not None
        prefix = self.tower.prefix
        attention = attention_of(block)
        inputs = AttentionInputs(
            attention,
            x,
            x if self.choice.selector == "random" else attention_input(block, x),
            prefix,
            self.tower.by_class_token,
            options.get("rope"),
            self.bias_of(attention, options),
        )
        chosen, importance = choose(self.choice, inputs)
        before = self.current.patches
        self.current.patches = chosen if before is None else before.gather(1, chosen)
        kept = torch.cat([result[:, :prefix], gather_tokens(result[:, prefix:], chosen)], dim=1)
        if importance is None or self.choice.selector != "evit":
            return kept
        # A fused token stands for no single patch.
        self.current.patches = F.pad(self.current.patches, (0, 1), value=FUSED)
        weight = importance.scatter(1, chosen, 0.0)
        weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(1e-12)
        return torch.cat([kept, weight.unsqueeze(1) @ result[:, prefix:]], dim=1)

    def _merging(self, block: nn.Module, x: Tensor, options: dict[str, Any]) -> Tensor:
        sizes = self.current.sizes
        if sizes is None:
            sizes = x.new_ones(x.shape[:2])
            attended = attention_half(block, x, options)
        else:
            attended = attention_half(block, x, options, sizes.log()[:, None, None, :])
        attention = attention_of(block)
        metric = projected(attention, attention_input(block, x), "k").mean(dim=1)
        attended, self.current.sizes = merge_pairs(attended, sizes, metric, self.merged, self.tower.prefix)
        return mlp_half(block, attended)

    def _for_kept(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options of a block, with rotary embeddings and biases of the tokens that are left."""
        patches = self.current.patches
        if patches is None:
            return options
        changed = dict(options)
        if options.get("rope") is not None:
            changed["rope"] = gather_rope(options["rope"], patches)
        if options.get("shared_rel_pos_bias") is not None:
            shared = _as_batch(options["shared_rel_pos_bias"])
            changed["shared_rel_pos_bias"] = gather_bias(shared, self.token_indices(patches))
        return changed

    def token_indices(self, patches: Tensor) -> Tensor:
        """Indices among all tokens of the prefix tokens and of patches (N, K): (N, prefix + K)."""
        prefix = torch.arange(self.tower.prefix, device=patches.device).expand(patches.shape[0], -1)
        return torch.cat([prefix, patches + self.tower.prefix], dim=1)

    def bias_of(self, attention: Any, options: dict[str, Any]) -> Tensor | None:
        """Relative position bias of the tokens that are left, shape (N or 1, heads, L, L)."""
        if not self.tower.relative_bias:
            return None
        own = attention._get_rel_pos_bias() if attention.relative_position_bias_table is not None else None
        shared: Tensor | None = _as_batch(options.get("shared_rel_pos_bias"))
        return shared if own is None else own if shared is None else own + shared


@dataclass(eq=False)
class TokenPruning:
    """Token pruning of a network; `remove` undoes it.

    Attributes:
        owner: The module that owns the blocks.
        selection: Which tokens stay at which block.
        tower: Where the blocks are.
    """

    owner: nn.Module
    selection: TokenSelection
    tower: Tower
    _handles: list[RemovableHandle] = field(default_factory=list)
    _replaced: list[tuple[nn.Module, str]] = field(default_factory=list)

    def remove(self) -> None:
        """Restores the network."""
        for handle in self._handles:
            handle.remove()
        for module, name in self._replaced:
            module.__dict__.pop(name, None)
        self.owner.__dict__.pop(_APPLIED, None)
        self._handles, self._replaced = [], []

    def replace(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        """Replaces a method of one module, until `remove`."""
        module.__dict__[name] = partial(function, module)  # unlike a bound method, it can be pickled
        self._replaced.append((module, name))


@contextmanager
def tokens_pruned(model: nn.Module, selection: TokenSelection) -> Iterator[TokenPruning]:
    """Runs `model` with fewer tokens inside; see `prune_tokens`."""
    pruning = prune_tokens(model, selection)
    try:
        yield pruning
    finally:
        pruning.remove()


def applied_selection(model: nn.Module) -> TokenSelection | None:
    """The selection that a network or its tower runs with; None if all tokens stay."""
    pruning = _applied(model)
    return None if pruning is None else pruning.selection


def remove_tokens(model: nn.Module) -> bool:
    """Undoes token pruning of a network, whether it was applied, copied or loaded with it.

    Returns:
        Whether there was any.
    """
    pruning = _applied(model)
    if pruning is not None:
        pruning.remove()
    return pruning is not None


def _applied(model: nn.Module) -> TokenPruning | None:
    return next((module.__dict__[_APPLIED] for module in model.modules() if _APPLIED in module.__dict__), None)


def prune_tokens(model: nn.Module, selection: TokenSelection) -> TokenPruning:
    """Makes `model`, and copies of it, leave tokens out from now on, chosen image by image.

    The network holds the choices of a forward pass until its end, so two threads must not run it at the same time.

    Args:
        model: A network with a vision transformer of timm or open_clip, or that tower itself.
        selection: Which tokens stay at which block.

    Raises:
        MethodError: The tower or the selection does not allow it, tokens are pruned already, or gradient checkpointing
            is on.
    """
    if applied_selection(model) is not None:
        raise MethodError(
            "its tokens are pruned already; start from the original network, or call remove_tokens(model)"
        )
    tower = find_tower(model)
    check_selection(tower, selection)
    owner = model.get_submodule(tower.name)
    if any(getattr(module, name, False) for module in owner.modules() for name in _CHECKPOINTING):
        # Blocks that run again in the backward pass would not know the choices of the forward pass.
        raise MethodError(
            "its blocks are run again in the backward pass; call set_grad_checkpointing(False), or "
            "gradient_checkpointing_disable() of transformers, first"
        )
    pruning = TokenPruning(owner, selection, tower)
    current = Pass()
    for step, block in _steps(model, tower, selection, current):
        pruning._handles.append(block.register_forward_pre_hook(step, with_kwargs=True))
        if step.inside or step.merged:
            block.__dict__[STEP] = step
            pruning._replaced.append((block, STEP))
            pruning.replace(block, "forward", _split_forward)
        attention: Any = attention_of(block)
        if tower.relative_bias and attention.relative_position_bias_table is not None:
            attention.__dict__[STEP] = step
            pruning._replaced.append((attention, STEP))
            pruning.replace(attention, "_get_rel_pos_bias", _bias_of_kept)
    last = model.get_submodule(tower.blocks[-1])
    pruning._handles.append(last.register_forward_hook(ClearPass(current), always_call=True))
    for name in _INTERMEDIATES:
        if hasattr(owner, name):
            pruning.replace(owner, name, _no_intermediates)
    owner.__dict__[_APPLIED] = pruning
    return pruning


def _steps(
    model: nn.Module, tower: Tower, selection: TokenSelection, current: Pass
) -> Iterator[tuple[Step, nn.Module]]:
    """What happens at each block from the first stage on."""
    stages = {stage.block: stage for stage in selection.stages}
    first = min(stages)
    for index in range(first, len(tower.blocks)):
        block = model.get_submodule(tower.blocks[index])
        step = Step(tower, current, first=index == first)
        if selection.selector == "tome":
            step.merged = selection.merged
        elif index in stages:
            stage = stages[index]
            step.inside = selection.inside
            step.choice = Choice(
                selection.selector, stage.kept, stage.anchors, selection.alpha, selection.to_anchors, selection.seed
            )
        elif not (tower.rope or tower.relative_bias):
            continue
        yield step, block


def _split_forward(self: nn.Module, x: Tensor, *args: Any, **options: Any) -> Tensor:
    step: Step = self.__dict__[STEP]
    return step.forward(self, x, options)


def _bias_of_kept(self: Any) -> Tensor:
    step: Step = self.__dict__[STEP]
    bias: Tensor = type(self)._get_rel_pos_bias(self)
    patches = step.current.patches
    return bias if patches is None else gather_bias(bias, step.token_indices(patches))


def _as_batch(bias: Any) -> Any:
    """A bias (heads, L, L) as (1, heads, L, L)."""
    return bias.unsqueeze(0) if isinstance(bias, Tensor) and bias.dim() == _UNBATCHED else bias


def _no_intermediates(self: nn.Module, *args: Any, **options: Any) -> Any:
    raise MethodError(
        "intermediate feature maps need every token, and this network leaves some out; call "
        "prunecli.tokens.runtime.remove_tokens(model) first"
    )


def check_selection(tower: Tower, selection: TokenSelection) -> None:
    """Checks that a selection fits a tower.

    Raises:
        MethodError: It does not.
    """
    blocks = [stage.block for stage in selection.stages]
    if blocks != sorted(set(blocks)):
        raise MethodError(f"stages at blocks {blocks}: give each once, in ascending order")
    if blocks[-1] >= len(tower.blocks):
        raise MethodError(f"block {blocks[-1]}: give one of 0 to {len(tower.blocks) - 1}")
    left = selection.tokens - tower.prefix
    for stage in selection.stages if selection.selector != "tome" else ():
        if stage.kept >= left:
            raise MethodError(
                f"{stage.kept + tower.prefix} tokens are to stay at block {stage.block} and there are "
                f"{left + tower.prefix}, so nothing would be pruned; keep fewer"
            )
        if stage.anchors > stage.kept:
            raise MethodError(f"{stage.anchors} anchors of {stage.kept} tokens that stay; give fewer anchors")
        left = stage.kept + (selection.selector == "evit")
    if selection.selector in ("evit", "tome") and (tower.rope or tower.relative_bias):
        kind = "rotary embeddings" if tower.rope else "relative position biases"
        raise MethodError(f"{selection.selector} makes tokens that have no position, and this network has {kind}")
    if selection.selector == "tome" and not 1 <= selection.merged <= left // 2:
        raise MethodError(f"{selection.merged} pairs merged in each block: give 1 to {left // 2}")
