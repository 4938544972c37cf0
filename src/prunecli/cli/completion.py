"""Tab completion for bash, zsh and fish.

The scripts ask `prune` itself, with `_PRUNE_COMPLETE` set and the words of the line in the environment, one to a line.
Answering imports nothing heavy, not even Typer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.cli.declared import Command, Group, Parameter

Candidate = tuple[str, str]
"""A word and what it means (or nothing)."""

_BASH = """\
# Tab completion of prune for bash. Made by `prune completion bash`.
_prune_completion() {
    local IFS=$'\\n'
    COMPREPLY=( $(env _PRUNE_COMPLETE=complete_bash COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" \\
        prune 2>/dev/null) )
    # Names of files are escaped by the shell, so that spaces in them survive.
    [ -e "${COMPREPLY[0]%/}" ] && compopt -o filenames 2>/dev/null
    if [ "${#COMPREPLY[@]}" -eq 1 ]; then
        case "${COMPREPLY[0]}" in */ | *:) compopt -o nospace 2>/dev/null ;; esac
    fi
}
complete -F _prune_completion prune
"""

_ZSH = """\
#compdef prune
# Tab completion of prune for zsh. Made by `prune completion zsh`.
_prune() {
    local line word typed="${(pj:\\n:)words[1,CURRENT]}"
    local -a whole open
    for line in "${(@f)$(env _PRUNE_COMPLETE=complete_zsh _PRUNE_WORDS="$typed" prune 2>/dev/null)}"; do
        [[ -z $line ]] && continue
        word=${line%%$'\\t'*}
        if [[ $word == */ || $word == *: ]]; then
            open+=("$word")
        else
            whole+=("${word//:/\\\\:}${${line#$word}/$'\\t'/:}")
        fi
    done
    (( $#open )) && compadd -S '' -- $open
    (( $#whole )) && _describe -t values 'prune' whole
}
if [[ $funcstack[1] == _prune ]]; then
    _prune "$@"
else
    compdef _prune prune
fi
"""

_FISH = """\
# Tab completion of prune for fish. Made by `prune completion fish`.
function __prune_complete
    set -lx _PRUNE_COMPLETE complete_fish
    set -lx _PRUNE_WORDS (commandline -opc | string collect)
    set -lx _PRUNE_CURRENT (commandline -ct)
    prune 2>/dev/null
end
complete --command prune --no-files --arguments '(__prune_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_PLACES = {
    "bash": "~/.local/share/bash-completion/completions/prune",
    "zsh": "~/.zfunc/_prune",
    "fish": "~/.config/fish/completions/prune.fish",
}
_RECIPES = (".yaml", ".yml")


def script(shell: str) -> str:
    """The completion script of a shell."""
    return _SCRIPTS[shell]


def install_path(shell: str) -> Path:
    """Where a shell looks for a user's completions."""
    return Path(_PLACES[shell]).expanduser()


def answer(environment: Mapping[str, str]) -> int:
    """Prints the candidates for the line in the environment, one to a line; never fails."""
    shell = environment["_PRUNE_COMPLETE"].removeprefix("complete_")
    try:
        words, cut = _words(shell, environment)
        for word, meaning in complete(words):
            text = word[cut:]
            print(text if shell == "bash" or not meaning else f"{text}\t{meaning}")
        sys.stdout.flush()
    except Exception:  # a broken file name or a half-typed line must not print into the prompt
        return 1
    return 0


def complete(words: Sequence[str]) -> list[Candidate]:
    """Candidates for the last word.

    Args:
        words: The line up to the cursor, beginning with "prune"; the last word may be empty or incomplete.
    """
    from prunecli.cli.verbs import root

    *before, current = words[1:] if len(words) > 1 else [""]
    named: Command | Group = root()
    while isinstance(named, Group):
        verb = next((i for i, word in enumerate(before) if not word.startswith("-")), None)
        if verb is None:
            verbs = [(name, entry.summary) for name, entry in named.verbs.items()]
            return _matching([*verbs, *_help(current), *_group_options(named)], current)
        if before[verb] not in named.verbs:
            return []
        named, before = named.verbs[before[verb]].load(), before[verb + 1 :]
    return _complete_command(named, before, current)


def _help(current: str) -> list[Candidate]:
    """--help, and -h too for whoever has begun to type an option."""
    return [(name, "Show help.") for name in ("--help", *(("-h",) if current else ()))]


def _group_options(group: Group) -> list[Candidate]:
    return [("--version", "Print the version.")] if group.version else []


def _complete_command(command: Command, before: Sequence[str], current: str) -> list[Candidate]:
    parameters = command.parameters()
    options = {spelling: parameter for parameter in parameters for spelling in parameter.spellings}
    name, equals, value = current.partition("=")
    if equals and name in options:
        return [(f"{name}={word}", text) for word, text in _values(options[name], value)]
    positional = 0
    pending = None
    for word in before:
        if pending is not None:
            pending = None
        elif word in options:
            pending = None if options[word].is_flag else options[word]
        elif not word.startswith("-"):
            positional += 1
    if pending is not None:
        return _values(pending, current)
    if current.startswith("-"):
        listed = [(spelling, _first_sentence(option.help)) for spelling, option in options.items()]
        return _matching([*listed, *_help(current)], current)
    arguments = [parameter for parameter in parameters if not parameter.spellings]
    if not arguments or (positional >= len(arguments) and not arguments[-1].many):
        return []
    return _argument_values(command.name, arguments[min(positional, len(arguments) - 1)].name, current)


def _argument_values(command: str, argument: str, current: str) -> list[Candidate]:
    if argument in ("recipe", "recipes"):
        return [*_files(current, _RECIPES), *_shipped(current)]
    if argument == "sweep":
        from prunecli.recipe.shipped import shipped_sweeps

        return [*_files(current, _RECIPES), *_matching([(name, "") for name in shipped_sweeps()], current)]
    if argument == "name":
        return _shipped(current)
    if argument == "paths":
        return [*_files(current, (*WEIGHT_SUFFIXES, ".json")), *(_references(current) if current else ())]
    if argument == "shell":
        return _matching([(shell, "") for shell in _SCRIPTS], current)
    if argument == "pattern":
        return _references(current)
    if argument == "model":
        others = (".json",) if command == "inspect" else _RECIPES
        return [*_files(current, (*WEIGHT_SUFFIXES, *others)), *_references(current)]
    return _files(current, None)


def _values(option: Parameter, current: str) -> list[Candidate]:
    if option.choices:
        return _matching([(choice, "") for choice in option.choices], current)
    name = option.name
    if name in ("arch", "model"):
        return _references(current)
    if name == "method":
        from prunecli.methods.registry import all_methods

        return _matching([(spec.name, spec.summary) for spec in all_methods().values()], current)
    if name == "methods":
        return _ranking_methods(current)
    if name == "data":
        return _data_sets(current)
    if name == "measure":
        from prunecli.recipe.schema import MEASUREMENTS

        return _matching([(figure, "") for figure in MEASUREMENTS], current)
    if name == "executor":
        from prunecli.studies.executors.index import EXECUTORS

        return _matching([(executor, "") for executor in EXECUTORS.names], current)
    if name == "device":
        return _matching([(device, "") for device in ("auto", "cpu", "cuda", "mps")], current)
    if name == "teacher":
        known = [
            ("auto", "The network that was pruned, if it is there."),
            ("parent", "The network that was pruned."),
            ("none", "Labels alone."),
        ]
        return [*_matching(known, current), *_files(current, WEIGHT_SUFFIXES)]
    if name in ("data_root", "plots"):
        return _files(current, ())
    return (
        _files(current, None)
        if name
        in ("out", "save_recipe", "plot", "overlay", "extract_attention", "class_names", "templates", "tokenizer")
        else []
    )


def _shipped(current: str) -> list[Candidate]:
    """Names of the recipes that come with prune."""
    from prunecli.recipe.shipped import shipped_names

    return _matching([(name, "") for name in shipped_names()], current)


def _ranking_methods(current: str) -> list[Candidate]:
    """The methods that rank channels, behind those that are named already."""
    from prunecli.methods.registry import all_methods

    before, comma, last = current.rpartition(",")
    named = before.split(",")
    specs = [spec for spec in all_methods().values() if spec.family == "structural" and spec.name not in named]
    return [(before + comma + name, text) for name, text in _matching([(s.name, s.summary) for s in specs], last)]


def _data_sets(current: str) -> list[Candidate]:
    from prunecli.data.catalog import described_datasets

    datasets = described_datasets()
    prefix, colon, path = current.partition(":")
    if colon and f"{prefix}:" in dict(datasets):
        suffixes = (".npz",) if prefix == "npz" else ()
        return [(f"{prefix}:{file}", text) for file, text in _files(path, suffixes)]
    return _matching(datasets, current)


_OPENED_FILES: dict[str, tuple[str, ...]] = {"hf": (), "ultralytics": (".pt", ".yaml")}
"""Sources after whose name a path may follow, with the suffixes of its files; none: a folder."""


def _references(current: str) -> list[Candidate]:
    """Sources first, then names: there are more than a thousand."""
    from prunecli.models.index import OPENING, added_sources, known_references, listed_references

    if current.startswith("open_clip:") and "@" in current:  # which weights there are only that library knows
        from prunecli.models import from_open_clip

        return _matching([(f"open_clip:{name}", "") for name in from_open_clip.names()], current)
    references = known_references()
    if ":" not in current:
        sources = dict.fromkeys((reference.partition(":")[0] + ":" for reference in references), "")
        sources |= {f"{source}:": summary for source, summary in OPENING.items()}
        sources |= dict.fromkeys((f"{source}:" for source in added_sources()), "")
        return _matching(list(sources.items()), current)
    source, _, path = current.partition(":")
    if source in _OPENED_FILES:
        names = _matching([(name, "") for name in listed_references()], current)
        return [*names, *((f"{source}:{file}", text) for file, text in _files(path, _OPENED_FILES[source]))]
    return _matching([(reference, "") for reference in references], current)


def _files(current: str, suffixes: tuple[str, ...] | None) -> list[Candidate]:
    """Files with one of `suffixes` (None: any) and folders that begin with `current`."""
    head, slash, start = current.rpartition("/")
    folder = Path(head + slash).expanduser() if slash else Path()
    candidates: list[Candidate] = []
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    for entry in entries:
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start.startswith(".")):
            continue
        if entry.is_dir():
            candidates.append((f"{head}{slash}{entry.name}/", ""))
        elif suffixes is None or entry.suffix in suffixes:
            candidates.append((f"{head}{slash}{entry.name}", ""))
    return candidates


_BREAKS = (":", "=", "@")


def _words(shell: str, environment: Mapping[str, str]) -> tuple[list[str], int]:
    """The line's words up to the cursor, and how much of the last one the shell keeps to itself."""
    if shell != "bash":
        typed = environment["_PRUNE_WORDS"].split("\n")
        # fish drops an empty last word, so it sends the word under the cursor apart.
        return [*typed, environment["_PRUNE_CURRENT"]] if "_PRUNE_CURRENT" in environment else typed, 0
    raw = environment["COMP_WORDS"]
    pieces = raw.split("\n") if "\n" in raw else raw.split(" ")
    cursor = int(environment["COMP_CWORD"])
    pieces = [*pieces[: cursor + 1], *[""] * (cursor + 1 - len(pieces))]
    # bash breaks words at these; put them together again, and give back only what follows the last break.
    words: list[str] = []
    cut = 0
    glue = False
    for index, piece in enumerate(pieces):
        if words and index > 1 and (piece in _BREAKS or glue):
            cut = len(words[-1]) + (1 if piece in _BREAKS else 0)
            words[-1] += piece
        else:
            words.append(piece)
            cut = 0
        glue = piece in _BREAKS
    return words, cut


def _matching(candidates: Iterable[Candidate], current: str) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate[0].startswith(current)]


def _first_sentence(text: str) -> str:
    return " ".join(text.split()).split(". ")[0].rstrip(".")
