"""Shared by the stages of one run: the current network and data set with their inputs, task and history."""

from __future__ import annotations

from functools import cached_property

from prunecli.data.splits import SampleSplit
from prunecli.engine.detectors.index import detector_of
from prunecli.models.catalog import takes
from prunecli.own_code import PREFIX
from prunecli.pipeline.activity import Activity, activity_of
from prunecli.pipeline.detection_inputs import DetectionInputs
from prunecli.pipeline.judging import Judging
from prunecli.pipeline.lineage import Lineage
from prunecli.pipeline.model_inputs import ModelInputs
from prunecli.pipeline.other_inputs import GivenInputs, OtherInputs
from prunecli.pipeline.state import RunState
from prunecli.pipeline.token_inputs import TokenInputs

_INPUTS = {"images": ModelInputs, "tokens": TokenInputs, "other": OtherInputs}


class Workspace(RunState):
    """State of one run, with the inputs, evaluation, history and activity of its current network."""

    @cached_property
    def inputs(self) -> ModelInputs:
        """Shapes, preprocessing and batches."""
        ref = self.model().manifest.architecture.ref
        if self.recipe.model.example is not None:
            return GivenInputs(self)
        if detector_of(self.model().model) is not None:
            return DetectionInputs(self)
        if ref.startswith(PREFIX) or self.recipe.model.example_shape is not None:
            return ModelInputs(self) if self._takes_images() else GivenInputs(self)
        return _INPUTS[takes(ref)](self)

    def _takes_images(self) -> bool:
        """Whether a network of the user's own takes images, by what is known of its inputs."""
        if self.recipe.model.example_shape is None and self.data_name() is not None:
            return not isinstance(self.data().test, SampleSplit)
        return self.model().fixed_size is not None

    @cached_property
    def judging(self) -> Judging:
        """The task, and how scores are produced."""
        return Judging(self, self.inputs)

    @cached_property
    def lineage(self) -> Lineage:
        """History and checkpoints."""
        return Lineage(self, self.inputs)

    @property
    def activity(self) -> Activity:
        """Firing rates and energy."""
        return activity_of(self, self.inputs)
