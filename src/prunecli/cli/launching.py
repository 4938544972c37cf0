"""Starting a command in several processes on this machine: torchrun, as a library."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Sequence

from prunecli.errors import FailedElsewhere, PruneError, RecipeError

_GRACE = 45
"""Seconds in which processes may save what they have, once they have been asked to end."""


def launch(words: Sequence[str], processes: int, restarts: int, again: Callable[[], Sequence[str]]) -> None:
    """Runs `prune WORDS` in several processes and returns once all have finished.

    Args:
        words: The command line.
        processes: How many.
        restarts: How often all of them are started again after one was killed. What a process says it has failed of,
            it would fail of again.
        again: Returns the command line to start them again with.

    Raises:
        RecipeError: The numbers are impossible.
        FailedElsewhere: One has failed, and has said so.
        PruneError: One was killed, and there is no restart left.
    """
    for option, given, least in (("--nproc", processes, 1), ("--max-restarts", restarts, 0)):
        if given < least:
            raise RecipeError(f"{option} has to be at least {least} (got {given})")
    while True:
        try:
            _launch(words, processes)
            return
        except _Killed as error:
            if not restarts:
                raise PruneError(str(error)) from error
            restarts -= 1
            print(f"{error.what}; starting all processes again", file=sys.stderr, flush=True)
            words = again()


class _Killed(Exception):
    """A process was killed.

    Attributes:
        what: Which, and by what.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}, and the others were ended; if nobody did it, memory ran out: use smaller batches "
            "(--set data.batch_size=N). --resume continues the run"
        )
        self.what = what


def _launch(words: Sequence[str], processes: int) -> None:
    """Starts the processes once, and waits for them."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        run_id=str(uuid.uuid4()),
        max_restarts=0,
        shutdown_timeout=_GRACE,
    )
    # What torchrun does, lest every process takes all cores for itself.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable(logging.CRITICAL)  # what has failed says so itself
    try:
        elastic_launch(config, sys.executable)("-m", "prunecli", *words)
    except SignalException as error:
        raise FailedElsewhere("stopped", 128 + int(error.sigval)) from error
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        killed = [(rank, each) for rank, each in failures if each.exitcode < 0 and each.exitcode != -signal.SIGTERM]
        for rank, each in killed:
            name = signal.Signals(-each.exitcode).name
            raise _Killed(f"rank {rank} (process {each.pid}) was killed by {name}") from error
        raise FailedElsewhere("a process has failed", max(failures[0][1].exitcode, 1)) from error
    finally:
        logging.disable(logging.NOTSET)
