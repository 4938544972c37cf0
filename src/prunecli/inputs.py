"""What goes into a network and comes out of it, whatever its shape: one place for calling, moving and cutting batches.

Inputs are a tensor, a tuple (positional arguments), a mapping (keyword arguments such as `input_ids` and
`attention_mask`) or a list (one argument: a list of images). They and outputs may hold further containers, at any
depth: mappings, lists, tuples, named tuples, data classes and objects with plain attributes. Everything else, such as
numbers, texts, flags and None, is passed on as it is.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from prunecli.errors import MethodError, ModelError, PruneError, described

Inputs: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""One tensor, positional arguments, one list of tensors, or keyword arguments."""

_LABELS = ("labels", "label", "targets", "target")
"""Entries of a batch that is a mapping which are no inputs, unless the example inputs have them too."""
_FORMS = (
    "give batches of the form of the example inputs: a tensor, a tuple of positional arguments, a mapping of keyword "
    "arguments or a list of images, alone or in a pair with labels"
)
_ABOUT_MEMORY = ("memory", "alloc")
_WIDE = {torch.float64: torch.complex128, torch.float32: torch.complex64}


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Runs `model` on `inputs`."""
    fresh = map_tensors(inputs, lambda tensor: tensor)  # models may pop entries from containers
    if isinstance(fresh, Mapping):
        return model(**fresh)
    if isinstance(fresh, tuple):
        return model(*fresh)
    return model(fresh)


def run_batch(model: nn.Module, inputs: Inputs) -> Any:
    """Runs `model` on a calibration batch, moved to its device and, where its weights agree on one, its dtype.

    Raises:
        MethodError: The network does not run on the batch.
    """
    with explained("the network does not run on the calibration data", MethodError, _FORMS):
        return call(model, fitted(inputs, model))


@contextmanager
def explained(what: str, kind: type[PruneError], remedy: str = "") -> Iterator[None]:
    """Turns whatever a network raises into one line; errors about memory have their own explanation elsewhere.

    Args:
        what: What failed.
        kind: The error to raise.
        remedy: What to do about it.

    Raises:
        PruneError: Of `kind`: something failed inside the block.
    """
    try:
        yield
    except (PruneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        text = str(error).lower()
        if isinstance(error, RuntimeError) and any(word in text for word in _ABOUT_MEMORY):
            raise
        hint = f"; {remedy}" if remedy else ""
        raise kind(f"{what}: {described(error)}{hint}") from error


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with `function` of every tensor in it; containers are new ones."""
    return _mapped(value, lambda item: function(item) if isinstance(item, Tensor) else _OPEN)


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors in a model's inputs or output, in order."""
    return [tensor for _, tensor in _tensors(output, into_lists=True, seen=set())]


def named_tensors(output: Any) -> list[tuple[str, Tensor]]:
    """All tensors in a model's output with their names: keys, fields and positions, joined by dots."""
    return [(".".join(path), tensor) for path, tensor in _tensors(output, into_lists=True, seen=set())]


