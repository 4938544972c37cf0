"""The verb table, and what happens to an error."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from types import FrameType
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from prunecli.cli.lazy import LazyGroup, Verb, error_text, make_group
from prunecli.cli.output import Output
from prunecli.errors import GateFailed, PruneError, Stopped
from prunecli.methods.registry import all_methods

SUMMARY = "Prune trained neural networks, with proof that the smaller network is the right one."

INTERRUPTED = 130

_current = Output()
_stopped_by: list[int] = []


def _command(module: str, attribute: str = "command", *arguments: Any) -> Callable[[], Any]:
    return lambda: getattr(import_module(f"prunecli.cli.commands.{module}"), attribute)(*arguments)


_WORK, _LOOK, _METHODS = "Work", "Look", "Methods (prune METHOD MODEL is prune prune MODEL --method METHOD)"

VERBS: dict[str, Verb] = {
    "run": Verb("Run all stages of a recipe.", _WORK, _command("run")),
    "train": Verb("Train a network.", _WORK, _command("train")),
    "prune": Verb("Prune a network with any method.", _WORK, _command("prune")),
    "finetune": Verb("Recover accuracy after pruning.", _WORK, _command("train", "finetune_command")),
    "eval": Verb("Measure accuracy, size and speed; write a report.", _WORK, _command("eval")),
    "compare": Verb("Compare reports or checkpoints; gate on the result.", _LOOK, _command("compare")),
    "sensitivity": Verb("Measure what each layer costs; write ratios by layer.", _LOOK, _command("sensitivity")),
    "inspect": Verb("Show a network's layers, manifest and history.", _LOOK, _command("inspect")),
    "models": Verb("List architectures.", _LOOK, _command("models")),
    "methods": Verb("List pruning methods.", _LOOK, _command("methods")),
    "recipe": Verb("Check, show, describe or start a recipe.", _LOOK, _command("recipe")),
    "doctor": Verb("Check this installation.", _LOOK, _command("doctor")),
    "completion": Verb("Tab completion for bash, zsh and fish.", _LOOK, _command("completion")),
}


def verbs() -> dict[str, Verb]:
    """All verbs: the table and one for each method, whose names may not clash."""
    table = dict(VERBS)
    for name, spec in all_methods().items():
        if name in VERBS:
            raise PruneError(f"method {name!r} takes the name of a command; its package has to rename it")
        table[name] = Verb(spec.summary, _METHODS, _command("prune", "method_command", name))
    return table


def root() -> LazyGroup:
    """The `prune` command."""

    def prune(
        ctx: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    ) -> None:
        if version:
            from prunecli import __version__

            print(f"prune {__version__}")
            raise typer.Exit()
        if ctx.invoked_subcommand is None:
            print(ctx.get_help())

    return make_group("prune", verbs(), prune, SUMMARY)


def use_output(output: Output) -> None:
    """Makes `output` the one that errors of the running command go to."""
    global _current
    _current = output


def run(argv: Sequence[str]) -> int:
    """Runs a command line.

    Args:
        argv: Without the program's name.

    Returns:
        0 ok, 1 failure, 2 usage, recipe or input, 3 a gate, 130 interrupt.
    """
    if "_PRUNE_COMPLETE" in os.environ:
        from prunecli.cli.completion import answer

        return answer(os.environ)
    use_output(Output("json" if "--json" in argv else "human", debug="--debug" in argv))
    _stopped_by.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
                signal.signal(number, _stop)
    try:
        code = root().main(args=list(argv), prog_name="prune", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # Typer has turned Ctrl-C into an exit
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except PruneError as error:
        return _fail(error, str(error), error.exit_code)
    except TyperException as error:
        return _fail(error, error_text(error), int(getattr(error, "exit_code", 2)))
    except KeyboardInterrupt as error:
        code = 128 + _stopped_by[0] if _stopped_by else INTERRUPTED
        return _fail(error, "interrupted; only what had finished is saved", code)
    except BrokenPipeError:
        # The reader went away (`| head`): not an error, and nothing may be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        return _fail(error, f"{error.filename or 'system'}: {error.strerror or error}", 1)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return _fail(error, f"{type(error).__name__}: {first} (this is a bug; --debug shows where)", 1)


def _stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM outside training ends the command like Ctrl-C does, so temporary files go."""
    _stopped_by.append(number)
    raise Stopped(number)


def _fail(error: BaseException, message: str, code: int) -> int:
    if _current.debug:
        traceback.print_exception(error)
    if isinstance(error, GateFailed):
        _current.complain(message)  # the document of the comparison is already out
    else:
        _current.error(message, code, type(error).__name__)
    return code
