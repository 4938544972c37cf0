"""Joining the processes of a launcher (torchrun), and who of them tells the user what went wrong.

Nothing here imports torch before there is a launcher.
"""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from prunecli.errors import FailedElsewhere, GateFailed, Interrupted, RankLost, RanksDiffer, RecipeError

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What launchers tell a process."""
_TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another in one operation. Dead ones are noticed at once; this is for those that hang."""
_COMMON = (Interrupted, GateFailed, RanksDiffer)
"""Errors that all processes raise together."""
_PATIENCE = 5.0
"""Seconds within which another process is expected to say what it failed of."""


@dataclass(frozen=True)
class Place:
    """What a launcher says about this process.

    Attributes:
        rank: Its number among all.
        size: How many there are.
        local_rank: Its number on this machine.
        local_size: How many there are on this machine.
        restarts: How often they were all started before.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    restarts: int = 0


def place() -> Place | None:
    """What a launcher of several processes says; None without one.

    Raises:
        RecipeError: It says something that is no number.
    """
    env = os.environ
    if any(name not in env for name in _VARIABLES):
        return None
    try:
        rank, size = int(env["RANK"]), int(env["WORLD_SIZE"])
        local = int(env.get("LOCAL_RANK", rank)), int(env.get("LOCAL_WORLD_SIZE", size))
        restarts = int(env.get("TORCHELASTIC_RESTART_COUNT", 0))
    except ValueError as error:
        message = f"RANK, WORLD_SIZE and LOCAL_RANK have to be numbers ({error}); start it with torchrun"
        raise RecipeError(message) from error
    return Place(rank, size, *local, restarts) if size > 1 else None


def known_place() -> Place | None:
    """The same; None too where a launcher says something that is no number, which only `prune run` has to know."""
    with suppress(RecipeError):
        return place()
    return None


def is_silent() -> bool:
    """Whether another process talks to the user."""
    here = known_place()
    return here is not None and here.rank > 0


def refuse_launcher(verb: str) -> None:
    """Checks that a command that works in one process was started once.

    Raises:
        RecipeError: A launcher has started several.
    """
    here = known_place()
    if here is not None:
        raise RecipeError(
            f"prune {verb} works in one process, and a launcher has started {here.size} (WORLD_SIZE); use prune run, "
            "or start it without torchrun"
        )


class _Notes:
    """What processes write down for each other before they end: what they failed of, and with which exit code."""

    def __init__(self, store: Any, here: Place) -> None:
        self._store, self.here = store, here

    def write(self, message: str, code: int) -> None:
        """Notes this process's own failure."""
        with suppress(Exception):  # whoever keeps the notes is gone
            self._store.set(f"failed-{self.here.rank}", f"{code} {message}")

    def read(self, rank: int) -> tuple[int, str] | None:
        """What another process has noted."""
        with suppress(Exception):
            if self._store.check([f"failed-{rank}"]):
                code, _, message = self._store.get(f"failed-{rank}").decode().partition(" ")
                return int(code), message
        return None

    def others(self) -> list[tuple[int, str]]:
        """What all other processes have noted."""
        found = (self.read(rank) for rank in range(self.here.size) if rank != self.here.rank)
        return [note for note in found if note is not None]

    def leave(self) -> None:
        """Lets a rank 0 that keeps the notes itself wait until the others have read them; torchrun outlives it."""
        with suppress(Exception):
            self._store.set(f"left-{self.here.rank}", "")
            if self.here.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                keys = [f"left-{rank}" for rank in range(1, self.here.size)]
                _awaited(lambda: self._store.check(keys))

    def first_to(self, what: str) -> bool:
        """Whether this is the first process that asks for it."""
        with suppress(Exception):
            return bool(self._store.add(what, 1) == 1)
        return True


_notes: list[_Notes] = []


@contextmanager
def joined(asked: int | None, device: str, plan: Callable[[], str], threads: int | None) -> Iterator[Place | None]:
    """Joins the other processes that a launcher has started, if there is one, and leaves them at the end.

    Args:
        asked: How many there should be; None: however many there are.
        device: Where to compute, as users say it.
        plan: Returns the settings as text, which have to be the same everywhere, as versions have to be.
        threads: Threads that were asked for; None: each process takes its share of this machine's cores.

    Raises:
        RecipeError: There are more or fewer than were asked for, or they cannot work together on the device.
        RanksDiffer: Processes have different versions or settings.
        RankLost: Not all of them have come.
    """
    here = place()
    if here is None:
        yield None
        return
    if asked is not None and asked != here.size:
        raise RecipeError(f"--nproc {asked} asks for {asked} processes, and the launcher has started {here.size}")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings about those that have left say nothing new
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from prunecli import ranks

    backend = _backend(device, here)
    _end_with_launcher()
    if threads is None and os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun sets it to 1
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here.local_size))
    try:
        known, _, _ = next(rendezvous("env://", here.rank, here.size, timeout=_TIMEOUT))
        store = PrefixStore(_met(known, here), known)
        _notes[:] = [_Notes(PrefixStore("notes", store), here)]
        dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RankLost(f"the {here.size} processes did not come together ({str(error).splitlines()[0]})") from error
    settings = hashlib.sha256(plan().encode()).hexdigest()[:12]
    ranks.require_equal({"device": "cpu" if backend == "gloo" else "cuda", **versions(), "recipe (sha256)": settings})
    yield here
    ranks.wait_for_all()
    dist.destroy_process_group()
    _notes.clear()


