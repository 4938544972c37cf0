"""From the profile of a spiking network to the fields of a report."""

from __future__ import annotations

from typing import Any

from prunecli.measure.energy import Profile, energy_nj
from prunecli.report.schema import LayerEnergy, NeuronRates

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def spike_metrics(profiled: Profile) -> dict[str, Any]:
    """Metrics of firing."""
    return {
        "firing_rate": profiled.firing_rate,
        "activation_sparsity": profiled.activation_sparsity,
        "silent_channels": sum(len(neuron.silent) for neuron in profiled.neurons),
        "saturated_channels": sum(len(neuron.saturated) for neuron in profiled.neurons),
    }


def energy_metrics(profiled: Profile) -> dict[str, Any]:
    """Metrics of operations and energy."""
    return {
        "synops": profiled.synops,
        "multiplied": profiled.total("macs"),
        "effective_macs": profiled.total("effective_macs"),
        "accumulated": profiled.total("acs"),
        "energy_nj": profiled.energy_nj,
        "integer_multiplied": profiled.total("integer_macs"),
        "integer_accumulated": profiled.total("integer_acs"),
        "integer_energy_nj": profiled.integer_energy_nj,
        "energy_uncounted": profiled.uncounted,
    }


def neuron_rates(profiled: Profile) -> tuple[NeuronRates, ...]:
    """Firing rates by layer of neurons, in the form of a report."""
    return tuple(
        NeuronRates(
            name=neuron.name,
            channels=len(neuron.channel_rates),
            rate=neuron.rate,
            quantiles={f"{share:g}": neuron.quantile(share) for share in _QUANTILES},
            silent=neuron.silent,
            saturated=neuron.saturated,
        )
        for neuron in profiled.neurons
    )


def layer_energies(profiled: Profile) -> tuple[LayerEnergy, ...]:
    """Operations and energy by layer, in the form of a report."""
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
        for layer in profiled.layers
    )
