"""`python -m prunecli` and the `prune` executable."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Runs the command line and exits with its code."""
    try:
        from prunecli.cli.app import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before there was anything to stop
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is near anyway, and libraries have traces to show
    sys.exit(code)


if __name__ == "__main__":
    main()
