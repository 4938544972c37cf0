"""Equal copies of one network in several processes: gradients averaged, running statistics joined, ends agreed on.

torch's DistributedDataParallel does the first of these for networks that are called through it. Here tasks call
networks as their packages want it (`model(images, targets)`, `model(inputs, memory, carry=True)`), hooks add parameters
and penalties, and layers are frozen and released between epochs, none of which goes through a wrapper. So gradients
are averaged where autograd has accumulated them, in buckets that are sent while it goes on, as
DistributedDataParallel does it (Li et al., PyTorch Distributed, VLDB 2020); `benchmarks/distributed.py` measures both.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.hooks import RemovableHandle

from prunecli import ranks
from prunecli.errors import DivergedError, PruneError

_FIRST, _BUCKET = 1 << 20, 25 << 20
"""Bytes of the first bucket, which should be on its way early, and of the others."""


@dataclass
class _Bucket:
    """Parameters of one type on one device whose gradients are sent together."""

    parameters: list[nn.Parameter] = field(default_factory=list)
    size: int = 0
    missing: int = 0
    flat: Tensor | None = None
    sum: ranks.Running | None = None


class Gradients:
    """Averages the gradients of a network over processes.

    Whether a parameter has a gradient at all is agreed on too: one that has none anywhere keeps none, so that the
    optimizer leaves it alone.

    Args:
        parameters: Those that take gradients, in the order of the network.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._buckets = _buckets(parameters)
        self._where = {parameter: bucket for bucket in self._buckets for parameter in bucket.parameters}
        self._sent, self._armed = 0, False
        self._handles: list[RemovableHandle] = [
            each.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]
            for each in self._where
        ]

    def remove(self) -> None:
        """Leaves the parameters alone from now on."""
        for handle in self._handles:
            handle.remove()

    def last(self) -> None:
        """Call before the last backward pass of a step: what it completes is sent at once."""
        self._armed = True
        self._sent = 0
        for bucket in self._buckets:
            bucket.missing, bucket.flat, bucket.sum = len(bucket.parameters), None, None

    def average(self) -> None:
        """Call before the optimizer's step: sends what is left, waits, and puts the averages in place.

        Raises:
            RankLost: Another process is gone.
        """
        if not self._armed:  # the last batches of the step were left out
            self.last()
        self._armed = False
        for bucket in self._buckets[self._sent :]:
            _send(bucket)
        for bucket in self._buckets:
            _receive(bucket)

    def _arrived(self, parameter: Tensor) -> None:
        if not self._armed:
            return
        bucket = self._where[parameter]  # type: ignore[index]
        bucket.missing -= 1
        if bucket.missing < 0 or bucket.flat is not None:
            raise PruneError(
                "a parameter gets its gradient in several parts of one backward pass (checkpointing that re-enters?), "
                "which several processes cannot share; use one process"
            )
        # All processes send in one order, whatever arrives first.
        while self._sent < len(self._buckets) and not self._buckets[self._sent].missing:
            _send(self._buckets[self._sent])
            self._sent += 1


def _buckets(parameters: Sequence[nn.Parameter]) -> list[_Bucket]:
    """Gradients arrive roughly from the last layer to the first."""
    done: list[_Bucket] = []
    growing: dict[tuple[torch.dtype, torch.device], _Bucket] = {}
    for parameter in reversed(parameters):
        key = parameter.dtype, parameter.device
        bucket = growing.setdefault(key, _Bucket())
        bucket.parameters.append(parameter)
        bucket.size += parameter.numel() * parameter.element_size()
        if bucket.size >= (_BUCKET if done else _FIRST):
            done.append(growing.pop(key))
    return [*done, *growing.values()]


def _send(bucket: _Bucket) -> None:
    """Starts adding up the gradients, and how many processes have each of them."""
    first, count = bucket.parameters[0], len(bucket.parameters)
    size = sum(parameter.numel() for parameter in bucket.parameters)
    flat = torch.empty(size + count, dtype=first.dtype, device=first.device)
    for place, parameter in zip(_places(bucket, flat), bucket.parameters, strict=True):
        gradient = parameter.grad
        if gradient is None:
            place.zero_()
        else:
            place.copy_(gradient.to_dense() if gradient.is_sparse else gradient)
    flat[:size].div_(ranks.world_size())  # before the sum, which could be too large for half precision
    flat[size:] = torch.tensor([float(parameter.grad is not None) for parameter in bucket.parameters])
    bucket.flat, bucket.sum = flat, ranks.Running(flat)


def _receive(bucket: _Bucket) -> None:
    assert bucket.flat is not None and bucket.sum is not None, "every bucket has been sent"
    bucket.sum.wait()
    having = bucket.flat[-len(bucket.parameters) :].tolist()
    for place, parameter, processes in zip(_places(bucket, bucket.flat), bucket.parameters, having, strict=True):
        if not processes:
            continue
        if parameter.grad is None or parameter.grad.is_sparse:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(place)
    bucket.flat = bucket.sum = None


def _places(bucket: _Bucket, flat: Tensor) -> list[Tensor]:
    """The part of each parameter, in its shape."""
    sizes = [parameter.numel() for parameter in bucket.parameters]
    parts: Iterable[Tensor] = torch.split(flat[: sum(sizes)], sizes)
    return [part.view(parameter.shape) for part, parameter in zip(parts, bucket.parameters, strict=True)]


