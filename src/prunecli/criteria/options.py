"""Options of single criteria, besides those of all structural methods. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_doc import Doc

from prunecli.bounds import Ge, Gt, Le

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
class RetentionOptions:
    """How many units stay."""

    __pydantic_config__ = {"allow_inf_nan": False}  # noqa: RUF012 - read by pydantic, never changed

    retention: Annotated[
        Literal["ratio", "epsilon", "cv-legacy"],
        Doc(
            "ratio: as --ratio, or a target, says; epsilon: the fewest with which the loss rises by no more than "
            "--epsilon; cv-legacy: those that hold 70, 80 or 90 % of a layer's scores, by how much these vary."
        ),
    ] = "ratio"
    epsilon: Annotated[
        float | None, Gt(0), Doc("Rise of the mean loss that --retention epsilon allows, before compensation.")
    ] = None


@dataclass(frozen=True)
class ActivationOptions(RetentionOptions):
    """Which statistic of the activations is the score."""

    statistic: Annotated[
        Literal["mean", "std"], Doc("mean: of the absolute activation; std: its standard deviation.")
    ] = "mean"


@dataclass(frozen=True)
class HessianOptions(RetentionOptions):
    """How long second derivatives are sampled."""

    min_probes: Annotated[int, Ge(4), Doc("The fewest random vectors, one for each batch, data repeated.")] = 16
    max_probes: Annotated[int, Ge(4), Doc("The most of them.")] = 128
    stability: Annotated[
        float,
        Gt(0),
        Le(1),
        Doc("Stop when the ranking can be relied on this far, from the rank correlation of two data halves; 1: never."),
    ] = 0.95


@dataclass(frozen=True)
class EnhancedOptions(HessianOptions):
    """Which parts make the score, and how."""

    magnitude: Annotated[bool, Doc("Part: norms of the weights that write and read a unit.")] = True
    activation: Annotated[bool, Doc("Part: spread, firing rate, entropy and range of its activations.")] = True
    gradient: Annotated[bool, Doc("Part: size, steadiness and sign of the loss's derivative by it.")] = True
    cooperative: Annotated[bool, Doc("Part: its weights times the variance that no other unit explains.")] = True
    hessian: Annotated[bool, Doc("Part: Hessian trace times weights, as in hap.")] = True
    samples: Annotated[int, Ge(0), Doc("Calibration samples that are used; 0: all.")] = 0
    fusion: Annotated[
        Literal["simple", "adaptive", "learned"],
        Doc(
            "simple: the mean of the parts' ranks; adaptive: weighted by how far each part agrees with itself on two "
            "halves of the data; learned: fitted to units that are removed one by one."
        ),
    ] = "adaptive"
    ablations: Annotated[int, Ge(8), Doc("Units that fusion learned removes one by one.")] = 24
    ridge: Annotated[float, Gt(0), Doc("As in obs, for the cooperative part.")] = 0.01


@dataclass(frozen=True)
class ObsOptions(RetentionOptions):
    """How covariances are inverted."""

    ridge: Annotated[
        float, Gt(0), Doc("Added to the diagonal of the covariance, relative to its mean; more trusts the data less.")
    ] = 0.01
    taps: Annotated[bool, Doc("Of convolutions, whether each tap of a channel counts by itself.")] = True
