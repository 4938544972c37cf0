"""What somebody meets who has never used `prune`: the first screen, wrong first words, questions, what to do next."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from prunecli.cli.opening import OPENING
from prunecli.models.loading import load_reference, save
from prunecli.pipeline.run import check_plan
from prunecli.recipe.resolve import load_plan
from prunecli.recipe.shipped import shipped_path
from tests.conftest import Finished, Prune


def _paste(prune: Prune, line: str) -> Finished:
    """Runs the command lines that a hint consists of."""
    done = Finished(0, "", "")
    for command in line.split(" && "):
        program, *words = shlex.split(command)
        assert program == "prune"
        done = prune(*words)
        assert done.code == 0, (command, done.err)
    return done


def _hint(done: Finished) -> str:
    assert done.code == 0, done.err
    (hint,) = re.findall(r"^next: (.*)$", done.err, re.MULTILINE)
    return str(hint)


def test_the_first_screen_and_its_commands(prune: Prune, tmp_path: Path) -> None:
    """In place of the first one, which takes a minute, a network is put where that writes it."""
    assert prune().out == OPENING
    first, *others = re.findall(r"^  (prune .*)$", OPENING, re.MULTILINE)
    assert len(others) == 2
    _paste(prune, f"{first} --dry-run")
    folder = tmp_path / "runs" / shlex.split(first)[2]
    folder.mkdir(parents=True)
    file = check_plan(load_plan(shipped_path(folder.name)))[0]
    assert file.name in others[0] and file.name in others[1]
    loaded = load_reference("cifar:resnet20", num_classes=10, in_chans=1)
    loaded.manifest.architecture.input_shape = (1, 8, 8)
    save(folder / file, loaded.model, loaded.manifest)
    for line in others:
        _paste(prune, line)
    for line in re.findall(r"`(prune [^`]*)`", OPENING):
        if "COMMAND" not in line:
            _paste(prune, line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.pt"], "model.pt is a network, and a command comes first: prune inspect model.pt, prune eval model.pt"),
        (["./no file.safetensors"], "(there is no such file here), and a command comes first: prune inspect './no f"),
        (["timm:resnet50", "--ratio", "0.5"], "timm:resnet50 is a network, and a command comes first: prune inspect"),
        (["done"], "done is the folder of a run, and a command comes first: prune report done"),
        (["r.yaml"], "r.yaml is a recipe, and a command comes first: prune run r.yaml"),
        (["quickstart"], "quickstart is the name of a recipe, and a command comes first: prune run quickstart"),
        (["report.json"], "for a report write prune inspect report.json"),
        (["images"], "images is a folder, and a command comes first; if it holds data: prune eval MODEL --data images"),
        (["notes"], "notes is a file, and a command comes first"),
        (["prunee"], "unknown command 'prunee': did you mean 'prune'"),
        (["--ratio", "0.5", "model.pt"], "--ratio: a command comes before its options: prune l1 MODEL --ratio 0.5"),
        (["recipe", "copi"], "unknown command 'copi': did you mean 'copy'"),
        (["recipe", "copy", "quickstrt"], "no recipe is called 'quickstrt': did you mean 'quickstart'"),
        (["run", "quickstrt"], "quickstrt: no such file, and no recipe is called 'quickstrt': did you mean"),
        (["run", "recipes/quickstart.yaml"], "the recipe that comes with prune has no path: quickstart"),
        (["l1", "modl.pt"], "modl.pt: no such file; did you mean model.pt?"),
        (["l1", "resnet18"], "for a network of the catalogue write timm:resnet18 or torchvision:resnet18"),
        (["l1", "nowhere/x.pt"], "there is no folder nowhere either"),
        (["l1", "model.pt", "--ratio", "30%"], "'30%' is not a number; write 0.3 for 30 %"),
        (
            ["l1", "model.pt", "--latency", "1"],
            "--latency has to be less than 1 (got 1.0); it is a share, and 1 is all",
        ),
        (["l1", "model.pt", "--ratio", "30"], "--ratio has to be less than 1 (got 30.0); write 0.3 for 30 %"),
        (["l1", "model.pt", "--macs", "40"], "write 0.4 for 40 %"),
        (["l1", "model.pt", "--ratio", "0,3"], "'0,3' is not a number; write 0.3;"),
        (["l1", "model.pt", "--layer-ratio", "conv1=30%"], "write it as PATTERN=RATIO; write 0.3 for 30 %"),
        (["l1", "model.pt", "--layer-ratio", "conv1=30"], "write 0.3 for 30 %"),
        (["eval", "model.pt", "--set", "data.val_fraction=20%"], "write 0.2 for 20 %"),
        (["run", "half.yaml"], "half.yaml:1:63: stages.0.params.sparsity has to be less than 1 (got 90); write 0.9"),
        (["compare", "model.pt", "--methods", "l1", "--ratio", "50"], "between 0 and 1 (got 50); write 0.5 for 50 %"),
        (["train", "model.pt", "--epochs", "1.5"], "'1.5' is not a whole number"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_wrong_words_are_answered_with_right_ones(
    prune: Prune, tmp_path: Path, words: Sequence[str], message: str
) -> None:
    for name in ("model.pt", "notes"):
        (tmp_path / name).write_text("x")
    for name in ("images", "done"):
        (tmp_path / name).mkdir()
    (tmp_path / "done" / "run.json").write_text("{}")
    (tmp_path / "half.yaml").write_text("stages: [{stage: prune, method: magnitude, params: {sparsity: 90}}]\n")
    done = prune(*words)
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
    assert message in done.err, done.err


@pytest.mark.parametrize(
    "words",
    [["finetune", "m.pt", "--lr", "1%"], ["l1", "m.pt", "--ratio", "1.5"], ["sensitivity", "m.pt", "--max-drop", "1%"]],
    ids=" ".join,
)
def test_no_share_is_made_up(prune: Prune, words: list[str]) -> None:
    """Learning rates and points of accuracy are no shares, and one and a half is no percentage."""
    done = prune(*words)
    assert done.code == 2 and "write 0" not in done.err, done.err


def test_every_hint_can_be_pasted(prune: Prune, tmp_path: Path) -> None:
    """From a recipe and from flags, with spaces in names; nothing of it in a pipe, in JSON or in quiet mode."""
    hint = _hint(prune("train", "cifar:resnet20", "--epochs", "1", "--data", "digits", "-o", "my net.safetensors"))
    assert hint == "prune l1 'my net.safetensors' --ratio 0.5 --data digits"
    for verb in ("finetune", "eval", "compare"):
        done = _paste(prune, hint.replace("--epochs 5", "--epochs 1"))
        assert "next:" not in done.out
        hint = _hint(done)
        assert hint.startswith(f"prune {verb} "), hint
    last = _paste(prune, hint)
    assert "next:" not in last.err and "top-1" in last.out
    assert (tmp_path / "my net-l1-finetuned.json").is_file()
    measured = prune("eval", "my net.safetensors", "--measure", "params")
    assert _hint(measured) == "prune l1 'my net.safetensors' --ratio 0.5"
    for quiet in ("-q", "--json"):
        assert "next:" not in prune("eval", "my net.safetensors", "--measure", "params", quiet).err
    without_data = prune("l1", "cifar:resnet20", "--num-classes", "7", "-o", "a b.safetensors", "--ratio", "0.3")
    assert _hint(without_data) == "prune compare cifar:resnet20 'a b.safetensors' --num-classes 7"
    _paste(prune, _hint(without_data))
    (tmp_path / "short.yaml").write_text(
        "model: {ref: cifar:resnet20}\ndata: {name: digits}\nstages: [{stage: train, epochs: 1}]\n"
    )
    hint = _hint(prune("run", "short.yaml", "-o", "a run"))
    assert hint == "prune report 'a run' -o 'a run/report.html'"
    _paste(prune, hint)
    again = prune("run", "short.yaml", "-o", "a run", "--force")
    assert _hint(again) == "prune report 'a run' -o 'a run/report-2.html'"
    copied = prune("recipe", "copy", "quickstart", "my recipe.yaml")
    assert _hint(copied) == "prune recipe check 'my recipe.yaml' && prune run 'my recipe.yaml'"


def test_a_dry_run_says_where_the_network_is(prune: Prune, tmp_path: Path) -> None:
    loaded = load_reference("cifar:resnet20")
    save(tmp_path / "own.safetensors", loaded.model, loaded.manifest)
    (tmp_path / "notes.pt").write_text("x")
    for model, text in (
        ("own.safetensors", "MiB, checkpoint of prune"),
        ("notes.pt", "file, 1 B, no weights file that can be read"),
        ("timm:resnet50", "catalogue of timm, a new network with random weights"),
        ("hf:LlamaForCausalLM", "a new network of the class LlamaForCausalLM"),
        ("hf:OWNER/NAME", "not in the cache"),
        ("module:net:make", "code of yours: make in the module net"),
    ):
        done = prune("l1", model, "--dry-run")
        rows = {line.split("\t")[0]: line.split("\t")[1:] for line in done.out.splitlines()}
        assert done.code == 0 and text in rows["MODEL"][0], done.out
        assert rows["model.ref" if ":" in model else "model.weights"] == [model, "command line"]
    done = prune("l1", "own.safetensor", "--dry-run", "--json")
    assert done.code == 2 and done.json[0]["value"] == "file that does not exist"
    assert done.err == "error: own.safetensor: no such file; did you mean own.safetensors?\n"
    (tmp_path / "r.yaml").write_text("model: {weights: gone.pt}\nstages: [{stage: eval}]\n")
    done = prune("run", "r.yaml", "--dry-run")
    assert done.code == 2 and done.out.splitlines()[1] == "MODEL\tfile that does not exist\tr.yaml:1:18"


def _typed(folder: Path, words: Sequence[str], answers: Sequence[tuple[str, str]]) -> tuple[int, str]:
    """Types answers on a terminal once questions have appeared; "^C" is a signal."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "prunecli", *words],
        stdin=slave, stdout=slave, stderr=slave, cwd=folder, start_new_session=True, env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    os.close(slave)
    shown, seen = "", 0
    end = time.monotonic() + 120
    try:
        for question, answer in [*answers, ("", "")]:
            while not (question and question in shown[seen:]) and time.monotonic() < end:
                if select.select([master], [], [], 0.1)[0]:
                    try:
                        shown += os.read(master, 4096).decode()
                    except OSError:  # the process has closed the terminal
                        break
            if not question:
                break
            assert question in shown[seen:], shown
            seen = shown.index(question, seen) + len(question)
            if answer == "^C":
                process.send_signal(signal.SIGINT)
            else:
                os.write(master, f"{answer}\n".encode())
        return process.wait(30), shown
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_questions_on_a_terminal(tmp_path: Path) -> None:
    """Every wrong answer is told so at once, and asked again."""
    (tmp_path / "taken.yaml").touch()
    code, shown = _typed(
        tmp_path,
        ["recipe", "new"],
        [
            ("Network, as source:name or a weights file [cifar:resnet20]:", "resnet50"),
            ("for a network of the catalogue write timm:resnet50", "timm:resnet18"),
            ("Data set, by name or the path of what you have [digits]:", "cifar11"),
            ("did you mean 'cifar10'", ""),
            ("Pruning method [l1]:", "magnitud"),
            ("did you mean 'magnitude'", "magnitude"),
            ("sparsity (Share of the weights", "90%"),
            ("write 0.9 for 90 %", "0.9"),
            ("File to write [recipe.yaml]:", "taken.yaml"),
            ("taken.yaml: exists", "mine.yaml"),
            ("next: prune recipe check mine.yaml && prune run mine.yaml", ""),
        ],
    )
    assert code == 0, shown
    plan = load_plan(tmp_path / "mine.yaml").recipe
    assert plan.model.ref == "timm:resnet18" and plan.data.name == "digits"
    assert plan.stages[2].method == "magnitude" and plan.stages[2].params["sparsity"] == 0.9  # type: ignore[union-attr]


def test_giving_up_leaves_nothing(tmp_path: Path) -> None:
    code, shown = _typed(tmp_path, ["recipe", "new", "r.yaml"], [("Network, as source:name", "^C")])
    assert code == 130 and "interrupted" in shown and "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_no_questions_with_flags_or_elsewhere(prune: Prune, tmp_path: Path) -> None:
    assert prune("recipe", "new").out.splitlines()[3:5] == ["model:", "  ref: cifar:resnet20"]
    (tmp_path / "w.pt").touch()
    done = prune("recipe", "new", "r.yaml", "--model", "w.pt", "--method", "sca", "--ratio", "0.3")
    assert _hint(done) == "prune recipe check r.yaml && prune run r.yaml"
    plan = load_plan(tmp_path / "r.yaml").recipe
    assert [stage.stage for stage in plan.stages] == ["eval", "prune", "finetune", "eval", "compare"]
    assert plan.model.weights == "w.pt" and plan.stages[1].params["connectivity"] == 0.3  # type: ignore[union-attr]
    outside = prune("recipe", "new", "--model", str(Path(__file__)))
    assert outside.code == 2 and "a recipe names networks of this folder or below" in outside.err
