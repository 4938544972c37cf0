"""`prune auto` as a person and a script meet it, on a network with channels that do nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import Prune
from tests.processes import Processes

CODE = """
from torch import nn

def network(width=16, num_classes=10, in_chans=1):
    return nn.Sequential(
        nn.Conv2d(in_chans, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, width, 3, padding=1), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * width, num_classes))
"""
_WIDTH, _LIVING = 32, 12
_WORDS = (
    "--allow-code planted --data digits --epochs 1 --lr 0.001 --calibration-images 128 --images 256 --min-width 1 "
    "--round-to 1 --max-drop 1"
).split()


@pytest.fixture(scope="module")
def planted(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network most of whose channels are always zero, and have the largest weights."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.py").write_text(CODE)
    words = f"train module:planted:network --model-kwargs width={_LIVING} --data digits --epochs 8 --optimizer adamw"
    done = processes.run([*words.split(), "--lr", "0.01", "-o", "small.safetensors"], folder)
    assert done.code == 0, done.err
    small = load_file(folder / "small.safetensors")
    namespace: dict[str, Any] = {}
    exec(CODE, namespace)
    large = namespace["network"](_WIDTH).state_dict()
    for number, before in ((2, 8), (4, _LIVING)):
        weight, bias = large[f"{number}.weight"], large[f"{number}.bias"]
        weight *= 20
        bias.fill_(-1e4)
        weight[:_LIVING] = 0
        weight[:_LIVING, :before] = small[f"{number}.weight"]
        bias[:_LIVING] = small[f"{number}.bias"]
    large["8.weight"].zero_()[:, : 4 * _LIVING] = small["8.weight"]
    large |= {name: small[name] for name in ("0.weight", "0.bias", "8.bias")}
    torch.save(large, folder / "planted.pt")
    return folder


def _auto(planted: Path, *words: object) -> list[object]:
    """The command."""
    arch = ["--arch", "module:planted:network", "--model-kwargs", f"width={_WIDTH}"]
    return ["auto", planted / "planted.pt", *arch, *words]


def test_the_planted_setting_is_found_and_its_recipe_makes_the_same_network(
    prune: Prune, planted: Path, tmp_path: Path
) -> None:
    (tmp_path / "planted.py").write_text(CODE)
    words = _auto(planted, *_WORDS, "--macs", "min", "--methods", "l2,activation", "--trials", "16")
    done = prune(*words, "-o", "a.safetensors", "--json")
    assert done.code == 0, done.err
    report = done.json
    assert report == json.loads((tmp_path / "a.json").read_text()) and report["schema"] == "prunecli.auto/1"
    trials = {trial["number"]: trial for trial in report["trials"]}
    winner = trials[report["winner"]]
    living = (8 * _LIVING + _LIVING**2) / (8 * _WIDTH + _WIDTH**2)
    assert winner["criterion"] == "activation" and winner["macs_share"] < 2 * living < 0.4
    assert winner["after_drop"] <= 1 and winner["fate"] == "the result"
    at_one_cost = {trial["criterion"]: trial for trial in report["trials"][:2]}
    assert {trial["asked"] for trial in at_one_cost.values()} == {0.5}
    assert at_one_cost["activation"]["drop"] < 1 < 10 < at_one_cost["l2"]["drop"]
    decided, other = report["claims"]
    assert (decided["split"], decided["decided"]) == ("validation", True)
    assert (other["split"], other["decided"]) == ("test", False)
    assert decided["interval"][0] <= decided["drop"] <= decided["interval"][1]
    assert not (tmp_path / "a.safetensors.trials").exists() and not list(tmp_path.glob("*.state"))
    assert "network 1: l2, global, " in done.err and "after finetuning: top-1 " in done.err

    assert (tmp_path / "a.yaml").read_text().splitlines()[0].endswith(" --trials 16 -o a.safetensors")
    recipe = yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert [stage["stage"] for stage in recipe["stages"]] == ["prune", "finetune", "eval"]
    again = prune(
        "run", "a.yaml", "--allow-code", "planted", "--set", f"model.weights={planted / 'planted.pt'}", "-o", "r"
    )
    assert again.code == 0, again.err
    first, second = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "r" / "finetuned.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)

    page = prune("report", "a.json", "a.safetensors", "-o", "page.md")
    assert page.code == 0 and report["why"] in (tmp_path / "page.md").read_text(), page.err
    twice = prune(*words, "-o", "a.safetensors", "--force", "-q")
    assert twice.code == 0 and json.loads((tmp_path / "a.json").read_text()) == report
    assert all(torch.equal(first[name], value) for name, value in load_file(tmp_path / "a.safetensors").items())
    shown, claims, why = twice.out.split("\n\n")
    assert shown.splitlines()[1].split("\t")[1].startswith("activation, ") and "nothing was decided on" in claims
    assert why.startswith(f"network {report['winner']} has ") and "(allowed: 1): activation, " in why
    assert twice.err == ""


def test_a_drop_that_cannot_be_met_fails_like_a_gate_and_saves_nothing(
    prune: Prune, planted: Path, tmp_path: Path
) -> None:
    (tmp_path / "planted.py").write_text(CODE)
    words = [*_WORDS, "--max-drop", "0", "--lr", "1e-9", "--scope", "local", "--trials", "3", "--methods", "random"]
    done = prune(*_auto(planted, *words), "--json")
    assert done.code == 3, done.err
    assert done.json["winner"] is None and done.json["nearest"] in (1, 2)
    assert "error: no network is within a drop of 0: network" in done.err and "came nearest with a drop of" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["planted.py"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--macs", "min", "--params", "min"], "--macs and --params: one figure can be the smallest"),
        (["--trials", "1"], "--trials 1: one network is judged"),
        (["--max-drop", "-1"], "--max-drop says how much worse"),
        (["--methods", "tailor"], "--methods: unknown method 'tailor': did you mean 'taylor'"),
        (["--methods", ","], "--methods names no method: write names with commas, for instance fisher,taylor,l2"),
        (["--keep", "*"], "no layer can shrink; "),
        (["--data", "nothing"], "unknown data set 'nothing'"),
        (["--optimizer", "sgdd"], "sgdd"),
    ],
)
def test_what_is_refused(prune: Prune, planted: Path, words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(CODE)
    done = prune(*_auto(planted, *_WORDS, *words))
    assert done.code == 2 and done.err.splitlines()[-1].startswith(("error: ", "Error")), done.err
    assert message in done.err.splitlines()[-1] and done.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["planted.py"]


def test_what_is_missing(prune: Prune, planted: Path, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(CODE)
    done = prune(*_auto(planted, "--allow-code", "planted"))
    assert done.code == 2 and "no data set: name one with --data" in done.err
    guessing = prune("auto", "module:planted:network", "--allow-code", "planted", "--data", "digits", "--trials", "4")
    assert guessing.code == 2 and "as good as guessing, so no drop means anything" in guessing.err
    short = prune(*_auto(planted, *_WORDS, "--methods", "l2", "--epochs", "300", "--budget", "0.2"))
    assert short.code == 2 and "--budget 0.2: one network takes about " in short.err and "give --budget " in short.err
    assert [path.name for path in tmp_path.iterdir()] == ["planted.py"]
