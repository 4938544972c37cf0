"""From a reference such as "timm:resnet50" to a network."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from prunecli.checkpoint.manifest import Architecture, InputNormalisation
from prunecli.errors import ModelError, first_line, unknown
from prunecli.models.index import SOURCES, added_sources
from prunecli.models.source import (
    DescribingSource,
    ModelSource,
    Opened,
    OpeningSource,
    OpenRequest,
    ReadingSource,
    SettlingSource,
    Takes,
    WritingSource,
)
from prunecli.own_code import PREFIX

_BUILT_FROM = "_prunecli_built_from"
_RANDOM_FILLING = frozenset(
    {getattr(nn.init, f"{name}_") for name in ("uniform", "normal", "trunc_normal", "orthogonal", "sparse")}
    | {getattr(nn.init, f"{name}_{kind}_") for name in ("xavier", "kaiming") for kind in ("uniform", "normal")}
)


def built_from(model: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """The reference and arguments that `build` made this network (or the one it was copied from) with."""
    origin: tuple[str, dict[str, Any]] | None = getattr(model, _BUILT_FROM, None)
    return origin


@cache
def source_names(source: str) -> tuple[str, ...]:
    """All model names of one source."""
    return tuple(_source(source).names())


def added_references() -> list[str]:
    """Every "source:name" of the sources that installed packages add, which are imported for this.

    Raises:
        ModelError: A package is broken.
    """
    return [f"{source}:{name}" for source in added_sources() for name in source_names(source)]


def split_reference(ref: str) -> tuple[str, str]:
    """Splits "source:name" and checks both; a name of an `OpeningSource` is checked when it is opened or built.

    Raises:
        ModelError: The source or the name does not exist; the message names the nearest.
    """
    source, colon, name = ref.partition(":")
    module = source.removesuffix(".py")
    if source not in SOURCES.names and Path(f"{module}.py").is_file():
        own = f"{PREFIX}{module}:{name or 'NAME'}"
        raise ModelError(f"unknown architecture {ref!r}: for a class or function in {module}.py write {own}")
    if not colon:
        known = [f"{s}:{ref}" for s in SOURCES.built_in if _has(s, ref)]
        hint = f"did you mean {' or '.join(known)}?" if known else "write it as source:name, for instance timm:resnet50"
        raise ModelError(f"unknown architecture {ref!r}: {hint}")
    SOURCES.require(source)
    if not isinstance(_source(source), OpeningSource) and name not in source_names(source):
        message = unknown("architecture", ref, (f"{source}:{n}" for n in source_names(source)), see="prune models")
        raise ModelError(message)
    return source, name


def build(ref: str, *, pretrained: bool = False, meta: bool = False, **kwargs: Any) -> nn.Module:
    """Builds a dense network.

    Args:
        ref: "source:name".
        pretrained: Whether to fetch published weights.
        meta: Whether to build on the meta device, without memory for weights, where its code runs there.
        **kwargs: num_classes, in_chans and whatever else the source takes.

    Raises:
        ModelError: The reference does not exist or the source refuses the arguments.
    """
    source, name = split_reference(ref)
    module = _source(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.device("meta") if meta else nullcontext(), _unfilled(source) if meta else nullcontext():
                model = module.build(name, pretrained and not meta, **kwargs)
            object.__setattr__(model, _BUILT_FROM, (ref, kwargs))
            return model
    except ModelError:
        raise  # its message is already complete
    except Exception as error:
        if meta:  # torchvision's RegNet reads tensors while it is built
            with _unfilled(source):
                return build(ref, **kwargs)
        raise ModelError(f"{ref} cannot be built with {kwargs or 'its defaults'}: {first_line(error)}") from error


class _Unfilled(TorchFunctionMode):
    """Leaves out the random numbers that new weights are filled with, which take most of the time of building."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _RANDOM_FILLING:
            return args[0] if args else (kwargs or {})["tensor"]
        if func in (Tensor.normal_, Tensor.uniform_) and isinstance(args[0], nn.Parameter):
            # Not left out: trunc_normal_ draws again, into other tensors, what is out of bounds.
            middle = "mean" if func is Tensor.normal_ else "from"
            return args[0].fill_(args[1] if len(args) > 1 else (kwargs or {}).get(middle, 0.0))
        return func(*args, **(kwargs or {}))


