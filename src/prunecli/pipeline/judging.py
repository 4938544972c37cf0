"""Evaluation of the current network: its task, and how it produces scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunecli.criteria.base import Loss
from prunecli.data.prompts import class_texts, templates
from prunecli.data.splits import digest
from prunecli.engine.tasks.base import Task
from prunecli.engine.tasks.index import task_of
from prunecli.errors import RecipeError
from prunecli.inputs import call
from prunecli.models.scoring import Scoring, Wordings, loss_of, scoring_of
from prunecli.pipeline.model_inputs import ModelInputs
from prunecli.pipeline.state import RunState

_OF_DATA = ("zeroshot", "classification", "retrieval")
"""Values of `--task` that a data set may not be for."""


class Judging:
    """The task of a run's data set, and how the current network produces scores.

    Args:
        state: The run.
        inputs: Inputs of its network.
    """

    def __init__(self, state: RunState, inputs: ModelInputs) -> None:
        self._state, self._inputs = state, inputs

    @property
    def scoring(self) -> Scoring:
        """How the current network produces scores."""
        return scoring_of(self._state.model().model)

    def task(self) -> Task:
        """The task of the data set.

        Raises:
            DataError: There is none.
        """
        return task_of(self._inputs.labels())

    def labelled_task(self) -> Task:
        """The task, provided that the data set has labels.

        Raises:
            DataError: The data set has no labels.
        """
        task = self.task()
        task.require_labels()
        return task

    def training_task(self) -> Task:
        """The task, provided that networks can be trained for it.

        Raises:
            DataError: Nothing can be learned from the data set.
        """
        task = self.task()
        task.require_training()
        return task

    def task_name(self) -> str:
        """Name of the evaluation in reports."""
        name = self._state.data().task
        return self.scoring.task_names.get(name, name)

    def check_evaluation(self, asked: str) -> None:
        """Checks a value of `--task`.

        Raises:
            RecipeError: The network or the data set does not allow it.
        """
        loaded = self._state.model()
        refused = self.scoring.refused_evaluations.get(asked)
        if refused is not None:
            raise RecipeError(f"--task {asked}: {loaded.name} {refused}")
        if asked in _OF_DATA and self._state.data_name() is not None:
            task = self.task()
            if asked in task.refused_evaluations:
                has, other = task.refused_evaluations[asked]
                raise RecipeError(f"--task {asked}: {task.data_name} has {has}; use --task {other}")

    def check(self) -> None:
        """Checks that the network's scores fit the data set's labels.

        Raises:
            DataError: They do not fit, or the network does not run on such images.
        """
        loaded, task, scoring = self._state.model(), self.task(), self.scoring
        self._inputs.check()
        scoring.check_task(task, loaded.name)
        with self._inputs.running(), torch.no_grad():
            output = call(loaded.model.cpu().eval(), self._inputs.example())
        scoring.check_output(output, task, loaded.name)

    def classifier(self, network: nn.Module | None = None, *, remember: bool = False) -> nn.Module:
        """The module that produces scores: towers with prompts for the class names, or else the network itself.

        Args:
            network: Another network of the same architecture, instead of the current one.
            remember: Whether to cache features of prompts on disk.

        Raises:
            DataError: Files of class names or templates do not fit.
            RecipeError: They are given and there is no text tower.
            ModelError: The text tower's tokenizer cannot be fetched.
        """
        loaded, section = self._state.model(), self._state.recipe.data
        network = loaded.model if network is None else network
        scoring = scoring_of(network)
        if section.class_names or section.templates:
            scoring.refuse_wordings()
        return scoring.classifier(loaded.manifest.architecture.ref, network, self._wordings, remember=remember)

    def wording(self) -> dict[str, Any]:
        """What classes are called, for a report: how many there are, a hash of their names, and the prompts."""
        data = self._state.data()
        wordings = self._wordings() if self.scoring.reads_texts else None
        names = wordings.texts if wordings is not None else data.class_names
        if not names or data.task.endswith("language"):  # whose names are a vocabulary
            return {}
        return {
            "classes": len(names),
            "class_list": digest("\n".join(names).encode()),
            "templates": tuple(wordings.templates) if wordings is not None else None,
        }

    def loss(self) -> Loss:
        """The loss whose gradients criteria take."""
        return loss_of(self.classifier(remember=True))

    def _wordings(self) -> Wordings | None:
        data, section = self._state.data(), self._state.recipe.data
        if not self.task().labelled and section.class_names is None:
            return None
        return Wordings(class_texts(data, section.class_names), templates(data, section.templates))
