"""Training a tokenizer: byte pair encoding of the bytes of a text, so that no text is unknown to it."""

from __future__ import annotations

from collections.abc import Iterable

from prunecli.data.tokenizer import Tokenizer
from prunecli.errors import RecipeError

PREFIX = "bpe:"
"""Before the number of tokens, where a user names a tokenizer that is to be trained."""
_PADDING, _BEGIN, _END, _MASK = _SPECIAL = ("<pad>", "<s>", "</s>", "<mask>")
_BYTES = 256
FEWEST, _MOST = _BYTES + len(_SPECIAL), 1_000_000
"""The fewest tokens are the bytes, and special ones."""


def trained_size(name: str) -> int | None:
    """How many tokens a tokenizer is to have that is called `bpe:NUMBER`; None for other names.

    Raises:
        RecipeError: It is no number, or too small or too large.
    """
    if not name.startswith(PREFIX):
        return None
    number = name.removeprefix(PREFIX)
    if not number.isdecimal() or not FEWEST <= int(number) <= _MOST:
        raise RecipeError(
            f"--tokenizer {name}: the number of tokens has to be from {FEWEST} (all bytes, and {len(_SPECIAL)} "
            f"special ones) to {_MOST:,}, for instance bpe:2000"
        )
    return int(number)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Byte pair encoding (Sennrich et al., 2016) on bytes, with words as GPT-2 separates them.

    Passages get `<s>` before and `</s>` behind each text; `<pad>` is 0.

    Args:
        texts: What to learn from.
        size: Tokens; fewer if the texts have no more pairs to merge.
    """
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    library.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A {_END}",
        pair=f"{_BEGIN} $A {_END} $B:1 {_END}:1",
        special_tokens=[(name, library.token_to_id(name)) for name in (_BEGIN, _END)],
    )
    return Tokenizer(library.to_str(), library.token_to_id(_PADDING), library.token_to_id(_END))
