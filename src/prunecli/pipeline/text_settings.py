"""How texts are read for the current network: by what it has learned, what it is, and what the user says."""

from __future__ import annotations

from collections.abc import Mapping

from prunecli.checkpoint.manifest import Manifest
from prunecli.data.text import DEFAULT_LENGTHS
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
    class_count,
    learned_classes,
    longest_sequence,
    padding_token,
    purpose_named,
    purpose_of,
    remembers,
)
from prunecli.recipe.schema import DataSection, ModelSection

_SEGMENTS = "token_type_ids"
_HEADS: Mapping[str, Purpose] = {"token-classification": "tags", "masked-lm": "masked token"}
"""Heads of `--model-kwargs` that find something else than classes of texts."""


def text_reading(
    section: DataSection, network: ModelSection, loaded: LoadedModel | None, made: Tokenizer | None
) -> TextReading:
    """How the texts of a run are read.

    Args:
        section: What the user says.
        network: What the user says about the network, where it is not known yet.
        loaded: The network; None while it is being built for the texts.
        made: A tokenizer that was made for the network already.

    Raises:
        DataError: The tokenizer is missing or damaged.
        RecipeError: What the user says does not go with what the network has learned.
    """
    purpose = _purpose(section, network, loaded)
    columns, tagged, masked = _columns(section, purpose), purpose == "tags", purpose == "masked token"
    if loaded is None:
        # For the sizes of the network alone: texts are read again by its tokenizer, and for what it can read at once.
        whole, tokenizer = columns.labelled or tagged or masked, made or _asked(section, None)
        if (columns.labelled or tagged) and tokenizer is None:
            tokenizer = train_tokenizer((), FEWEST)
        length = None if whole else 1
        return TextReading(section.level, length, None, tokenizer, columns=columns, tagged=tagged, masked=masked)
    manifest, longest = loaded.manifest, longest_sequence(loaded.model)
    length = section.bptt or next(iter(manifest.architecture.input_shape), None)
    if section.bptt is not None and longest is not None and section.bptt > longest:
        raise RecipeError(f"--bptt {section.bptt}: {loaded.name} reads at most {longest:,} tokens at once")
    if length is None and remembers(loaded.model) and section.tokenizer is not None:
        length = DEFAULT_LENGTHS["word"]
    vocabulary = _vocabulary(section, loaded)
    tokenizer = None if vocabulary is not None else made or _asked(section, loaded)
    if tokenizer is not None and section.level is not None:
        raise RecipeError(f"--level {section.level}: texts are read by a tokenizer; leave --level or --tokenizer out")
    if vocabulary is None and tokenizer is None and not loaded.new and not remembers(loaded.model):
        raise DataError(f"{loaded.name}: comes without a tokenizer; name its file or folder with --tokenizer")
    names = classes_of(manifest) or learned_classes(loaded.model)
    unnamed = purpose in ("classes", "tags") and not (names or loaded.new or loaded.new_classes)
    return TextReading(
        section.level if vocabulary is None else vocabulary.level,
        length,
        vocabulary,
        tokenizer,
        longest,
        columns,
        names,
        accepts(loaded.model, _SEGMENTS),
        padding_token(loaded.model),
        tagged,
        masked,
        class_count(loaded.model) if unnamed else None,
    )


def classes_of(manifest: Manifest) -> tuple[str, ...]:
    """Names of the classes of texts that a network has learned, in the order of its outputs."""
    used = next((step.data for step in reversed(manifest.history) if step.data is not None and step.data.labels), None)
    return () if used is None else tuple(label.name or label.value for label in used.labels)


def _purpose(section: DataSection, network: ModelSection, loaded: LoadedModel | None) -> Purpose:
    """What the network says of texts; "classes" where it may be and cannot be told yet."""
    if loaded is not None:
        return purpose_of(loaded.model)
    if network.ref is None:
        return "other"
    source, _, name = network.ref.partition(":")
    head = network.kwargs.get("head")
    purpose = _HEADS.get(head, "other") if isinstance(head, str) else purpose_named(name)
    # Of a file or folder, whose source asks for classes where it needs them.
    return "classes" if purpose == "other" and opens(network.ref) and name not in source_names(source) else purpose


def _columns(section: DataSection, purpose: Purpose) -> Columns:
    """Which columns of tables are read.

    Raises:
        RecipeError: There are no labels where the user names their column.
    """
    if section.label_column is not None and purpose in ("next token", "masked token"):
        raise RecipeError(
            f"--label-column {section.label_column}: the network predicts tokens, not classes; leave it out"
        )
    labelled = purpose == "classes" or (section.label_column is not None and purpose != "tags")
    return Columns(section.text_column, section.label_column, labelled)


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
