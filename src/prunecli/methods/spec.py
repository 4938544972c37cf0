"""Pruning methods and their families. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from functools import cached_property
from typing import Any, NamedTuple

from prunecli.registry import imported

_ClassOrReference = type[Any] | str


@dataclass(frozen=True)
class MethodSpec:
    """One method: its name, origin, parameters and algorithm.

    Attributes:
        name: The verb on the command line and the value of `method:` in a recipe.
        summary: One line of help.
        paper: URL of the paper that the method follows, or empty.
        family: Name in `FAMILIES`: what runs the method, and what `load` has to return.
        params: A frozen dataclass with annotated fields, "module:attribute" of one, or several that are put together.
            Whoever wants the dataclass asks for `params_class`.
        entry: "module:attribute" of the algorithm.
        needs_data: Whether it looks at calibration images.
        without_data: Parameters with which it needs no images, for when there are none.
        command: "module:attribute" of a function from the spec to a command (`prunecli.cli.declared.Command`), for
            methods whose verb does more than those of its family.
        aliases: Options under the names of an older tool, with their names here and the kind of value that follows
            them: None, "value" or "list" (several words); or "module:attribute" of these.
        renamed: Parameters under the names that they had before, with their names now.
        source: Source of the architectures that it is for, as in "spiking:vgg9"; None: any.
        ratios: Of a structural method that decides itself how much each group loses: "module:attribute" of a function
            from the groups and the parameters to ratios by group name.
        members: Of a method that makes one ranking of several: "module:attribute" of a function from its parameters to
            those with which each of them ranks alone, by name.
    """

    name: str
    summary: str
    paper: str
    family: str
    params: _ClassOrReference | tuple[_ClassOrReference, ...]
    entry: str
    needs_data: bool = False
    without_data: Mapping[str, Any] | None = None
    command: str = ""
    source: str | None = None
    aliases: Mapping[str, tuple[str, str | None]] | str = field(default_factory=dict)
    ratios: str = ""
    members: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def params_class(self) -> type[Any]:
        """The dataclass of its parameters, imported or made on first use."""
        given = self.params if isinstance(self.params, tuple) else (self.params,)
        parts = [imported(part) if isinstance(part, str) else part for part in given]
        if len(parts) == 1:
            only: type[Any] = parts[0]
            return only
        title = self.name.title().replace("-", "")
        return make_dataclass(f"{title}Params", (), bases=tuple(parts), frozen=True)

    @cached_property
    def option_aliases(self) -> Mapping[str, tuple[str, str | None]]:
        """`aliases`, imported on first use."""
        aliases: Mapping[str, tuple[str, str | None]]
        aliases = imported(self.aliases) if isinstance(self.aliases, str) else self.aliases
        return aliases

    def load(self) -> Any:
        """Imports the algorithm, and with it torch."""
        return imported(self.entry)


class Family(NamedTuple):
    """One kind of methods, and what runs them.

    Attributes:
        name: As in `MethodSpec.family`.
        summary: What its methods do, as in "methods that remove channels".
        runner: "module:attribute" of a function (workspace, stage, out) that runs a prune stage and returns a
            `prunecli.report.results.StageOutcome`.
        python: How its methods are used from Python.
        settings: Fields of a prune stage that it reads.
        resumable: Whether its stages keep states to resume from.
    """

    name: str
    summary: str
    runner: str
    python: str
    settings: tuple[str, ...]
    resumable: bool


_REPAIRS = ("keep", "recalibrate", "compensate", "calibration_images")
_TRAINING = ("epochs", "lr", "optimizer")
_MEASURED = ("latency_rounds", "evaluate", "evaluation_images")

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            "structural",
            "remove channels",
            "prunecli.pipeline.stages.structural:structural_stage",
            "prunecli.prune",
            (*_REPAIRS, *_TRAINING, *_MEASURED, "offload"),
            resumable=True,
        ),
        Family(
            "trained",
            "prune while they train",
            "prunecli.pipeline.stages.trained:trained_stage",
            "prunecli.engine.fit with the method's hook",
            (*_REPAIRS, *_TRAINING, *_MEASURED),
            resumable=True,
        ),
        Family(
            "sparse",
            "set single weights to zero",
            "prunecli.pipeline.stages.sparse:sparse_stage",
            "prunecli.methods.sparse.mask_weights",
            ("keep", "recalibrate", "calibration_images", *_TRAINING, *_MEASURED),
            resumable=True,
        ),
        Family(
            "parts",
            "remove whole blocks or experts",
            "prunecli.pipeline.stages.parts:parts_stage",
            "prunecli.prune",
            ("keep", "recalibrate", "calibration_images", *_MEASURED),
            resumable=False,
        ),
        Family(
            "runtime",
            "change how a network runs",
            "prunecli.pipeline.stages.runtime:runtime_stage",
            "prunecli.methods.runtime.get_runtime",
            ("latency_rounds",),
            resumable=False,
        ),
    )
}
"""Structural methods are criteria (`prunecli.criteria.base.Criterion`): score, allocate, remove. Trained methods take
part in training (`prunecli.methods.trained.TrainedMethod`) and may remove channels afterwards. Sparse methods
(`prunecli.criteria.weights.base.WeightMethod`) set single weights to zero and change no shape. Methods for parts
(`prunecli.methods.parts.PartMethod`) take whole modules out. Runtime methods
(`prunecli.methods.runtime.RuntimeMethod`) change no weight."""
