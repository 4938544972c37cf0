"""Tab completion: the answers, and the three shells asking for them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prunecli.cli.completion import _words, complete, script
from prunecli.recipe.shipped import shipped_names
from tests.conftest import REPOSITORY

SCRIPTS = {"bash": "prune.bash", "zsh": "_prune", "fish": "prune.fish"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("resnet.pt", "pruned.safetensors", "a.yaml", "baseline.json", "notes.txt", "data.npz", ".hidden.pt"):
        (tmp_path / name).touch()
    (tmp_path / "sub dir").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _offered(*words: str) -> list[str]:
    return [word for word, _ in complete(["prune", *words])]


def test_verbs_and_methods(folder: Path) -> None:
    assert {"run", "train", "prune", "compare", "l1", "bn-scale"} <= set(_offered(""))
    assert _offered("comp") == ["compare", "completion"]
    assert _offered("--v") == ["--version"]
    assert _offered("recipe", "") == ["ls", "copy", "check", "show", "schema", "new", "--help"]
    assert _offered("prune", "x.pt", "--method", "l") == ["l1", "l2", "lamp"]
    assert _offered("nonsense", "") == []


def test_options_and_their_values(folder: Path) -> None:
    assert _offered("l1", "--rat") == ["--ratio"]
    assert {"--no-recalibrate", "--data", "-o"} <= set(_offered("l1", "-"))
    assert _offered("l1", "--scope", "") == ["auto", "global", "local", "isomorphic", "measured"]
    assert _offered("l1", "--scope=g") == ["--scope=global"]
    assert _offered("l1", "--ratio", "") == []
    assert _offered("eval", "--measure", "l") == ["latency"]
    assert "folder:" in _offered("train", "--data", "")
    assert _offered("train", "--data", "cifar10") == ["cifar10", "cifar100", "cifar10-dvs"]
    assert _offered("train", "--data", "npz:da") == ["npz:data.npz"]
    assert _offered("finetune", "--teacher", "pa") == ["parent"]
    assert _offered("completion", "") == ["bash", "zsh", "fish"]


def test_models_are_files_and_references(folder: Path) -> None:
    offered = _offered("l1", "")
    assert {"resnet.pt", "pruned.safetensors", "a.yaml", "sub dir/", "timm:"} <= set(offered)
    assert not {"notes.txt", "baseline.json", ".hidden.pt"} & set(offered)
    assert _offered("l1", "--ratio", "0.5", "pru") == ["pruned.safetensors"]
    assert _offered("l1", "--arch", "cifar:resnet5") == ["cifar:resnet56"]
    assert _offered("l1", "x.pt", "") == []


def test_recipes_and_reports(folder: Path) -> None:
    assert _offered("run", "") == ["a.yaml", "sub dir/", *shipped_names()]
    assert _offered("run", "quick") == _offered("recipe", "copy", "quick") == ["quickstart"]
    assert _offered("sweep", "") == ["a.yaml", "sub dir/", "digits"]
    assert _offered("sweep", "--executor", "") == ["local", "ray", "slurm"]
    assert _offered("recipe", "check", "a.yaml", "spikformer-d") == [
        "spikformer-digits",
        "spikformer-digits-progressive",
    ]
    assert _offered("compare", "baseline.json", "") == ["baseline.json", "pruned.safetensors", "resnet.pt", "sub dir/"]


def test_bash_breaks_words_at_colons_and_more() -> None:
    environment = {"COMP_WORDS": "prune\nl1\n--arch\ncifar\n:\nres", "COMP_CWORD": "5"}
    assert _words("bash", environment) == (["prune", "l1", "--arch", "cifar:res"], 6)
    environment = {"COMP_WORDS": "prune\nl1\n--arch\ncifar\n:", "COMP_CWORD": "4"}
    assert _words("bash", environment) == (["prune", "l1", "--arch", "cifar:"], 6)
    environment = {"COMP_WORDS": "prune\ntoken\nopen_clip\n:\nViT-B-32\n@\nop", "COMP_CWORD": "6"}
    assert _words("bash", environment) == (["prune", "token", "open_clip:ViT-B-32@op"], 19)
    environment = {"COMP_WORDS": "prune compare base", "COMP_CWORD": "2"}
    assert _words("bash", environment) == (["prune", "compare", "base"], 0)


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_scripts_in_the_repository_are_current(shell: str) -> None:
    written = (REPOSITORY / "completions" / SCRIPTS[shell]).read_text()
    assert written == script(shell), f"run `prune completion {shell} > completions/{SCRIPTS[shell]}`"


def _environment() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "TERM": "dumb"}


def _shell(*command: str) -> list[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, env=_environment(), timeout=60, stdin=subprocess.DEVNULL, check=False
    )
    return sorted(line.split("\t")[0] for line in done.stdout.splitlines() if line)


LINES = [
    ("prune comp", {"compare", "completion"}),
    ("prune l1 --sco", {"--scope"}),
    ("prune l1 --scope ", {"auto", "global", "local", "isomorphic", "measured"}),
    ("prune run s", {"sub dir/", *(name for name in shipped_names() if name.startswith("s"))}),
    ("prune inspect pru", {"pruned.safetensors"}),
]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *LINES,
        ("prune l1 --arch cifar:resnet5", {"resnet56"}),
        ("prune token open_clip:RN50-quickgelu@op", {"openai"}),
    ],
)
def test_bash(folder: Path, line: str, expected: set[str]) -> None:
    words = re.sub("([:@])", r" \1 ", line).split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"source {REPOSITORY}/completions/prune.bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
        "_prune_completion; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    assert set(_shell("bash", "--norc", "-c", program)) == expected


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(("line", "expected"), [*LINES, ("prune l1 --arch cifar:resnet5", {"cifar:resnet56"})])
def test_fish(folder: Path, line: str, expected: set[str]) -> None:
    program = f"source {REPOSITORY}/completions/prune.fish; complete -C '{line}'"
    assert set(_shell("fish", "--no-config", "-c", program)) == expected


_ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'PS1=; fpath=({completions} $fpath); autoload -Uz compinit; compinit -u -D; stty -echo'
zpty -w shell 'bindkey "^I" complete-word; zstyle ":completion:*" list-prompt ""; unsetopt listpacked; LISTMAX=999'
zpty -w shell 'zstyle ":completion:*" list-separator "|"; setopt list_rows_first; echo RE''ADY'
zpty -r shell seen '*READY*'
zpty -n -w shell '{line}'$'\\t'
repeat 100; do
    sleep 0.1
    while zpty -r -t shell seen; do print -rn -- "$seen"; done
done
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(("line", "expected"), [*LINES[:2], ("prune l1 --arch cifar:resnet5", {"cifar:resnet56"})])
def test_zsh(folder: Path, line: str, expected: set[str]) -> None:
    program = _ZSH.replace("{completions}", str(REPOSITORY / "completions")).replace("{line}", line)
    shell = subprocess.Popen(
        ["zsh", "-f", "-c", program], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=_environment()
    )
    assert shell.stdout is not None
    seen = b""
    missing = set(expected)
    with shell:
        while missing and (piece := os.read(shell.stdout.fileno(), 65536)):
            seen += piece
            shown = seen.decode(errors="replace").replace("\\:", ":")
            # A single candidate is typed out behind what stood there; several are listed.
            missing = {w for w in missing if w not in shown and line + w.removeprefix(line.split()[-1]) not in shown}
        shell.kill()
    assert not missing, seen
