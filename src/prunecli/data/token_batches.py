"""From a text to batches of tokens: sequences of their own, or streams that go on from batch to batch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunecli import ranks
from prunecli.data.splits import digest
from prunecli.data.vocabulary import Encoding
from prunecli.engine.tasks.token_scores import IGNORED
from prunecli.errors import RecipeError

_EVALUATION_STREAMS = 16
_SHORTEST_STREAM = 64


@dataclass(frozen=True, eq=False)
class TextSplit:
    """A text as sequences of `length` tokens, one after the other; what is left at the end is in none of them.

    Attributes:
        tokens: The whole text, shape (tokens,).
        length: Tokens in a sequence.
        encoding: What the numbers mean.
        chosen: The sequences by number; None: all, and then the split is a text that can be read from end to end.
        whole: Whether the end of the text is a sequence too, filled up with token 0 and targets of -100.
        characters: Characters that all tokens but the first stand for; None: not known.
        bytes: The same in bytes of UTF-8.
    """

    tokens: NDArray[np.int64]
    length: int
    encoding: Encoding
    chosen: NDArray[np.int64] | None = None
    whole: bool = False
    characters: int | None = None
    bytes: int | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """The token after each token of each sequence, shape (sequences, length)."""
        return self._labels

    def sample(self, index: int) -> Tensor:
        """The sequence at `index`, shape (length,)."""
        start = (index if self.chosen is None else int(self.chosen[index])) * self.length
        # Inputs end one token before the text does.
        piece = self.tokens[start : min(start + self.length, len(self.tokens) - 1)]
        return torch.from_numpy(np.pad(piece, (0, self.length - len(piece))))

    def subset(self, indices: NDArray[np.int64]) -> TextSplit:
        """The sequences at `indices`."""
        kept = indices if self.chosen is None else self.chosen[indices]
        return replace(self, chosen=np.asarray(kept, dtype=np.int64))

    def completed(self) -> TextSplit:
        """The same text with its end, so that every token but the first is a target once."""
        return replace(self, whole=True)

    def fingerprint(self) -> str:
        """Hash of tokens and vocabulary; how they are cut into sequences does not matter, unless some were chosen."""
        parts = [np.ascontiguousarray(self.tokens).data, self.encoding.signature()]
        if self.chosen is not None:
            parts += [str(self.length).encode(), np.ascontiguousarray(self.chosen).data]
        return digest(*parts)

    @cached_property
    def _labels(self) -> NDArray[np.int64]:
        targets = self.tokens[1:]
        count = -(-len(targets) // self.length) if self.whole else len(targets) // self.length
        missing = max(0, count * self.length - len(targets))
        every = np.pad(targets[: count * self.length], (0, missing), constant_values=IGNORED)
        every = every.reshape(count, self.length)
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
        return self._from(0, slice(None))

    def own(self) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Yields the batches on rank 0, and as many times None on the others: streams that go on cannot take turns."""
        for batch in self:
            yield batch if ranks.writes() else None

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields this process's streams of the batches from index `first` on; every epoch has the same ones.

        Raises:
            RecipeError: There are more processes than streams.
        """
        if self.batch_size < ranks.world_size():
            raise RecipeError(
                f"{ranks.world_size()} processes cannot share a text in {self.batch_size} streams; use larger batches "
                "(--batch-size) or fewer processes"
            )
        return self._from(first, slice(ranks.rank(), None, ranks.world_size()))

    def _from(self, first: int, rows: slice) -> Iterator[tuple[Tensor, Tensor]]:
        for index in range(first, len(self)):
            self.position, start = index + 1, index * self._length
            columns = slice(start, start + self._length)
            yield self._inputs[rows, columns], self._labels[rows, columns]


def evaluation_streams(split: TextSplit) -> StreamBatches:
    """All tokens of a text but the first, in streams whose number depends on the text alone, as figures should."""
    streams = min(_EVALUATION_STREAMS, max(1, (len(split.tokens) - 1) // _SHORTEST_STREAM))
    return StreamBatches(split, streams, whole=True)
