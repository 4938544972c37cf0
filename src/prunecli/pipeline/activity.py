"""Firing rates and energy of the current network, in the form of a report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from prunecli.data.splits import Split
from prunecli.engine.resources import resource_errors
from prunecli.errors import ModelError
from prunecli.inputs import Inputs, sample_count
from prunecli.measure.counts import Macs, count_macs
from prunecli.measure.energy import FORMULA, Profile, energy_nj, profile
from prunecli.measure.neurons import spiking_neurons
from prunecli.measure.spikes import connection_sparsity, footprint_bytes
from prunecli.methods.targets import SPIKE_TARGETS
from prunecli.pipeline.firing import energy_metrics, layer_energies, neuron_rates, spike_metrics
from prunecli.pipeline.model_inputs import ModelInputs
from prunecli.pipeline.state import RunState
from prunecli.recipe.schema import MEASUREMENTS, EvalStage, Measurement
from prunecli.report.schema import Metrics, NeuronRates

_PRUNING_IMAGES = 128


@dataclass(frozen=True)
class _EnergyFigures:
    """Fields for a report and for its metrics."""

    metrics: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Firing:
    """Firing rates of a network.

    Attributes:
        neurons: Figures by layer.
        timesteps: Time steps per image.
        images: Number of images shown.
        data: Name of the data set.
        metrics: Rates, operations, energy and sparsities of the whole network.
    """

    neurons: tuple[NeuronRates, ...]
    timesteps: int
    images: int
    data: str
    metrics: Metrics


class Activity(ABC):
    """Measurements that depend on whether a network has spiking neurons.

    Attributes:
        targets_on_data: Pruning targets that are measured on images.
        firing_hint: A hint for users who have not named a data set, or empty.
    """

    targets_on_data: tuple[str, ...] = ()
    firing_hint: str = ""

    def __init__(self, state: RunState, inputs: ModelInputs) -> None:
        self._state, self._inputs = state, inputs

    @property
    def time_steps(self) -> int | None:
        """Time steps per image of a spiking network, if it has such an attribute."""
        return None

    @abstractmethod
    def comparable(self, has_data: bool) -> tuple[Measurement, ...]:
        """Additional measurements for comparing networks."""

    @abstractmethod
    def evaluate(self, stage: EvalStage, macs: Macs | None, example: Inputs) -> _EnergyFigures:
        """Measures `spikes` and `energy` for an eval stage.

        Figures that cannot be measured are left out, with a warning if they were requested by name.

        Args:
            stage: What to measure.
            macs: The network's, if they were counted.
            example: One input.
        """

    @abstractmethod
    def before_and_after(self, networks: Sequence[nn.Module], images: int) -> tuple[Metrics, Metrics] | None:
        """Firing and energy of the original network and the pruned one on the same images; None without spikes."""

    @abstractmethod
    def firing(self, images: int, *, required: bool) -> Firing | None:
        """Firing rates on training images; where a data set has none, on its test images.

        Args:
            images: How many images to show.
            required: Whether a network without spikes is an error; else there are no rates for it.

        Raises:
            DataError: No data set is named, neither here nor in the checkpoint.
            ModelError: The network has no spiking neurons.
        """

    @abstractmethod
    def warn_ranked_without_data(self, instead: str) -> None:
        """Warns that a method ranks by something else because there are no images."""


class _Spiking(Activity):
    """Networks with spiking neurons."""

    targets_on_data = SPIKE_TARGETS
    firing_hint = "for firing rates, silent and saturated channels name a data set: --data NAME"

    @property
    def time_steps(self) -> int | None:
        steps = getattr(self._state.model().model, "T", None)
        return steps if isinstance(steps, int) else None

    def comparable(self, has_data: bool) -> tuple[Measurement, ...]:
        return ("spikes", "energy") if has_data else ()

    def evaluate(self, stage: EvalStage, macs: Macs | None, example: Inputs) -> _EnergyFigures:
        measured = {"spikes", "energy"} & set(stage.measure)
        steps = {"timesteps": getattr(self._state.model().model, "T", None)}
        if not measured:
            return _EnergyFigures(steps)
        static = _static_figures(self._state.model().model)
        if self._state.data_name() is None:
            if stage.measure != MEASUREMENTS:
                self._state.sink.warn("no data set, so no firing rates and no energy of spikes: name one with --data")
            return _EnergyFigures(steps | (static if "energy" in measured else {}))
        profiled = self._profile(self._state.split(stage.split), stage.energy_images)
        metrics: dict[str, Any] = {"timesteps": profiled.timesteps, "energy_images": profiled.images}
        report: dict[str, Any] = {}
        if "spikes" in measured:
            metrics |= spike_metrics(profiled)
            report["neurons"] = neuron_rates(profiled)
        if "energy" in measured:
            metrics |= static | energy_metrics(profiled)
            report |= {"energy_formula": FORMULA, "layers": layer_energies(profiled)}
        return _EnergyFigures(metrics, report)

    def before_and_after(self, networks: Sequence[nn.Module], images: int) -> tuple[Metrics, Metrics] | None:
        split = self._image_split()
        profiles = [self._profile(split, min(images, _PRUNING_IMAGES), network) for network in networks]
        before, after = (Metrics(**spike_metrics(one), **energy_metrics(one)) for one in profiles)
        if before.firing_rate and not after.firing_rate:
            self._state.sink.warn("no neuron of the result fires any more, so its scores are constant; prune less")
        if (after.synops or 0) > (before.synops or 0):
            self._state.sink.warn(
                "the smaller network does more synaptic operations: the neurons of "
                f"{self._state.model().name} hardly fire ({100 * (before.firing_rate or 0):.2f} %), train it first"
            )
        return before, after

    def firing(self, images: int, *, required: bool) -> Firing:
        profiled = self._profile(self._image_split(), images)
        metrics = Metrics(
            timesteps=profiled.timesteps,
            energy_images=profiled.images,
            **_static_figures(self._state.model().model),
            **spike_metrics(profiled),
            **energy_metrics(profiled),
        )
        return Firing(neuron_rates(profiled), profiled.timesteps, profiled.images, self._state.data().name, metrics)

    def warn_ranked_without_data(self, instead: str) -> None:
        self._state.sink.warn(
            f"no data set, so channels are ranked by {instead}: to rank them by what they do name one with --data"
        )

    def _image_split(self) -> Split:
        """Training images without those held out; the test images of a data set that has no others."""
        data = self._state.data()
        return data.training_split() if data.train is not None else data.test

    def _profile(self, split: Split, images: int, network: nn.Module | None = None) -> Profile:
        """Runs the current network, or another one, on a seeded choice of images.

        Raises:
            DataError: None of them can be read.
            ModelError: The network does not run on such images.
        """
        state = self._state
        model = (network if network is not None else state.model().model).to(state.device)
        size = min(state.recipe.data.batch_size, images)
        batches = self._inputs.calibration(split, images, size)
        with (
            state.sink.progress("spikes", min(images, len(split.labels))) as advance,
            self._inputs.running(),
            resource_errors(size),
        ):

            def counted() -> Iterator[Tensor]:
                done = 0
                for batch in batches:
                    yield batch
                    done += sample_count(batch)
                    advance(done, f"{done} images")

            profiled = profile(model, counted())
        state.report_bad()
        model.cpu()
        return profiled


class _Dense(Activity):
    """Networks without spiking neurons: only the energy of their MACs is known."""

    def comparable(self, has_data: bool) -> tuple[Measurement, ...]:
        return ("energy",)

    def evaluate(self, stage: EvalStage, macs: Macs | None, example: Inputs) -> _EnergyFigures:
        loaded = self._state.model()
        if "spikes" in stage.measure and stage.measure != MEASUREMENTS:
            self._state.sink.warn(f"{loaded.name} has no spiking neurons, so no firing rates; measure energy instead")
        if "energy" not in stage.measure:
            return _EnergyFigures()
        macs = macs or count_macs(loaded.model, example)
        figures = {"multiplied": macs.total, "energy_nj": energy_nj(macs.total), "energy_uncounted": macs.uncounted}
        return _EnergyFigures(figures | _static_figures(loaded.model), {"energy_formula": FORMULA})

    def before_and_after(self, networks: Sequence[nn.Module], images: int) -> None:
        return None

    def warn_ranked_without_data(self, instead: str) -> None:
        pass  # the method itself reports that there are no spikes

    def firing(self, images: int, *, required: bool) -> None:
        if required:
            raise ModelError(
                f"{self._state.model().name} has no spiking neurons, so there are no firing rates; leave out --plot"
            )


def activity_of(state: RunState, inputs: ModelInputs) -> Activity:
    """The measurements for the current network of a run."""
    kind = _Spiking if spiking_neurons(state.model().model) else _Dense
    return kind(state, inputs)


def _static_figures(model: nn.Module) -> dict[str, Any]:
    """Figures that depend on the weights alone."""
    return {"connection_sparsity": connection_sparsity(model), "footprint_bytes": footprint_bytes(model)}
