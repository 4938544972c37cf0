"""Tables about spiking networks: neurons and operations by layer, and the rows that they add to a report."""

from __future__ import annotations

from collections.abc import Sequence

from prunecli.report.numbers import count, joules, share, size
from prunecli.report.schema import LayerEnergy, Metrics, NeuronRates

_Rows = list[tuple[str, ...]]
_LISTED = 4


_MEASURED = ("params", "macs", "latency_ms", "peak_memory_bytes")
"""What is measured where nobody says what to measure."""


def shows_energy(metrics: Metrics) -> bool:
    """Whether people want to see energy: it was asked for, and not measured with everything, or the network spikes."""
    spikes = metrics.timesteps is not None or metrics.firing_rate is not None
    return spikes or any(getattr(metrics, name) is None for name in _MEASURED)


def energy_rows(metrics: Metrics, formula: str | None) -> list[tuple[str, str]]:
    """Rows for the table of a report; empty without energy and spikes."""
    m = metrics
    mark = ">= " if m.energy_uncounted else ""
    entries = (
        ("time steps", str(m.timesteps), m.timesteps),
        ("images for spikes", str(m.energy_images), m.energy_images),
        ("firing rate", share(m.firing_rate), m.firing_rate),
        ("silent channels", str(m.silent_channels), m.silent_channels),
        ("saturated channels", str(m.saturated_channels), m.saturated_channels),
        ("synaptic operations", count(m.synops), m.synops),
        ("multiplied (MACs)", mark + count(m.multiplied), m.multiplied if m.accumulated is not None else None),
        ("MACs without zeros", mark + count(m.effective_macs), m.effective_macs),
        ("accumulated (ACs)", mark + count(m.accumulated), m.accumulated),
        ("energy", mark + joules(m.energy_nj), m.energy_nj),
        ("energy, integers as spikes", mark + _integers(m), m.integer_energy_nj),
        ("energy is", f"{formula}, operations alone", formula),
        ("not counted in energy", ", ".join(m.energy_uncounted), m.energy_uncounted or None),
        ("activation sparsity", share(m.activation_sparsity), m.activation_sparsity),
        ("connection sparsity", share(m.connection_sparsity), m.connection_sparsity),
        ("footprint", size(m.footprint_bytes), m.footprint_bytes),
    )
    return [(label, text) for label, text, value in entries if value is not None]


def neuron_rows(neurons: Sequence[NeuronRates], *, everything: bool = False) -> _Rows:
    """One row for each layer of neurons, as in `NEURON_COLUMNS`.

    Only the first few silent and saturated channels are listed, or all of them with `everything`.
    """
    limit = None if everything else _LISTED
    return [
        (
            neuron.name,
            str(neuron.channels),
            share(neuron.rate),
            f"{share(neuron.quantiles.get('0.05'), 1).removesuffix(' %')} to {share(neuron.quantiles.get('0.95'), 1)}",
            _channel_list(neuron.silent, limit),
            _channel_list(neuron.saturated, limit),
        )
        for neuron in neurons
    ]


NEURON_COLUMNS = ("neurons", "channels", "rate", "5 to 95 %", "silent", "saturated")
LAYER_COLUMNS = ("layer", "reads", "MACs", "ACs", "energy", "as spikes")


def layer_rows(layers: Sequence[LayerEnergy]) -> _Rows:
    """One row for each layer with operations, as in `LAYER_COLUMNS`; the last column reads integers as spikes."""
    return [
        (
            layer.name,
            layer.arriving,
            count(layer.macs),
            count(layer.acs),
            joules(layer.energy_nj),
            count(layer.integer_acs),
        )
        for layer in layers
    ]


def change_rows(before: Metrics, after: Metrics) -> _Rows:
    """Effect of pruning on a spiking network: figure, before, after and ratio."""
    entries = (
        ("firing rate", share(before.firing_rate), share(after.firing_rate), before.firing_rate, after.firing_rate),
        ("synaptic operations", count(before.synops), count(after.synops), before.synops, after.synops),
        ("energy (45 nm)", joules(before.energy_nj), joules(after.energy_nj), before.energy_nj, after.energy_nj),
        (
            "energy, integers as spikes",
            joules(before.integer_energy_nj),
            joules(after.integer_energy_nj),
            before.integer_energy_nj,
            after.integer_energy_nj,
        ),
    )
    # If all neurons were silent before recalibration, a ratio says nothing.
    fired = bool(before.firing_rate)

    def ratio(old: float | None, new: float | None) -> str:
        if not fired:
            return "silent before"
        return f"x{new / old:.3f}" if old and new is not None else ""

    return [(label, b, a, ratio(old, new)) for label, b, a, old, new in entries]


def _channel_list(channels: Sequence[int], limit: int | None) -> str:
    """Number of channels and the first `limit` of them; None lists all."""
    if not channels:
        return "0"
    listed = channels[:limit]
    return f"{len(channels)}: {', '.join(map(str, listed))}{' ...' if len(listed) < len(channels) else ''}"


def _integers(metrics: Metrics) -> str:
    macs, acs = count(metrics.integer_multiplied), count(metrics.integer_accumulated)
    return f"{joules(metrics.integer_energy_nj)} ({macs} MACs, {acs} ACs)"
