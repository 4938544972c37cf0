"""What `prune auto` tries: criteria that suit the network, how layers share what is removed, and repairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prunecli.engine.detectors.index import detector_of
from prunecli.errors import RecipeError
from prunecli.methods.params import StructuralParams
from prunecli.methods.registry import get_structural
from prunecli.methods.selection import with_scope
from prunecli.models.loading import LoadedModel
from prunecli.recipe.schema import PruneStage
from prunecli.studies.entrants import Entrant, entrants
from prunecli.surgery.removal.compensate import Compensation

SENSITIVITY = "sensitivity"
"""Layer shares from cutting each layer alone and judging the network; see `prunecli.studies.layer_curves`."""
_CRITERIA = ("taylor", "l2", "fisher", "activation", "fpgm", "bn-scale", "obs", "lamp")
"""Those that take no longer to score a network than a trial or two; others take part where they are named."""
_SCOPES = {
    "global": "one ranking",
    "isomorphic": "one ranking of alike layers",
    "local": "the same share of every layer",
    "measured": "shares by what outputs lose when one layer is cut",
    SENSITIVITY: "shares by what the score loses when one layer is cut",
}


@dataclass(frozen=True)
class Candidate:
    """One way to prune, without the amount.

    Attributes:
        entrant: The criterion and its parameters.
        scope: Of the method, or `SENSITIVITY`.
        compensate: How removed channels are made up for.
        recalibrate: Whether statistics of normalisations are measured again.
    """

    entrant: Entrant
    scope: str
    compensate: Compensation
    recalibrate: bool

    @property
    def key(self) -> str:
        """What identifies it."""
        return f"{self.entrant.label}, {self.scope}, {self.repair}"

    @property
    def shares(self) -> str:
        """By what layers share what is removed, in words."""
        return _SCOPES[self.scope]

    @property
    def repair(self) -> str:
        """The repair in words."""
        return self.compensate + (", new statistics" if self.recalibrate else "")

    def params(self) -> dict[str, Any]:
        """Parameters of the method besides the amount, those that are no defaults."""
        default = self.entrant.method.params_class()
        own = {name: value for name, value in vars(self.entrant.params).items() if value != getattr(default, name)}
        return own if self.scope == SENSITIVITY else own | {"scope": self.scope}


@dataclass(frozen=True)
class Choices:
    """What candidates are made of; the first of each is where the search begins.

    Attributes:
        criteria: Criteria with their parameters.
        scopes: Of methods, and `SENSITIVITY`.
        repairs: Compensation, and whether statistics are measured again.
    """

    criteria: tuple[Entrant, ...]
    scopes: tuple[str, ...]
    repairs: tuple[tuple[Compensation, bool], ...]

    def first_of(self, entrant: Entrant) -> Candidate:
        """A criterion with the first scope and repair."""
        return Candidate(entrant, self.scopes[0], *self.repairs[0])


def choices_for(loaded: LoadedModel, methods: str | None, shared: Mapping[str, Any], stage: PruneStage) -> Choices:
    """What suits a network.

    Args:
        loaded: The network.
        methods: Criteria with commas, as `prune compare --methods` takes them; None: those that suit it.
        shared: Parameters that all criteria get.
        stage: Says which repairs are tried, if not all.

    Raises:
        MethodError: A criterion does not exist.
        RecipeError: An option of one does not, or one is named twice.
    """
    named = methods if methods is not None else ",".join(_suitable(loaded))
    words = [word.strip() for word in named.split(",")]
    taking_part = tuple(entrant for entrant in entrants(named, shared) if entrant.label in words)
    params = with_scope(loaded.model, StructuralParams(**shared))
    scopes = (params.scope,) if "scope" in shared else (params.scope, "local", "measured", SENSITIVITY)
    return Choices(taking_part, tuple(dict.fromkeys(scopes)), _repairs(loaded, stage))


def _suitable(loaded: LoadedModel) -> tuple[str, ...]:
    """Criteria for a network: those of normalisations and of spikes only where it has them."""
    scaled = any(
        isinstance(getattr(module, "running_mean", None), Tensor) and getattr(module, "weight", None) is not None
        for module in loaded.model.modules()
    )
    source = loaded.manifest.architecture.ref.partition(":")[0]
    spiking = ("spike",) if get_structural("spike").source == source else ()
    return spiking + tuple(name for name in _CRITERIA if name != "bn-scale" or scaled)


def _repairs(loaded: LoadedModel, stage: PruneStage) -> tuple[tuple[Compensation, bool], ...]:
    """Compensations, each with new statistics unless it sets means itself, or as the stage says."""
    statistics = _has_statistics(loaded.model)
    kinds: tuple[Compensation, ...] = ("reconstruct", "ls", "none")
    if detector_of(loaded.model) is not None:
        kinds = ("ls", "none")
    if loaded.manifest.masks is not None:  # what is masked has to stay zero
        kinds = ("none",)
    if stage.compensate not in (None, "auto"):
        if loaded.manifest.masks is not None and stage.compensate != "none":
            raise RecipeError(f"--compensate {stage.compensate} would fill masked weights; leave it out")
        kinds = (stage.compensate,)
    asked = stage.recalibrate
    return tuple((kind, statistics and (kind != "reconstruct" if asked is None else asked)) for kind in kinds)


def _has_statistics(network: nn.Module) -> bool:
    return any(isinstance(getattr(module, "running_mean", None), Tensor) for module in network.modules())
