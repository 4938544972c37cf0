"""The report of `prune auto`: what was tried, the smallest network within a drop, and how well it does."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from prunecli.errors import RecipeError
from prunecli.report.contest import Figure
from prunecli.report.schema import DataInfo, ModelInfo
from prunecli.report.written import Strict, Study

AUTO_SCHEMA: Literal["prunecli.auto/1"] = "prunecli.auto/1"
Objective = Literal["macs", "latency", "params"]
COST_NAMES: dict[Objective, str] = {"macs": "MACs", "latency": "latency", "params": "parameters"}


class Trial(Strict):
    """One network that was pruned.

    Attributes:
        criterion: The method that ranks channels, with its options.
        scope: How channels competed, or "sensitivity": layer shares from cutting each layer alone.
        shares: The same in words.
        compensate: How removed channels were made up for.
        recalibrate: Whether statistics of normalisations were measured again.
        asked: Share of the cost that was to be left.
        params: Parameters of the method that lead to it.
        score: Straight after pruning and repair, on samples to search by; None: it was not finite.
        drop: How much worse than the dense network's it is.
        params_share: Parameters, relative to the dense network.
        macs_share: Multiply-accumulates, likewise.
        latency_share: Time for one sample, likewise; None where nobody asked for the fastest.
        after: Score after finetuning, on other samples; None: it was not finetuned.
        after_drop: How much worse than the dense network's that is.
        fate: What became of it, or why it was dropped.
    """

    number: int
    criterion: str
    scope: str
    shares: str
    compensate: str
    recalibrate: bool
    asked: float
    params: dict[str, JsonValue]
    score: float | None
    drop: float | None
    params_share: float
    macs_share: float
    latency_share: float | None = None
    after: float | None = None
    after_drop: float | None = None
    fate: str = ""

    def cost(self, objective: Objective) -> float:
        """What was to be small, relative to the dense network."""
        share = {"macs": self.macs_share, "params": self.params_share, "latency": self.latency_share}[objective]
        assert share is not None, "it is measured where it is asked for"
        return share


class Claim(Strict):
    """How the smaller network does on one split, beside the dense one on the same samples.

    Attributes:
        split: Name of the split.
        decided: Whether the network was chosen on it.
        images: Samples.
        dense: The dense network's score.
        pruned: That of the smaller network.
        drop: How much worse it is.
        interval: 95 % interval of the drop, of samples that both networks were judged on; None for scores that are no
            share of samples.
    """

    split: str
    decided: bool
    images: int
    dense: float
    pruned: float
    drop: float
    interval: tuple[float, float] | None = None


class AutoReport(Study):
    """Everything that was tried, and the result.

    Attributes:
        searched: Samples on which networks were judged straight after pruning.
        calibrated: How many samples criteria and repairs looked at.
        data: Samples on which finetuned networks were judged.
        objective: What was to be small.
        max_drop: How much worse the score was allowed to be.
        dense_params: Parameters of the dense network.
        dense_macs: Its multiply-accumulates.
        winner: Number of the trial that is the result; None: no network met the drop.
        nearest: Number of the finetuned trial that came nearest to it.
        claims: How the winner does, or else the nearest.
        why: The result in words.
        left_out: Criteria that cannot rank the network, and why.
        notes: What the reader should know.
        checkpoint: Name of the smaller network's file, recipe: of the recipe that makes it.
    """

    schema_name: Literal["prunecli.auto/1"] = Field(AUTO_SCHEMA, alias="schema")
    model: ModelInfo
    searched: DataInfo
    calibrated: int
    data: DataInfo
    settings: dict[str, JsonValue]
    figure: Figure
    objective: Objective
    max_drop: float
    dense_params: int
    dense_macs: int
    trials: tuple[Trial, ...]
    winner: int | None
    nearest: int | None
    claims: tuple[Claim, ...]
    why: str
    left_out: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    checkpoint: str | None = None
    recipe: str | None = None
    environment: dict[str, str | int] = Field(default_factory=dict)
    seed: int = 0
    command: str = ""

    def trial(self, number: int | None) -> Trial | None:
        """The trial of a number."""
        return next((trial for trial in self.trials if trial.number == number), None)


def read_auto(path: Path) -> AutoReport:
    """Reads a report of `prune auto`.

    Raises:
        RecipeError: It is none, or damaged.
    """
    try:
        return AutoReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RecipeError(f"{path}: is no report of `prune auto`, or damaged; start again with --force") from error
