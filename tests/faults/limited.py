"""Reads files in a process that may take only so much more memory: python -m tests.faults.limited BYTES FILE...

Prints one JSON document: by file the seconds of CPU time and what became of it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from prunecli.checkpoint.foreign_files import read_foreign
from prunecli.checkpoint.io import read_manifest
from prunecli.errors import PruneError
from prunecli.recipe.loader import load_yaml
from prunecli.report.schema import read_report


def read(path: Path) -> Any:
    """Reads a file as `prune` would."""
    readers: dict[str, Callable[[Path], Any]] = {".yaml": load_yaml, ".json": read_report}
    if path.suffix in readers:
        return readers[path.suffix](path)
    return read_manifest(path) or read_foreign(path)


def main(more: int, files: list[str]) -> None:
    """Reads each file under the limit."""
    torch.set_num_threads(1)
    torch.ones(10).isfinite().all()  # threads and buffers of torch are there before the limit is
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    found = {}
    for name in files:
        start = time.process_time()  # the same whatever else runs here
        try:
            read(Path(name))
            message = ""
        except PruneError as error:
            message = str(error)
        found[name] = (time.process_time() - start, message)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
