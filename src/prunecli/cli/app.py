"""Runs a command line: signals, errors and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType

from typer.exceptions import TyperException

from prunecli.cli.joining import known_place, refuse_launcher, verdict
from prunecli.cli.lazy import built, error_text
from prunecli.cli.output import Output, current_output, use_output
from prunecli.cli.verbs import root
from prunecli.errors import GateFailed, PruneError, Stopped, described

_INTERRUPTED = 130

_stopped_by: list[int] = []


def run(argv: Sequence[str]) -> int:
    """Runs a command line.

    Args:
        argv: Without the program's name.

    Returns:
        0 ok, 1 failure, 2 usage, recipe or input, 3 a gate, 130 interrupt.
    """
    use_output(Output("json" if "--json" in argv else "human", debug="--debug" in argv))
    _stopped_by.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
                signal.signal(number, _stop)
    try:
        verb = next((word for word in argv if not word.startswith("-")), "run")
        if verb != "run":
            refuse_launcher(verb)
        code = built(root()).main(args=list(argv), prog_name="prune", standalone_mode=False)
        sys.stdout.flush()
        if code == _INTERRUPTED:  # Typer has turned Ctrl-C into an exit
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except PruneError as error:
        return _fail(error, str(error), error.exit_code)
    except TyperException as error:
        return _fail(error, error_text(error), int(getattr(error, "exit_code", 2)))
    except KeyboardInterrupt as error:
        code = 128 + _stopped_by[0] if _stopped_by else _INTERRUPTED
        return _fail(error, "interrupted; only what had finished is saved", code)
    except BrokenPipeError:
        # The reader went away (`| head`): not an error, and nothing may be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(error, f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except Exception as error:
        return _fail(error, f"{described(error)} (this is a bug; --debug shows where)", 1)


def _stop(number: int, frame: FrameType | None) -> None:
    """Handles SIGTERM outside training like Ctrl-C, so that temporary files are removed."""
    _stopped_by.append(number)
    raise Stopped(number)


def _fail(error: BaseException, message: str, code: int) -> int:
    output = current_output()
    if output.debug:
        traceback.print_exception(error)
    if known_place() is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which a launcher sends, because another process has failed
    ruling = verdict(error, message, code)
    if ruling.message is None:
        return ruling.code
    if ruling.message != message:
        output.complain(ruling.message)
        return ruling.code
    if isinstance(error, GateFailed):
        output.complain(message)  # the document of the comparison is already out
    else:
        output.error(message, code, type(error).__name__)
    return code
