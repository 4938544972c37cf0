"""What goes wrong in one process alone, and what only one may do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import prunecli
from prunecli import collective, ranks
from prunecli.checkpoint.io import file_sha256
from prunecli.criteria import magnitude
from prunecli.criteria.base import Calibration
from prunecli.engine.config import FitConfig
from prunecli.engine.fit import fit
from prunecli.engine.tasks.classification import Classification
from prunecli.errors import MethodError, VerificationError
from prunecli.methods import structural, targets
from prunecli.methods.params import StructuralParams
from prunecli.methods.plans import agreed_plan
from prunecli.methods.ranking import select
from prunecli.methods.request import PruneRequest
from prunecli.methods.sca import Sca, _OwnStep
from prunecli.methods.sca_params import ScaParams
from prunecli.methods.sparse import SparseRequest, mask_weights
from prunecli.methods.sparse_params import SparseParams
from prunecli.methods.trained import Removal, TrainedContext, remove_kept
from prunecli.methods.unstructured import Unstructured
from prunecli.methods.unstructured_params import UnstructuredParams
from prunecli.surgery.groups import ChannelGroup
from tests.ranks import cases

CPU = torch.device("cpu")
TASK = Classification.with_classes(10)


def _by_l1(model: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, Tensor | str]:
    return magnitude.l2(model, groups, Calibration())


def rank_dependent(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> Any:
    """A criterion of somebody's own that ranks the last group otherwise on every other process."""
    scores = _by_l1(model, groups)
    name = list(scores)[-1]
    values = scores[name]
    assert isinstance(values, Tensor)
    return {**scores, name: values.flip(0) if torch.distributed.get_rank() else values}


