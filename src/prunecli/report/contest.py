"""The report of a contest: methods that prune one network to equally many parameters, compared over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError

from prunecli.errors import RecipeError
from prunecli.report.schema import DataInfo, ModelInfo
from prunecli.report.written import Strict, Study

CONTEST_SCHEMA: Literal["prunecli.contest/1"] = "prunecli.contest/1"


class Figure(Strict):
    """What the score of the task is called in reports and in tables, how it is written, and which way it is better."""

    name: str
    label: str
    unit: str
    digits: int
    lower_is_better: bool

    def text(self, spread: Spread) -> str:
        """Mean and deviation as tables have them."""
        return f"{spread.mean:.{self.digits}f} ± {spread.deviation:.{self.digits}f}{self.unit}"


class Spread(Strict):
    """Mean over seeds, and the deviation between them (n - 1 in the denominator)."""

    mean: float
    deviation: float


class Cell(Strict):
    """One method at one seed: what is left of the network, and its figures before and after training."""

    seed: int
    params: int
    macs: int
    before: float
    after: float | None
    figures_before: dict[str, float | None]
    figures_after: dict[str, float | None] | None


class Contender(Strict):
    """One method: its own parameters, every seed, and the spread over seeds.

    `kept_alike_between_seeds` is the mean Jaccard similarity of what it keeps at two seeds; absent for several
    networks.
    """

    label: str
    method: str
    params: dict[str, JsonValue]
    params_share: Spread
    macs_share: Spread
    before: Spread
    after: Spread | None
    kept_alike_between_seeds: float | None
    cells: tuple[Cell, ...]


class PairTest(Strict):
    """Two methods at the same seeds: the difference first - second, and Student's paired test.

    `p` is absent where a method, or the difference, is the same at every seed; `p_holm` is adjusted for all pairs.
    """

    first: str
    second: str
    difference: Spread
    p: float | None
    p_holm: float | None


class Dense(Strict):
    """The network before anything was removed."""

    params: int
    macs: int
    score: float
    figures: dict[str, float | None]


class Contest(Study):
    """Everything that was measured, and how to measure it again.

    Attributes:
        models: One network, or one for each seed; `dense` has their figures.
        target: What every method was asked to leave equally many of: parameters or multiply-accumulates.
        target_share: The share that was to be left.
        tests: All pairs, of the scores after training; of those straight after removal if nothing was trained.
        kept_alike: Jaccard similarity of what each pair of methods keeps at one seed, mean over seeds, by labels.
        left_out: Methods that cannot remove as much, and why.
        verdict: The result in words.
    """

    schema_name: Literal["prunecli.contest/1"] = Field(CONTEST_SCHEMA, alias="schema")
    models: tuple[ModelInfo, ...]
    data: DataInfo
    settings: dict[str, JsonValue]
    figure: Figure
    target: Literal["params", "macs"]
    target_share: float
    dense: tuple[Dense, ...]
    methods: tuple[Contender, ...]
    tests: tuple[PairTest, ...]
    kept_alike: dict[str, dict[str, float]]
    left_out: dict[str, str]
    verdict: tuple[str, ...]
    environment: dict[str, str | int] = Field(default_factory=dict)
    seed: int = 0
    command: str = ""


def read_contest(path: Path) -> Contest:
    """Reads a report of `prune compare --methods`.

    Raises:
        RecipeError: It is none, or damaged.
    """
    try:
        return Contest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RecipeError(f"{path}: is no report of `prune compare --methods`; start again with --force") from error
