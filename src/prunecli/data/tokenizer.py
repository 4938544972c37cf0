"""Tokenizers of the `tokenizers` library: words in parts, as transformers' networks read them."""

from __future__ import annotations

import json
import logging as levels
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prunecli.checkpoint.manifest import MAX_TOKENS, UsedTokenizer
from prunecli.errors import DataError, first_line

if TYPE_CHECKING:
    import tokenizers

MOST_BYTES = 1 << 27
"""Bytes of the largest definition; that of Gemma, with 256,000 tokens, has a quarter of it."""
_PIECE = 1 << 22
"""Characters of a text that are encoded at once."""
_ROWS = 4096
"""Passages that are encoded at once."""
_FILE = "tokenizer.json"
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_PADDING = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>")
_MASK = ("[MASK]", "<mask>", "<|mask|>", "<MASK>")
_END = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]", "<|im_end|>")
_REMEDY = "give a tokenizer.json, a folder that has one, or bpe:2000 to train one"


@dataclass(frozen=True)
class Encoded:
    """Texts in tokens.

    Attributes:
        tokens: Their numbers, shape (tokens,).
        characters: Characters that all tokens but the first stand for.
        bytes: The same in bytes of UTF-8.
    """

    tokens: NDArray[np.int64]
    characters: int
    bytes: int


@dataclass(frozen=True)
class Passage:
    """A text, or a pair of them, in tokens, special ones included.

    Attributes:
        tokens: Their numbers, shape (tokens,).
        segments: For each token, which of the texts it belongs to, shape (tokens,).
        cut: Whether it was too long, and has lost its end.
    """

    tokens: NDArray[np.int64]
    segments: NDArray[np.int64]
    cut: bool