def cast_inputs(inputs: Inputs, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """Moves inputs to `device`; floating ones also to `dtype`, and complex ones to the complex type as wide."""

    def cast(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return tensor.to(device=device, dtype=dtype)
        wide = _WIDE.get(dtype) if dtype is not None and tensor.is_complex() else None
        return tensor.to(device=device, dtype=wide)

    return map_tensors(inputs, cast)


def fitted(inputs: Inputs, model: nn.Module) -> Any:
    """Inputs on the device of `model`; floating ones in the dtype of its parameters, if these have one in common."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return cast_inputs(inputs, model_device(model), dtypes.pop() if len(dtypes) == 1 else None)


def split_batch(batch: Any, like: Inputs | None = None) -> tuple[Any, Any]:
    """Inputs and labels (None: there are none) of one batch.

    Args:
        batch: A tensor; (inputs, labels, ...) as a data loader gives them; or a mapping, whose entry `labels` (or
            `label`, `target`, `targets`) is taken out.
        like: Example inputs. Where these are a tuple, a batch of as many entries is inputs alone, and one of one entry
            more is inputs and labels. Flags, numbers and None that the batch lacks are taken from them.

    Raises:
        MethodError: The batch is empty.
    """
    if isinstance(batch, Tensor):
        return _completed(batch, like), None
    if isinstance(batch, Mapping):
        return _split_mapping(batch, like)
    if not isinstance(batch, (list, tuple)):
        return batch, None  # an object that the network takes whole
    if not batch:
        raise MethodError("a calibration batch is empty: each has to hold inputs, with or without labels")
    if isinstance(like, (tuple, Mapping)):
        given = _split_entries(batch, like)
        if given is not None:
            return given
    if isinstance(like, list) and isinstance(batch, list) and _alike(batch[0], like[0]):
        return batch, None
    inputs = tuple(batch[0]) if isinstance(like, tuple) and isinstance(batch[0], (list, tuple)) else batch[0]
    return _completed(inputs, like), batch[1] if len(batch) > 1 else None


def sample_count(inputs: Inputs) -> int:
    """Samples in a batch: entries of a list, else the length of the first tensor's first dimension.

    Lists inside other containers count only where there is no tensor outside lists.
    """
    if isinstance(inputs, list):
        return len(inputs)
    outside = (len(tensor) for _, tensor in _tensors(inputs, into_lists=False, seen=set()) if tensor.dim() > 0)
    listed = (len(entries) for entries in _lists(inputs))
    return next(itertools.chain(outside, listed), 0)


def take_samples(inputs: Any, first: int, end: int) -> Any:
    """The samples from `first` up to `end` of a batch; what does not have one entry for each sample stays whole.

    Args:
        inputs: Inputs, or labels.
        first: Index of the first sample.
        end: Index behind the last one.
    """
    return _by_sample(inputs, lambda tensor: tensor[first:end], lambda entries: entries[first:end])


def every_other_sample(inputs: Any, first: int) -> Any:
    """Every second sample of a batch; what does not have one entry for each sample stays whole.

    Args:
        inputs: Inputs, or labels.
        first: Index of the first sample, 0 or 1.
    """
    return _by_sample(inputs, lambda tensor: tensor[first::2], lambda entries: entries[first::2])


def repeat_sample(inputs: Inputs, count: int) -> Any:
    """The first sample `count` times, as one batch."""

    def repeated(tensor: Tensor) -> Tensor:
        return tensor[:1].expand(count, *(-1 for _ in tensor.shape[1:])).contiguous()

    return _by_sample(inputs, repeated, lambda entries: entries[:1] * count)


def doubled_batch(inputs: Inputs) -> Any:
    """Every sample twice: batch normalisation cannot train on one value."""
    return _by_sample(inputs, lambda tensor: torch.cat([tensor, tensor]), lambda entries: [*entries, *entries])


def logits(output: Any) -> Tensor:
    """The class scores in a model's output: the tensor itself, `.logits`, or the first floating tensor of several.

    Some classifiers, as those of ultralytics in evaluation mode, return the softmax of the scores before the scores.

    Raises:
        ModelError: It holds no tensor.
    """
    if isinstance(output, Tensor):
        return output
    scores = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if isinstance(scores, Tensor):
        return scores
    tensors = output_tensors(output)
    if not tensors:
        raise ModelError(f"the network's output ({type(output).__name__}) holds no tensor")
    if len(tensors) == 2 and _is_softmax_of(*tensors):
        return tensors[1]
    return next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0])


def _is_softmax_of(shares: Tensor, scores: Tensor) -> bool:
    """Whether the first of two tensors has the shares of classes that the second one has the scores of."""
    if shares.dim() != 2 or shares.shape != scores.shape or not shares.is_floating_point() or shares.is_meta:
        return False
    return bool(torch.allclose(shares.detach(), scores.detach().softmax(1), rtol=1e-2, atol=1e-4))


def model_device(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def summing_dtype(tensor: Tensor) -> torch.dtype:
    """What to add many values up in: float64 where the device has it; float32 stops counting at 2^24."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _split_mapping(batch: Mapping[str, Any], like: Inputs | None) -> tuple[Any, Any]:
    if isinstance(like, tuple) and len(like) == 1 and isinstance(like[0], Mapping):  # the network takes a mapping whole
        inputs, labels = _split_mapping(batch, like[0])
        return (inputs,), labels
    own = like if isinstance(like, Mapping) else {}
    name = next((name for name in _LABELS if name in batch), None)
    inputs = {key: value for key, value in batch.items() if key != name or key in own}
    labels = batch[name] if name is not None else None
    if like is not None and not isinstance(like, Mapping):
        full = [value for value in inputs.values() if output_tensors(value)]
        return (_completed(full[0], like) if len(full) == 1 else inputs), labels
    return {**{key: value for key, value in own.items() if key not in _tensor_keys(own)}, **inputs}, labels


def _split_entries(
    batch: list[Any] | tuple[Any, ...], like: tuple[Any, ...] | Mapping[str, Any]
) -> tuple[Any, Any] | None:
    """Inputs and labels of a batch that lists the inputs of `like` one by one; None if it does not."""
    examples = _entries(like) or {}
    if len(batch) == len(examples) and all(map(_alike, batch, examples.values())):
        return _filled(like, list(examples), batch), None
    keys = _tensor_keys(examples)
    if not keys or len(batch) < len(keys) or not all(map(_alike, batch, (examples[key] for key in keys))):
        return None
    return _filled(like, keys, batch), batch[len(keys)] if len(batch) > len(keys) else None


def _completed(inputs: Any, like: Inputs | None) -> Any:
    """Inputs with the flags, numbers and None of the example inputs where they lack them."""
    if like is None or isinstance(like, (Tensor, list)):
        return inputs
    examples = _entries(like) or {}
    keys = _tensor_keys(examples)
    if isinstance(inputs, Mapping) and isinstance(like, Mapping):
        return {**{key: value for key, value in examples.items() if key not in keys}, **inputs}
    if isinstance(inputs, tuple) and len(inputs) == len(keys) < len(examples):
        return _filled(like, keys, inputs)
    if len(keys) == 1 and _alike(inputs, examples[keys[0]]):
        return _filled(like, keys, [inputs])
    return inputs


def _filled(like: tuple[Any, ...] | Mapping[str, Any], keys: list[Any], values: Sequence[Any]) -> Any:
    entries = {**(_entries(like) or {}), **dict(zip(keys, values, strict=False))}
    return entries if isinstance(like, Mapping) else tuple(entries.values())


def _tensor_keys(entries: Mapping[Any, Any]) -> list[Any]:
    return [key for key, value in entries.items() if output_tensors(value)]


def _alike(value: Any, example: Any) -> bool:
    """Whether two values are of the same kind: tensors, sequences, mappings, or something else."""
    kinds = (Tensor, (list, tuple), Mapping)
    return [isinstance(value, kind) for kind in kinds] == [isinstance(example, kind) for kind in kinds]


_OPEN = object()
"""What the visitor of `_mapped` returns for a container to go into."""


def _mapped(value: Any, visit: Callable[[Any], Any], within: frozenset[int] = frozenset()) -> Any:
    """The same structure with what `visit` returns in place of everything for which it does not return `_OPEN`.

    Args:
        value: The structure.
        visit: From a value to its replacement, or `_OPEN`.
        within: Ids of the objects around `value`, which may refer to each other.
    """
    visited = visit(value)
    if visited is not _OPEN:
        return visited
    entries = _entries(value)
    if entries is None or id(value) in within:
        return value
    if not isinstance(value, (Mapping, list, tuple)) and not output_tensors(value):
        return value
    inner = within | {id(value)}
    return _rebuilt(value, {name: _mapped(item, visit, inner) for name, item in entries.items()})


def _by_sample(inputs: Any, of_tensor: Callable[[Tensor], Tensor], of_list: Callable[[list[Any]], list[Any]]) -> Any:
    """The same structure with tensors and lists of one entry for each sample changed, all others as they are."""
    count = sample_count(inputs)

    def visit(value: Any) -> Any:
        if isinstance(value, Tensor):
            return of_tensor(value) if value.dim() > 0 and len(value) == count else value
        return of_list(value) if isinstance(value, list) and len(value) == count else _OPEN

    return _mapped(inputs, visit)


def _entries(value: Any) -> dict[Any, Any] | None:
    """What a container holds, by key, position or attribute; None for everything that is no container."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    if isinstance(value, (Tensor, nn.Module, type, ModuleType)) or _is_cache(value):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    slots = {name: getattr(value, name) for name in getattr(value, "__slots__", ()) if hasattr(value, name)}
    return {**slots, **getattr(value, "__dict__", {})} or None


def _is_cache(value: Any) -> bool:
    """Whether it is a key-value cache: what attention keeps for the next call, not what the network says."""
    return any(kind.__name__ == "Cache" and kind.__module__.startswith("transformers.") for kind in type(value).__mro__)


def _rebuilt(value: Any, entries: dict[Any, Any]) -> Any:
    """A container like `value` that holds `entries`."""
    if isinstance(value, tuple):
        return type(value)(*entries.values()) if hasattr(value, "_fields") else type(value)(entries.values())
    if isinstance(value, list):
        return type(value)(entries.values())
    if type(value) is dict:
        return entries
    copied: Any = copy.copy(value)
    try:
        for name, item in entries.items():
            if isinstance(value, Mapping):
                copied[name] = item
            else:
                object.__setattr__(copied, name, item)
    except TypeError:  # a mapping that cannot be changed
        return entries
    return copied


def _tensors(
    value: Any, *, into_lists: bool, seen: set[int], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """The tensors in a structure, each with the way to it; objects that refer to each other are visited once."""
    if isinstance(value, Tensor):
        yield path, value
        return
    entries = _entries(value)
    if entries is None or (isinstance(value, list) and not into_lists):
        return
    if not isinstance(value, (Mapping, list, tuple)):
        if id(value) in seen:
            return
        seen.add(id(value))
    names = getattr(value, "_fields", entries) if isinstance(value, tuple) else entries
    for name, item in zip(names, entries.values(), strict=True):
        yield from _tensors(item, into_lists=into_lists, seen=seen, path=(*path, str(name)))


def _lists(value: Any) -> Iterator[list[Any]]:
    """The outermost lists in mappings and tuples."""
    if isinstance(value, list):
        yield value
    elif isinstance(value, (Mapping, tuple)):
        for item in (_entries(value) or {}).values():
            yield from _lists(item)


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a network takes: those its first convolution reads; 3 for a network without one."""
    folded = 1
    for module in model.modules():
        if type(module).__name__ == "SpaceToDepth":  # timm's TResNet folds squares of pixels into channels first
            folded = int(getattr(module, "bs", 1)) ** 2
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            return module.in_channels // folded
    return 3
