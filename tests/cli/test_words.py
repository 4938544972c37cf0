"""What settings are called, what patterns of layers mean, and where values come from, in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prunecli.cli.panels import COMMON, in_panels
from tests.conftest import Prune
from tests.processes import Processes

_IN_A_TERMINAL = """
import fcntl, struct, sys, termios
fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 140, 0, 0))
from prunecli.cli.app import run
sys.exit(run(["l1", "-h"]))
"""


@pytest.mark.parametrize("words", [(), ("l1",), ("run",), ("recipe",), ("recipe", "ls"), ("completion",)])
def test_h_is_help(prune: Prune, words: tuple[str, ...]) -> None:
    """test_typer_contract.py has every command."""
    done = prune(*words, "-h")
    assert done.code == 0 and done.out.startswith(" ".join(["Usage: prune", *words])), done.err
    assert "-h, --help" in done.out and done.out == prune(*words, "--help").out


def _widest(text: str) -> int:
    return max(map(len, text.splitlines()))


def test_help_is_as_wide_as_the_terminal_and_common_options_come_first(
    prune: Prune, processes: Processes, tmp_path: Path
) -> None:
    narrow, wide = (prune("l1", "--help", env={"COLUMNS": str(width)}).out for width in (80, 140))
    assert 70 < _widest(narrow) <= 80 and 120 < _widest(wide) <= 140
    assert len(wide.splitlines()) < 0.75 * len(narrow.splitlines())
    piped = processes.run(("l1", "--help"), tmp_path, unset=("COLUMNS",)).out
    assert piped == narrow
    shown = processes.run((), tmp_path, code=_IN_A_TERMINAL, terminal=True, unset=("COLUMNS",)).out
    assert shown.replace("\r\n", "\n") == wide
    titles = [line for line in narrow.splitlines() if line and not line.startswith(" ") and line.endswith(":")]
    assert titles == [
        *("Arguments:", "Common options:", "Pruning:", "Repair:", "Training:", "Measurement:", "Model:", "Data:"),
        *("Run:", "Output:"),
    ]
    common = narrow.partition("Common options:")[2].partition("Pruning:")[0]
    listed = [line.split()[0] for line in common.splitlines() if line.startswith("  -")]
    assert listed[:4] == ["--ratio", "--macs", "--keep", "--data"] and listed[-1] == "-h,"
    few = prune("recipe", "ls", "-h").out
    assert "Options:" in few and "Common options" not in few and "Output:" not in few


def test_no_option_is_lost_among_panels() -> None:
    many = {**{f"own_{index}": "Options" for index in range(12)}, "ratio": "Pruning", "help": "Output"}
    panels = in_panels(many)
    assert panels[0] == (COMMON, ["ratio", "help"])
    assert sorted(name for _, names in panels for name in names) == sorted(many)


def test_another_programs_name_for_the_output_works_everywhere(prune: Prune, tmp_path: Path) -> None:
    """`prune run` is in test_files.py."""
    assert prune("eval", "cifar:resnet20", "--measure", "params", "--output", "R.json").code == 0
    assert (tmp_path / "R.json").is_file()
    assert "--output" not in prune("run", "--help").out
    assert "No such option: --out" in prune("methods", "--output", "x").err


_TOKEN = """\
version: 1
model: {ref: timm:vit_tiny_patch16_224}
stages:
  - {stage: prune, method: token, params: {keep: 0.5}}
"""


def test_keep_names_layers_and_the_share_of_tokens_has_its_own_name(prune: Prune, tmp_path: Path) -> None:
    words = ("token", "timm:vit_tiny_patch16_224", "--dry-run", "--json")
    for given in (("--keep", "0.3"), ("--keep=0.3",)):
        done = prune(*words, *given)
        assert done.err == "warning: --keep is called --keep-share now\n"
        assert _origins(done.json)["stages.0.params.keep_share"] == (0.3, "--keep-share")
    assert prune(*words, "--keep-share", "0.3").err == ""
    (tmp_path / "t.yaml").write_text(_TOKEN)
    done = prune("recipe", "check", "t.yaml")
    assert done.code == 2 and "t.yaml:4:50: params.keep of method token is called keep_share now" in done.err


def _origins(rows: Any) -> dict[str, tuple[Any, str]]:
    return {row["key"]: (row["value"], row["origin"]) for row in rows}


_BASE = 'version: 1\nmodel: {ref: "cifar:resnet20"}\ndata: {name: digits, root: "${env:A_ROOT:-here}"}\n'
_RECIPE = """\
version: 1
extends: base.yaml
data: {batch_size: 64}
stages:
  - {stage: train, epochs: 1}
  - {stage: prune}
