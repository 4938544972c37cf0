"""Language models with spiking units, alone or side by side with those of a plain RNN or an LSTM.

In a hybrid layer (HSTNN, Nature Communications 2024, s41467-024-51641-x) units of two kinds read the same two things:
the input, which is the embedding or the outputs of both kinds in the layer below, and the outputs of both kinds one
token before. Every kind has weights of its own. With x the input, y the outputs of the layer and W, V, b those weights:

- RNN: h[t] = tanh(W x[t] + V y[t-1] + b);
- LSTM: the same sum for three gates and a candidate, c[t] = f c[t-1] + i g, h[t] = o tanh(c[t]);
- LIF: the sum is the current of a leaky integrate-and-fire neuron, one step for each token, and its spike the output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor, nn

from prunecli.errors import ModelError, unknown
from prunecli.measure.neurons import without_memory
from prunecli.models.recurrent_language import LanguageModel
from prunecli.models.spiking_neurons import NeuronConfig


class Units(nn.Module):
    """Units of one kind in a layer.

    Args:
        inputs: Width of the input.
        recurrent: Width of the layer's outputs, of all kinds.
        units: How many.

    Attributes:
        input: W and b, for all gates.
        recurrent: V, for all gates.
    """

    gates = 1

    def __init__(self, inputs: int, recurrent: int, units: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, self.gates * units)
        self.recurrent = nn.Linear(recurrent, self.gates * units, bias=False)

    def step(self, summed: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One token.

        Args:
            summed: W x[t] + V y[t-1] + b, shape (N, gates * units).
            memory: What the last step returned; None before the first.

        Returns:
            Outputs, shape (N, units), and what the next step needs besides.
        """
        raise NotImplementedError  # every kind defines its own


class RNNUnits(Units):
    """Units of a plain RNN; they remember nothing but their outputs."""

    def step(self, summed: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `Units`."""
        return torch.tanh(summed), None


class LSTMUnits(Units):
    """Units of an LSTM with input, forget and output gate; the memory is the cells' state."""

    gates = 4

    def step(self, summed: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `Units`."""
        entering, forgetting, candidate, leaving = summed.chunk(4, dim=-1)
        cells = torch.sigmoid(entering) * torch.tanh(candidate)
        if memory is not None:
            cells = cells + torch.sigmoid(forgetting) * memory
        return torch.sigmoid(leaving) * torch.tanh(cells), cells


class LIFUnits(Units):
    """Spiking units; the memory is the membrane potential.

    Args:
        inputs: Width of the input.
        recurrent: Width of the layer's outputs, of all kinds.
        units: How many.
        neurons: How they integrate and fire.
    """

    def __init__(self, inputs: int, recurrent: int, units: int, neurons: NeuronConfig) -> None:
        super().__init__(inputs, recurrent, units)
        self.neuron = neurons.make("s")

    def step(self, summed: Tensor, memory: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `Units`."""
        if memory is not None:
            self.neuron.v = memory
        spikes = self.neuron(summed)
        return spikes, self.neuron.v  # type: ignore[return-value]


_INITIAL = 1.0
"""Of tied weights: within the 0.1 of other networks hardly any neuron would fire before it has learned."""
_CELLS: Mapping[str, type[Units]] = {"rnn": RNNUnits, "lstm": LSTMUnits}


class HybridLayer(nn.Module):
    """Units of one or two kinds side by side.

    Args:
        inputs: Width of the input.
        cell: "rnn" or "lstm".
        units: Units that do not spike; 0 for none.
        spiking: Spiking units.
        neurons: How those integrate and fire.
    """

    def __init__(self, inputs: int, cell: str, units: int, spiking: int, neurons: NeuronConfig) -> None:
        super().__init__()
        width = units + spiking
        self.dense = _CELLS[cell](inputs, width, units) if units else None
        self.spiking = LIFUnits(inputs, width, spiking, neurons)

    def forward(self, inputs: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Outputs of both kinds for every token.

        Args:
            inputs: Shape (N, T, inputs).
            memory: What the last call returned; None: nothing was read before.

        Returns:
            Outputs, shape (N, T, units), and the memory: outputs after the last token, and what each kind remembers.
        """
        kinds = [kind for kind in (self.dense, self.spiking) if kind is not None]
        entering = zip(*(kind.input(inputs).unbind(1) for kind in kinds), strict=True)
        last, remembered = memory if memory is not None else (None, [None] * len(kinds))
        outputs = []
        for summed in entering:
            steps = [
                kind.step(own if last is None else own + kind.recurrent(last), before)
                for kind, own, before in zip(kinds, summed, remembered, strict=True)
            ]
            last = torch.cat([output for output, _ in steps], dim=-1)
            remembered = [after for _, after in steps]
            outputs.append(last)
        return torch.stack(outputs, dim=1), (last, remembered)


class HybridLanguageModel(LanguageModel, base.StepModule):  # type: ignore[misc]
    """Layers of spiking units, alone or beside those of an RNN or an LSTM; one time step for each token.

    Its neurons are reset before and after each call; what is carried on is passed as `memory`.

    Args:
        neurons: How spiking units integrate and fire.
        cell: "rnn" or "lstm".
        num_classes: Tokens in the vocabulary.
        units: Units in each layer, of all kinds.
        snn_fraction: Share of them that spikes; 1 for all.
        layers: Number of layers.
        embedding: Length of the tokens' vectors.
        tied: Whether decoder and encoder share their weights.
        dropout: Share of the outputs of encoder and layers that training drops.

    Raises:
        ModelError: There is no such cell, or a kind has no unit.
    """

    def __init__(
        self,
        neurons: NeuronConfig,
        *,
        cell: str,
        num_classes: int,
        units: int,
        snn_fraction: float,
        layers: int,
        embedding: int,
        tied: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        if cell not in _CELLS:
            raise ModelError(unknown("cell", cell, _CELLS))
        spiking = round(units * snn_fraction)
        if spiking < 1 or (spiking == units and snn_fraction < 1):
            raise ModelError(f"{units} units with snn_fraction {snn_fraction:g}: each kind needs at least one")
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(num_classes, embedding)
        self.layers = nn.ModuleList(
            HybridLayer(units if index else embedding, cell, units - spiking, spiking, neurons)
            for index in range(layers)
        )
        self.decoder = nn.Linear(units, num_classes)
        if tied:
            self._tie(_INITIAL)
        self._step_mode = "s"

    def remember(self, vectors: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """See `LanguageModel`."""
        memories = memory if memory is not None else [None] * len(self.layers)
        after = []
        with without_memory(self):
            for index, (layer, before) in enumerate(zip(self.layers, memories, strict=True)):
                vectors, remembered = layer(self.drop(vectors) if index else vectors, before)
                after.append(remembered)
        return vectors, after

    def supported_step_mode(self) -> tuple[str, ...]:
        """A token is a step."""
        return ("s",)