@dataclass(frozen=True)
class WordPassage:
    """A text of separate words in tokens, special ones included.

    Attributes:
        tokens: Their numbers, shape (tokens,).
        words: For each token, the number of its word; -1 for special ones, shape (tokens,).
        cut: Whether it was too long, and has lost its end.
    """

    tokens: NDArray[np.int64]
    words: NDArray[np.int64]
    cut: bool


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer.

    Attributes:
        definition: All of it, as JSON of the `tokenizers` library.
        padding: The token that fills up short texts; None: it has none.
        end: The token behind the end of a text; None: it has none.
    """

    definition: str
    padding: int | None = None
    end: int | None = None

    @classmethod
    def parsed(cls, definition: str, origin: str) -> Tokenizer:
        """A tokenizer from its definition; what its special tokens are for is told by their names.

        Args:
            definition: JSON of the `tokenizers` library.
            origin: Where it comes from, for messages.

        Raises:
            DataError: It is no tokenizer, or larger than any.
        """
        library = _loaded(definition, origin)
        return cls(definition, _first_of(library, _PADDING), _first_of(library, _END))

    @classmethod
    def recorded(cls, record: UsedTokenizer) -> Tokenizer:
        """The tokenizer that a manifest records."""
        return cls(record.definition, record.padding, record.end)

    def record(self) -> UsedTokenizer:
        """How a manifest records it."""
        used = UsedTokenizer(tokens=len(self), size=len(self.signature()), padding=self.padding, end=self.end)
        return used.with_definition(self.definition)

    def __len__(self) -> int:
        return self._size

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens in the order of their numbers; those that a number is missing for are empty."""
        names = [""] * len(self)
        for name, number in self._library.get_vocab(with_added_tokens=True).items():
            names[number] = name
        return tuple(names)

    def signature(self) -> bytes:
        """What distinguishes it from others."""
        return self.definition.encode()

    @cached_property
    def unknown(self) -> int | None:
        """The number of the token that stands for what is unknown."""
        model = json.loads(self.definition).get("model", {})
        name = model.get("unk_token")
        if isinstance(name, str):
            return self._library.token_to_id(name)
        number = model.get("unk_id")
        return number if isinstance(number, int) else None

    def encode(self, texts: Sequence[str], origin: str) -> Encoded:
        """Texts one after the other, without special tokens but `end`, which lies between two of them.

        Args:
            texts: At least one.
            origin: Where they come from, for messages.

        Raises:
            DataError: The library cannot encode them.
        """
        parts: list[NDArray[np.int64]] = []
        skipped: str | None = None
        for number, text in enumerate(texts):
            if number and self.end is not None:
                parts.append(np.array([self.end], dtype=np.int64))
                skipped = "" if skipped is None else skipped
            for piece in _pieces(text):
                with _explained(origin):
                    encoding = self._library.encode(piece, add_special_tokens=False)
                if encoding.ids and skipped is None:
                    span = encoding.token_to_chars(0)
                    skipped = piece[: span[1]] if span is not None else ""
                parts.append(np.array(encoding.ids, dtype=np.int64))
        return Encoded(
            np.concatenate(parts) if parts else np.empty(0, dtype=np.int64),
            sum(map(len, texts)) - len(skipped or ""),
            sum(len(text.encode()) for text in texts) - len((skipped or "").encode()),
        )

    def passages(self, texts: Sequence[str], others: Sequence[str] | None, most: int, origin: str) -> list[Passage]:
        """Every text, or pair of texts, by itself, with special tokens as the tokenizer adds them.

        Args:
            texts: The texts.
            others: The second text of each pair; None: there are none.
            most: Tokens of the longest; of pairs the longer one is cut first.
            origin: Where they come from, for messages.

        Raises:
            DataError: The library cannot encode them.
        """
        entries: list[Any] = list(texts) if others is None else list(zip(texts, others, strict=True))
        return [_passage(encoding) for encoding in self._encoded(entries, most, origin)]

    def word_passages(self, texts: Sequence[Sequence[str]], most: int, origin: str) -> list[WordPassage]:
        """Every text by itself, whose words are separate already, with special tokens as the tokenizer adds them.

        Words get the tokens that they have within a text: a space before them where the tokenizer makes one a part of
        the word behind it, as those of GPT-2 and RoBERTa do. Blank words have no tokens.

        Args:
            texts: The words of each.
            most: Tokens of the longest.
            origin: Where they come from, for messages.

        Raises:
            DataError: The library cannot encode them.
        """
        with _explained(origin):
            space = " " if self._spaces_count else ""
        entries = [[space + word.strip() if word.strip() else "" for word in text] for text in texts]
        return [_word_passage(encoding) for encoding in self._encoded(entries, most, origin, words=True)]

    def _encoded(
        self, entries: Sequence[Any], most: int, origin: str, *, words: bool = False
    ) -> Iterator[tokenizers.Encoding]:
        with _explained(origin):
            self._library.enable_truncation(most)
            try:
                for start in range(0, len(entries), _ROWS):
                    yield from self._library.encode_batch(entries[start : start + _ROWS], is_pretokenized=words)
            finally:
                self._library.no_truncation()

    @property
    def _spaces_count(self) -> bool:
        """Whether a word has other tokens at the beginning of a text than behind a space."""
        alone, behind, both = (self._library.encode(text, add_special_tokens=False).ids for text in ("a", " a", "a a"))
        return bool(both != alone + alone and both == alone + behind)

    @cached_property
    def mask(self) -> int | None:
        """The token that stands for one that is to be found; None: it has none."""
        return _first_of(self._library, _MASK)

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The special tokens that it puts before and behind a text."""
        encoding = self._library.encode("a")
        special = [bool(number) for number in encoding.special_tokens_mask]
        before = special.index(False) if False in special else len(special)
        behind = special[::-1].index(False) if False in special else 0
        return encoding.ids[:before], encoding.ids[len(special) - behind :]

    def decode(self, numbers: Sequence[int] | NDArray[np.int64]) -> str:
        """The text of tokens, special ones included."""
        return str(self._library.decode([int(number) for number in numbers], skip_special_tokens=False))

    @cached_property
    def _library(self) -> tokenizers.Tokenizer:
        return _loaded(self.definition, "the tokenizer")

    @cached_property
    def _size(self) -> int:
        return _highest(self._library) + 1


def _passage(encoding: tokenizers.Encoding) -> Passage:
    tokens, segments = (np.array(numbers, dtype=np.int64) for numbers in (encoding.ids, encoding.type_ids))
    return Passage(tokens, segments, bool(encoding.overflowing))


def _word_passage(encoding: tokenizers.Encoding) -> WordPassage:
    words = [-1 if word is None else word for word in encoding.word_ids]
    return WordPassage(
        np.array(encoding.ids, dtype=np.int64), np.array(words, dtype=np.int64), bool(encoding.overflowing)
    )


def read_tokenizer(path: str) -> Tokenizer:
    """A tokenizer from its JSON file, or from the folder of a network of transformers.

    Of a folder without tokenizer.json, transformers makes one from the files that there are; no code in it is run and
    nothing is fetched.

    Raises:
        DataError: There is none, or it is damaged.
    """
    given = Path(path).expanduser()
    if given.is_dir():
        return _of_folder(given)
    if not given.is_file():
        raise DataError(f"{path}: no such tokenizer; {_REMEDY}")
    return Tokenizer.parsed(_text(given), str(given))


def _of_folder(folder: Path) -> Tokenizer:
    definition = _text(folder / _FILE) if (folder / _FILE).is_file() else _converted(folder)
    found = Tokenizer.parsed(definition, str(folder))
    names: dict[str, str] = {}
    for settings in (_settings(folder / name) for name in _SETTINGS):
        for role in ("pad_token", "eos_token"):
            value = settings.get(role)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                names.setdefault(role, value)
    numbers = {role: found._library.token_to_id(name) for role, name in names.items()}
    padding, end = numbers.get("pad_token"), numbers.get("eos_token")
    return Tokenizer(definition, found.padding if padding is None else padding, found.end if end is None else end)


def _converted(folder: Path) -> str:
    """The tokenizer that transformers makes of a folder's files."""
    try:
        from transformers import AutoTokenizer, logging
    except ImportError as error:
        raise DataError(
            f"{folder}: has no {_FILE}, and transformers, which could make one, cannot be imported ({error}); {_REMEDY}"
        ) from error
    before = logging.get_verbosity()
    logging.set_verbosity(levels.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        library = getattr(tokenizer, "backend_tokenizer", None)
    except Exception as error:  # whatever the classes of transformers raise
        raise DataError(
            f"{folder}: has no tokenizer that transformers can read ({first_line(error)}); {_REMEDY}"
        ) from error
    finally:
        logging.set_verbosity(before)
    if library is None:
        raise DataError(
            f"{folder}: its tokenizer ({type(tokenizer).__name__}) is not one of the `tokenizers` library; {_REMEDY}"
        )
    return str(library.to_str())


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: over {MOST_BYTES:,} bytes, so no tokenizer; {_REMEDY}")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no readable tokenizer ({error}); {_REMEDY}") from error


