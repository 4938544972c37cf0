"""How texts are read for the current network: by what it has learned, what it is, and what the user says."""

from __future__ import annotations

from prunecli.checkpoint.manifest import Manifest
from prunecli.data.text_reading import TextReading
from prunecli.data.text_tables import Columns
from prunecli.data.tokenizer import Tokenizer, read_tokenizer
from prunecli.data.tokenizer_training import FEWEST, train_tokenizer, trained_size
from prunecli.data.vocabulary import Vocabulary
from prunecli.errors import DataError, RecipeError
from prunecli.models.catalog import opens, source_names
from prunecli.models.loading import LoadedModel
from prunecli.models.token_networks import (
    Purpose,
    accepts,
    learned_classes,
    longest_sequence,
    padding_token,
    purpose_named,
    purpose_of,
    remembers,
)
from prunecli.recipe.schema import DataSection

_SEGMENTS = "token_type_ids"


def text_reading(
    section: DataSection, ref: str | None, loaded: LoadedModel | None, made: Tokenizer | None
) -> TextReading:
    """How the texts of a run are read.

    Args:
        section: What the user says.
        ref: The reference of the network, where it is not known yet.
        loaded: The network; None while it is being built for the texts.
        made: A tokenizer that was made for the network already.

    Raises:
        DataError: The tokenizer is missing or damaged.
        RecipeError: What the user says does not go with what the network has learned.
    """
    columns = Columns(section.text_column, section.label_column, _finds_classes(section, ref, loaded))
    if loaded is None:
        # For the sizes of the network alone: texts are read again by its tokenizer, and for what it can read at once.
        length, tokenizer = None if columns.labelled else 1, made or _asked(section, None)
        if columns.labelled and tokenizer is None:
            tokenizer = train_tokenizer((), FEWEST)
        return TextReading(section.level, length, tokenizer=tokenizer, columns=columns)
    manifest, longest = loaded.manifest, longest_sequence(loaded.model)
    length = section.bptt or next(iter(manifest.architecture.input_shape), None)
    if section.bptt is not None and longest is not None and section.bptt > longest:
        raise RecipeError(f"--bptt {section.bptt}: {loaded.name} reads at most {longest:,} tokens at once")
    vocabulary = _vocabulary(section, loaded)
    tokenizer = None if vocabulary is not None else made or _asked(section, loaded)
    if tokenizer is not None and section.level is not None:
        raise RecipeError(f"--level {section.level}: texts are read by a tokenizer; leave --level or --tokenizer out")
    if vocabulary is None and tokenizer is None and not loaded.new and not remembers(loaded.model):
        raise DataError(f"{loaded.name}: comes without a tokenizer; name its file or folder with --tokenizer")
    return TextReading(
        section.level if vocabulary is None else vocabulary.level,
        length,
        vocabulary,
        tokenizer,
        longest,
        columns,
        classes_of(manifest) or learned_classes(loaded.model),
        accepts(loaded.model, _SEGMENTS),
        padding_token(loaded.model),
    )


def classes_of(manifest: Manifest) -> tuple[str, ...]:
    """Names of the classes of texts that a network has learned, in the order of its outputs."""
    used = next((step.data for step in reversed(manifest.history) if step.data is not None and step.data.labels), None)
    return () if used is None else tuple(label.name or label.value for label in used.labels)


def _finds_classes(section: DataSection, ref: str | None, loaded: LoadedModel | None) -> bool:
    """Whether texts are read with classes."""
    purpose: Purpose = "other"
    if loaded is not None:
        purpose = purpose_of(loaded.model)
    elif ref is not None:
        source, _, name = ref.partition(":")
        purpose = purpose_named(name)
        if purpose == "other" and opens(ref) and name not in source_names(source):
            purpose = "classes"  # a file or folder, whose source asks for classes where it needs them
    if section.label_column is not None and purpose in ("next token", "masked token"):
        raise RecipeError(
            f"--label-column {section.label_column}: the network predicts tokens, not classes; leave it out"
        )
    return purpose == "classes" or section.label_column is not None


def _vocabulary(section: DataSection, loaded: LoadedModel) -> Vocabulary | None:
    """The words or characters that a network has learned.

    Raises:
        RecipeError: It is to read something else.
    """
    learned = loaded.manifest.vocabulary
    if learned is None:
        return None
    if section.tokenizer is not None or section.level not in (None, learned.level):
        tokens = {"word": "words", "char": "characters"}[learned.level]
        option = f"--tokenizer {section.tokenizer}" if section.tokenizer is not None else f"--level {section.level}"
        raise RecipeError(f"{option}: {loaded.name} reads {tokens}; leave it out")
    return Vocabulary(learned.level, learned.tokens)


def _asked(section: DataSection, loaded: LoadedModel | None) -> Tokenizer | int | None:
    """The tokenizer of the network, else the one that the user names, or how many tokens one is to be trained with.

    Raises:
        DataError: There is no such tokenizer.
        RecipeError: The network has another one, or has learned without it.
    """
    used = None if loaded is None else loaded.manifest.tokenizer
    learned = None if used is None else Tokenizer.recorded(used)
    size = None if section.tokenizer is None else trained_size(section.tokenizer)
    if learned is None:
        if size is not None and loaded is not None and not loaded.new:
            raise RecipeError(
                f"--tokenizer {section.tokenizer}: {loaded.name} has learned already, so a new tokenizer would not be "
                "the one it knows; name that"
            )
        return size if size is not None or section.tokenizer is None else read_tokenizer(section.tokenizer)
    if section.tokenizer is not None and size is None:
        if read_tokenizer(section.tokenizer).definition != learned.definition:
            assert loaded is not None
            raise RecipeError(
                f"--tokenizer {section.tokenizer}: {loaded.name} has learned with another one, which is in its file; "
                "leave it out"
            )
    return learned