def unaware(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> Any:
    """One that knows nothing of processes: it draws numbers, and sums over all batches."""
    with torch.no_grad():
        total = sum(float(model(inputs).square().sum()) for inputs, _ in calibration.pairs())
    return {group.name: total + torch.rand(group.units, generator=calibration.generator) for group in groups}


def rounded(model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> Any:
    """One whose last bits depend on the process."""
    scores = _by_l1(model, groups)
    return {name: value * (1 + 1e-7 * ranks.rank()) for name, value in scores.items() if isinstance(value, Tensor)}


def pruned_with(criterion: str, kind: str = "conv") -> Any:
    """Kept units and weights, with a criterion of this module in place of `l1`."""
    with patch.object(magnitude, "l1", globals()[criterion]):
        return cases.outcome(kind, "ls", method="l1")[:2]


def plan_that_differs() -> Any:
    keep = {"first": torch.arange(3), "second": torch.arange(4), "third": torch.arange(5)}
    if ranks.rank():
        keep["third"], keep["second"] = torch.arange(4), torch.tensor([0, 1, 2, 4])
    return agreed_plan(keep)


def plan_without_a_layer() -> Any:
    return agreed_plan({"first": torch.arange(3), **({} if ranks.rank() else {"second": torch.arange(2)})})


def allocated_otherwise() -> Any:
    """Equal scores, and another allocation in one process."""
    allocate = structural.allocate

    def otherwise(groups: Any, scores: Any, *rest: Any) -> Any:
        found = allocate(groups, scores, *rest)
        if ranks.rank():
            name = next(iter(found.keep))
            found.keep[name] = found.keep[name][:-1]
        return found

    with patch.object(structural, "allocate", otherwise):
        return cases.outcome("conv", "none", method="l2")[:2]


def repaired_otherwise() -> Any:
    """A repair that comes to another weight in one process."""

    def otherwise(repair: Any, before: nn.Module, after: nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            next(after.parameters())[0] += ranks.rank()

    with patch.object(structural.Repair, "__call__", otherwise):
        return cases.outcome("conv", "ls", method="l2")[:2]


def repaired_with_other_rounding() -> Any:
    """A repair of which one process has other last bits."""

    def otherwise(repair: Any, before: nn.Module, after: nn.Module, *rest: Any) -> None:
        with torch.no_grad():
            next(after.parameters()).mul_(1 + 1e-6 * ranks.rank())

    with patch.object(structural.Repair, "__call__", otherwise):
        return cases.outcome("conv", "ls", method="l2")[:2]


def proof_that_fails(rank: int) -> Any:
    """The proof fails where it is run in one process; nobody is to blame."""

    def fails(*given: Any) -> float:
        if torch.distributed.get_rank() == rank:
            raise VerificationError(f"wrong on rank {rank}")
        return 0.0

    with patch.object(structural, "verify", fails), patch.object(structural, "faulty_groups", lambda *given: {}):
        return cases.outcome("conv", "ls", method="l2")[1]


def latency_target() -> Any:
    """Only the first process may measure, and what it finds decides."""

    def measured(networks: Sequence[nn.Module], *rest: Any, **named: Any) -> Any:
        assert torch.distributed.get_rank() == 0, "another process measures"
        sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
        return _Timing(tuple(size / sizes[0] for size in sizes))

    with patch.object(targets, "time_paired", measured):
        return cases.outcome("vit", "ls", method="l2", latency=0.7, ratio=0.5)[:2]


class _Timing:
    def __init__(self, shares: tuple[float, ...]) -> None:
        self.ratios = shares


def turns(fails: int | None) -> Any:
    """Items in turns, one of which may fail; who computed it."""

    def done(number: int) -> tuple[int, int]:
        if number == fails:
            raise MethodError(f"item {number}")
        assert not ranks.together() and ranks.rank() == 0
        return number, torch.distributed.get_rank()

    return collective.each(done, range(5))


def checkpoint(folder: Path, kind: str) -> str:
    """Prunes, writes a file of this process's own, and returns its hash."""
    example = torch.zeros(2, 7, dtype=torch.int64) if kind == "lstm" else torch.zeros(2, 3, 16, 16)
    result = prunecli.prune(
        cases.network(kind),
        "fisher",
        example_inputs=example,
        data=cases.data_of(kind, 3),
        compensate="ls",
        recalibrate=True,
        ratio=0.4,
    )
    path = folder / f"{kind}-{ranks.rank()}.safetensors"
    with ranks.alone():
        result.save(path)
    return file_sha256(path)


def masks_that_differ() -> Any:
    """A method for single weights whose scores depend on the process."""
    from prunecli.criteria.weights import magnitude as weights

    def otherwise(model: nn.Module, given: Any, calibration: Calibration) -> Any:
        shift = torch.distributed.get_rank()
        return {weight.name: weight.values().abs().roll(shift) for weight in given}

    method = weights.MAGNITUDE.__class__(score=otherwise)
    with patch.object(weights, "MAGNITUDE", method):
        network = cases.network("conv")
        request = SparseRequest(
            method="magnitude", params=SparseParams(sparsity=0.5), example_inputs=torch.zeros(1, 3, 16, 16)
        )
        return mask_weights(network, request).sparsity


def trained(method: str) -> Any:
    """Trains with a method that prunes meanwhile, each process on its share; what stays, and what it says of that."""
    spiking = method == "unstructured"
    network, data = (cases.spiking(), cases.frames(8)) if spiking else (cases.network("conv"), cases.images(8))
    hook, selection, inputs = _hook(method, network, data[0][0])
    share = data[ranks.rank() :: ranks.world_size()]
    fit(network, share, None, FitConfig(epochs=2, lr=0.05), CPU, hooks=[hook], task=TASK)
    removed = remove_kept(network, hook.keep(), Removal(method=method, selection=selection, example_inputs=inputs))
    opened = {name: units.tolist() for name, units in hook.keep().items()}
    return opened, dict(hook.figures()), hook.state(), dict(removed.model.state_dict())


def _hook(method: str, network: nn.Module, inputs: Tensor) -> Any:
    request = PruneRequest(method="l1", params=StructuralParams(), example_inputs=inputs)
    selection = select(network, request)
    context = TrainedContext(selection, inputs, torch.Generator().manual_seed(0), 2)
    if method == "sca":
        params = ScaParams(keep_share=0.5, regrow_share=0.2)
        return Sca(network, params, context), selection, inputs
    return Unstructured(network, UnstructuredParams(connections=0.3, loss="mse"), context), selection, inputs


def stood_in_for(rank: int) -> Any:
    """What is known of two steps, in which the batch of one process counts as nothing."""
    own = _OwnStep()
    known = []
    for step in (1, 2):
        for call in (1, 2):
            own.see("layer", torch.tensor([step, call * 10.0 ** torch.distributed.get_rank()], dtype=torch.float64))
        own.take(counts=torch.distributed.get_rank() != rank)
        known.append([(name, total.tolist(), calls) for name, total, calls in own.over_ranks()])
    return known
