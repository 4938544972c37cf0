"""Following channels through the ATen operators of a network's forward passes.

The model runs for real under a dispatch mode: every composite function arrives here as the primitive operators
`torch.export` would record after its decompositions, parameters arrive as themselves, and the modules on the stack are
known. The rules in `prunecli.surgery.tracing.operators` say which dimensions of an operator's arguments and results
are the same channels. A plain run costs a fraction of an export and works on models that cannot be exported.

What a network computes is not needed to know which channels are the same, so the operators that take most of the time
give zeros, unless something reads values that depend on weights: then everything is computed.

There is a pass in evaluation mode and one in training mode, over the same axes: what training returns, and widths that
only training reads, count as well. Where a pass reads values that depend on weights, such as `if x.max() > 5`, it is
followed a second time with the other answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunecli.errors import DataDependentError, ModelError, described
from prunecli.inputs import Inputs, call, doubled_batch, output_tensors
from prunecli.measure.shapes import uncomputed
from prunecli.naming import option
from prunecli.surgery.axes import fixed, freeze
from prunecli.surgery.outputs import check_names, chosen_outputs, default_outputs, free_outputs
from prunecli.surgery.tracing.labels import INPUT, OUTPUT, Followed, Label, Labels, Record, ValuesNeededError
from prunecli.surgery.tracing.operators import Call, apply_rule
from prunecli.surgery.tracing.paths import PATHS
from prunecli.surgery.tracing.running import plain_kernels, seeded, stack_names, tensors_in
from prunecli.surgery.tracing.sizes import SizeWatcher
from prunecli.surgery.tracing.watched import Uses


class NotRunningError(ModelError):
    """The model itself fails on the inputs."""


_SHORT = (torch.float32, torch.float16, torch.bfloat16)


def follow(
    model: nn.Module,
    inputs: Inputs,
    *,
    training: bool = False,
    outputs: Sequence[str] | None = None,
    originals: Mapping[int, str] | None = None,
    uses: Uses | None = None,
    values: bool = True,
) -> Followed:
    """Runs `model` and labels every dimension of every tensor.

    Args:
        model: In evaluation mode, on the CPU; what a pass changes in its buffers is undone.
        inputs: Inputs of the model's dtype.
        training: Whether to follow a pass in training mode, too.
        outputs: Names of the outputs that keep their width; None for those that `default_outputs` chooses.
        originals: Names by id of the tensors of the network that `model` is a copy of.
        uses: Where the attributes of `model` note comparisons, if they are watched.
        values: Whether to compute. Without, whatever goes wrong may be due to the values that are missing.

    Raises:
        ValuesNeededError: Something reads values that were not computed.
        DataDependentError: What it computes depends on values in a way that cannot be followed.
        NotRunningError: The model does not run on the inputs.
        ModelError: It uses tensors that it does not own, or has no output of these names.
    """
    labels = Labels(model, originals or {}, values=values)
    followed = labels.followed
    followed.uses = uses or followed.uses
    try:
        output = _pass(model, labels, inputs)
    except ModelError:
        raise
    except Exception as error:
        raise NotRunningError(f"the model does not run on the example inputs: {described(error)}") from error
    followed.records = labels.records
    if outputs is not None:
        check_names(output, outputs)
    followed.kept_outputs = tuple(outputs) if outputs is not None else default_outputs(output)
    followed.free_outputs = free_outputs(output, followed.kept_outputs)
    _hold_outputs(labels, output)
    _follow_branches(model, labels, inputs)
    for path in PATHS:
        with path(model) as taken:
            if taken:
                _try_pass(model, labels, inputs)
    if training:
        _follow_training(model, labels, inputs)
    _refuse_unreached(labels)
    for label in followed.results:
        for term in label.dims:
            freeze(term, OUTPUT)
    for label, terms, reason in followed.conditions:
        if label in labels.read or label in followed.results:
            for term in terms:
                freeze(term, reason)
    return followed


def _hold_outputs(labels: Labels, output: Any) -> None:
    chosen = chosen_outputs(output, labels.followed.kept_outputs)
    labels.followed.results += [labels.of(tensor) for tensor in chosen if tensor in labels]


def _pass(model: nn.Module, labels: Labels, inputs: Inputs) -> Any:
    labels.start()
    follower = _Follower(labels)
    with plain_kernels(), torch.no_grad(), _buffers_restored(model), seeded():
        with stack_names(model, labels.stack, follower), follower, SizeWatcher(labels, labels.followed.uses):
            for tensor in output_tensors(inputs):
                labels.set(tensor, [fixed(size, INPUT) for size in tensor.shape], from_input=True)
            output = call(model, inputs)
    if labels.values_needed:  # code may have caught the error
        raise ValuesNeededError(labels.values_needed)
    return output


def _try_pass(model: nn.Module, labels: Labels, inputs: Inputs) -> bool:
    """A pass that may fail; what it returns is held.

    Raises:
        ModelError: It uses a tensor that the network does not own.
    """
    try:
        output = _pass(model, labels, inputs)
    except ModelError:
        raise
    except Exception as error:  # a path that does not run reads no widths
        if not labels.values and not _is_about_sizes(error):
            raise ValuesNeededError(f"a pass without values fails: {described(error)}") from error
        return False
    _hold_outputs(labels, output)
    return True


def _is_about_sizes(error: Exception) -> bool:
    """Whether it is batch normalisation that refuses a single value for each channel."""
    return isinstance(error, ValueError) and "more than 1 value per channel" in str(error)


def _follow_training(model: nn.Module, labels: Labels, inputs: Inputs) -> None:
    """The pass in training mode; networks that need targets, such as detectors, have none."""
    followed = labels.followed
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        for samples in (1, 2):  # batch normalisation may need two
            batch = inputs if samples == 1 else doubled_batch(inputs)
            if _try_pass(model, labels, batch):
                followed.training, followed.training_samples = labels.records, samples
                _follow_branches(model, labels, batch)
                return
    finally:
        for module, mode in modes.items():
            module.training = mode


def _follow_branches(model: nn.Module, labels: Labels, inputs: Inputs) -> None:
    """Follows the branches that the inputs do not take."""
    before = [record.operator for record in labels.records]
    for _ in labels.reads.untried():
        if _try_pass(model, labels, inputs):
            labels.reads.ran(alike=[record.operator for record in labels.records] == before)


def _refuse_unreached(labels: Labels) -> None:
    """Refuses networks in which values decide which layers run, if some did not.

    Raises:
        DataDependentError: With the module that decides and the first weight that was not reached.
    """
    followed = labels.followed
    unmet = (
        name
        for name, label in followed.parameters.items()
        if label.learned and label.source is not None and label.source[0] not in followed.met
    )
    name = next(unmet, None) if labels.reads.decisions else None
    if name is not None:
        where = labels.reads.decisions[0] or "the model itself"
        raise DataDependentError(
            f"what {where} computes depends on the values of its input, and {name} was not reached: other inputs may "
            f"reach it; prune a part with {option('only', 'MODULE')}, or move the decision out of forward"
        )


@contextmanager
def _buffers_restored(model: nn.Module) -> Iterator[None]:
    """Undoes what a pass does to buffers, such as running means."""
    before = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, values in before:
                buffer.copy_(values)
                module._buffers[name] = buffer


class _Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The dispatch mode behind `follow`."""

    def __init__(self, labels: Labels) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._labels = labels

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known, followed = self._labels, self._labels.followed
        name = func.overloadpacket.__name__
        tensors = tensors_in(args, kwargs)
        labels = tuple(known.of(tensor) for tensor in tensors)
        from_input = any(label.from_input for label in labels)
        learned = any(label.learned for label in labels)
        out = None
        if from_input and learned and not known.values:
            _refuse_to_read(known, func, tensors, labels)
            out = uncomputed(func, args, kwargs)
        if out is None:
            out = func(*args, **kwargs)
        results = tensors_in(out)
        apply_rule(Call(known, func, name, args, kwargs, tensors, labels, out, results))
        outputs = tuple(known.of(result) for result in results)
        origins = frozenset().union(*(label.origins for label in labels)) if not from_input else frozenset()
        if labels and results and name in _PARTS:
            _note_part(name, args, tensors[0], labels[0], results, outputs)
        for label in outputs:
            if label.source is not None and labels and labels[0].source is not None and not label.starts:
                label.starts = labels[0].starts
            label.from_input = label.from_input or from_input
            label.learned = label.learned or learned
            label.origins = label.origins or origins
        known.read.update(labels)
        followed.met.update(label.source[0] for label in labels if label.source is not None)
        if from_input and any(result.dtype in _SHORT for result in results):
            followed.single = True
        # Tensors are not kept: only their labels are.
        plain_args, plain_kwargs = _without_tensors(args), {k: _without_tensors(v) for k, v in kwargs.items()}
        numbers = tuple(_numbers(args, tensors, labels))
        known.records.append(Record(name, func, known.module, plain_args, plain_kwargs, labels, outputs, numbers))
        if not results and from_input and learned and isinstance(out, (bool, int, float)):
            return known.reads.answered(out, known.module)
        return out

    def entered(self, name: str) -> None:
        """A module begins."""
        followed = self._labels.followed
        if name not in followed.order:
            followed.order.append(name)

    def left(self, name: str, output: Any) -> None:
        """A module returns `output` to the one below it on the stack."""
        labels = tuple(self._labels.of(tensor) for tensor in output_tensors(output))
        if labels:
            self._labels.followed.outputs.setdefault(name, labels)