def _unfilled(source: str) -> AbstractContextManager[Any]:
    """For networks of packages: a user's own function may compute something of the numbers that it draws."""
    return nullcontext() if f"{source}:" == PREFIX else _Unfilled()


def open_network(ref: str, request: OpenRequest) -> Opened | None:
    """Opens the network that a user names; None if its source only builds the networks that it lists.

    Args:
        ref: "source:name".
        request: What else the user says.

    Raises:
        ModelError: There is no such network, or it cannot be read.
    """
    source, name = split_reference(ref)
    module = _source(source)
    return module.open(name, request) if isinstance(module, OpeningSource) else None


def reading_source(source: str) -> ReadingSource | None:
    """A source that reads the files of its package itself; None for others, and if there is none of that name."""
    module = _source(source) if source in SOURCES.names else None
    return module if isinstance(module, ReadingSource) else None


def writing_source(source: str) -> WritingSource | None:
    """A source whose package opens networks of any widths; None for others, and if there is none of that name."""
    module = _source(source) if source in SOURCES.names else None
    return module if isinstance(module, WritingSource) else None


def opens(ref: str) -> bool:
    """Whether the source of a reference builds more networks than it lists, from files and configurations."""
    return isinstance(_source(split_reference(ref)[0]), OpeningSource)


def settled_arguments(ref: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments to record for a network: those it was built with, and defaults that its weights do not show."""
    source, name = split_reference(ref)
    module = _source(source)
    return dict(module.settled(name, kwargs) if isinstance(module, SettlingSource) else kwargs)


def classes_are_texts(ref: str) -> bool:
    """Whether networks of a reference compare images with texts, so that no number of classes belongs to them."""
    return bool(getattr(_source(split_reference(ref)[0]), "CLASSES_ARE_TEXTS", False))


def takes(ref: str) -> Takes:
    """What networks of a reference take; an empty reference is a user's own network."""
    if not ref:
        return "images"
    source, name = split_reference(ref)
    module = _source(source)
    if isinstance(module, DescribingSource):
        return module.takes(name)
    return "tokens" if getattr(module, "READS_TOKENS", False) else "images"


def reads_tokens(ref: str) -> bool:
    """Whether networks of a reference read tokens of a text."""
    return takes(ref) == "tokens"


def example_inputs(ref: str, model: nn.Module, seed: int) -> Any:
    """Seeded inputs for a network that takes something else than images or tokens alone.

    Raises:
        ModelError: It is not known what it takes.
    """
    module = _source(split_reference(ref)[0])
    assert isinstance(module, DescribingSource), "others take images or tokens"
    return module.example_inputs(model, seed)


def input_spec(ref: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation | None]:
    """Image height and width (None: any) and normalisation of a reference."""
    source, name = split_reference(ref)
    return _source(source).input_spec(name, model)


def rebuild_dense(architecture: Architecture) -> nn.Module:
    """Builds the dense network a manifest names, on the meta device where the architecture allows it."""
    return build_dense(architecture, meta=True)


def build_dense(
    architecture: Architecture, *, meta: bool = False, filled: bool = True, buffers_alone: bool = False
) -> nn.Module:
    """Builds the dense network a manifest names.

    Args:
        architecture: What the manifest says.
        meta: As for `build`.
        filled: Whether it gets new random weights; without them it has to be given others.
        buffers_alone: Whether its parameters take no memory; they have to be assigned then.

    Raises:
        ModelError: It cannot be built.
    """
    arguments: dict[str, Any] = dict(architecture.kwargs)
    if architecture.config:
        arguments["config"] = architecture.config
    bare = _parameters_on_meta() if buffers_alone else nullcontext()
    with nullcontext() if filled else _unfilled(architecture.ref.partition(":")[0]), bare:
        return build(architecture.ref, meta=meta, **arguments)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Moves every parameter to the meta device as soon as a module registers it; buffers keep their values."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not is_lazy(param) and not param.is_meta:  # else it is a tied one
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _has(source: str, name: str) -> bool:
    """Whether a source lists a name; not if its package is not installed."""
    try:
        return name in source_names(source)
    except ModelError:
        return False


def _source(source: str) -> ModelSource:
    module = SOURCES.load(source)
    if not isinstance(module, ModelSource):
        package = SOURCES.package(source)
        raise ModelError(f"model source {source!r} of package {package} lacks one of names, build and input_spec")
    return module
