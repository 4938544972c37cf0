"""Following channels through the ATen operators of one forward pass.

The model runs once, for real, under a dispatch mode: every composite function arrives here as the primitive operators
`torch.export` would record after its decompositions, parameters arrive as themselves, and the modules on the stack are
known. The rules in `prunecli.surgery.tracing.operators` say which dimensions of an operator's arguments and results
are the same channels. One plain run costs a fraction of an export and works on models that cannot be exported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunecli.errors import ModelError
from prunecli.inputs import Inputs, call, output_tensors
from prunecli.surgery.axes import fixed, freeze
from prunecli.surgery.tracing.labels import INPUT, OUTPUT, Followed, Label, Labels, Record
from prunecli.surgery.tracing.operators import Call, apply_rule
from prunecli.surgery.tracing.running import one_line, plain_attention, stack_names

_SHORT = (torch.float32, torch.float16, torch.bfloat16)


def follow(model: nn.Module, inputs: Inputs) -> Followed:
    """Runs `model` once and labels every dimension of every tensor.

    Args:
        model: In evaluation mode, on the CPU; not changed.
        inputs: Inputs of the model's dtype.

    Raises:
        ModelError: The model does not run on the inputs, or what it does depends on their values.
    """
    labels = Labels(model)
    follower = _Follower(labels)
    with plain_attention(), torch.no_grad(), stack_names(model, labels.stack, follower):
        try:
            with follower:
                for tensor in output_tensors(inputs):
                    labels.set(tensor, [fixed(size, INPUT) for size in tensor.shape], from_input=True)
                output = call(model, inputs)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(f"the model does not run on the example inputs: {one_line(error)}") from error
    outputs = [labels.of(tensor) for tensor in output_tensors(output) if tensor in labels]
    for term in (term for label in outputs for term in label.dims):
        freeze(term, OUTPUT)
    read = {label for record in labels.followed.records for label in record.inputs}.union(outputs)
    for label, terms, reason in labels.followed.conditions:
        for term in terms if label in read else ():
            freeze(term, reason)
    return labels.followed


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The dispatch mode behind `follow`."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._labels = labels

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known, followed = self._labels, self._labels.followed
        name = func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        labels = tuple(known.of(tensor) for tensor in tensors)
        out = func(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        apply_rule(Call(known, func, name, args, kwargs, tensors, labels, out, results))
        outputs = tuple(known.of(result) for result in results)
        from_input = any(label.from_input for label in labels)
        origins = frozenset().union(*(label.origins for label in labels)) if not from_input else frozenset()
        for label in outputs:
            label.from_input = label.from_input or from_input
            label.origins = label.origins or origins
        if from_input and any(result.dtype in _SHORT for result in results):
            followed.single = True
        # Tensors are not kept: only their labels are.
        plain_args, plain_kwargs = _without_tensors(args), {k: _without_tensors(v) for k, v in kwargs.items()}
        numbers = tuple(_numbers(args, tensors, labels))
        followed.records.append(Record(name, func, known.module, plain_args, plain_kwargs, labels, outputs, numbers))
        seen = followed.modules.setdefault(known.module, [])
        for label in (*labels, *outputs):
            seen.extend(label.dims)
        return out

    def entered(self, name: str, args: Any) -> None:
        """A module begins with these arguments."""
        followed = self._labels.followed
        if name not in followed.modules:
            followed.order.append(name)
        self._see((name,), args)

    def left(self, name: str, output: Any) -> None:
        """A module returns `output` to the one below it on the stack."""
        self._see((name, self._labels.module), output)
        for tensor in output_tensors(output)[-1:]:
            self._labels.followed.outputs[name] = self._labels.of(tensor)

    def _see(self, names: Sequence[str], value: Any) -> None:
        for name in names:
            seen = self._labels.followed.modules.setdefault(name, [])
            for tensor in output_tensors(value):
                seen.extend(self._labels.of(tensor).dims)


def _numbers(args: tuple[Any, ...], tensors: Sequence[Tensor], labels: Sequence[Label]) -> Iterator[float]:
    """Plain numbers among the arguments, constants wrapped in a tensor of no dimensions included."""
    yield from (float(value) for value in args if isinstance(value, float))
    for tensor, label in zip(tensors, labels, strict=True):
        if tensor.dim() == 0 and not label.from_input and label.source is None and tensor.is_floating_point():
            yield float(tensor)


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (list, tuple)):
        return tuple(_without_tensors(item) for item in value)
    return value
