"""The neurons of `spiking:...` networks, their coding of images, and running them over time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import base, neuron, surrogate
from torch import Tensor, nn

from prunecli.errors import ModelError, unknown
from prunecli.measure.neurons import without_memory

_CODINGS = ("direct", "poisson")
_NEURONS = ("lif", "plif", "if")
_SURROGATES: dict[str, type[nn.Module]] = {
    "sigmoid": surrogate.Sigmoid,
    "atan": surrogate.ATan,
    "piecewise-quadratic": surrogate.PiecewiseQuadratic,
    "soft-sign": surrogate.SoftSign,
    "erf": surrogate.Erf,
}
_TAU = {"lif": "tau", "plif": "init_tau"}
_IMAGES, _FRAMES = 4, 5


@dataclass(frozen=True)
class NeuronConfig:
    """How the neurons of a network are made; those after attention have half the threshold.

    Attributes:
        neuron: "lif" leaky integrate-and-fire, "plif" with a learnt time constant (Fang et al., 2021), "if" without a
            leak.
        tau: Time constant in steps, over 1; the initial value for "plif".
        decay_input: Whether the input is divided by tau as well.
        v_threshold: Potential at which a neuron fires.
        v_reset: Potential after a spike; None: the threshold is subtracted instead.
        detach_reset: Whether the gradient ignores the reset.
        surrogate: Surrogate for the derivative of the step function: "sigmoid", "atan", "piecewise-quadratic",
            "soft-sign" or "erf".
        alpha: Steepness of the surrogate; None: spikingjelly's default.
    """

    neuron: str = "lif"
    tau: float = 2.0
    decay_input: bool = True
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = True
    surrogate: str = "sigmoid"
    alpha: float | None = None

    def __post_init__(self) -> None:
        if self.neuron not in _NEURONS:
            raise ModelError(unknown("neuron", self.neuron, _NEURONS))
        if self.surrogate not in _SURROGATES:
            raise ModelError(unknown("surrogate", self.surrogate, _SURROGATES))
        if not self.tau > 1 or not self.v_threshold > 0:
            raise ModelError(
                f"neurons with tau {self.tau:g} and v_threshold {self.v_threshold:g}: tau has to be over 1, the "
                "threshold over 0"
            )
        if self.v_reset is not None and self.v_reset >= self.v_threshold:
            raise ModelError(
                f"v_reset {self.v_reset:g} is not below v_threshold {self.v_threshold:g}, so a neuron that fired once "
                "would fire forever; give a lower one"
            )

    def factory(self) -> Callable[..., nn.Module]:
        """A function that makes one neuron; of the settings that spikingjelly passes, only `step_mode` counts."""

        def make(**settings: Any) -> nn.Module:
            return self.make(settings.get("step_mode", "m"))

        return make

    def make(self, step_mode: str = "m") -> nn.Module:
        """A neuron of this kind."""
        steepness = {} if self.alpha is None else {"alpha": float(self.alpha)}
        settings: dict[str, Any] = {
            "v_threshold": float(self.v_threshold),
            "v_reset": None if self.v_reset is None else float(self.v_reset),
            "surrogate_function": _SURROGATES[self.surrogate](**steepness),
            "detach_reset": self.detach_reset,
            "step_mode": step_mode,
        }
        kind = {"if": neuron.IFNode, "lif": neuron.LIFNode, "plif": neuron.ParametricLIFNode}[self.neuron]
        if self.neuron != "if":
            settings |= {"decay_input": self.decay_input, _TAU[self.neuron]: float(self.tau)}
        node: nn.Module = kind(**settings)
        return node


class SpikingNetwork(nn.Module, base.StepModule):  # type: ignore[misc]
    """A classifier that runs over time, with neurons reset before and after each pass.

    Attributes:
        T: Number of steps for which an image is shown.
        coding: "direct": the image itself at every step; "poisson": a pixel of value p in 0..1 spikes with probability
            p. In evaluation mode the same random numbers are drawn in every pass and for every image.
    """

    T: int
    coding: str

    def prepare(self, T: int, coding: str) -> None:
        """Sets how the network runs over time; subclasses call it in their constructor.

        Raises:
            ModelError: T is less than 1, or there is no such coding.
        """
        if T < 1:
            raise ModelError(f"a network that runs for T = {T} steps; give at least 1")
        if coding not in _CODINGS:
            raise ModelError(unknown("coding", coding, _CODINGS))
        self.T, self.coding = T, coding
        self._step_mode = "m"

    def forward(self, x: Tensor) -> Tensor:
        """Class scores.

        Args:
            x: Images (N, C, H, W), or frames (N, T, C, H, W) with a T of their own.

        Returns:
            Scores of shape (N, classes), the mean over the steps.
        """
        return self.scores_over_time(x).mean(0)

    def scores_over_time(self, x: Tensor) -> Tensor:
        """Class scores at every step, shape (T, N, classes); takes the same inputs as `forward`."""
        steps = self.encode(x)
        with without_memory(self):
            if self.step_mode == "m":
                return self.simulate(steps)
            return torch.stack([self.simulate(step) for step in steps])

    def simulate(self, steps: Tensor) -> Tensor:
        """Scores (T, N, classes) of steps (T, N, C, H, W); in step mode "s", of one step, both without T."""
        raise NotImplementedError  # every network defines its own

    def encode(self, x: Tensor) -> Tensor:
        """Turns the inputs of `forward` into steps (T, N, C, H, W).

        Raises:
            ValueError: They have another number of dimensions.
        """
        if x.dim() == _FRAMES:
            return x.transpose(0, 1)
        if x.dim() != _IMAGES:
            raise ValueError(f"expected images (N, C, H, W) or frames (N, T, C, H, W), not {tuple(x.shape)}")
        if self.coding == "direct":
            return x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        shape = (self.T, *x.shape)
        if self.training:
            return (torch.rand(shape, device=x.device) < x).to(x)
        thresholds = torch.rand((self.T, 1, *x.shape[1:]), generator=torch.Generator().manual_seed(0))
        return (thresholds.to(x) < x).to(x)


class MultiStepOnly(SpikingNetwork):
    """A network whose blocks only take all steps at once."""

    def supported_step_mode(self) -> tuple[str, ...]:
        """Multi-step only."""
        return ("m",)