"""


def test_dry_runs_name_true_origins(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(_BASE)
    (tmp_path / "r.yaml").write_text(_RECIPE)
    words = ("prune", "r.yaml", "--dry-run", "--json", "--no-recalibrate", "--set", "data.workers=1")
    rows = _origins(prune(*words, env={"A_ROOT": "there"}).json)
    assert rows["MODEL"][1] == rows["model.ref"][1] == "base.yaml:2:14"
    assert rows["data.root"] == ("there", "A_ROOT, base.yaml:3:28")
    assert rows["data.batch_size"] == (64, "r.yaml:3:20") and rows["data.workers"] == (1, "--set data.workers")
    assert rows["stages.0.stage"] == ("prune", "r.yaml:6:13")
    assert rows["stages.0.method"] == ("l1", "default")  # nobody has said so
    assert rows["stages.0.recalibrate"] == (False, "--no-recalibrate")
    rows = _origins(prune("run", "r.yaml", "--dry-run", "--json", "--seed", "3").json)
    assert rows["data.root"] == ("here", "base.yaml:3:28") and rows["seed"] == (3, "--seed")
    rows = _origins(
        prune("l2", "cifar:resnet20", "--data", "digits", "--dry-run", "--json", env={"PRUNE_DATA": "d"}).json
    )
    assert rows["model.ref"] == ("cifar:resnet20", "command line") and rows["data.root"] == ("d", "PRUNE_DATA")
    assert rows["stages.0.method"] == ("l2", "set by the command") and rows["stages.0.epochs"] == (0, "default")
    rows = _origins(prune("auto", "cifar:resnet20", "--data", "digits", "--dry-run", "--json").json)
    assert rows["stages.0.calibration_images"] == (512, "set by the command")
    assert rows["stages.0.method"] == ("l1", "default")


def test_a_module_is_kept_with_all_its_layers(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "version: 1\nmodel: {ref: cifar:resnet20}\nstages:\n  - {stage: prune, keep: layer1, latency_rounds: 2}\n"
    )
    done = prune("prune", "r.yaml", "-o", "a.safetensors", "--json")
    assert done.code == 0, done.err
    assert _kept(done.json) == {f"layer1.{block}.conv1" for block in range(3)}


def _kept(document: Any) -> set[str]:
    return {entry["name"] for entry in document["untouched"] if entry["reason"].startswith("kept by pattern")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "l1 cifar:resnet20 --keep layer[1],layer2.[0,1],layr1",
            "--keep layr1: unknown layer pattern 'layr1': did you mean 'layer1'",
        ),
        ("depth cifar:resnet20 --score cosine --drop layr1.0", "--drop layr1.0: unknown block 'layr1.0': did you mean"),
        ("l1 cifar:resnet20 --only layer*", "--only layer*: means layer1, layer2, layer3; name one of them"),
        (
            "unstructured cifar:resnet20 --data digits --epochs 1 --weight-layers layr1",
            "--weight-layers layr1: there is no such layer; did you mean 'layer1'?",
        ),
    ],
)
def test_a_pattern_that_matches_nothing_gets_a_suggestion(prune: Prune, words: str, said: str) -> None:
    done = prune(*words.split())
    assert done.code == 2 and said in done.err.splitlines()[-1], done.err


_PYTHON = """
import json, sys, torch, prunecli
from torch import nn

def block(): return nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.layer1, self.layer2, self.fc = nn.Conv2d(3, 16, 3), block(), block(), nn.Linear(16, 4)
    def forward(self, x):
        return self.fc(self.layer2(self.layer1(self.stem(x)).relu()).relu().mean((2, 3)))

torch.manual_seed(0)
net, x = Net().eval(), torch.randn(2, 3, 8, 8)
said = []
for words in json.loads(sys.argv[1]):
    method, arguments = words.pop("method", "l1"), {**words}
    if arguments.pop("on_data", False):
        arguments["data"] = [x]
    try:
        result = prunecli.prune(net, method, example_inputs=x, **arguments)
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
    else:
        said.append(sorted(entry.name for entry in result.report.untouched if "pattern" in entry.reason))
