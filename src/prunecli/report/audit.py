"""The report of an audit: how criteria rank units, beside what removing each of them really costs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from prunecli.errors import RecipeError
from prunecli.report.schema import DataInfo, ModelInfo
from prunecli.report.written import Strict, Study

AUDIT_SCHEMA: Literal["prunecli.audit/1"] = "prunecli.audit/1"


class Correlation(Strict):
    """Spearman's rank correlation, its 95 % bootstrap interval, and p for values that have nothing to do with it.

    `p` is doubled where two forms of the scores were tried, and `p_holm` adjusted for the number of methods. There is
    no value where all scores, or all ablations, are equal.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None


class UnitAblation(Strict):
    """One unit that was removed alone.

    Attributes:
        group: Name of its group.
        unit: Its index there.
        rise: By how much the mean loss of a sample rises, in nats for classification.
        rise_by_half: The same on each half of the samples.
        scores: By method, its score in the form that is chosen for it; None where the method cannot rank the group.
    """

    group: str
    unit: int
    rise: float
    rise_by_half: tuple[float, float]
    scores: dict[str, float | None]


class Audited(Strict):
    """One method.

    Attributes:
        label: As the user wrote it.
        method: Its name.
        params: Its parameters.
        units: Sampled units that it ranks.
        normalise: How its scores enter one ranking over all layers: divided by their layer's mean ("mean"), or as
            they are ("none"), which is chosen only where `gain_interval` is above 0.
        with_ablation: The scores in that form, and the ablations.
        divided: Correlation of scores divided by their layer's mean; None for methods that never are.
        undivided: Of scores as they are.
        gain_interval: 95 % of the difference, `undivided` - `divided`, by the same resamples.
        within_layers: Mean over layers with at least four sampled units.
        stability: Correlation of its scores from two halves of the data, over all units.
        needs_data: Whether it looks at data.
        peak_memory_bytes: Of all tensors while it scores one batch, those of the network included.
        left_out: Groups that it cannot rank, and why.
    """

    label: str
    method: str
    params: dict[str, JsonValue]
    units: int
    normalise: Literal["mean", "none"]
    with_ablation: Correlation
    divided: float | None
    undivided: float | None
    gain_interval: tuple[float, float] | None
    within_layers: float | None
    stability: float | None
    needs_data: bool
    peak_memory_bytes: int
    left_out: dict[str, str]


class Difference(Strict):
    """The method with the highest correlation and another one, over the units that both rank.

    The interval is that of the bootstrap; p is adjusted by Holm's procedure. There is none for random: what it gives on
    average is known, and `Correlation.p` compares with that.
    """

    first: str
    second: str
    difference: float
    interval: tuple[float, float] | None
    p_holm: float | None


class Fusion(Strict):
    """Ranks of several methods in one, judged on ablations that it was not fitted on.

    Attributes:
        name: simple, adaptive or learned, or the label of a method that is a fusion.
        weights: By method.
        fitted_on: Ablations that decided the weights; 0 where they do not depend on them.
        judged_on: Ablations that did not.
        correlation: With those.
        best_member: The method with the highest correlation with the same ablations.
        best_member_correlation: Its correlation.
        interval: 95 % of the difference, fusion - best member.
        p: One-sided, of the same resamples, for a fusion that is not better.
        p_holm: Adjusted by Holm's procedure for all fusions that are judged.
        recommended: Whether it is better, and `p_holm` below 0.05.
        reason: Why, or why not.
    """

    name: str
    weights: dict[str, float]
    fitted_on: int
    judged_on: int
    correlation: float | None
    best_member: str
    best_member_correlation: float | None
    interval: tuple[float, float] | None
    p: float | None = None
    p_holm: float | None = None
    recommended: bool
    reason: str


class Audit(Study):
    """Everything that was measured, and how to measure it again. Wall times are kept elsewhere: they never repeat.

    Attributes:
        baseline_loss: Mean loss of a sample with everything in place.
        ablation_halves: Correlation of the ablations on the two halves of the samples: no score can be expected to
            agree with them much better.
        agreement: Rank correlation of each pair of methods, over all units that both rank.
        differences: The leading method and every other one.
        left_out: Layers that cannot shrink, and why.
        recommended: The label of the method to use; None if none is better than chance.
        verdict: The result in words.
    """

    schema_name: Literal["prunecli.audit/1"] = Field(AUDIT_SCHEMA, alias="schema")
    model: ModelInfo
    data: DataInfo
    settings: dict[str, JsonValue]
    prunable_units: int
    verify_error: float
    baseline_loss: float
    ablation_halves: float | None
    ablations: tuple[UnitAblation, ...]
    methods: tuple[Audited, ...]
    agreement: dict[str, dict[str, float | None]]
    differences: tuple[Difference, ...]
    fusions: tuple[Fusion, ...]
    left_out: dict[str, str]
    recommended: str | None
    verdict: tuple[str, ...]
    environment: dict[str, str | int] = Field(default_factory=dict)
    seed: int = 0
    command: str = ""


def read_audit(path: Path) -> Audit:
    """Reads a report of `prune audit`.

    Raises:
        RecipeError: It is none, or damaged.
    """
    try:
        return Audit.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RecipeError(f"{path}: is no report of `prune audit`; start again with --force") from error
