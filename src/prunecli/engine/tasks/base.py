"""What a task defines: its loss, its figures, and which score is better."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from prunecli.engine.carrying import Carrier
from prunecli.errors import DataError, RecipeError
from prunecli.inputs import sample_count

_DENSE_DIMENSIONS = 4


class Figures(Protocol):
    """Figures of one network on one split. `images` is how many images they were measured on."""

    score_name: ClassVar[str]
    """Name of the score in reports."""
    score_label: ClassVar[str]
    """Label of the score in tables."""

    @property
    def images(self) -> int:
        """Images that could be read."""
        ...

    @property
    def score(self) -> float:
        """The figure by which the best epoch is chosen."""
        ...

    @property
    def logged(self) -> dict[str, float]:
        """Entries for the log of a training run."""
        ...


class Meter(ABC):
    """Accumulates batches into figures.

    Several processes measure different batches, and each of them adds up all the measurements, in the order of the
    batches. So figures are those of one process, bit by bit.
    """

    def update(self, predictions: Any, labels: Any) -> None:
        """Takes one batch: what the task predicts, mostly scores, and labels on the same device."""
        self.add(self.measure(predictions, labels))

    @abstractmethod
    def measure(self, predictions: Any, labels: Any) -> Any:
        """Returns what the figures need to know of a batch, in tensors and plain data; changes nothing."""

    @abstractmethod
    def add(self, measured: Any) -> None:
        """Takes what `measure` returned, here or in another process."""

    @abstractmethod
    def compute(self) -> Any:
        """Returns the figures of everything so far; None where there are no labels."""


class Described(Protocol):
    """What a task needs to know about a data set."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def task(self) -> str:
        """Name of its task."""
        ...

    @property
    def class_names(self) -> Sequence[str]:
        """One for each class; captions where there are no classes."""
        ...

    @property
    def described(self) -> Sequence[int]:
        """Number of the image that each caption describes."""
        ...


@dataclass(frozen=True)
class Labels:
    """A minimal description of labels, for tasks without a data set."""

    name: str
    task: str
    class_names: tuple[str, ...]
    described: tuple[int, ...] = ()


