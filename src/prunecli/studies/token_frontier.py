"""Accuracy against MACs for every selector, block and budget, from one pass over the images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunecli.checkpoint.durable import write_atomically
from prunecli.checkpoint.manifest import TokenSelection
from prunecli.errors import DataError, MethodError
from prunecli.measure.counts import count_macs
from prunecli.methods.params import TokenParams, TokenSelector
from prunecli.methods.token import TokenMethod, plan_selection, unread_by
from prunecli.pipeline.stages.runtime import compare_changes
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.plots import frontier_plot
from prunecli.report.variant_tables import Variant
from prunecli.tokens.towers import find_tower, token_count

_UNPRUNED = "unpruned"


@dataclass(frozen=True)
class Point:
    """One token selection with its figures.

    Attributes:
        selector: How tokens are chosen; "unpruned" for the original network.
        block: The first block with fewer tokens.
        keep: Requested share of the tokens.
        macs_ratio: MACs of one image relative to the unpruned network.
        variant: The figures.
    """

    selector: str
    block: int
    keep: float
    macs_ratio: float
    variant: Variant

    @property
    def score_name(self) -> str:
        """Name of `score` in a report."""
        recall = getattr(self.variant.metrics, "image_recall_1", None)
        return "top1" if recall is None else "image_recall_1"

    @property
    def score(self) -> float | None:
        """Accuracy, in percent; None for images without classes."""
        score: float | None = getattr(self.variant.metrics, self.score_name, None)
        return score


def token_frontier(
    space: Workspace,
    stage: PruneStage,
    selectors: Sequence[TokenSelector],
    blocks: Sequence[int],
    keeps: Sequence[float],
) -> list[Point]:
    """Measures all combinations, the unpruned network first.

    Raises:
        DataError: There is no data set.
        MethodError: The network has no tokens, or no combination is possible.
    """
    if space.data_name() is None:
        raise DataError("--frontier needs images: name a data set with --data")
    model = space.model().model.cpu().eval()
    tower, example = find_tower(model), space.inputs.example()
    with space.inputs.running():
        tokens = token_count(model, tower, example)
    params = TokenParams(**stage.params)
    selections: dict[tuple[str, int, float], TokenSelection | None] = {(_UNPRUNED, 0, 1.0): None}
    refused: dict[str, str] = {}
    for selector in selectors:
        for block in blocks:
            for keep in keeps:
                rest = {name: getattr(TokenParams(), name) for name in unread_by(selector)}
                candidate = dataclasses.replace(params, selector=selector, block=block, keep_share=keep, **rest)
                try:
                    selections[selector, block, keep] = plan_selection(candidate, tower, tokens, space.recipe.seed)
                except MethodError as error:
                    refused[f"{selector}, block {block}, {keep:g}"] = str(error)
    for name, reason in refused.items():
        space.sink.note(f"left out: {name}: {reason}")
    if len(selections) == 1:
        raise MethodError(f"nothing to draw: {next(iter(refused.values()), 'no selector is named')}")
    changes = {f"{selector} {block} {keep}": selection for (selector, block, keep), selection in selections.items()}
    method, macs = TokenMethod(), {}
    for name, selection in changes.items():
        with method.applied(model, selection):
            macs[name] = count_macs(model, example)
    variants = compare_changes(space, method, changes, macs)
    dense = max(variants[0].macs, 1)
    return [
        Point(selector, block, keep, variant.macs / dense, variant)
        for (selector, block, keep), variant in zip(selections, variants, strict=True)
    ]


def write_frontier(points: Sequence[Point], title: str, path: Path, *, replace: bool) -> None:
    """Draws accuracy (without classes: agreement, or cosine of features) against MACs by selector and block."""
    heights, label = _heights(points)
    curves: dict[str, list[tuple[float, float]]] = {}
    for point, height in zip(points, heights, strict=True):
        blocks = len({other.block for other in points if other.selector == point.selector})
        name = f"{point.selector}, block {point.block}" if blocks > 1 else point.selector
        curves.setdefault(name, []).append((100 * point.macs_ratio, height))
    picture = frontier_plot(curves, _UNPRUNED, label, title, path.suffix[1:])
    write_atomically(path, lambda target: target.write_bytes(picture), replace=replace)


def _heights(points: Sequence[Point]) -> tuple[list[float], str]:
    """The figure that is drawn for each point, and its label: the first that all points have."""
    labels = {"top1": "top-1 (%)", "image_recall_1": "image R@1 (%)"}
    figures = [(point.score, point.variant.agreement, point.variant.cosine) for point in points]
    for index, label in enumerate((labels[points[0].score_name], "agreement (%)", "cosine of features")):
        column = [values[index] for values in figures]
        heights = [value for value in column if value is not None]
        if len(heights) == len(points):
            return heights, label
    raise AssertionError("images have a cosine at least")
