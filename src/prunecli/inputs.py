"""What goes into a network and comes out of it, whatever its shape: one place for calling, moving and cutting batches.

Inputs are a tensor, a tuple (positional arguments), a mapping (keyword arguments such as `input_ids` and
`attention_mask`) or a list (one argument: a list of images). Values that are no tensors are passed on as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Inputs: TypeAlias = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""One tensor, positional arguments, one list of tensors, or keyword arguments."""

_LABELS = "labels"


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Runs `model` on `inputs`."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    return model(inputs)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with `function` of every tensor in it."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {name: map_tensors(item, function) for name, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, function) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(map_tensors(item, function) for item in value)
    return value


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors in a model's inputs or output, in order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in output_tensors(value)]
    if isinstance(output, (list, tuple)):
        return [tensor for value in output for tensor in output_tensors(value)]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [
            tensor for field in dataclasses.fields(output) for tensor in output_tensors(getattr(output, field.name))
        ]
    return []


def cast_inputs(inputs: Inputs, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """Moves inputs to `device`; floating ones also to `dtype`."""
    return map_tensors(
        inputs, lambda tensor: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)
    )


def split_batch(batch: Any, like: Inputs | None = None) -> tuple[Any, Any]:
    """Inputs and labels (None: there are none) of one batch.

    Args:
        batch: A tensor; (inputs, labels, ...) as a data loader gives them; or a mapping, whose entry `labels` is taken
            out.
        like: Example inputs. Where these are a tuple, a batch of as many tensors is inputs alone, and one of one tensor
            more is inputs and labels.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != _LABELS}, batch.get(_LABELS)
    if isinstance(like, tuple) and isinstance(batch, (list, tuple)) and isinstance(batch[0], Tensor):
        if len(batch) == len(like):
            return tuple(batch), None
        if len(batch) == len(like) + 1:
            return tuple(batch[:-1]), batch[-1]
    return batch[0], batch[1] if len(batch) > 1 else None


def sample_count(inputs: Inputs) -> int:
    """Samples in a batch: entries of a list, else the length of the first tensor's first dimension."""
    if isinstance(inputs, list):
        return len(inputs)
    return next((len(tensor) for tensor in output_tensors(inputs) if tensor.dim() > 0), 0)


def take_samples(inputs: Any, first: int, end: int) -> Any:
    """The samples from `first` up to `end` of a batch; tensors without a batch dimension stay whole.

    Args:
        inputs: Inputs, or labels.
        first: Index of the first sample.
        end: Index behind the last one.
    """
    if isinstance(inputs, list):
        return inputs[first:end]
    return map_tensors(inputs, lambda tensor: tensor[first:end] if tensor.dim() > 0 else tensor)


def repeat_sample(inputs: Inputs, count: int) -> Any:
    """The first sample `count` times, as one batch."""
    if isinstance(inputs, list):
        return inputs[:1] * count

    def repeated(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0:
            return tensor
        return tensor[:1].expand(count, *(-1 for _ in tensor.shape[1:])).contiguous()

    return map_tensors(inputs, repeated)


def doubled_batch(inputs: Inputs) -> Any:
    """Every tensor twice along its first dimension: batch normalisation cannot train on one value."""
    if isinstance(inputs, list):
        return [*inputs, *inputs]
    return map_tensors(inputs, lambda tensor: torch.cat([tensor, tensor]) if tensor.dim() > 0 else tensor)


def logits(output: Any) -> Tensor:
    """The class scores in a model's output: the tensor itself, `.logits`, or the first tensor of several."""
    if isinstance(output, Tensor):
        return output
    scores = getattr(output, "logits", None)
    if isinstance(scores, Tensor):
        return scores
    return output_tensors(output)[0]


def model_device(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a model without any."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def summing_dtype(tensor: Tensor) -> torch.dtype:
    """What to add many values up in: float64 where the device has it; float32 stops counting at 2^24."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64
