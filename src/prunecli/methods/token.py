"""From a budget to a selection of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from prunecli.checkpoint.manifest import Manifest, TokenSelection, TokenStage
from prunecli.errors import MethodError
from prunecli.inputs import Inputs, call
from prunecli.methods.params import TokenParams, TokenSelector
from prunecli.methods.runtime import Description, RuntimeMethod
from prunecli.report.token_tables import per_block_text
from prunecli.tokens.runtime import check_selection, prune_tokens
from prunecli.tokens.towers import Tower, find_tower, token_count

_DEFAULT_SHARE = 0.5
_WITH_ANCHORS = ("anchor", "diversity")


class TokenMethod(RuntimeMethod):
    """Leaves tokens of a vision transformer out; a change is a `TokenSelection`."""

    done = "its tokens are pruned"

    def plan(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        params: TokenParams,
        seed: int,
        speedup_of: Callable[[TokenSelection], float],
    ) -> TokenSelection:
        """See `plan_selection`."""
        tower = find_tower(model)
        return plan_selection(params, tower, token_count(model, tower, example_inputs), seed, speedup_of)

    def apply(self, model: nn.Module, change: TokenSelection) -> Callable[[], None]:
        """Puts hooks on the blocks."""
        return prune_tokens(model, change).remove

    def baseline(self, model: nn.Module, change: TokenSelection, seed: int) -> TokenSelection:
        """As many tokens, chosen at random."""
        return at_random(change, find_tower(model), seed)

    def describe(
        self, model: nn.Module, changes: Mapping[str, TokenSelection | None], example_inputs: Inputs
    ) -> Description:
        """The selection, and how many tokens each block passes on."""
        tower = find_tower(model)
        counts = []
        for name in ("unpruned", "pruned"):
            with self.applied(model, changes[name]):
                counts.append(_tokens_per_block(model, tower, example_inputs))
        selection = changes["pruned"]
        assert selection is not None
        unpruned, pruned = map(per_block_text, counts)
        return Description(
            {
                "selection": selection.model_dump(mode="json"),
                "tokens_per_block": [list(pair) for pair in zip(*counts, strict=True)],
            },
            [("tokens behind blocks", unpruned, pruned, pruned)],
        )

    def record(self, manifest: Manifest, method: str, change: TokenSelection) -> Manifest:
        """Token selections have an entry of their own."""
        return manifest.model_copy(update={"tokens": change})


def _tokens_per_block(model: nn.Module, tower: Tower, example_inputs: Inputs) -> list[int]:
    counts: list[int] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda module, args, out: counts.append(out.shape[1]))
        for name in tower.blocks
    ]
    try:
        with torch.no_grad():
            call(model, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def plan_selection(
    params: TokenParams,
    tower: Tower,
    tokens: int,
    seed: int = 0,
    speedup_of: Callable[[TokenSelection], float] | None = None,
) -> TokenSelection:
    """The selection that a budget asks for.

    Args:
        params: The budget and how tokens are chosen.
        tower: The vision transformer.
        tokens: All its tokens, those before the patches included.
        seed: Seed of random choices.
        speedup_of: Measures the speed-up of a selection; for `params.speedup`.

    Raises:
        MethodError: Two budgets are given, or one that leaves nothing out or asks for more than there is.
    """
    _check_budget(params)
    if params.selector == "tome":
        selection = _merging(params, tower, tokens, seed)
    elif params.speedup is not None:
        assert speedup_of is not None, "a speed-up has to be measured"
        return _fastest(params, tower, tokens, seed, speedup_of)
    elif params.stages:
        selection = _selection(params, tower, tokens, seed, _staged(params, tower, tokens))
    else:
        selection = _selection(params, tower, tokens, seed, [(params.block, _patches(params, tower, tokens))])
    check_selection(tower, selection)
    return selection


def unread_by(selector: TokenSelector) -> tuple[str, ...]:
    """Parameters that a selector does not use."""
    of_anchors = () if selector == "anchor" else ("alpha", "to_anchors")
    number = () if selector in _WITH_ANCHORS else ("k_anchors",)
    return (*of_anchors, *number, *(("inside",) if selector == "tome" else ()))


def at_random(selection: TokenSelection, tower: Tower, seed: int) -> TokenSelection:
    """As many tokens after the same blocks, chosen at random: the baseline to beat, which scores nothing."""
    if selection.selector == "tome":
        left, first = selection.tokens - tower.prefix, selection.stages[0].block
        counts = []
        for block in range(first, len(tower.blocks)):
            left -= min(selection.merged, left // 2)
            counts.append(TokenStage(block=block, kept=left))
        update = {"selector": "random", "stages": tuple(counts), "inside": True, "merged": 0, "seed": seed}
        return selection.model_copy(update=update)
    stages = tuple(stage.model_copy(update={"anchors": 0}) for stage in selection.stages)
    if selection.selector == "evit":  # the fused token is one more
        stages = tuple(stage.model_copy(update={"kept": stage.kept + 1}) for stage in stages)
    return selection.model_copy(update={"selector": "random", "stages": stages, "seed": seed})


def _check_budget(params: TokenParams) -> None:
    ways = {
        "--keep-share": params.keep_share,
        "--tokens": params.tokens,
        "--speedup": params.speedup,
        "--top-m": params.top_m,
        "--stages": params.stages or None,
        "--merge": params.merge,
    }
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise MethodError(f"{' and '.join(given)} are budgets that exclude each other; give one of them")
    if params.top_m is not None and params.k_anchors is None:
        raise MethodError("--top-m goes with --k-anchors: tokens that stay beside so many anchors; give both")
    _check_selector(params)
    if params.merge is not None and params.selector != "tome":
        raise MethodError(f"--merge is for --selector tome, not {params.selector}; give --keep-share or --tokens")
    if params.selector == "tome" and (params.speedup is not None or params.stages or params.top_m is not None):
        raise MethodError(
            f"--selector tome merges in every block: give --merge, --keep-share or --tokens, not {given[0]}"
        )


def _check_selector(params: TokenParams) -> None:
    """Refuses parameters that the selector does not use."""
    usual = TokenParams()
    for name in unread_by(params.selector):
        if getattr(params, name) != getattr(usual, name):
            flag = name.replace("_", "-")
            raise MethodError(f"--{flag}: --selector {params.selector} does not use it; leave it out")
    if params.stages and params.block != usual.block:
        raise MethodError("--block: --stages names its blocks; leave it out")


def _patches(params: TokenParams, tower: Tower, tokens: int) -> int:
    """Patch tokens that stay."""
    if params.top_m is not None:
        assert params.k_anchors is not None
        total = params.k_anchors + params.top_m + tower.prefix
    elif params.tokens is not None:
        total = params.tokens
    else:
        total = round((params.keep_share or _DEFAULT_SHARE) * tokens)
    return _possible(total, tower, tokens) - (params.selector == "evit")


def _possible(total: int, tower: Tower, tokens: int) -> int:
    """Patch tokens among `total` tokens.

    Raises:
        MethodError: All are to stay, or more, or none of the patches.
    """
    if total >= tokens:
        more = "as many as there are" if total == tokens else f"more than the {tokens} there are"
        raise MethodError(
            f"{total} tokens are to stay, {more}, so nothing would be pruned; ask for fewer than {tokens}, for "
            f"instance --tokens {max(tokens // 2, 2)}"
        )
    if total - tower.prefix < 2:
        raise MethodError(
            f"{total} tokens are to stay, {tower.prefix} of them not patches, which leaves {total - tower.prefix} of "
            f"the image; ask for at least {tower.prefix + 2}"
        )
    return total - tower.prefix


def _staged(params: TokenParams, tower: Tower, tokens: int) -> list[tuple[int, int]]:
    """Blocks and the patch tokens they keep; each share refers to the tokens that arrive there."""
    stages = []
    left = tokens - tower.prefix
    for text in (part for entry in params.stages for part in entry.replace(",", " ").split()):
        block, _, share = text.partition(":")
        try:
            index, keep = int(block), float(share)
        except ValueError:
            raise MethodError(f"--stages {text}: write it as BLOCK:SHARE, for instance 3:0.7") from None
        if not 0 < keep < 1:
            raise MethodError(f"--stages {text}: a share lies between 0 and 1")
        left = max(1, round(keep * left))
        stages.append((index, left))
        left += params.selector == "evit"
    return stages


def _selection(
    params: TokenParams, tower: Tower, tokens: int, seed: int, stages: list[tuple[int, int]]
) -> TokenSelection:
    def anchors(kept: int) -> int:
        if params.selector not in _WITH_ANCHORS:
            return 0
        return params.k_anchors if params.k_anchors is not None else max(1, kept // 2)

    return TokenSelection(
        selector=params.selector,
        tokens=tokens,
        stages=tuple(TokenStage(block=block, kept=kept, anchors=anchors(kept)) for block, kept in stages),
        inside=params.inside,
        alpha=params.alpha,
        to_anchors=params.to_anchors,
        seed=seed,
    )


def _merging(params: TokenParams, tower: Tower, tokens: int, seed: int) -> TokenSelection:
    merged = params.merge
    if merged is None:
        leaving = tokens - tower.prefix - _patches(params, tower, tokens)
        merged = max(1, round(leaving / max(1, len(tower.blocks) - params.block)))
        merged = min(merged, (tokens - tower.prefix) // 2)
    kept = max(1, tokens - tower.prefix - merged)
    stages = (TokenStage(block=params.block, kept=kept),)
    return TokenSelection(selector="tome", tokens=tokens, stages=stages, merged=merged, seed=seed)


def _fastest(
    params: TokenParams, tower: Tower, tokens: int, seed: int, speedup_of: Callable[[TokenSelection], float]
) -> TokenSelection:
    """The largest selection that reaches the requested speed-up, by bisection.

    Raises:
        MethodError: Even two patch tokens, or the anchors asked for, are slower than that.
    """
    assert params.speedup is not None
    low = max(2, params.k_anchors or 0)
    high = tokens - tower.prefix - 1  # low is fast enough, if anything is

    def of(kept: int) -> TokenSelection:
        return _selection(params, tower, tokens, seed, [(params.block, kept)])

    check_selection(tower, of(low))
    least = speedup_of(of(low))
    if least < params.speedup:
        raise MethodError(
            f"--speedup {params.speedup:g} cannot be reached: {low} patch tokens from block {params.block} on are "
            f"{least:.2f} times as fast; ask for less, or start at an earlier --block"
        )
    while high - low > max(1, tokens // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if speedup_of(of(middle)) >= params.speedup else (low, middle)
    return of(low)