def _refuse_to_read(known: Labels, func: Any, tensors: Sequence[Tensor], labels: Sequence[Label]) -> None:
    """Refuses operators whose results are no tensors, or of sizes that depend on values that were not computed."""
    missing = [tensor for tensor, label in zip(tensors, labels, strict=True) if label.from_input and label.learned]
    if not missing:
        return
    sized = not _SIZED_BY_VALUES.isdisjoint(func.tags)
    if func.overloadpacket is torch.ops.aten.index:  # only masks decide how much is picked out
        sized = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in missing)
    if sized or func.namespace not in ("aten", "prims") or not _gives_tensors(func):
        known.need_values(f"{func.overloadpacket.__name__} reads what {known.module or 'the model'} computes")


_SIZED_BY_VALUES = frozenset((torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape))


@cache
def _gives_tensors(func: Any) -> bool:
    """Whether an operator returns nothing but tensors."""
    return all(str(result.type) in ("Tensor", "List[Tensor]") for result in func._schema.returns)


_PARTS = frozenset("slice select split split_with_sizes unsafe_split unsafe_split_with_sizes chunk narrow".split())


def _note_part(
    name: str, args: tuple[Any, ...], whole: Tensor, label: Label, parts: Sequence[Tensor], outputs: Sequence[Label]
) -> None:
    """Notes which rows of a parameter a slice of it holds."""
    if label.source is None or (name == "slice" and len(args) > 4 and args[4] != 1):
        return
    at = 2 if "split" in name or name == "chunk" else 1
    dim = (args[at] if len(args) > at else 0) % whole.dim()
    tensor, dims = label.source
    behind = whole.storage_offset()
    for part, output in zip(parts, outputs, strict=True):
        if output is label or whole.stride(dim) == 0:
            continue
        start = (int(part.storage_offset()) - int(behind)) // whole.stride(dim)
        if part.dim() < whole.dim():
            dims = tuple(own for position, own in enumerate(label.source[1]) if position != dim)
        output.source = (tensor, dims)
        output.starts = {**label.starts, label.source[1][dim]: label.starts.get(label.source[1][dim], 0) + start}


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