class Statistics:
    """Joins what forward passes have changed in buffers, mostly the running statistics of normalisations.

    After each step every process has the mean of all, weighted by samples. For a running mean this is what one process
    would have measured on the layer's inputs; of a running variance, the part between the shares is missing.

    Args:
        network: The network that is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._before: dict[str, Tensor] = {}
        self._names: list[str] | None = None
        self._samples = 0
        self.look_again()

    def look_again(self) -> None:
        """Finds out anew which buffers change: call when layers may have been frozen or released."""
        self._names = None
        self._before = {name: buffer.clone() for name, buffer in self._network.named_buffers()}

    def see(self, samples: int) -> None:
        """Notes that a batch has been computed; 0 samples: it counts as nothing."""
        self._samples += samples

    def join(self) -> None:
        """Call after each step.

        Raises:
            RankLost: Another process is gone.
        """
        buffers = dict(self._network.named_buffers())
        if self._names is None:
            # By their values: batch normalisation does not count up the version of what it changes.
            before, self._before = self._before, {}
            own = {name for name, buffer in buffers.items() if name in before and _changed(before[name], buffer)}
            own |= _measured(self._network)  # also by layers that were left out so far
            self._names = sorted(set().union(*ranks.gathered(own)))
        chosen = [buffers[name] for name in self._names if buffers[name].is_floating_point()]
        samples, self._samples = self._samples, 0
        if not chosen:
            return
        values = [buffer.double() * samples for buffer in chosen]
        count, *sums = ranks.summed([torch.tensor(float(samples)), *values])
        for buffer, total in zip(chosen, sums, strict=True):
            buffer.copy_(total / count.clamp(min=1))


def _changed(before: Tensor, buffer: Tensor) -> bool:
    """Whether a buffer holds something else than before; one with another shape is about single samples."""
    return before.shape == buffer.shape and not torch.equal(before, buffer)


def _measured(network: nn.Module) -> set[str]:
    """Names of the running statistics that training changes."""
    return {
        f"{name}.{own}".lstrip(".")
        for name, module in network.named_modules()
        if isinstance(module, _NormBase) and module.training and module.track_running_stats
        for own, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }


class Replicas:
    """The copy of a network that this process trains, kept equal to the others; alone, it does nothing.

    Args:
        network: What is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._statistics = Statistics(network) if ranks.together() else None
        self._gradients: Gradients | None = None

    def start(self) -> None:
        """Call before the steps of an epoch, for which layers may have been frozen or released."""
        self.stop()
        if self._statistics is not None:
            self._gradients = Gradients([each for each in self._network.parameters() if each.requires_grad])
            self._statistics.look_again()

    def see(self, samples: int, *, closing: bool) -> None:
        """Call before a backward pass.

        Args:
            samples: Samples of this process that count.
            closing: Whether it is the last one of a step.
        """
        if self._statistics is not None:
            self._statistics.see(samples)
        if self._gradients is not None and closing:
            self._gradients.last()

    def join(self) -> None:
        """Call when a step's gradients have been computed: afterwards they and all buffers are those of all processes.

        Raises:
            RankLost: Another process is gone.
        """
        if self._gradients is not None and self._statistics is not None:
            self._gradients.average()
            self._statistics.join()

    def stop(self) -> None:
        """Leaves gradients alone from now on."""
        if self._gradients is not None:
            self._gradients.remove()
            self._gradients = None

    def running(self) -> AbstractContextManager[object]:
        """What surrounds a pass of the network, to explain errors."""
        return nullcontext()

    def saved(self, state: dict[str, Any]) -> dict[str, Any]:
        """A state as it is saved: every tensor in full."""
        return state

    def require_finite(self, position: object) -> None:
        """Checks the weights and buffers of the network.

        Raises:
            DivergedError: One is NaN or infinite.
        """
        for name, tensor in self._network.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and not bool(torch.isfinite(tensor.detach()).all()):
                raise DivergedError(not_finite(name, position))

    def require_same(self, what: str) -> None:
        """Checks that all processes have the same parameters and buffers.

        Raises:
            RanksDiffer: They do not.
        """
        ranks.require_same(what, tensors_of(self._network))

    def end(self) -> None:
        """Call after the last epoch: the network is as it was given, but trained."""


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, including non-persistent ones."""
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    return {name: tensor.detach() for name, tensor in named}


def not_finite(name: str, position: object) -> str:
    """What is said of a parameter or buffer that is no number."""
    return (
        f"{name} holds NaN or infinity at {position}; lower the learning rate (--lr), or limit the gradients "
        "(--clip-grad)"
    )


class Agreement:
    """What all processes know after each batch: its loss, and whether to stop or to save.

    Attributes:
        signal: A signal that one of them was sent, and that ends the run; 0: none.
        due: Whether rank 0 wants to save a state.
    """

    def __init__(self) -> None:
        self.signal, self.due = 0, False

    def reach(self, signal: int, due: bool, loss: float = 0.0, samples: int = 0) -> tuple[float, int]:
        """The mean loss over processes and the samples of all; takes in what each process was sent and wants.

        Args:
            signal: What this one was sent, 0 for nothing.
            due: Whether it is time to save.
            loss: Weighted so that the mean is that of all samples.
            samples: That count.
        """
        numbers = torch.zeros(3 + ranks.world_size(), dtype=torch.float64)
        numbers[:3] = torch.tensor([loss / ranks.world_size(), samples, due and ranks.writes()])
        numbers[3 + ranks.rank()] = signal
        (total,) = ranks.summed([numbers])
        self.due, self.signal = bool(total[2]), int(total[3:].max())
        return float(total[0]), int(total[1])


def weighted(mean: Tensor, terms: int) -> Tensor:
    """A mean over terms of this process, scaled so that its average over processes is the mean over all terms.

    Args:
        mean: A scalar.
        terms: How many terms it is the mean of; 0 where they count as nothing.
    """
    if not ranks.together():
        return mean
    (total,) = ranks.summed([torch.tensor(terms)])
    return mean * (terms * ranks.world_size() / max(float(total), 1.0))
