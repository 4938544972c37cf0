"""Firing rates and energy of the current network, as a report has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prunecli.data.loader import CalibrationBatches
from prunecli.data.splits import Split
from prunecli.engine.resources import resource_errors
from prunecli.errors import RecipeError
from prunecli.measure.counts import Macs, count_macs
from prunecli.measure.energy import FORMULA, Profile, energy_nj, profile
from prunecli.measure.neurons import spiking_neurons
from prunecli.measure.spikes import connection_sparsity, footprint_bytes
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import MEASUREMENTS, EvalStage
from prunecli.report.schema import LayerEnergy, Metrics, NeuronRates

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_PRUNING_IMAGES = 128


@dataclass(frozen=True)
class EnergyFigures:
    """Parts of a report: fields of its metrics, and of itself."""

    metrics: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def split_for(space: Workspace, name: str) -> Split:
    """The test or the validation split of the data set.

    Raises:
        RecipeError: No image is held out for validation.
    """
    data = space.data()
    split = data.test if name == "test" else data.validation
    if split is None:
        raise RecipeError(f"{data.name} has no validation split; use --split test or a --val-fraction over 0")
    return split


def profile_network(
    space: Workspace, split: Split, images: int, network: nn.Module | None = None, what: str = "spikes"
) -> Profile:
    """Runs the current network, or another, on a seeded choice of images.

    Raises:
        DataError: None of them can be read.
        ModelError: The network does not run on such images.
    """
    model = (network if network is not None else space.model().model).to(space.device)
    size = min(space.recipe.data.batch_size, images)
    batches = CalibrationBatches(split, space.preprocessing(), images, size, seed=space.recipe.seed, bad=space.bad)
    with space.sink.progress(what, min(images, len(split.labels))) as advance, space.running(), resource_errors(size):
        done = 0

        def told() -> Any:
            nonlocal done
            for batch in batches:
                yield batch
                done += len(batch)
                advance(done, f"{done} images")

        found = profile(model, told())
    space.tell_bad()
    model.cpu()
    return found


def energy_figures(space: Workspace, stage: EvalStage, macs: Macs | None, example: torch.Tensor) -> EnergyFigures:
    """What `spikes` and `energy` of an eval stage come to; what cannot be measured is left out, and said if asked for.

    Args:
        space: With the network and its data.
        stage: What to measure.
        macs: The network's, if they were counted.
        example: One input.
    """
    wanted = {"spikes", "energy"} & set(stage.measure)
    model = space.model().model
    steps = {"timesteps": getattr(model, "T", None)} if spiking_neurons(model) else {}
    if not wanted:
        return EnergyFigures(steps)
    static = {"connection_sparsity": connection_sparsity(model), "footprint_bytes": footprint_bytes(model)}
    by_name = stage.measure != MEASUREMENTS
    if not spiking_neurons(model):
        if "spikes" in wanted and by_name:
            space.sink.warn(f"{space.model().name} has no spiking neurons, so no firing rates; measure energy instead")
        if "energy" not in wanted:
            return EnergyFigures()
        macs = macs or count_macs(model, example)
        figures = {"multiplied": macs.total, "energy_nj": energy_nj(macs.total), "energy_uncounted": macs.uncounted}
        return EnergyFigures(figures | static, {"energy_formula": FORMULA})
    if space.data_name() is None:
        if by_name:
            space.sink.warn("no data set, so no firing rates and no energy of spikes: name one with --data")
        return EnergyFigures(steps | (static if "energy" in wanted else {}))
    found = profile_network(space, split_for(space, stage.split), stage.energy_images)
    metrics: dict[str, Any] = {"timesteps": found.timesteps, "energy_images": found.images}
    report: dict[str, Any] = {}
    if "spikes" in wanted:
        metrics |= spike_metrics(found)
        report["neurons"] = neuron_rates(found)
    if "energy" in wanted:
        metrics |= static | energy_metrics(found)
        report |= {"energy_formula": FORMULA, "layers": layer_energies(found)}
    return EnergyFigures(metrics, report)


def spikes_before_and_after(
    space: Workspace, networks: Sequence[nn.Module], images: int
) -> tuple[Metrics, Metrics] | None:
    """Firing and energy of the network given and the pruned one on the same training images; None without spikes.

    Where the data set has no training images its test images are taken.
    """
    if not spiking_neurons(networks[0]):
        return None
    split = image_split(space)
    found = [profile_network(space, split, min(images, _PRUNING_IMAGES), network) for network in networks]
    before, after = (Metrics(**spike_metrics(one), **energy_metrics(one)) for one in found)
    return before, after


def image_split(space: Workspace) -> Split:
    """Training images without those held out; the test images of a data set that has no others."""
    data = space.data()
    return data.training_split() if data.train is not None else data.test


def spike_metrics(found: Profile) -> dict[str, Any]:
    """Fields of metrics about firing."""
    return {
        "firing_rate": found.firing_rate,
        "activation_sparsity": found.activation_sparsity,
        "silent_channels": sum(len(neuron.silent) for neuron in found.neurons),
        "saturated_channels": sum(len(neuron.saturated) for neuron in found.neurons),
    }


def energy_metrics(found: Profile) -> dict[str, Any]:
    """Fields of metrics about operations."""
    return {
        "synops": found.synops,
        "multiplied": found.total("macs"),
        "effective_macs": found.total("effective_macs"),
        "accumulated": found.total("acs"),
        "energy_nj": found.energy_nj,
        "integer_multiplied": found.total("integer_macs"),
        "integer_accumulated": found.total("integer_acs"),
        "integer_energy_nj": found.integer_energy_nj,
        "energy_uncounted": found.uncounted,
    }


def all_metrics(found: Profile, model: nn.Module) -> Metrics:
    """Everything that a profile and the network itself say."""
    return Metrics(
        timesteps=found.timesteps,
        energy_images=found.images,
        connection_sparsity=connection_sparsity(model),
        footprint_bytes=footprint_bytes(model),
        **spike_metrics(found),
        **energy_metrics(found),
    )


def neuron_rates(found: Profile) -> tuple[NeuronRates, ...]:
    """Layers of neurons as a report has them."""
    return tuple(
        NeuronRates(
            name=neuron.name,
            channels=len(neuron.channel_rates),
            rate=neuron.rate,
            quantiles={f"{share:g}": neuron.quantile(share) for share in _QUANTILES},
            silent=neuron.silent,
            saturated=neuron.saturated,
        )
        for neuron in found.neurons
    )


def layer_energies(found: Profile) -> tuple[LayerEnergy, ...]:
    """Layers that multiply as a report has them."""
    return tuple(
        LayerEnergy(
            name=layer.name,
            arriving=layer.arriving,
            dense=layer.dense,
            macs=layer.macs,
            effective_macs=layer.effective_macs,
            acs=layer.acs,
            energy_nj=energy_nj(layer.macs, layer.acs),
            integer_macs=layer.integer_macs,
            integer_acs=layer.integer_acs,
            integer_energy_nj=energy_nj(layer.integer_macs, layer.integer_acs),
        )
        for layer in found.layers
    )
