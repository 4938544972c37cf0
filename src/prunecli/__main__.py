"""`python -m prunecli` and the `prune` executable."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Runs the command line, or answers a shell that completes one, and exits with its code."""
    # What is imported stays to the end. Looking through it for garbage, as it grows and once more at exit, takes a
    # fifth of a start.
    gc.disable()
    try:
        if "_PRUNE_COMPLETE" in os.environ:
            from prunecli.cli.completion import answer

            os._exit(answer(os.environ))  # a shell waits, and nothing is open that has to be closed
        from prunecli.cli.app import run

        gc.freeze()
        gc.enable()
        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before there was anything to stop
        code = 130
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is near anyway, and libraries have traces to show
    sys.exit(code)


if __name__ == "__main__":
    main()