def _met(store: Any, here: Place) -> str:
    """A name for this meeting of the processes, which all of them agree on.

    torchrun keeps one store for all its restarts, with the addresses of processes that are gone. How often it has
    restarted them is no name: on several machines it counts differently.

    Raises:
        RuntimeError: Not all of them have come.
    """
    own, end = uuid.uuid4().hex, time.monotonic() + _TIMEOUT.total_seconds()
    others = range(1, here.size)
    if here.rank:
        store.set(f"hello-{here.rank}", own)
    while time.monotonic() < end:
        if here.rank == 0:
            come = [store.get(f"hello-{rank}").decode() for rank in others if store.check([f"hello-{rank}"])]
            store.set("welcome", " ".join([own, *come]))
            if store.check([f"{own}-{rank}" for rank in others]):
                return own
        elif store.check(["welcome"]):
            name, *come = store.get("welcome").decode().split()
            if own in come:
                store.set(f"{name}-{here.rank}", "")
                return str(name)
        time.sleep(0.02)
    raise RuntimeError(f"waited {_TIMEOUT} for each other")


def _end_with_launcher() -> None:
    """Asks this process to end, as SIGTERM does, once its launcher is gone: killed, it cannot end them itself."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if os.environ.get("TORCHELASTIC_RUN_ID"):
        threading.Thread(target=watch, name="launcher", daemon=True).start()


def versions() -> dict[str, str]:
    """What every process has to have in the same version."""
    from prunecli.measure.environment import library_versions

    return {"Python": platform.python_version(), **{name: str(text) for name, text in library_versions().items()}}


def too_many(processes: int, device: str) -> str | None:
    """A warning where processes get less than a core each."""
    cores = os.cpu_count() or 1
    if processes <= cores or device not in ("auto", "cpu"):
        return None
    return f"{processes} processes share {cores} cores: they will wait for each other; use --nproc {cores} or fewer"


def _backend(device: str, here: Place) -> str:
    """How processes talk to each other; makes the process's own accelerator the current one.

    Raises:
        RecipeError: They cannot work together there.
    """
    import torch

    kind, _, number = device.partition(":")
    if kind == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        kind = found.type if found is not None else "cpu"
    if kind == "cpu":
        return "gloo"
    if kind != "cuda":
        raise RecipeError(f"several processes work together on cpu and cuda, not on {kind}; use --device cpu")
    if number:
        raise RecipeError(f"--device {device}: each process takes a GPU of its own; use --device cuda")
    if here.local_size > torch.cuda.device_count():
        raise RecipeError(
            f"{here.local_size} processes on this machine and {torch.cuda.device_count()} GPUs: each needs its own; "
            "start fewer, or use --device cpu"
        )
    torch.cuda.set_device(here.local_rank)
    return "nccl"


@dataclass(frozen=True)
class Verdict:
    """How a process ends that has failed.

    Attributes:
        message: What it shows; None: another process shows its own.
        code: Its exit code.
    """

    message: str | None
    code: int


def verdict(error: BaseException, message: str, code: int) -> Verdict:
    """Who shows an error: whoever it comes from, and of several with the same one rank 0.

    Args:
        error: What ended the command.
        message: What would be shown by a process alone.
        code: Its exit code then.
    """
    if isinstance(error, FailedElsewhere):
        return Verdict(None, code)
    here = known_place()
    if here is None:
        return Verdict(message, code)
    if not _notes:  # nobody has met yet, so all of them say the same
        return Verdict(message if here.rank == 0 else None, code)
    if isinstance(error, _COMMON):
        return Verdict(message if here.rank == 0 else None, code)
    ruling = _among(_notes[0], error, message, code)
    _notes[0].leave()
    return ruling


def _among(notes: _Notes, error: BaseException, message: str, code: int) -> Verdict:
    """The same where one process may have failed and the others not."""
    here = notes.here
    prefix = f"rank {here.rank}: "
    if isinstance(error, (RankLost, KeyboardInterrupt)):  # most likely because another one has failed
        found = _awaited(notes.others)
        if found:
            return Verdict(None, found[0][0])
        if isinstance(error, KeyboardInterrupt):
            return Verdict(message if here.rank == 0 else None, code)
        return Verdict(prefix + message if notes.first_to("complain") else None, code)
    notes.write(message, code)
    if here.rank == 0:
        return Verdict(message, code)
    first = _awaited(lambda: [note for note in [notes.read(0)] if note is not None])
    if first and first[0][1] == message:
        return Verdict(None, code)
    return Verdict(prefix + message, code)


def _awaited(look: Callable[[], Any]) -> Any:
    """What is there to be seen within `_PATIENCE` seconds."""
    end = time.monotonic() + _PATIENCE
    while not (found := look()) and time.monotonic() < end:
        time.sleep(0.05)
    return found
