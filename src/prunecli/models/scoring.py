"""How networks produce scores for classes: by their outputs, or by comparing images with texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from prunecli.criteria.base import Loss, default_loss, token_loss
from prunecli.criteria.detection import DetectorLoss
from prunecli.engine.detectors.base import Detector
from prunecli.engine.detectors.index import detector_of
from prunecli.engine.tasks.base import Task
from prunecli.errors import DataError, RecipeError
from prunecli.inputs import call, logits
from prunecli.models.prompt_classifier import PromptClassifier, has_text_tower, prompt_classifier
from prunecli.models.token_networks import purpose_of


@dataclass(frozen=True)
class Wordings:
    """Texts of the classes, and prompt templates with `{}` for the text."""

    texts: Sequence[str]
    templates: Sequence[str]


class Scoring(ABC):
    """How one network produces scores.

    Attributes:
        refused_evaluations: Values of `--task` that do not apply, with the reason, to follow the network's name.
        task_names: Names of evaluations in reports, where they differ from the data set's task.
        reads_texts: Whether classes are texts that the network compares inputs with.
    """

    reads_texts: ClassVar[bool] = False
    refused_evaluations: ClassVar[Mapping[str, str]] = {}
    task_names: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def classifier(
        self, ref: str, network: nn.Module, wordings: Callable[[], Wordings | None], *, remember: bool
    ) -> nn.Module:
        """The module that produces scores for classes.

        Args:
            ref: The network's reference.
            network: The network.
            wordings: Reads the class texts; returns None if there are none.
            remember: Whether to cache features of prompts on disk.

        Raises:
            DataError: Files of class names or templates do not fit.
            ModelError: The text tower's tokenizer cannot be fetched.
        """

    @abstractmethod
    def check_task(self, task: Task, network: str) -> None:
        """Checks that the network can be judged by a task at all.

        Raises:
            DataError: It cannot.
        """

    @abstractmethod
    def check_output(self, output: Any, task: Task, network: str) -> None:
        """Compares what the network returns with a data set's labels and classes.

        Raises:
            DataError: They differ.
        """

    @abstractmethod
    def refuse_wordings(self) -> None:
        """Call when class names or templates are given.

        Raises:
            RecipeError: The network does not read texts.
        """


class _OutputScoring(Scoring):
    """The outputs are scores of classes."""

    refused_evaluations: ClassVar[Mapping[str, str]] = {
        "zeroshot": "has no text tower; leave it out, or give an open_clip network",
    }

    def classifier(
        self, ref: str, network: nn.Module, wordings: Callable[[], Wordings | None], *, remember: bool
    ) -> nn.Module:
        """The network itself."""
        return network

    def check_task(self, task: Task, network: str) -> None:
        """Captions need a text tower."""
        if task.needs_text_tower:
            raise DataError(f"{task.data_name} has captions and {network} no text tower: give an open_clip network")
        _require_no_boxes(task, network)

    def check_output(self, output: Any, task: Task, network: str) -> None:
        """One output for each class."""
        scores = logits(output)
        task.check_scores(scores, network)
        task.check_outputs(scores.shape[task.class_dimension], network)

    def refuse_wordings(self) -> None:
        """Raises an error."""
        raise RecipeError("--class-names and --templates are for networks with a text tower; leave them out")


class _TextScoring(Scoring):
    """Classes are texts, and an image belongs to the nearest one."""

    reads_texts: ClassVar[bool] = True
    refused_evaluations: ClassVar[Mapping[str, str]] = {
        "classification": "has a text tower and no classifier; use --task zeroshot"
    }
    task_names: ClassVar[Mapping[str, str]] = {"classification": "zeroshot"}

    def classifier(
        self, ref: str, network: nn.Module, wordings: Callable[[], Wordings | None], *, remember: bool
    ) -> nn.Module:
        """The towers with prompts; without wordings the network alone."""
        read = wordings()
        return network if read is None else prompt_classifier(ref, network, read.texts, read.templates, remember)

    def check_task(self, task: Task, network: str) -> None:
        """Any task but finding boxes will do."""
        _require_no_boxes(task, network)

    def check_output(self, output: Any, task: Task, network: str) -> None:
        """Outputs are features, of any number."""
        task.check_scores(logits(output), network)

    def refuse_wordings(self) -> None:
        """Accepts any class names."""


class _TokenScoring(_OutputScoring):
    """The outputs are scores of the next token, or of masked ones."""

    refused_evaluations: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("zeroshot", "classification", "retrieval", "linear-probe"), "is a language model; leave it out"
    )


class _TagScoring(_OutputScoring):
    """The outputs are scores of classes for every token."""

    refused_evaluations: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("zeroshot", "classification", "retrieval", "linear-probe"), "finds a class for every token; leave it out"
    )


class _BoxScoring(_OutputScoring):
    """The outputs are boxes.

    Args:
        detector: How the network is asked.
        network: The network.
    """

    refused_evaluations: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("zeroshot", "classification", "retrieval", "linear-probe"), "is a detector; leave it out"
    )

    def __init__(self, detector: Detector, network: nn.Module) -> None:
        self._classes = detector.num_classes(network)

    def check_task(self, task: Task, network: str) -> None:
        """Only boxes will do."""
        if task.labelled and not task.finds_boxes:
            raise DataError(
                f"{network} finds boxes and {task.data_name} has none: give images with --data detection:PATH"
            )

    def check_output(self, output: Any, task: Task, network: str) -> None:
        """As many kinds of objects as the data set has."""
        task.check_outputs(self._classes, network)


def _require_no_boxes(task: Task, network: str) -> None:
    if task.finds_boxes:
        raise DataError(
            f"{task.data_name} has boxes and {network} finds none: give a detector, such as "
            "torchvision:ssdlite320_mobilenet_v3_large"
        )


def scoring_of(network: nn.Module) -> Scoring:
    """How a network gives scores."""
    if _scores_tokens(network):
        return _TagScoring() if purpose_of(network) == "tags" else _TokenScoring()
    detector = detector_of(network)
    if detector is not None:
        return _BoxScoring(detector, network)
    return _TextScoring() if has_text_tower(network) else _OutputScoring()


def _scores_tokens(network: nn.Module) -> bool:
    """Whether its outputs are scores of tokens, or of their classes: one set for every position."""
    return purpose_of(network) in ("next token", "masked token", "tags")


@dataclass(frozen=True)
class _Scored:
    """Output of a classifier: features (the scores, without a text tower) and class scores."""

    features: Tensor
    scores: Tensor


def scored(classifier: nn.Module, inputs: Any) -> _Scored:
    """Runs a classifier once."""
    if isinstance(classifier, PromptClassifier):
        features = classifier.features(inputs)
        return _Scored(features, classifier.scores(features))
    scores = logits(call(classifier, inputs))
    return _Scored(scores, scores)


def network_in(classifier: nn.Module) -> nn.Module:
    """The network that a classifier was made of."""
    return classifier.towers if isinstance(classifier, PromptClassifier) else classifier


def has_best_class(classifier: nn.Module) -> bool:
    """Whether its outputs are class scores: features of a tower without prompts have no best class."""
    if detector_of(classifier) is not None:
        return False
    return isinstance(classifier, PromptClassifier) or not has_text_tower(classifier)


def loss_of(classifier: nn.Module) -> Loss:
    """The loss for criteria that take gradients: with a text tower that of the prompts' scores, not of the features."""
    if _scores_tokens(classifier):
        return token_loss
    detector = detector_of(classifier)
    if detector is not None:
        return DetectorLoss(detector)
    if not isinstance(classifier, PromptClassifier):
        return default_loss
    classifier.eval()

    def loss(output: Any, labels: Tensor | None) -> Tensor:
        return default_loss(classifier.scores(logits(output)), labels)

    return loss
