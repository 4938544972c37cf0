"""Several processes that work together, as a launcher starts them, forked from one that has imported everything."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import Processes

REPOSITORY = Path(__file__).resolve().parent.parent
_LONGEST = 90.0


@dataclass(frozen=True)
class Together:
    """How processes ended, by rank: exit codes (negative: a signal), what they printed, and the time of the last."""

    codes: list[int]
    out: list[str]
    err: list[str]
    seconds: float


def run_together(
    processes: Processes,
    folder: Path,
    *,
    size: int = 2,
    words: Sequence[object] = (),
    call: str = "",
    env: Mapping[int, Mapping[str, str]] | None = None,
    paths: Mapping[int, Path] | None = None,
    signals: tuple[int, int, str] | None = None,
) -> Together:
    """Runs `prune WORDS`, or a function, in `size` processes.

    Args:
        processes: The server to fork from.
        folder: Where they run; gets `rank-N.out` and `rank-N.err`.
        size: How many.
        words: The command line.
        call: A function to call with the folder instead, as "module:name".
        env: More of the environment of single ranks.
        paths: Folders of packages that single ranks find first.
        signals: Rank, signal, and the text on rank 0's stderr at which it is sent.
    """
    spec = {
        "size": size,
        "folder": str(folder),
        "words": [str(word) for word in words],
        "call": call,
        "env": {str(rank): dict(more) for rank, more in (env or {}).items()},
        "paths": {str(rank): str(path) for rank, path in (paths or {}).items()},
        "signals": list(signals or ()),
    }
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from tests.several import main; main()"
    ended = processes.run([json.dumps(spec)], folder, code=code)
    assert ended.code == 0, ended.err
    codes, seconds = json.loads(ended.out.splitlines()[-1])
    texts = [[(folder / f"rank-{rank}.{kind}").read_text() for rank in range(size)] for kind in ("out", "err")]
    return Together(codes, *texts, seconds)


def main() -> None:
    """What the server's child runs: forks once more for each rank, and waits."""
    spec: dict[str, Any] = json.loads(sys.argv[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start, children = time.monotonic(), {}
    for rank in range(spec["size"]):
        pid = os.fork()
        if pid == 0:
            _child(rank, port, spec)
        children[pid] = rank
    codes: dict[int, int] = {}
    waiting = spec["signals"]
    while len(codes) < len(children):
        time.sleep(0.005)
        _collect(children, codes)
        if waiting and waiting[2] in Path(spec["folder"], "rank-0.err").read_text():
            os.kill(next(pid for pid, rank in children.items() if rank == waiting[0]), waiting[1])
            waiting = []
        if time.monotonic() - start > _LONGEST:
            for pid, rank in children.items():
                if rank not in codes:
                    os.kill(pid, signal.SIGKILL)
    print(json.dumps([[codes[rank] for rank in range(spec["size"])], time.monotonic() - start]))


def _collect(children: Mapping[int, int], codes: dict[int, int]) -> None:
    for pid, rank in children.items():
        if rank in codes:
            continue
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            codes[rank] = os.waitstatus_to_exitcode(status)


def _child(rank: int, port: int, spec: Mapping[str, Any]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": spec["size"], "LOCAL_WORLD_SIZE": spec["size"]}
    if spec["size"] > 1:
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    os.environ.update(spec["env"].get(str(rank), {}))
    if str(rank) in spec["paths"]:
        sys.path.insert(0, spec["paths"][str(rank)])
    for number, kind in ((1, "out"), (2, "err")):
        file = Path(spec["folder"], f"rank-{rank}.{kind}")
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = 70
    try:
        if spec["call"]:
            module, _, name = spec["call"].partition(":")
            getattr(importlib.import_module(module), name)(Path(spec["folder"]))
            code = 0
        else:
            from prunecli.cli.app import run

            sys.argv = ["prune", *spec["words"]]
            code = run(spec["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
