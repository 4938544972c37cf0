"""What training has to remember to continue as if nothing had happened, and how a signal asks it to stop."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch

from prunecli import ranks
from prunecli.engine.device import seed_everything
from prunecli.engine.hooks import State
from prunecli.engine.replicas import Agreement
from prunecli.engine.tasks.base import Figures
from prunecli.errors import Interrupted, ModelError


class Keeper(Protocol):
    """Where the states of a training run are kept; see `prunecli.checkpoint.runstate.StateStore`."""

    def load(self) -> State | None:
        """Returns the state to resume from, if there is one."""
        ...

    def due(self) -> bool:
        """Whether it is time to save one."""
        ...

    def save(self, content: State, position: str) -> bool:
        """Saves one."""
        ...

    def interrupted(self, signal: int, content: State, position: str) -> Interrupted:
        """Saves one because of a signal; the result says how to resume."""
        ...


@dataclass
class Position:
    """Progress of a training run.

    Attributes:
        epoch: Current epoch, from 1.
        batch: Batches of this epoch that are done.
        images: Images in those batches.
        loss: Sum of the loss over these images.
        seconds: Time spent in it.
    """

    epoch: int = 1
    batch: int = 0
    images: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"epoch {self.epoch}, batch {self.batch}"


class StopRequest:
    """The signal that asked the run to end, if any."""

    signal: int | None = None


@contextmanager
def stop_requests(tell: Callable[[str], None]) -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the current step; the second aborts at once.

    Args:
        tell: Called with a message when the request arrives.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield request
        return
    before: dict[int, Any] = {}
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # Ctrl-C reaches the processes that load images too, and the step needs them
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if request.signal is None:
            request.signal = number
            tell("finishing the step, then saving; press again to abort without saving")
            return
        restore()
        signal.raise_signal(number)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if number not in before and signal.getsignal(number) != signal.SIG_IGN:  # as nohup and scripts leave it
            before[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        restore()
    if request.signal is not None:  # it came when there was no more step to wait for
        signal.raise_signal(request.signal)


def random_state(device: torch.device) -> State:
    """The state of every generator that training on `device` draws from."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "device": torch.get_device_module(device).get_rng_state() if device.type != "cpu" else None,
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def set_random_state(state: State, device: torch.device) -> None:
    """Puts `random_state(device)` back."""
    torch.set_rng_state(state["torch"])
    if device.type != "cpu" and state["device"] is not None:
        torch.get_device_module(device).set_rng_state(state["device"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])


def seed_apart(seed: int, rank: int, updates: int = 0) -> None:
    """Seeds the generators of one of several processes, so that no two of them drop the same units at random.

    Rank 0 has the random numbers that it would have alone.
    """
    if rank:
        sequence = np.random.SeedSequence(seed % 2**64, spawn_key=(rank, updates))
        seed_everything(int(sequence.generate_state(1, np.uint32)[0]))


def batches_of(batches: Iterable[Any], epoch: int, first: int) -> Iterator[Any]:
    """The batches of an epoch, starting at `first`; an iterable without epochs yields the same batches every time."""
    of_epoch = getattr(batches, "epoch", None)
    return of_epoch(epoch, first) if of_epoch is not None else itertools.islice(batches, first, None)


def figures_to_state(figures: Any) -> State | None:
    """Figures of a split (a dataclass) as plain data."""
    return None if figures is None else asdict(figures)


def figures_from_state(state: State | None, kind: type[Any]) -> Figures | None:
    """The inverse of `figures_to_state`; `kind` is the class of the figures."""
    figures: Figures | None = None if state is None else kind(**state)
    return figures


class _Resumable(Protocol):
    """A run whose state can be saved between any two steps."""

    position: Position

    def state(self) -> State:
        """Returns all that decides how it continues."""
        ...

    def restore(self, state: State) -> None:
        """Restores `state()`."""
        ...

    def require_finite(self) -> None:
        """Raises a DivergedError where the weights are not numbers."""
        ...


class Checkpoint:
    """Saves the state of a run when it is due, and ends the run when a signal asked for it.

    Several processes do either together: where they last agreed on it, at the end of a batch.
    """

    def __init__(self, run: _Resumable, keeper: Keeper | None, stop: StopRequest) -> None:
        self._run, self._keeper, self._stop, self._agreed = run, keeper, stop, Agreement()

    def __call__(self) -> None:
        """Call between steps."""
        self._stop_if_asked()
        if self._keeper is not None and (self._agreed.due if ranks.together() else self._keeper.due()):
            self._run.require_finite()
            self._keeper.save(self._run.state(), str(self._run.position))

    def stop(self) -> None:
        """Call where only the steps so far would be saved, such as during validation; equally often everywhere."""
        self.agree()
        self._stop_if_asked()

    def agree(self, loss: float = 0.0, samples: int = 0) -> tuple[float, int]:
        """The loss and the samples of all processes, who agree on what `__call__` does next."""
        if not ranks.together():
            return loss, samples
        signal = self._stop.signal if self._keeper is not None else None
        return self._agreed.reach(signal or 0, self._keeper is not None and self._keeper.due(), loss, samples)

    def _stop_if_asked(self) -> None:
        signal = self._agreed.signal if ranks.together() else self._stop.signal
        if self._keeper is not None and signal:
            self._run.require_finite()
            raise self._keeper.interrupted(signal, self._run.state(), str(self._run.position))

    def restore(self) -> None:
        """Resumes from the newest state, if there is one."""
        state = self._keeper.load() if self._keeper is not None else None
        if state is None:
            return
        try:
            self._run.restore(state)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(
                f"the saved state does not fit this network ({error}); start again with --force"
            ) from error