class Task(ABC):
    """What a network's scores are for: how to train and evaluate it.

    Args:
        data: The data set it is made for.

    Attributes:
        name: As reports call it.
        figures: The class of its figures.
        per_pixel: Whether a network gives a score for every pixel, shape (N, classes, h, w).
        class_dimension: Dimension of the scores along which the classes lie.
        rounded_up: Whether networks may have more outputs than there are classes.
        labelled: Whether there are labels to evaluate against.
        trainable: Whether networks can be trained for this task.
        needs_text_tower: Whether a network must be able to compare images with texts.
        finds_boxes: Whether a network finds boxes, as a `Detector` does.
        refused_settings: Training settings that would change an image but not its labels, or have no meaning.
        own_augmentation: What is done to training images instead, for the message.
        distillable: Whether there is a teacher's loss.
        learns_from_parent: Whether finetuning learns from the network that was pruned unless told otherwise: where that
            was measured to be better than more epochs in the same time (docs/finetuning.md).
        temperature: By which scores are softened for the teacher's loss unless told otherwise.
        refused_evaluations: Values of `--task` that do not fit the data set, with what it has and what to ask for.
    """

    name: ClassVar[str]
    figures: ClassVar[type[Any]]
    per_pixel: ClassVar[bool] = False
    class_dimension: ClassVar[int] = 1
    rounded_up: ClassVar[bool] = False
    labelled: ClassVar[bool] = True
    trainable: ClassVar[bool] = True
    needs_text_tower: ClassVar[bool] = False
    finds_boxes: ClassVar[bool] = False
    refused_settings: ClassVar[tuple[str, ...]] = ()
    own_augmentation: ClassVar[str] = ""
    distillable: ClassVar[bool] = True
    learns_from_parent: ClassVar[bool] = False
    temperature: ClassVar[float] = 4.0
    refused_evaluations: ClassVar[Mapping[str, tuple[str, str]]] = {"retrieval": ("no captions", "zeroshot")}

    def __init__(self, data: Described) -> None:
        self.data_name = data.name
        self.class_names = tuple(data.class_names)

    @classmethod
    def with_classes(cls, count: int) -> Self:
        """A task for `count` classes named by their numbers."""
        return cls(Labels("the data", cls.name, tuple(map(str, range(count)))))

    @abstractmethod
    def meter(self, device: torch.device) -> Meter:
        """Returns a new meter."""

    @abstractmethod
    def named(self, figures: Any) -> dict[str, Any]:
        """Returns the figures by their names in a report, with 95 % intervals."""

    def named_of(self, figures: Any, split: Any) -> dict[str, float]:
        """Returns further figures that depend on the split that they were measured on, by their names in a report."""
        return {}

    def outputs(self, carrier: Carrier, network: nn.Module, inputs: Any, labels: Any) -> Any:
        """Runs a network in training mode on a batch and returns what the loss is made of: scores, unless overridden.

        Args:
            carrier: Runs networks that read a text in parts.
            network: The network.
            inputs: The batch.
            labels: Its labels, which networks with losses of their own are given.
        """
        return carrier.scores(network, inputs)

    def predictions(self, carrier: Carrier, network: nn.Module, inputs: Any) -> Any:
        """Runs a network in evaluation mode on a batch and returns what the meter takes: scores, unless overridden."""
        return carrier.scores(network, inputs).float()

    def loss(self, outputs: Any, labels: Any, label_smoothing: float) -> Tensor:
        """Returns the mean loss of a batch.

        Args:
            outputs: From `outputs`.
            labels: The batch's labels.
            label_smoothing: As in `torch.nn.functional.cross_entropy`.

        Raises:
            DataError: Nothing can be learned from the data set.
        """
        self.require_training()
        raise AssertionError("a task that can be trained has a loss")

    def terms(self, outputs: Any, labels: Any) -> int:
        """How many terms `loss` is the mean of: samples, unless overridden.

        Several processes weight their losses by it. So the mean of these is the loss of all samples together.

        Args:
            outputs: From `outputs`.
            labels: The batch's labels.
        """
        return sample_count(labels)

    def teacher_terms(self, scores: Tensor) -> int:
        """The same of `teacher_loss`, whose first argument this is: samples or tokens, unless overridden."""
        return len(scores)

    def taught(self, scores: Tensor, labels: Any) -> Tensor:
        """The scores that a teacher has something to say about: all, unless overridden.

        Args:
            scores: Those of a batch.
            labels: Its labels.
        """
        return scores

    def teacher_loss(self, scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
        """Returns KL(teacher || student) of scores softened by `temperature`, averaged over what is classified.

        Args:
            scores: From `taught`.
            teacher_scores: The same of the teacher.
            temperature: What scores are divided by.

        Raises:
            DataError: Nothing can be learned from the data set.
        """
        self.require_training()
        raise AssertionError("a task that can be trained has a teacher's loss")

    def merit(self, score: float) -> float:
        """The score, or its negative where less is better."""
        return score

    def better(self, score: float, best: float) -> bool:
        """Whether a validation score is better than the best one so far."""
        return self.merit(score) > self.merit(best)

    def improves(self, score: float, figures: Figures | None, best: float, best_figures: Figures | None) -> bool:
        """Whether an epoch is to be kept instead of the best one so far: of equal scores the lower loss decides.

        Args:
            score: Of the epoch.
            figures: Of the epoch.
            best: The score of the best one.
            best_figures: Its figures.
        """
        if score != best or figures is None or best_figures is None:
            return self.better(score, best)
        losses = [each.logged.get("loss") for each in (figures, best_figures)]
        if None in losses:
            return self.better(score, best)
        return losses[0] < losses[1]  # type: ignore[operator]

    def require_labels(self) -> None:
        """Checks that figures can be measured.

        Raises:
            DataError: The images have no labels.
        """
        if not self.labelled:
            raise DataError(self._without_classes())

    def require_training(self) -> None:
        """Checks that networks can be trained for the task.

        Raises:
            DataError: They cannot.
        """
        if not self.trainable:
            raise DataError(self._without_classes())

    def check_settings(self, settings: Any) -> None:
        """Refuses training settings that would change an image and leave its labels as they are, or a teacher.

        Args:
            settings: Hyperparameters as attributes.

        Raises:
            RecipeError: One was asked for.
        """
        for name in self.refused_settings:
            if getattr(settings, name):
                raise RecipeError(
                    f"--{name.replace('_', '-')} is for images with one class each; {self.data_name} has "
                    f"{self.own_augmentation}"
                )
        if not self.distillable and getattr(settings, "teacher", None) not in (None, "auto", "none"):
            raise RecipeError(f"--teacher is for scores of classes; {self.data_name} has boxes: leave it out")

    def _without_classes(self) -> str:
        return f"{self.data_name} has images without classes: give another data set, or use it with `prune token`"

    def check_scores(self, scores: Tensor, network: str) -> None:
        """Compares the shape of a network's scores with what the data set has labels for.

        Raises:
            DataError: One has a class for each image, the other one for every pixel.
        """
        if (scores.dim() == _DENSE_DIMENSIONS) != self.per_pixel:
            finds, has = ("each image", "every pixel") if self.per_pixel else ("every pixel", "each image")
            raise DataError(f"{network} finds a class for {finds}, {self.data_name} has one for {has}; see --data")

    def check_outputs(self, outputs: int, network: str) -> None:
        """Compares the number of a network's outputs with the data set's classes.

        Raises:
            DataError: They differ.
        """
        if outputs != len(self.class_names):
            raise DataError(
                f"{network} has {outputs} outputs and {self.data_name} has {len(self.class_names)} classes; "
                "give the data set it was trained on with --data"
            )


def softened_divergence(scores: Tensor, teacher_scores: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened scores, summed; classes lie along dimension 1."""
    student, teacher = (torch.log_softmax(tensor / temperature, dim=1) for tensor in (scores, teacher_scores))
    return torch.nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