for file in sys.argv[2:]:
    try:
        prunecli.load(file)
    except Exception as error:
        said.append(f"{type(error).__name__}: {error}")
print(json.dumps(said))
"""
_CALLS: list[tuple[dict[str, Any], str | list[str]]] = [
    ({"keep": "layer1"}, ["layer1.0", "layer1.2"]),
    ({"keep": ["layer1.0", "layer2"]}, ["layer1.0", "layer2.0", "layer2.2"]),
    ({"keep": "*.0, layer2.2"}, ["layer1.0", "layer2.0", "layer2.2"]),
    ({"only": "layer[1]"}, []),
    ({"keep": "layr1"}, "keep='layr1': unknown layer pattern 'layr1': did you mean 'layer1'"),
    ({"keep": 3}, "keep=3: give names or patterns of layers"),
    ({"data": 3}, "data=3: give calibration batches"),
    ({"seed": "x"}, "seed='x': give a whole number"),
    ({"recover": 3}, "recover=3: give a function of a Transition"),
    ({"ratio": 1.5}, "ratio=1.5: has to be less than 1"),
    ({"ratio": 30}, "ratio=30: has to be less than 1; write 0.3 for 30 %"),
    ({"ratoi": 0.5}, "unknown parameter of l1 'ratoi': did you mean 'ratio'"),
    ({"method": "l3"}, "unknown method 'l3': did you mean 'l2' or 'l1'?"),
    ({"method": "taylor"}, "taylor ranks channels by what they do on data: give calibration batches as data="),
    ({"compensate": "ls"}, "compensate='ls' needs data: give calibration batches as data="),
    ({"scope": "measured"}, "scope='measured' judges layers on data: give calibration batches as data="),
    ({"params": 0.5, "macs": 0.5}, "params=0.5 and macs=0.5 say how much to remove"),
    ({"macs": 0.001}, "the least that max_ratio, min_width and the protected layers leave"),
    ({"layer_ratio": {"stem": 0.5}}, "(protected; prune_stem=True to include it)"),
    ({"only": "layer*"}, "only='layer*': means layer1, layer2; name one of them"),
    ({"only": "layr1"}, "only='layr1': unknown module 'layr1': did you mean 'layer1'"),
    ({"layer_ratio": {"layr1": 0.5}}, "layer_ratio: unknown layer pattern 'layr1': did you mean 'layer"),
    ({"outputs": "x"}, "outputs='x': the network returns one tensor"),
    ({"method": "depth", "drop": "layer9", "score": "cosine"}, "no residual blocks"),
    (
        {"method": "enhanced", "on_data": True, "samples": 9},
        "samples=9: the calibration data has 2; ask for fewer, or give",
    ),
]


def test_python_names_its_own_arguments(processes: Processes, tmp_path: Path) -> None:
    words = [json.dumps([call for call, _ in _CALLS]), "plain.safetensors", "missing.safetensors"]
    done = processes.run(words, tmp_path, code="import torch\nfrom safetensors.torch import save_file\n"
                         "save_file({'a': torch.ones(1)}, 'plain.safetensors')\n" + _PYTHON)  # fmt: skip
    assert done.code == 0, done.err
    *said, plain, missing = json.loads(done.out)
    for (call, expected), answer in zip(_CALLS, said, strict=True):
        if isinstance(expected, list):
            assert answer == expected, call
        else:
            assert expected in answer, (call, answer)
            assert answer.startswith(("MethodError", "ModelError", "TargetError")), answer
    assert not [text for text in (*said, plain) if "--" in text]
    assert "name one with arch=" in plain
    assert "missing.safetensors: no such file" in missing


_DOCTOR = """
import sys, torch
from prunecli.cli.commands import doctor
doctor._data_sets = dict  # which takes long, and is about something else
from prunecli.cli.app import run
sys.exit(run(["doctor"]))
"""


def test_doctor_says_that_there_is_no_accelerator(processes: Processes, tmp_path: Path) -> None:
    """Whatever torch was built for; where there is one, its absence is played by hiding it."""
    done = processes.run((), tmp_path, code=_DOCTOR, env={"CUDA_VISIBLE_DEVICES": ""})
    rows = dict(line.split("\t") for line in done.out.splitlines())
    assert rows["accelerator"] == "no accelerator: everything runs on the CPU", done.err
