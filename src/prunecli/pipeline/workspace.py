"""Shared by the stages of one run: the current network and data set with their inputs, task and history."""

from __future__ import annotations

from functools import cached_property

from prunecli.engine.detectors.index import detector_of
from prunecli.models.catalog import reads_tokens
from prunecli.pipeline.activity import Activity, activity_of
from prunecli.pipeline.detection_inputs import DetectionInputs
from prunecli.pipeline.judging import Judging
from prunecli.pipeline.lineage import Lineage
from prunecli.pipeline.model_inputs import ModelInputs
from prunecli.pipeline.state import RunState
from prunecli.pipeline.token_inputs import TokenInputs


class Workspace(RunState):
    """State of one run, with the inputs, evaluation, history and activity of its current network."""

    @cached_property
    def inputs(self) -> ModelInputs:
        """Shapes, preprocessing and batches."""
        loaded = self.model()
        if reads_tokens(loaded.manifest.architecture.ref):
            return TokenInputs(self)
        return DetectionInputs(self) if detector_of(loaded.model) is not None else ModelInputs(self)

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
