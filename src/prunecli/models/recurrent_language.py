"""Language models of recurrent layers, laid out as in PyTorch's word language model example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from prunecli.errors import ModelError, unknown

KINDS: dict[str, Callable[..., nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
NONLINEARITIES = ("tanh", "relu")
_INITIAL = 0.1


class LanguageModel(nn.Module):
    """Predicts the next token: `encoder` (embedding), dropout, what a subclass has, and `decoder`.

    Attributes:
        encoder: Vectors of the tokens.
        drop: Dropout behind the encoder and before the decoder.
        decoder: From the outputs of the last layer to scores for every token; `tied` to the encoder's weights or not.
    """

    encoder: nn.Embedding
    drop: nn.Dropout
    decoder: nn.Linear

    def _tie(self, spread: float) -> None:
        """Makes encoder and decoder share weights that are drawn uniformly within `spread`.

        Torch's own initial embedding is too large for a decoder; where they are not tied, characters are learned faster
        with it than with that of the example, which is within 0.1.
        """
        if self.encoder.embedding_dim != self.decoder.in_features:
            raise ModelError(
                f"tied weights need an embedding as wide as the last layer, {self.decoder.in_features}, not "
                f"{self.encoder.embedding_dim}: leave embedding out"
            )
        nn.init.uniform_(self.encoder.weight, -spread, spread)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor, memory: Any = None, carry: bool = False) -> Any:
        """Scores of the token that follows each token.

        Args:
            tokens: Numbers of tokens, shape (N, T).
            memory: What an earlier call with `carry` returned, to go on from there; None: nothing was read before.
            carry: Whether to return what is remembered as well.

        Returns:
            Scores, shape (N, T, vocabulary); with `carry`, a pair of them and the memory, tensors in any containers.
        """
        outputs, memory = self.remember(self.drop(self.encoder(tokens)), memory)
        scores = self.decoder(self.drop(outputs))
        return (scores, memory) if carry else scores

    def remember(self, vectors: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """Outputs of the last layer, shape (N, T, units), and the memory, given vectors (N, T, embedding)."""
        raise NotImplementedError  # every network defines its own


class RecurrentLanguageModel(LanguageModel):
    """Layers of `nn.LSTM`, `nn.GRU` or `nn.RNN`.

    Args:
        kind: "lstm", "gru" or "rnn".
        num_classes: Tokens in the vocabulary.
        units: Hidden units in each layer.
        layers: Number of layers.
        embedding: Length of the tokens' vectors.
        tied: Whether decoder and encoder share their weights.
        dropout: Share of the outputs of encoder and layers that training drops.
        nonlinearity: "tanh" or "relu", for "rnn".

    Raises:
        ModelError: There is no such nonlinearity, or the embedding cannot be tied.
    """

    def __init__(
        self,
        kind: str,
        *,
        num_classes: int,
        units: int,
        layers: int,
        embedding: int,
        tied: bool,
        dropout: float,
        nonlinearity: str = "tanh",
    ) -> None:
        super().__init__()
        if nonlinearity not in NONLINEARITIES:
            raise ModelError(unknown("nonlinearity", nonlinearity, NONLINEARITIES))
        own = {"nonlinearity": nonlinearity} if kind == "rnn" else {}
        between = dropout if layers > 1 else 0.0  # torch warns of dropout between the layers of one
        self.drop = nn.Dropout(dropout)
        self.encoder = nn.Embedding(num_classes, embedding)
        self.rnn = KINDS[kind](embedding, units, layers, dropout=between, batch_first=True, **own)
        self.decoder = nn.Linear(units, num_classes)
        if tied:
            self._tie(_INITIAL)

    def remember(self, vectors: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """See `LanguageModel`."""
        outputs, memory = self.rnn(vectors, memory)
        return outputs, memory
