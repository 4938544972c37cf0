"""The network that finetuning learns from, in addition to labels."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from prunecli import ranks
from prunecli.checkpoint.confinement import stays_inside
from prunecli.engine.evaluate import evaluate
from prunecli.engine.tasks.base import Task
from prunecli.errors import DataError, ModelError, PruneError
from prunecli.inputs import call, logits
from prunecli.models.loading import LoadedModel, widen
from prunecli.models.offloading import is_offloaded
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import FinetuneStage, TrainStage

_ASKED = 256
"""Training samples on which a network shows that it can teach."""
_ASKED_FOR_A_HINT = 32
"""The same where nothing but a hint depends on it."""
_BELOW_CHANCE = 0.95
"""Its loss there has to be less than this share of that of equal scores for all classes."""


def teacher_of(space: Workspace, stage: TrainStage, task: Task) -> LoadedModel | None:
    """The network to learn from, if any.

    Raises:
        ModelError: The one that was named cannot be used.
    """
    if not isinstance(stage, FinetuneStage) or stage.teacher in (None, "none"):
        return None
    if stage.teacher != "auto":
        return _checked(space, stage.teacher, task)
    if not task.learns_from_parent or space.model().manifest.last("prune") is None:
        return None
    try:
        teacher = _checked(space, "parent", task)
        _require_knowledge(space, teacher, task)
    except (DataError, ModelError) as error:
        space.sink.note(f"learns from labels alone: {error}")
        return None
    space.sink.note(f"learns from its parent {teacher.name} too (--teacher none: from labels alone)")
    return teacher


def to_be_named(space: Workspace) -> str | None:
    """The file that the network was pruned from, where finetuning would learn from it but does not find it by itself.

    A file's path is trusted only in this folder and in the checkpoint's; elsewhere it has to be given to --teacher.
    """
    step = space.stored_model().manifest.last("prune")
    if step is None or step.parent is None or space.parent is None:
        return None
    if ranks.world_size() > 1 or is_offloaded(space.parent.model):
        return None  # to ask it would need all processes, or more memory than there is
    if Path(step.parent).is_file() and stays_inside(step.parent, Path()):
        return None
    try:
        space.lineage.parent_file(step, "--teacher")
        return None
    except ModelError:
        pass
    try:
        task = space.judging.training_task()
        if not task.learns_from_parent:
            return None
        teacher = widen(space.parent)
        _check(space, teacher, task)
        _require_knowledge(space, teacher, task, _ASKED_FOR_A_HINT)
    except (PruneError, RuntimeError):  # no memory for it, for instance: pruning has succeeded nevertheless
        return None
    return step.parent


def _require_knowledge(space: Workspace, teacher: LoadedModel, task: Task, asked: int = _ASKED) -> None:
    """Checks that a network that nobody asked for knows these classes: it may have learned others, or nothing.

    Raises:
        ModelError: It does not.
    """
    batches = space.inputs.calibration(space.data().training_split(), asked).labelled
    loss = evaluate(space.judging.classifier(teacher.model), batches, space.device, task=task).loss
    chance = math.log(space.data().num_classes)
    if not loss < _BELOW_CHANCE * chance:
        raise ModelError(
            f"its parent {teacher.name} does not know these classes: its loss on training samples is {loss:.2f}, "
            f"and that of guessing {chance:.2f} (--teacher parent learns from it nevertheless)"
        )


def _checked(space: Workspace, name: str, task: Task) -> LoadedModel:
    teacher = space.lineage.teacher(name)
    _check(space, teacher, task)
    return teacher


def _check(space: Workspace, teacher: LoadedModel, task: Task) -> None:
    shape, network = "x".join(map(str, space.inputs.shape())), space.judging.classifier(teacher.model)
    expected = space.data().num_classes
    try:
        with torch.no_grad():
            outputs = logits(call(network.cpu().eval(), space.inputs.example())).shape[task.class_dimension]
            if task.rounded_up:
                own = space.judging.classifier().cpu().eval()
                expected = logits(call(own, space.inputs.example())).shape[task.class_dimension]
    except (RuntimeError, ValueError, IndexError) as error:
        noun = space.inputs.noun
        raise ModelError(f"--teacher does not run on {shape} {noun}; give a network for the same data") from error
    theirs, ours = teacher.manifest.vocabulary, space.vocabulary()
    if theirs is not None and theirs != ours:
        raise ModelError(f"--teacher has learned another vocabulary than {space.model().name}; give one with the same")
    spoken, read = teacher.manifest.tokenizer, space.tokenizer()
    if spoken is not None and (read is None or spoken.definition != read.definition):
        name = space.model().name
        raise ModelError(f"--teacher has learned with another tokenizer than {name}; give one with the same")
    if outputs != expected:
        raise ModelError(f"--teacher has {outputs} outputs, not {expected}; give one for the same data")
