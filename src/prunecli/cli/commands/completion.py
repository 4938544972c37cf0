"""`prune completion`."""

from __future__ import annotations

from typing import Annotated, Literal

from prunecli.cli.completion import install_path, script
from prunecli.cli.declared import Argument, Command, Option
from prunecli.cli.options import with_output
from prunecli.cli.output import Output

_ShellArgument = Annotated[Literal["bash", "zsh", "fish"], Argument("SHELL", "bash, zsh or fish.")]


def run(
    output: Output,
    shell: _ShellArgument,
    install: Annotated[bool, Option("--install", help="Write it where the shell looks for completions.")] = False,
) -> None:
    """Prints or installs the script."""
    text = script(shell)
    if not install:
        output.document({"shell": shell, "script": text})
        output.text(text)
        return
    path = install_path(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    output.document({"shell": shell, "wrote": str(path)})
    hint = f"; add `fpath+=({path.parent}); autoload -Uz compinit; compinit` to ~/.zshrc" if shell == "zsh" else ""
    output.note(f"wrote {path}; it works in the next shell{hint}")


def command() -> Command:
    """The command."""
    return Command("completion", with_output(run), "Print the script that makes Tab complete prune's words.")
