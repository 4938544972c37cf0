"""Options of single criteria, besides those of all structural methods. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc
from annotated_types import Ge, Gt, Le

_SpikeCriterion = Literal["rate", "rate+v", "entropy", "variance", "singular", "l1", "bn-scale", "random"]


@dataclass(frozen=True)
class NoOptions:
    """For criteria that have none."""


@dataclass(frozen=True)
class LampOptions:
    """Normalisation of LAMP scores, which compare across layers without any."""

    normalise: Annotated[
        Literal["mean", "none"], Doc("Before ranking divide each layer's scores by their mean, or take them raw.")
    ] = "none"


@dataclass(frozen=True)
class SpikeOptions:
    """How spikes are scored."""

    criterion: Annotated[
        _SpikeCriterion,
        Doc(
            "rate: mean spikes of a channel's neurons; rate+v: and the mean size of their potential; entropy of their "
            "firing; variance over time; singular: nuclear norm of spikes, steps by positions; l1, bn-scale and random "
            "to compare."
        ),
    ] = "rate"
    residual: Annotated[
        bool, Doc("Whether a width that several layers add to (the residual stream) may shrink too.")
    ] = False

    @property
    def looks_at_inputs(self) -> bool:
        """Whether the criterion runs the network."""
        return self.criterion not in ("l1", "bn-scale", "random")


@dataclass(frozen=True)
class ActivationOptions:
    """Which statistic of the activations is the score."""

    statistic: Annotated[
        Literal["mean", "std"], Doc("mean: of the absolute activation; std: its standard deviation.")
    ] = "mean"


@dataclass(frozen=True)
class HessianOptions:
    """How long second derivatives are sampled."""

    min_probes: Annotated[int, Ge(4), Doc("The fewest random vectors, one for each batch, data repeated.")] = 16
    max_probes: Annotated[int, Ge(4), Doc("The most of them.")] = 256
    stability: Annotated[
        float,
        Gt(0),
        Le(1),
        Doc("Stop when the ranking can be relied on this far, from the rank correlation of two halves; 1: never."),
    ] = 0.95


@dataclass(frozen=True)
class ObsOptions:
    """How covariances are inverted."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012 - read by pydantic, never changed

    ridge: Annotated[
        float, Gt(0), Doc("Added to the diagonal of the covariance, relative to its mean; more trusts the data less.")
    ] = 0.01
