"""`prune` in processes that start quickly.

Importing torch takes longer than most runs in the tests, so one process imports everything and forks for every run.
Before a fork it has computed nothing, so the children start as a new interpreter would.
"""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunecli.checkpoint.durable import FAULT_VARIABLE

_SERVER = """
import gc, importlib, json, os, pkgutil, signal, sys, threading, time, traceback
import torch
torch.set_num_threads(1)
import prunecli.cli.app, prunecli.cli.commands, prunecli.cli.options, prunecli.pipeline.pruning, prunecli.pipeline.run
import prunecli.studies.audit, prunecli.studies.auto, prunecli.studies.contest, prunecli.studies.inspection
import prunecli.studies.sensitivity
import prunecli.report.tables
import matplotlib.backends.backend_agg, matplotlib.figure
import sklearn.datasets, sklearn.model_selection, timm.data, torchvision.transforms
for module in pkgutil.iter_modules(prunecli.cli.commands.__path__, "prunecli.cli.commands."):
    importlib.import_module(module.name)
gc.freeze()  # no child looks through all of this for garbage

def child(job):
    os.setsid()
    os.chdir(job["cwd"])
    os.environ.update(job["env"])
    for name in job["unset"]:
        os.environ.pop(name, None)
    if job["terminal"]:  # the first one that a session leader opens becomes its controlling terminal
        terminal = os.open(job["terminal"], os.O_RDWR)
        for number in range(3):
            os.dup2(terminal, number)
    else:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if job["limit"]:
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"], job["limit"]))
    if job["memory"]:
        import resource
        pages = int(open("/proc/self/statm").read().split()[0])
        limit = pages * resource.getpagesize() + job["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    os.umask(job["umask"])
    if job["warm"]:  # what another user may not read has to be imported before
        prunecli.cli.app.run(job["warm"])
    if job["user"]:
        os.setgroups([]); os.setgid(job["user"]); os.setuid(job["user"])
    if job["packages"]:
        sys.path.insert(0, job["packages"])
    sys.argv = ["prune", *job["argv"]]
    code = 70
    try:
        if job["code"]:
            code = 1
            exec(job["code"], {"__name__": "__main__"})
            code = 0
        else:
            code = prunecli.cli.app.run(job["argv"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        if not job["code"]:
            raise
        traceback.print_exc()
    finally:
        sys.stdout.flush(); sys.stderr.flush()
        os._exit(code)

for line in sys.stdin:
    job = json.loads(line)
    if "preload" in job:
        importlib.import_module(job["preload"])
        gc.freeze()
        continue
    start = time.monotonic()
    pid = os.fork()
    if pid == 0:
        child(job)
    waiting = list(job["signals"])
    while True:
        if time.monotonic() - start > job["patience"]:
            os.killpg(pid, signal.SIGKILL)
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if waiting:
            moment, number, text, group = waiting[0]
            heard = not text or text in open(job["err"]).read()
            if heard and time.monotonic() - start >= moment:
                send = os.killpg if group or number == signal.SIGKILL else os.kill
                try:
                    send(pid, number)
                except ProcessLookupError:  # it has no group of its own yet
                    os.kill(pid, number)
                waiting.pop(0)
        time.sleep(0.002)
    print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - start]), flush=True)
os._exit(0)
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended: its exit code (negative: the signal that killed it), its streams, its time."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True)
class Sent:
    """A signal to send `after` seconds, once `text` stands on stderr; to the whole process `group` as terminals do."""

    number: int
    after: float = 0.0
    text: str = ""
    group: bool = False


class Processes:
    """Runs command lines, one after the other."""

    def __init__(self, packages: Path | None = None) -> None:
        """Starts the server; `packages` is a folder of installed packages to see beside those of the environment."""
        self._preloaded: set[str] = set()
        folders = [str(packages) if packages is not None else "", os.environ.get("PYTHONPATH", "")]
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "TORCH_CPP_LOG_LEVEL": "ERROR",
                "PYTHONPATH": os.pathsep.join(filter(None, folders)),
            },
        )

    def run(
        self,
        words: Sequence[object],
        cwd: Path,
        *,
        fault: str | None = None,
        signals: Sequence[Sent] = (),
        file_limit: int = 0,
        memory_limit: int = 0,
        user: int = 0,
        warm: Sequence[object] = (),
        umask: int = 0o022,
        env: Mapping[str, str] | None = None,
        streams: Path | None = None,
        unset: Sequence[str] = (),
        terminal: bool = False,
        packages: Path | None = None,
        code: str = "",
        patience: float = 240.0,
    ) -> Ended:
        """Runs `prune WORDS`.

        Args:
            words: The command line.
            cwd: Where to run.
            fault: A point of `prunecli.checkpoint.durable.crash_point` to die at.
            signals: What to send, in order.
            file_limit: Bytes that a file may have (RLIMIT_FSIZE); 0: any.
            memory_limit: Bytes of address space it may take beyond what it starts with; 0: any.
            user: Whom to run as; 0: as now.
            warm: A command line to run before that, as now.
            umask: Bits that new files do not get.
            env: More of the environment.
            streams: Folder for what it prints; default: `.out` and `.err` where it runs.
            unset: Names in the environment that it does not get.
            terminal: Whether its streams are a pseudo-terminal; everything written to it is returned as `out`.
            packages: A folder of more packages, before those of the environment.
            code: Python to run instead, with `words` as its arguments.
            patience: Seconds after which it is killed.
        """
        out, err = (streams or cwd) / ".out", (streams or cwd) / ".err"
        for stream in (out, err):
            stream.write_text("")
            stream.chmod(0o666)
        job = {
            "argv": [str(word) for word in words],
            "cwd": str(cwd),
            "env": {**(env or {}), **({FAULT_VARIABLE: fault} if fault else {})},
            "out": str(out),
            "err": str(err),
            "signals": [(sent.after, sent.number, sent.text, sent.group) for sent in signals],
            "limit": file_limit,
            "memory": memory_limit,
            "user": user,
            "warm": [str(word) for word in warm],
            "umask": umask,
            "unset": list(unset),
            "terminal": "",
            "packages": str(packages or ""),
            "code": code,
            "patience": patience,
        }
        if terminal:
            return self._run_in_terminal(job)
        self._send(job)
        code, seconds = self._result()
        return Ended(code, out.read_text(), err.read_text(), seconds)

    def preload(self, module: str) -> None:
        """Imports a module once, so that later processes have it from the start."""
        if module not in self._preloaded:
            self._preloaded.add(module)
            self._send({"preload": module})

    def _send(self, job: Mapping[str, object]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()

    def _result(self) -> tuple[int, float]:
        assert self._server.stdout is not None
        code, seconds = json.loads(self._server.stdout.readline())
        return code, seconds

    def _run_in_terminal(self, job: dict[str, object]) -> Ended:
        assert self._server.stdout is not None
        terminal, inner = pty.openpty()
        try:
            self._send({**job, "terminal": os.ttyname(inner)})
            seen = b""
            ended = False
            while True:
                ready, _, _ = select.select([terminal, self._server.stdout], [], [], 0 if ended else None)
                if terminal in ready:
                    seen += os.read(terminal, 65536)
                elif ended:
                    break
                ended = ended or self._server.stdout in ready
        finally:
            os.close(inner)
            os.close(terminal)
        code, seconds = self._result()
        return Ended(code, seen.decode(), "", seconds)

    def close(self) -> None:
        """Ends the server."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)


def when(file: Path, text: str, action: Callable[[], object]) -> threading.Thread:
    """Does something as soon as `text` stands in a file."""

    def wait() -> None:
        for _ in range(30_000):
            if file.exists() and text in file.read_text():
                action()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
