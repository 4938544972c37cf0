"""Networks of `prune auto` that are finetuned, by the stages that `prune run` has: a recipe makes them again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunecli.copying import copied
from prunecli.engine.distillation import Distillation
from prunecli.engine.fit import fit
from prunecli.engine.hooks import Hook
from prunecli.models.loading import LoadedModel, load_file
from prunecli.phases import Reached
from prunecli.pipeline.resumption import discard_states
from prunecli.pipeline.sink import Advance, Sink
from prunecli.pipeline.stages.structural import structural_stage
from prunecli.pipeline.stages.train import learning_rate, train_stage
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import FinetuneStage, PruneStage
from prunecli.report.table import Table
from prunecli.studies.batches import FirstSteps

_TIMED = 3
"""Training steps by which the length of finetuning is told beforehand."""


def finalist(
    space: Workspace,
    prune: PruneStage,
    finetune: FinetuneStage,
    path: Path,
    hooks: Sequence[Hook],
    say: Callable[[str], None],
) -> LoadedModel:
    """Prunes the network of a run and finetunes what is left, as two stages of a recipe do.

    Args:
        space: The run; its own network is left as it is.
        prune: How it is pruned.
        finetune: How it is trained then.
        path: The checkpoint to write; one for the network before training is written beside it.
        hooks: Further hooks of training.
        say: Is told what happens.

    Returns:
        The network, as loaded from the checkpoint.
    """
    sink = _Within(space.sink, path.stem, say)
    own = Workspace(space.recipe, sink, space.command, space.resume_command, resume=True)
    between = path.with_stem(f"{path.stem}-pruned")
    if between.is_file():  # of a process that was stopped
        discard_states(between)
        own.parent = own.model()
        own.loaded = load_file(between, allow_nonfinite=space.recipe.model.allow_nonfinite)
    else:
        structural_stage(own, prune, between)
    train_stage(own, finetune, path, hooks)
    return own.model()


def seconds_of_finetuning(space: Workspace, finetune: FinetuneStage, judging: float) -> float:
    """About how long finetuning takes, from some steps of the dense network, which is slower than what is left of it.

    Args:
        space: The run.
        finetune: How it is trained.
        judging: Seconds of judging an epoch.
    """
    loaded, task = space.model(), space.judging.training_task()
    batches = space.inputs.training(space.data().training_split(), finetune)
    steps = min(_TIMED, len(batches))
    stage = dataclasses.replace(finetune, epochs=1, lr=learning_rate(finetune, loaded.manifest))
    hooks: list[Hook] = []
    if task.learns_from_parent if finetune.teacher == "auto" else finetune.teacher not in (None, "none"):
        hooks.append(Distillation(space.judging.classifier(copied(loaded.model)), task))
    start = time.monotonic()
    fit(
        space.judging.classifier(copied(loaded.model)),
        FirstSteps(batches, steps, space.recipe.seed),
        None,
        stage,
        space.device,
        task=task,
        seed=space.recipe.seed,
        hooks=hooks,
    )
    each = (time.monotonic() - start) / steps
    return finetune.epochs * (each * len(batches) + judging)


class _Within:
    """What a stage says while a study has the terminal: warnings, and a line for each epoch.

    Args:
        sink: The study's.
        title: What the stage works on.
        say: Writes behind the study's bar.
    """

    def __init__(self, sink: Sink, title: str, say: Callable[[str], None]) -> None:
        self._sink, self._title, self._say = sink, title, say

    def note(self, text: str) -> None:
        """Only what training says of epochs and teachers."""
        if text.startswith(("epoch ", "learns ")):
            self._sink.note(f"  {self._title}: {text}")

    def warn(self, text: str) -> None:
        """Everything."""
        self._sink.warn(f"{self._title}: {text}")

    def aside(self, table: Table) -> None:
        """Nothing: the study has tables of its own."""

    def live(self, table: Table) -> None:
        """Nothing."""

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """The text behind the study's bar, which stays where it is."""

        def tell(done: int, text: str) -> None:
            self._say(f"{self._title}: {text}")

        yield tell

    @contextmanager
    def phase(self, name: str, *, undisturbed: bool = False) -> Iterator[Reached]:
        """Its name, in that place."""
        self._say(f"{self._title}: {name}")
        yield lambda done, total, counted: None


def stages_of(prune: PruneStage, finetune: FinetuneStage) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both stages as plain data, for what identifies a search."""
    return dataclasses.asdict(prune), dataclasses.asdict(finetune)
