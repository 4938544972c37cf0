"""The score of the network before and after a prune stage, by the evaluation of eval stages."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from prunecli.data.epochs import generators_kept
from prunecli.data.splits import SPLIT_SEED, Split
from prunecli.data.token_batches import TextSplit
from prunecli.errors import DataError, ModelError, RecipeError
from prunecli.pipeline.answers import Answers, answers, drop_interval
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import PruneStage
from prunecli.report.score_change import ScoreChange
from prunecli.report.scores import score_named

_SPLIT = "test"
"""As eval stages do unless they are told otherwise: nothing is chosen by what is measured here."""


def is_to_be_evaluated(space: Workspace, stage: PruneStage) -> bool:
    """Whether the score is measured, asked before or after the work; says so where that is usual and cannot be done.

    Unless the stage says, it is where the data set has labels that fit the network, but not of a network with random
    weights, of one whose weights stay on the disk, or within a run, which has eval stages for that.

    Raises:
        DataError: It is asked for, and the data set has no labels, or others.
        RecipeError: It is asked for, and there is no data set, or the weights stay on the disk.
    """
    if stage.evaluate is False or (stage.evaluate is None and space.in_run):
        return False
    asked = stage.evaluate is True
    if asked and stage.offload != "none":
        raise RecipeError("--evaluate runs both networks, and with --offload disk none is in memory: leave one out")
    if stage.offload != "none":
        return False
    loaded = space.parent or space.stored_model()  # whose history may name data
    if space.data_name() is None:
        if asked:
            raise RecipeError("--evaluate needs samples with labels: name a data set with --data")
        return False
    if not asked and (loaded.new or not space.judging.task().labelled):
        return False
    try:
        with generators_kept():  # what is pruned does not depend on whether it is evaluated
            space.judging.labelled_task()
            space.judging.check()
            space.split(_SPLIT)
    except (DataError, ModelError) as error:
        if asked:
            raise
        space.sink.note(f"the score before and after is not measured: {error}")
        return False
    return True


def score_change(space: Workspace, stage: PruneStage) -> ScoreChange | None:
    """Evaluates the network that was pruned and the current one; None if a score is no number.

    Nor is there one where samples cannot be read and nobody has asked for it: the pruned network is saved already.

    Raises:
        DataError: It is asked for, and samples cannot be read.
    """
    try:
        return _score_change(space, stage)
    except DataError as error:
        if stage.evaluate is True:
            raise
        space.sink.warn(f"the score before and after is not measured: {error}")
        return None


def _score_change(space: Workspace, stage: PruneStage) -> ScoreChange | None:
    before, after = space.parent, space.loaded
    assert before is not None and after is not None, "a stage has just pruned"
    data, whole = space.data(), space.split(_SPLIT)
    task = space.judging.labelled_task()
    # Captions of all images are what each image is compared with.
    chosen = whole if task.name == "retrieval" else _at_most(whole, stage.evaluation_images)
    count = len(chosen.labels)
    told: list[Answers] = []
    with space.sink.progress(f"eval {data.name}", 2 * count) as advance:
        for number, loaded in enumerate((before, after)):

            def on_step(done: int, first: int = number * count, which: str = ("before", "after")[number]) -> None:
                advance(first + done, f"{done} {space.samples().noun}, {which}")

            told.append(answers(space, loaded.model, space.inputs.batches(chosen), on_step))
            loaded.model.cpu()
    space.report_bad()
    score = score_named(task.figures.score_name)
    dense, pruned = told
    if not (math.isfinite(dense.score) and math.isfinite(pruned.score)):
        space.sink.warn(f"the {score.label} of the network is no number, before or after")
        return None
    return ScoreChange(
        score=score.name,
        split=_SPLIT,
        images=count if isinstance(chosen, TextSplit) else pruned.images,
        of=len(whole.labels),
        before=dense.score,
        after=pruned.score,
        drop=score.lost(dense.score, pruned.score),
        drop_interval=drop_interval(dense, pruned),
    )


def _at_most(split: Split, most: int) -> Split:
    """A seeded choice of samples; of a text its beginning, which a network may read from end to end."""
    count = len(split.labels)
    if count <= most:
        return split
    if isinstance(split, TextSplit):
        return replace(split, tokens=split.tokens[: most * split.length + 1])
    chosen = np.random.default_rng(SPLIT_SEED).permutation(count)[:most]
    return split.subset(np.sort(chosen))