def _settings(path: Path) -> dict[str, Any]:
    """A JSON file beside a tokenizer; empty where there is none, or it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _loaded(definition: str, origin: str) -> tokenizers.Tokenizer:
    """The library's tokenizer without the padding and truncation that its file may ask for."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns of every process that loads data
    import tokenizers

    if len(definition) > MOST_BYTES:
        raise DataError(f"{origin}: over {MOST_BYTES:,} bytes, so no tokenizer; {_REMEDY}")
    with _explained(origin):
        library = tokenizers.Tokenizer.from_str(definition)
        library.no_padding()
        library.no_truncation()
        highest = _highest(library)
    if not 0 <= highest < MAX_TOKENS:
        raise DataError(f"{origin}: its tokens have numbers up to {highest:,}, of at most {MAX_TOKENS:,}; {_REMEDY}")
    return library


def _highest(library: tokenizers.Tokenizer) -> int:
    return max(library.get_vocab(with_added_tokens=True).values(), default=-1)


def _first_of(library: tokenizers.Tokenizer, names: Iterable[str]) -> int | None:
    """The number of the first of `names` that is a special token."""
    special = {token.content: number for number, token in library.get_added_tokens_decoder().items() if token.special}
    return next((special[name] for name in names if name in special), None)


@contextmanager
def _explained(origin: str) -> Iterator[None]:
    """Turns what the library raises, which includes panics that are no `Exception`, into one line."""
    try:
        yield
    except DataError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise DataError(f"{origin}: the tokenizer does not work ({first_line(error)}); {_REMEDY}") from error


def _pieces(text: str) -> Iterator[str]:
    """A long text in parts that end where a line does and the next begins with no white space.

    Tokenizers that separate words by white space find the same tokens in the parts as in the whole.
    """
    start = 0
    while len(text) - start > _PIECE:
        end = start + _PIECE
        while end < len(text) and not (text[end - 1] == "\n" and not text[end].isspace()):
            end += 1
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
