"""From a text to batches of tokens: sequences of their own, or streams that go on from batch to batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunecli.data.splits import digest
from prunecli.data.vocabulary import Vocabulary

IGNORED = -100
"""Target of positions that count nowhere; the default of torch's cross-entropy."""
_EVALUATION_STREAMS = 16
_SHORTEST_STREAM = 64


@dataclass(frozen=True, eq=False)
class TextSplit:
    """A text as sequences of `length` tokens, one after the other; what is left at the end is in none of them.

    Attributes:
        tokens: The whole text, shape (tokens,).
        length: Tokens in a sequence.
        vocabulary: What the numbers mean.
        chosen: The sequences by number; None: all, and then the split is a text that can be read from end to end.
    """

    tokens: NDArray[np.int64]
    length: int
    vocabulary: Vocabulary
    chosen: NDArray[np.int64] | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """The token after each token of each sequence, shape (sequences, length)."""
        return self._sequences(1)

    def sample(self, index: int) -> Tensor:
        """The sequence at `index`, shape (length,)."""
        return torch.from_numpy(self._sequences(0)[index].copy())

    def subset(self, indices: NDArray[np.int64]) -> TextSplit:
        """The sequences at `indices`."""
        kept = indices if self.chosen is None else self.chosen[indices]
        return replace(self, chosen=np.asarray(kept, dtype=np.int64))

    def fingerprint(self) -> str:
        """Hash of tokens and vocabulary; how they are cut into sequences does not matter, unless some were chosen."""
        parts = [np.ascontiguousarray(self.tokens).data, "\0".join(self.vocabulary.tokens).encode()]
        if self.chosen is not None:
            parts += [str(self.length).encode(), np.ascontiguousarray(self.chosen).data]
        return digest(*parts)

    def _sequences(self, first: int) -> NDArray[np.int64]:
        count = (len(self.tokens) - 1) // self.length
        every = self.tokens[first : first + count * self.length].reshape(count, self.length)
        return every if self.chosen is None else every[self.chosen]


class StreamBatches:
    """A text in `streams` equal parts that are read side by side: row b of a batch goes on where it ended before.

    A batch is tokens (streams, length) and the tokens after them, of the same shape; the last may be shorter. Networks
    that remember are to carry what they remember from one batch to the next (truncated backpropagation through time).

    Attributes:
        batch_size: Streams.
        position: Index, within its epoch, of the batch after the last one that was yielded.
        contiguous: True; batches without this attribute have nothing to do with each other.

    Args:
        split: The text.
        streams: How many parts.
        whole: Whether to keep the end of a text that cannot be divided evenly, with targets of -100 behind it.
    """

    contiguous = True

    def __init__(self, split: TextSplit, streams: int, *, whole: bool) -> None:
        targets = len(split.tokens) - 1
        steps = math.ceil(targets / streams) if whole else targets // streams
        padding = max(0, steps * streams - targets)
        used = split.tokens[: steps * streams + 1]
        inputs, labels = used[:-1], used[1:]
        self._inputs = torch.from_numpy(np.pad(inputs, (0, padding)).reshape(streams, steps))
        self._labels = torch.from_numpy(np.pad(labels, (0, padding), constant_values=IGNORED).reshape(streams, steps))
        self._length = split.length
        self.batch_size = streams
        self.position = 0

    def __len__(self) -> int:
        return math.ceil(self._inputs.shape[1] / self._length)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(1)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the batches from index `first` on; every epoch has the same ones."""
        for index in range(first, len(self)):
            self.position, start = index + 1, index * self._length
            yield self._inputs[:, start : start + self._length], self._labels[:, start : start + self._length]


def evaluation_streams(split: TextSplit) -> StreamBatches:
    """All tokens of a text but the first, in streams whose number depends on the text alone, as figures should."""
    streams = min(_EVALUATION_STREAMS, max(1, (len(split.tokens) - 1) // _SHORTEST_STREAM))
    return StreamBatches(split, streams, whole=True)
