"""What a model source is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import nn

from prunecli.checkpoint.foreign_files import ForeignWeights
from prunecli.checkpoint.manifest import InputNormalisation, UsedTokenizer
from prunecli.stored import Scratch

Takes: TypeAlias = Literal["images", "tokens", "other"]
"""What a network takes: one tensor of images, one of tokens, or something else."""


@runtime_checkable
class ModelSource(Protocol):
    """Brings the networks of "SOURCE:NAME": a module, or an object, with these functions.

    A source whose networks compare images with texts, so that no number of classes belongs to them, also has
    `CLASSES_ARE_TEXTS = True`; one of language models has `READS_TOKENS = True`. One whose arguments have defaults that
    weights do not show is a `SettlingSource`, one that also builds networks from files and configurations an
    `OpeningSource`, one that knows the files of its package a `ReadingSource`, one that can write them a
    `WritingSource`, and one whose networks take different things says so as a `DescribingSource`.
    """

    def names(self) -> Sequence[str]:
        """All names of this source."""
        ...

    def build(self, name: str, pretrained: bool, /, **kwargs: Any) -> nn.Module:
        """Builds a dense network; under `torch.device("meta")` without memory for its weights, where it can.

        Args:
            name: One of `names()`.
            pretrained: Whether to fetch published weights.
            **kwargs: num_classes, in_chans and whatever else the source takes.

        Raises:
            ModelError: An argument does not exist or makes no sense. Any other exception is reported as one.
        """
        ...

    def input_spec(self, name: str, model: nn.Module, /) -> tuple[tuple[int, int] | None, InputNormalisation | None]:
        """What a network takes.

        Args:
            name: One of `names()`.
            model: The network that `build` made of it.

        Returns:
            Image height and width, None where any will do, and the normalisation of pixels, None for tokens.
        """
        ...


@runtime_checkable
class SettlingSource(ModelSource, Protocol):
    """A source that also says which defaults have to be recorded with a network."""

    def settled(self, name: str, kwargs: Mapping[str, Any], /) -> Mapping[str, Any]:
        """The arguments, completed with the defaults that decide how the network runs.

        Args:
            name: One of `names()`.
            kwargs: What the network was built with.

        Raises:
            ModelError: An argument does not exist.
        """
        ...


@dataclass(frozen=True)
class DataTokens:
    """The tokens of texts.

    Attributes:
        count: How many different ones there are.
        padding: The one that fills up short texts; None: none does.
        end: The one behind the end of a text; None: none is.
    """

    count: int
    padding: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class OpenRequest:
    """What a user says about a network to open.

    Attributes:
        kwargs: Settings of its configuration, as given with --model-kwargs.
        pretrained: Whether published weights may be fetched.
        num_classes: Number of classes, if given; a classifier for another number is replaced.
        data_classes: Number of classes of the data set, for networks whose classifier is new.
        allow_nonfinite: Whether weights may hold NaN or infinity.
        data_tokens: Tokens of the data set, for networks that are new; None: it has none.
        scratch: If given, large tensors stay in their files, and what is computed of them goes here.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    num_classes: int | None = None
    data_classes: Callable[[], int | None] = lambda: None
    allow_nonfinite: bool = False
    data_tokens: Callable[[], DataTokens | None] = lambda: None
    scratch: Scratch | None = None


@dataclass(frozen=True)
class Opened:
    """A network that a source opened.

    Attributes:
        name: What follows the colon in the reference that a manifest records: never a path.
        config: The configuration that `build` makes the dense network of.
        model: The network.
        path: The file or folder that its weights were read from.
        size: Image height and width that it needs; None: any, or it takes no images.
        normalisation: Of the pixels of images.
        tokenizer: Its tokenizer; None: it has none, or takes no texts.
        notes: What the user should know.
        new: Whether its weights are random.
        new_classes: Whether those of its classifier are, so that it has learned no classes yet.
    """

    name: str
    config: dict[str, Any]
    model: nn.Module
    path: Path | None = None
    size: tuple[int, int] | None = None
    normalisation: InputNormalisation | None = None
    tokenizer: UsedTokenizer | None = None
    notes: tuple[str, ...] = ()
    new: bool = False
    new_classes: bool = False


@runtime_checkable
class OpeningSource(ModelSource, Protocol):
    """A source whose networks are not all listed: what follows the colon may be a file, a folder or a library's name.

    A manifest has a name that `names` lists and a configuration, and `build` gets both; what a configuration may say
    is checked there, because it may come from somebody else's file.
    """

    def open(self, name: str, request: OpenRequest, /) -> Opened:
        """Opens the network that a user names.

        Args:
            name: What follows the colon.
            request: What else the user says.

        Raises:
            ModelError: There is no such network, or it cannot be read.
        """
        ...


@runtime_checkable
class ReadingSource(OpeningSource, Protocol):
    """A source that knows how its package saves networks: as a whole, with their configuration."""

    def read(self, weights: ForeignWeights, name: str | None, path: Path, request: OpenRequest, /) -> Opened:
        """The network in a file.

        Args:
            weights: The file's content.
            name: What follows the colon, if the user names the network; else the file holds one as a whole.
            path: The file.
            request: What else the user says.

        Raises:
            ModelError: It is another network, or has been changed since it was built.
        """
        ...

    def describe(self, model: nn.Module, /) -> tuple[str, dict[str, Any]] | None:
        """Name and configuration of a live network of the package, for `build`; None if it is none that it builds."""
        ...


@runtime_checkable
class WritingSource(ModelSource, Protocol):
    """A source whose package opens files with networks of any widths."""

    def write(self, model: nn.Module, config: Mapping[str, Any], size: tuple[int, int] | None, path: Path, /) -> None:
        """Writes a file that the package opens.

        Args:
            model: The network, dense or pruned; not changed.
            config: The configuration of the dense network.
            size: Height and width of the images it is for.
            path: The file, replaced if it exists.

        Raises:
            ModelError: The file has another suffix than the package wants.
        """
        ...


@runtime_checkable
class DescribingSource(ModelSource, Protocol):
    """A source whose networks do not all take the same."""

    def takes(self, name: str, /) -> Takes:
        """What the networks of a name take."""
        ...

    def example_inputs(self, model: nn.Module, seed: int, /) -> Any:
        """Seeded inputs for one of its networks that takes something else than images or tokens alone.

        Raises:
            ModelError: It is not known what the network takes.
        """
        ...
