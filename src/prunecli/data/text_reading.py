"""How texts are read: in words, in characters, or in the tokens of a tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunecli.data.text_files import Part
from prunecli.data.text_tables import Columns
from prunecli.data.tokenizer import Tokenizer
from prunecli.data.tokenizer_training import train_tokenizer
from prunecli.data.vocabulary import Encoding, Level, Vocabulary


@dataclass(frozen=True)
class TextReading:
    """How texts are read.

    Attributes:
        level: "word" or "char"; None: the vocabulary's, else words in a folder and characters in a single file.
        length: Tokens in a sequence, of texts with classes in the longest; None: see `DEFAULT_LENGTHS`.
        vocabulary: That of a network that has one already; None: made from the training text.
        tokenizer: Splits words, in place of a vocabulary; or how many tokens one is to have that is made from the
            training text.
        longest: Tokens in the longest sequence that the network can read; None: any.
        columns: Of tables.
        class_names: Those of a network that has learned some, in the order of its outputs.
        segments: Whether the network is told which tokens belong to the second text of a pair.
        padding: The token that the network takes for padding; None: the tokenizer's.
        tagged: Whether every word has a class.
        masked: Whether tokens are to be found that are masked.
        outputs: How many classes the network has learned without names; None: it has names, or has learned none.
    """

    level: Level | None = None
    length: int | None = None
    vocabulary: Vocabulary | None = None
    tokenizer: Tokenizer | int | None = None
    longest: int | None = None
    columns: Columns = field(default_factory=Columns)
    class_names: tuple[str, ...] = ()
    segments: bool = False
    padding: int | None = None
    tagged: bool = False
    masked: bool = False
    outputs: int | None = None

    @property
    def encodes(self) -> bool:
        """Whether it is known already which number a token has."""
        return self.vocabulary is not None or isinstance(self.tokenizer, Tokenizer)


def resolved_tokenizer(reading: TextReading, training: Sequence[str]) -> Tokenizer:
    """The tokenizer to read with, trained on texts if it is to be."""
    assert reading.tokenizer is not None
    if isinstance(reading.tokenizer, Tokenizer):
        return reading.tokenizer
    return train_tokenizer(training, reading.tokenizer)


def missing_part(folder: Path, splits: Mapping[Part, object], parts: Sequence[Part]) -> str:
    """What to say where a part is needed that a folder does not have; empty where it has all."""
    absent = next((part for part in parts if part not in splits), None)
    return "" if absent is None else f"{folder}: has no {absent} text; name one {absent}.txt"


def unknown_notes(part: Part, tokens: NDArray[np.int64], encoding: Encoding) -> tuple[str, ...]:
    """How much of a text is unknown to an encoding that was made from another; empty where nothing is.

    Args:
        part: Which text it is.
        tokens: The text, shape (tokens,).
        encoding: What the numbers mean.
    """
    unknown = encoding.unknown
    share = 0.0 if unknown is None else float(np.mean(tokens == unknown))
    if unknown is None or share == 0:
        return ()
    return (f"{share:.2%} of the {part} text is {encoding.decode([unknown]).strip()}",)
