"""The neurons of `spiking:...` networks, their coding of images and their passing of time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import base, neuron, surrogate
from torch import Tensor, nn

from prunecli.errors import ModelError, unknown
from prunecli.measure.neurons import without_memory

CODINGS = ("direct", "poisson")
NEURONS = ("lif", "plif", "if")
SURROGATES: dict[str, type[nn.Module]] = {
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
    """How every neuron of a network is made; the attention's own neurons have half the threshold.

    Attributes:
        neuron: "lif" leaky integrate-and-fire, "plif" with a learnt time constant (Fang et al., 2021), "if" without a
            leak.
        tau: Time constant in steps, over 1; where "plif" begins.
        decay_input: Whether the input is divided by tau too.
        v_threshold: Potential at which a neuron fires.
        v_reset: Potential after a spike; None subtracts the threshold instead.
        detach_reset: Whether the gradient leaves the reset out.
        surrogate: What stands in for the derivative of the step: one of `SURROGATES`.
        alpha: Its steepness; None: spikingjelly's.
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
        if self.neuron not in NEURONS:
            raise ModelError(unknown("neuron", self.neuron, NEURONS))
        if self.surrogate not in SURROGATES:
            raise ModelError(unknown("surrogate", self.surrogate, SURROGATES))
        if not self.tau > 1 or not self.v_threshold > 0:
            raise ModelError(
                f"neurons with tau {self.tau:g} and v_threshold {self.v_threshold:g}: tau has to be over 1, the "
                "threshold over 0"
            )
        if self.v_reset is not None and self.v_reset >= self.v_threshold:
            raise ModelError(
                f"v_reset {self.v_reset:g} is not below v_threshold {self.v_threshold:g}, so a neuron that fired once "
                "would fire for ever; give a lower one"
            )

    def factory(self) -> Callable[..., nn.Module]:
        """Makes one neuron; takes `step_mode` and what else a library hands over, in place of its own."""

        def make(**given: Any) -> nn.Module:
            return self.make(given.get("step_mode", "m"))

        return make

    def make(self, step_mode: str = "m") -> nn.Module:
        """One neuron of this kind."""
        shape = {} if self.alpha is None else {"alpha": float(self.alpha)}
        settings: dict[str, Any] = {
            "v_threshold": float(self.v_threshold),
            "v_reset": None if self.v_reset is None else float(self.v_reset),
            "surrogate_function": SURROGATES[self.surrogate](**shape),
            "detach_reset": self.detach_reset,
            "step_mode": step_mode,
        }
        kind = {"if": neuron.IFNode, "lif": neuron.LIFNode, "plif": neuron.ParametricLIFNode}[self.neuron]
        if self.neuron != "if":
            settings |= {"decay_input": self.decay_input, _TAU[self.neuron]: float(self.tau)}
        made: nn.Module = kind(**settings)
        return made


class SpikingNetwork(nn.Module, base.StepModule):  # type: ignore[misc]
    """A classifier that runs over time and forgets everything before and after each pass.

    Attributes:
        T: Steps that an image is shown for.
        coding: "direct": the image itself at every step; "poisson": a pixel of value p in 0..1 is a spike with
            probability p. In evaluation mode the same random numbers are drawn each time, and for every image.
    """

    T: int
    coding: str

    def prepare(self, T: int, coding: str) -> None:
        """Sets how the network runs over time; every subclass calls it when it is made.

        Raises:
            ModelError: There is no step, or no such coding.
        """
        if T < 1:
            raise ModelError(f"a network that runs for T = {T} steps; give at least 1")
        if coding not in CODINGS:
            raise ModelError(unknown("coding", coding, CODINGS))
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
        """Class scores at every step, shape (T, N, classes); takes what `forward` takes."""
        steps = self.encode(x)
        with without_memory(self):
            if self.step_mode == "m":
                return self.simulate(steps)
            return torch.stack([self.simulate(step) for step in steps])

    def simulate(self, steps: Tensor) -> Tensor:
        """Scores (T, N, classes) of steps (T, N, C, H, W), or in step mode "s" those of one step, without its T."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """Turns what `forward` takes into steps (T, N, C, H, W).

        Raises:
            ValueError: It has another number of dimensions.
        """
        if x.dim() == _FRAMES:
            return x.transpose(0, 1)
        if x.dim() != _IMAGES:
            raise ValueError(f"expected images (N, C, H, W) or frames (N, T, C, H, W), not {tuple(x.shape)}")
        if self.coding == "direct":
            return x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        shape = (self.T, len(x), *x.shape[1:])
        if self.training:
            return (torch.rand(shape, device=x.device) < x).to(x)
        thresholds = torch.rand((self.T, 1, *x.shape[1:]), generator=torch.Generator().manual_seed(0))
        return (thresholds.to(x) < x).to(x)


class MultiStepOnly(SpikingNetwork):
    """A network whose blocks take all steps at once."""

    def supported_step_mode(self) -> tuple[str, ...]:
        """Multi-step alone."""
        return ("m",)
