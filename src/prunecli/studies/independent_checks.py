"""Checks of a pruned network beyond verification: it is run beside the original, as its user would run it.

Verification compares numbers on the example inputs in evaluation mode. Here the network is saved and restored, run on
other inputs and in training mode, asked for gradients and exported; each time the original says what has to come out.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.manifest import Architecture
from prunecli.copying import copied
from prunecli.errors import described
from prunecli.inputs import Inputs, call, output_tensors
from prunecli.models.catalog import rebuild_dense
from prunecli.models.loading import restore
from prunecli.pipeline.pruning import PruneResult
from prunecli.studies.collections.network import Network
from prunecli.surgery.outputs import chosen_outputs
from prunecli.surgery.proof.verify import verify
from prunecli.surgery.recurrent.forms import forms_of, put_in_form
from prunecli.surgery.removal.rebuild import state_tensors
from prunecli.surgery.tracing.trace import trace

_SEEDS = 4
_EXPORTED_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """The outcome of one check.

    Attributes:
        passed: Whether the pruned network does what the original does; None if the original cannot be asked.
        detail: What differs, or why there is nothing to compare with.
    """

    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class _Pair:
    network: Network
    original: nn.Module
    result: PruneResult

    @property
    def pruned(self) -> nn.Module:
        return self.result.model

    def in_its_form(self) -> nn.Module:
        """The original with recurrent layers in the form of the pruned network, whose names the trace has."""
        formed = copied(self.original)
        put_in_form(formed, forms_of(self.pruned))
        return formed


def independent_checks(
    network: Network, original: nn.Module, result: PruneResult, *, export: bool = True
) -> Iterator[tuple[str, Check]]:
    """Runs every check, one after the other, so that those that were finished are known if one takes too long.

    Args:
        network: Where the original and its inputs come from.
        original: The network before pruning; run in training mode, so that its running statistics change.
        result: The result of pruning it.
        export: Whether both are exported with `torch.export`, which takes the longest.

    Yields:
        The name of a check and its outcome.
    """
    pair = _Pair(network, original, result)
    for name, check in _CHECKS.items():
        if check is _exported and not export:
            continue
        try:
            yield name, check(pair)
        except Exception as error:  # of whatever type the pruned network raises
            yield name, Check(False, described(error))


def _restored(pair: _Pair) -> Check:
    """Saved, restored into a newly built network, and equal bit by bit."""

    def dense(architecture: Architecture) -> nn.Module:
        return rebuild_dense(architecture) if architecture.ref else pair.network.build()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.safetensors"
        pair.result.save(path)
        restored, _ = restore(path, dense)
    before, after = state_tensors(pair.pruned), state_tensors(restored)
    changed = [name for name, tensor in before.items() if not torch.equal(tensor, after[name])]
    if changed:
        return Check(False, f"{changed[0]} is not restored bit by bit")
    inputs = _seeded(pair.network.inputs)
    expected, actual = _outputs(pair.pruned, inputs), _outputs(restored, inputs)
    same = len(expected) == len(actual) and all(map(_equal, expected, actual))
    return Check(same, "" if same else "the restored network computes something else")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


def _second_input(pair: _Pair) -> Check:
    """Another batch size, length or image size, in evaluation mode; also compared with the masked original."""
    inputs, names = _seeded(pair.network.other), pair.result.report.outputs or None
    try:
        expected = _outputs(pair.original, inputs, names)
    except Exception as error:
        return Check(None, f"the original fails: {described(error)}")
    shapes = _alike(expected, _outputs(pair.pruned, inputs, names), pair.network.varying)
    if not shapes.passed or pair.network.varying:
        return shapes
    # Another batch size may take other operators, so the trace of the example inputs does not describe this run.
    original = pair.in_its_form()
    traced = trace(original, inputs, assumptions=pair.result.trace.assumptions)
    before = {group.name: (group.units, len(group.members)) for group in pair.result.trace.groups}
    if before != {group.name: (group.units, len(group.members)) for group in traced.groups}:
        return Check(True, "shapes alone: these inputs lead to other groups, so numbers cannot be compared")
    verify(original, pair.pruned, traced, _kept(pair.result), inputs)
    return shapes


def _kept(result: PruneResult) -> dict[str, Tensor]:
    """Kept units of every group, from the edits that are on record."""
    edits = {edit.group: torch.tensor(edit.keep_indices) for edit in result.report.edits}
    return {group.name: edits.get(group.name, torch.arange(group.units)) for group in result.trace.groups}


def _training_shapes(pair: _Pair) -> Check:
    """What comes out in training mode, where networks may have branches of their own."""
    inputs, names = _seeded(pair.network.training or pair.network.other), pair.result.report.outputs or None
    try:
        expected = _outputs(pair.original, inputs, names, training=True)
    except Exception as error:
        return Check(None, f"the original fails: {described(error)}")
    return _alike(expected, _outputs(pair.pruned, inputs, names, training=True), pair.network.varying)


def _gradients(pair: _Pair) -> Check:
    """The same parameters get gradients; layers that are skipped at random are given several chances."""
    inputs = _seeded(pair.network.training or pair.network.other)
    original = pair.in_its_form()
    try:
        expected = _with_gradients(original, inputs, 0)
    except Exception as error:
        return Check(None, f"the original fails: {described(error)}")
    actual = _with_gradients(pair.pruned, inputs, 0)
    for seed in range(1, _SEEDS):
        if expected == actual:
            break
        expected |= _with_gradients(original, inputs, seed)
        actual |= _with_gradients(pair.pruned, inputs, seed)
    if expected == actual:
        return Check(True)
    lost, gained = sorted(expected - actual), sorted(actual - expected)
    return Check(False, f"{lost[0]} has no gradient" if lost else f"{gained[0]} has one that the original has not")


def _exported(pair: _Pair) -> Check:
    """`torch.export` gives a program that computes the same."""
    inputs = _seeded(pair.network.inputs)
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (_positional(inputs), {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.export(pair.original.eval(), args, kwargs, strict=False)
    except Exception as error:
        return Check(None, f"the original cannot be exported: {described(error)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(pair.pruned.eval(), args, kwargs, strict=False)
    torch.manual_seed(0)
    with torch.no_grad():
        actual = output_tensors(program.module()(*args, **kwargs))
    expected = _outputs(pair.pruned, inputs)
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in actual]:
        return Check(False, "the exported program gives other shapes")
    worst = max((_difference(one, other) for one, other in zip(expected, actual, strict=True)), default=0.0)
    good = worst <= _EXPORTED_TOLERANCE
    return Check(good, "" if good else f"the exported program differs by {worst:.0e}")


_CHECKS: dict[str, Callable[[_Pair], Check]] = {
    "restored": _restored,
    "second input": _second_input,
    "training shapes": _training_shapes,
    "gradients": _gradients,
    "export": _exported,
}


def _positional(inputs: Inputs) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _seeded(inputs: Callable[[], Inputs]) -> Inputs:
    torch.manual_seed(0)
    return inputs()


def _outputs(
    model: nn.Module, inputs: Inputs, names: Sequence[str] | None = (), *, training: bool = False
) -> list[Tensor]:
    """Outputs of these names (none: all; None: those that count), with the same random numbers each time."""
    model.train(training)
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            return chosen_outputs(call(model, inputs), names)
    finally:
        model.eval()


def _with_gradients(model: nn.Module, inputs: Inputs, seed: int) -> set[str]:
    """Names of the parameters that get a gradient from the squares of all outputs.

    Raises:
        ValueError: A gradient is not finite.
    """
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    try:
        outputs = output_tensors(call(model, inputs))
        loss = sum(tensor.float().square().mean() for tensor in outputs if tensor.requires_grad)
        if isinstance(loss, Tensor):
            loss.backward()  # type: ignore[no-untyped-call]
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for name, gradient in found.items():
            if not torch.isfinite(gradient).all():
                raise ValueError(f"the gradient of {name} is not finite")
        return set(found)
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()


def _alike(expected: list[Tensor], actual: list[Tensor], varying: bool) -> Check:
    """Whether outputs have the same shapes, and finite values where the original's are finite."""
    if len(expected) != len(actual):
        return Check(False, f"{len(actual)} outputs, the original has {len(expected)}")
    for number, (one, other) in enumerate(zip(expected, actual, strict=True)):
        first, second = (tuple(tensor.shape[1:] if varying else tensor.shape) for tensor in (one, other))
        if first != second:
            return Check(False, f"output {number} has shape {second}, the original's has {first}")
        if one.is_floating_point() and torch.isfinite(one).all() and not torch.isfinite(other).all():
            return Check(False, f"output {number} is not finite")
    return Check(True)


def _difference(one: Tensor, other: Tensor) -> float:
    if not one.is_floating_point() or one.numel() == 0:
        return 0.0
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-30))
