"""The command line as a person and a script meet it, in processes of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prunecli
from prunecli.cli.opening import OPENING
from prunecli.models.loading import load_reference, save
from tests.conftest import REPOSITORY, Prune
from tests.processes import Processes

ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 for digits, untrained, as a checkpoint of ours."""
    torch.manual_seed(0)
    loaded = load_reference("cifar:resnet20", num_classes=10, in_chans=1)
    path = tmp_path_factory.mktemp("models") / "dense.safetensors"
    loaded.manifest.architecture.input_shape = (1, 8, 8)
    save(path, loaded.model, loaded.manifest)
    return path


def test_help_is_stable(prune: Prune) -> None:
    done = prune("--help")
    assert done.code == 0 and done.err == ""
    assert done.out == (REPOSITORY / "tests" / "cli" / "help.txt").read_text()
    assert prune().out == OPENING


def test_version(prune: Prune) -> None:
    assert prune("--version").out == f"prune {prunecli.__version__}\n"


def test_from_a_checkpoint_to_a_comparison(prune: Prune, checkpoint: Path) -> None:
    done = prune("eval", checkpoint, "--data", "digits", "-o", "baseline.json")
    assert done.code == 0, done.err
    rows = dict(line.split("\t") for line in done.out.splitlines())
    assert rows["images"] == "360 of digits (test)" and rows["parameters"] == "269.43k"
    words = ["l1", checkpoint, "--ratio", "0.5", "--scope", "local", "--data", "digits", "--latency-rounds", "2"]
    done = prune(*words, "-o", "p.safetensors", "--json")
    assert done.code == 0, done.err
    pruned = done.json
    assert "latency: intervals of 2 rounds are wide; more rounds narrow them" in done.err
    assert pruned["verify_error"] < 1e-9 and pruned["achieved"] == 0.5
    best = min(pruned["repairs"], key=lambda repair: repair["difference"])
    assert len(pruned["repairs"]) == 6 and [repair for repair in pruned["repairs"] if repair["chosen"]] == [best]
    assert pruned["recalibrated"] == 19 * best["recalibrated"]
    words = ["finetune", "p.safetensors", "--epochs", "1", "-o", "f.safetensors"]
    done = prune(*words, "--teacher", "parent")
    assert done.code == 2 and "the parent is not in this folder" in done.err  # it was named by an absolute path
    done = prune(*words, "--teacher", checkpoint, "--json")
    assert done.code == 0, done.err
    assert done.json["chosen_epoch"] == 1 and "epoch 1/1: loss" in done.err
    assert prune("eval", "f.safetensors", "-o", "pruned.json", "-q").err == ""
    done = prune("compare", "baseline.json", "pruned.json", "--json", "--fail-if", "macs_ratio > 0.6")
    assert done.code == 0, done.err
    candidate = done.json["candidates"][0]
    done_again = prune("compare", "baseline.json", "pruned.json", "--compile")
    assert done_again.code == 2 and "--compile: reports are not timed again; name networks" in done_again.err
    assert 0.45 < candidate["params_ratio"] < 0.55 and 0.45 < candidate["macs_ratio"] < 0.55
    assert {"latency_ratio", "speedup", "top1_drop"} <= set(candidate)
    done = prune("inspect", "f.safetensors", "--json")
    steps = [step["stage"] for step in done.json["manifest"]["history"]]
    assert steps == ["prune", "finetune"]
    changed = {layer["name"]: layer for layer in done.json["layers"] if layer["shape"] != layer["dense_shape"]}
    assert changed["layer3.0.conv1"]["shape"] == [32, 32, 3, 3]
    done = prune("compare", checkpoint, "p.safetensors", "f.safetensors", "--csv", "--rounds", "5", "--channels-last")
    assert done.code == 0, done.err
    assert "latencies are those of networks channels-last" in done.err
    assert len(done.out.splitlines()) == 4 and "latency_ratio" in done.out
    done = prune("compare", checkpoint, checkpoint, "--rounds", "3", "--json")
    low, high = done.json["candidates"][0]["latency_ratio_interval"]
    assert high / low > 1.05 and "latency: intervals of 3 rounds are wide; more rounds narrow them" in done.err


def test_equal_seeds_give_equal_files(prune: Prune, checkpoint: Path, tmp_path: Path) -> None:
    words = ["random", checkpoint, "--seed", "5", "--data", "digits", "--latency-rounds", "2"]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        done = prune(*words, "-o", "x.safetensors", cwd=tmp_path / folder)
        assert done.code == 0, done.err
    assert (tmp_path / "a" / "x.safetensors").read_bytes() == (tmp_path / "b" / "x.safetensors").read_bytes()


def test_equal_seeds_train_equal_networks(prune: Prune, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        words = ("train", "cifar:resnet20", "--epochs", "1", "--lr", "0.05", "--threads", "1", "-o", "x.safetensors")
        assert prune(*words, cwd=tmp_path / folder).code == 0
    assert (tmp_path / "a" / "x.safetensors").read_bytes() == (tmp_path / "b" / "x.safetensors").read_bytes()


def test_a_gate_exits_with_3_and_one_document(prune: Prune, tmp_path: Path) -> None:
    for name, top1 in (("a", 90.0), ("b", 80.0)):
        report = {
            "schema": "prunecli.report/1",
            "model": {"ref": "cifar:resnet20", "input_shape": [3, 32, 32]},
            "metrics": {"top1": top1},
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    condition = "top1_drop > 1.0 and not top1_drop > 50 or top1_drop > 20"
    done = prune("compare", "a.json", "b.json", "--fail-if", condition, "--json", "-o", "c.json")
    assert done.code == 3 and done.json["candidates"][0]["top1_drop"] == 10.0
    assert done.err == f"error: gate: {condition} holds for b.json (top1_drop is 10)\n"
    parts = [("top1_drop > 1.0", True, True), ("top1_drop > 50", False, True), ("top1_drop > 20", False, False)]
    assert done.json["gate"] == json.loads((tmp_path / "c.json").read_text())["gate"]
    assert done.json["gate"] == {
        "condition": condition,
        "failed": True,
        "networks": ["b.json"],
        "parts": [
            {"network": "b.json", "condition": text, "holds": holds, "failed": failed, "values": {"top1_drop": 10.0}}
            for text, holds, failed in parts
        ],
    }
    done = prune("compare", "a.json", "b.json", "--fail-if", "top1_drop > 11", "--json")
    assert done.code == 0 and not done.json["gate"]["failed"] and not done.json["gate"]["parts"][0]["failed"]
    done = prune("compare", "a.json", "b.json", "--markdown")
    assert done.code == 0 and done.out.splitlines()[2] == "| top-1 | 90.00 % | 80.00 % (-10.00) |"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["l1", "{w}", "--ratio", "0"], "--ratio has to be greater than 0"),
        (["l1", "{w}", "--ratio", "1"], "--ratio has to be less than 1"),
        (["l1", "{w}", "--ratio", "nan"], "--ratio has to be"),
        (["l1", "{w}", "--ratio", "x"], "--ratio"),
        (["l1", "{w}", "--keep", "nolayer*"], "unknown layer pattern 'nolayer*'"),
        (["l1", "{w}", "--round-to", "64", "--ratio", "0.1"], "cannot shrink"),
        (["l1", "{w}", "--arch", "cifar:resnet56"], "its manifest names cifar:resnet20"),
        (["l1", "{w}", "--keep", ""], "--keep is empty; give a value, or leave it out"),
        (["l1", "{w}", "--data="], "--data is empty"),
        (["l1", ""], "an argument is empty"),
        (["recipe", "check", "two.yaml"], "two.yaml:1:64: ratio and macs say how much to remove, each in its own way"),
        (["l1", "missing.pt"], "missing.pt: no such file"),
        (["l1", "."], "is a directory"),
        (["l1", "{w}", "-o", "taken.json"], "taken.json: exists; add --force"),
        (["l1", "{w}", "-o", "x.pt"], "name it x.safetensors"),
        (["l1", "timm:resnet5"], "unknown architecture"),
        (["l1"], "Missing argument 'MODEL'; see `prune l1 --help`"),
        (["l1", "{w}", "--bogus"], "No such option: --bogus"),
        (["lx"], "unknown command 'lx'"),
        (["prune", "{w}", "--method", "l9"], "unknown method 'l9'"),
        (["eval", "{w}", "--data", "cifar11"], "unknown data set 'cifar11': did you mean 'cifar10'"),
        (["eval", "{w}", "--data", "folder:empty"], "empty: no images"),
        (["eval", "{w}", "--data", "digits", "--measure", "speed"], "--measure"),
        (["eval", "{w}", "--device", "cuda:9"], "device 'cuda:9' is not available on this machine"),
        (["eval", "{w}", "--set", "data"], "KEY=VALUE"),
        (["l1", "{w}", "--keep", "*"], "nothing would be removed"),
        (["l1", "{w}", "--retention", "epsilon", "--epsilon", "0.1"], "--retention epsilon needs images: name"),
        (["train", "{w}", "--data", "digits", "--optimizer", "foo"], "optimizer 'foo' is unknown to timm"),
        (["run", "ghost.yaml"], "unknown architecture 'cifar:resnet5'"),
        (["recipe", "check", "ghost.yaml"], "unknown architecture 'cifar:resnet5'"),
        (["compare", "taken.json", "taken.json", "--rounds", "1"], "--rounds has to be at least 2"),
        (["compare", "taken.json"], "at least one more"),
        (["compare", "taken.json", "taken.json"], "schema is None, expected 'prunecli.report/1'"),
        (["run", "missing.yaml"], "missing.yaml: no such recipe"),
        (["run", "bad.yaml"], "bad.yaml:1:18: unknown stage 'trian'"),
        (["train", "bad.yaml"], "bad.yaml:1:18: unknown stage 'trian'"),
        (["inspect", "garbage.pth"], "is a web page"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    prune: Prune, checkpoint: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "taken.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("stages: [{stage: trian}]\n")
    (tmp_path / "two.yaml").write_text("stages: [{stage: prune, method: l1, params: {ratio: 0.3, macs: 0.4}}]\n")
    (tmp_path / "ghost.yaml").write_text("model: {ref: 'cifar:resnet5'}\nstages: [{stage: train}]\n")
    (tmp_path / "garbage.pth").write_bytes(b"<html></html>")
    before = sorted(tmp_path.rglob("*"))
    done = prune(*[word.replace("{w}", str(checkpoint)) for word in words])
    assert done.code == 2, done.err
    assert message in done.err and done.out == ""
    *notes, error = done.err.strip().splitlines()
    assert error.startswith("error: ") and len(notes) <= 1, done.err
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "taken.json").read_text() == "{}"


def test_an_error_in_json_is_a_document(prune: Prune) -> None:
    done = prune("l1", "missing.pt", "--json")
    assert done.code == 2 and done.err == ""
    assert done.json["error"]["exit_code"] == 2 and "missing.pt" in done.json["error"]["message"]
    assert "Traceback" in prune("l1", "missing.pt", "--debug").err


def test_a_dry_run_shows_origins_and_does_nothing(prune: Prune, tmp_path: Path) -> None:
    recipe = REPOSITORY / "recipes" / "quickstart.yaml"
    done = prune("run", recipe, "--set", "stages.0.epochs=2", "--seed", "4", "--dry-run")
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in done.out.splitlines()}
    assert rows["stages.0.epochs"] == ["2", "--set stages.0.epochs"] and rows["seed"] == ["4", "--seed"]
    assert rows["data.name"][1].endswith("quickstart.yaml:9:9") and rows["device"] == ["auto", "default"]
    done = prune("l1", "nothing.pt", "--ratio", "0.3", "--dry-run", "--json")
    values = {row["key"]: (row["value"], row["origin"]) for row in done.json}
    assert values["stages.0.params.ratio"] == (0.3, "--ratio")
    assert list(tmp_path.iterdir()) == []


def test_a_stage_of_a_recipe_runs_alone_with_flags_on_top(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: {ref: cifar:resnet20}\ndata: {name: digits}\n"
        "stages:\n  - {stage: train, epochs: 9, lr: 0.05}\n  - {stage: eval}\n"
    )
    done = prune("train", "r.yaml", "--epochs", "1", "-o", "t.safetensors", "--json")
    assert done.code == 0, done.err
    assert len(done.json["epochs"]) == 1
    log = [json.loads(line) for line in (tmp_path / "t.metrics.jsonl").read_text().splitlines()]
    assert log[0]["epoch"] == 1 and "validation_top1" in log[0]


def test_a_run_writes_everything_into_one_folder(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(
        "model: {ref: cifar:resnet20}\ndata: {name: digits}\nstages:\n"
        "  - {stage: train, epochs: 1, lr: 0.05}\n  - {stage: eval, latency_rounds: 3}\n"
        "  - {stage: prune, method: l2, latency_rounds: 3}\n  - {stage: eval, latency_rounds: 3}\n"
        "  - {stage: compare, fail_if: params_ratio > 0.9}\n"
    )
    done = prune("run", "small.yaml")
    assert done.code == 0, done.err
    written = sorted(path.name for path in (tmp_path / "runs" / "small").iterdir())
    assert written == [
        "comparison.json", "plan.yaml", "pruned.json", "pruned.safetensors", "run.json", "trained.json",
        "trained.metrics.jsonl", "trained.safetensors",
    ]  # fmt: skip
    assert json.loads((tmp_path / "runs" / "small" / "comparison.json").read_text())["paired_latency"] is True
    done = prune("run", "small.yaml", "--output", "runs/small")
    assert done.code == 2 and "not empty; add --resume" in done.err
    assert prune("recipe", "check", "runs/small/plan.yaml").out == "runs/small/plan.yaml: ok\n"


def test_doctor_tries_architectures(prune: Prune, tmp_path: Path) -> None:
    done = prune("doctor", "--coverage", "test_vi*", "--max-params", "1", "-o", "coverage.json")
    assert done.code == 0 and "right" in done.out and "timm:test_vit" in done.out, done.err
    entries = json.loads((tmp_path / "coverage.json").read_text())["architectures"]
    by_ref = {entry["ref"]: entry for entry in entries}
    assert by_ref["timm:test_vit"]["status"] == "right" and 0.2 < by_ref["timm:test_vit"]["kept"] < 0.4
    assert "too large" in {entry["status"] for entry in entries}
    assert not any("peer" in entry for entry in entries)
    assert prune("doctor", "--coverage", "test_vitt").code == 2
    for words in (["--max-params", "1"], ["--peer"]):
        done = prune("doctor", *words)
        assert done.code == 2 and "belong to --coverage" in done.err


def test_doctor_shows_torch_pruning_next_to_ours(prune: Prune) -> None:
    done = prune("doctor", "--coverage", "test_nfnet", "--peer")
    assert done.code == 0, done.err
    row = next(line.split("\t") for line in done.out.splitlines() if "crashed" in line)
    assert row[:2] == ["timm:test_nfnet", "right"] and "weight should contain 8 elements not 16" in row[-1]
    assert done.err.splitlines()[-1] == "1 right; torch-pruning: 1 crashed"


def test_inspect_counts_macs_by_module(prune: Prune, checkpoint: Path) -> None:
    done = prune("inspect", checkpoint, "--modules", "1", "--json")
    assert done.code == 0, done.err
    modules = {module["name"]: module for module in done.json["modules"]}
    assert list(modules) == ["", "conv1", "bn1", "layer1", "layer2", "layer3", "linear"]
    assert modules["layer1"]["macs"] == modules["layer1"]["fvcore_macs"] > 0
    assert "modules" not in prune("inspect", checkpoint, "--json").json
    done = prune("inspect", checkpoint, "--modules", "2")
    row = next(line.split("\t") for line in done.out.splitlines() if line.startswith("layer1.0\t"))
    assert row[1] == "BasicBlock" and row[3] == row[4] and row[5] == ""
    assert done.err.splitlines()[-1] == "fvcore's MACs agree with ours to 1 % in every module"
    assert "--modules has to be at least 1 (got 0)" in prune("inspect", checkpoint, "--modules", "0").err


def test_lists(prune: Prune) -> None:
    assert "cifar:resnet56" in prune("models", "cifar").out.splitlines()
    assert prune("models", "timm:resnet1*", "--json").json[:1] == ["timm:resnet101"]
    assert prune("models", "nothinglikeit").code == 2
    assert prune("methods").out.splitlines()[1].split("\t")[:2] == ["best", "structural"]
    assert prune("methods", "--json").json[0]["params"]["ratio"]["default"] == 0.5
    done = prune("doctor", "--json")
    assert done.code == 0 and done.json["problems"] == [] and "torch" in done.json["facts"]


def test_recipe_verbs(prune: Prune, tmp_path: Path) -> None:
    assert prune("recipe", "new", "n.yaml", "--model", "timm:resnet18").code == 0
    assert prune("recipe", "check", "n.yaml").out == "n.yaml: ok\n"
    assert prune("recipe", "new", "n.yaml").code == 2
    assert "unknown method" in prune("recipe", "new", "--method", "zzz").err
    assert prune("recipe", "show", "n.yaml", "--set", "seed=9").out.count("--set seed") == 1
    assert json.loads(prune("recipe", "schema").out)["title"] == "prune recipe"


def test_python_dash_m_is_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "prunecli", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("prune ")


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m prunecli models | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "0" and "Traceback" not in done.stderr


def _terminal(processes: Processes, words: list[str], width: int, env: dict[str, str | None], cwd: Path) -> str:
    """Runs in a pseudo-terminal and returns everything that was written to it; None leaves a name out of `env`."""
    kept = {name: value for name, value in env.items() if value is not None}
    unset = [name for name in env if name not in kept]
    done = processes.run(words, cwd, env={"TERM": "xterm", "COLUMNS": str(width), **kept}, unset=unset, terminal=True)
    return done.out


@pytest.mark.parametrize("width", [80, 140])
def test_tables_on_a_terminal_fit_and_are_whole(processes: Processes, tmp_path: Path, width: int) -> None:
    report = {
        "schema": "prunecli.report/1",
        "model": {"ref": "cifar:resnet20", "input_shape": [3, 32, 32]},
        "metrics": {
            "top1": 90.0,
            "params": 1000,
            "latency_ms": {"median": 1, "interval": [1, 2], "batch_size": 1, "runs": 3},
        },
    }
    for name in ("baseline", "a-rather-long-name-of-a-report", "third"):
        (tmp_path / f"{name}.json").write_text(json.dumps(report))
    words = ["compare", "baseline.json", "a-rather-long-name-of-a-report.json", "third.json"]
    shown = _terminal(processes, words, width, {"NO_COLOR": "1", "GITHUB_ACTIONS": "true"}, tmp_path)
    assert ESCAPE not in shown
    lines = shown.replace("\r", "").split("\n")
    assert max(map(len, lines)) <= max(width, 110)  # the note below the table is a line of its own
    table = "".join(line for line in lines if not line.startswith("note"))
    assert max(len(line) for line in lines if not line.startswith("note")) <= width
    assert "…" not in table and "..." not in table
    assert re.sub(r"\s", "", "latency") in table and table.count("90.00 %") == 3


def test_colours_appear_only_on_terminals_that_allow_them(processes: Processes, tmp_path: Path) -> None:
    assert ESCAPE in _terminal(processes, ["methods"], 100, {"NO_COLOR": None}, tmp_path)
    assert ESCAPE not in _terminal(processes, ["methods"], 100, {"NO_COLOR": "1"}, tmp_path)
    assert ESCAPE not in _terminal(processes, ["methods"], 100, {"TERM": "dumb"}, tmp_path)


def test_a_bar_on_a_terminal_and_plain_lines_without_colour(
    processes: Processes, tmp_path: Path, checkpoint: Path
) -> None:
    words = ["train", str(checkpoint), "--data", "digits", "--epochs", "1", "-o", "t.safetensors", "--force"]
    live = _terminal(processes, words, 100, {"NO_COLOR": None}, tmp_path)
    assert "%" in live and ESCAPE in live and "epoch 1/1: loss" in live
    plain = _terminal(processes, words, 100, {"NO_COLOR": "1"}, tmp_path)
    assert ESCAPE not in plain and "epoch 1/1: loss" in plain


def test_every_mistake_of_every_recipe_is_reported_with_its_position(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text(
        "model: {ref: 'cifar:resnet5', pretraind: true}\n"
        "data: {name: cifar11, batch_size: -3, workers: many}\n"
        "stages:\n"
        "  - {stage: trian}\n"
        "  - {stage: train, epochs: 0, lr: fast}\n"
        "  - {stage: prune, method: l1, params: {ratio: 30, scop: global}}\n"
        "  - {stage: prune, method: l9}\n"
        "  - {stage: compare, fail_if: top2 > 1}\n"
        "  - {stage: eval, require: top9 > 1, report: a/b.json}\n"
    )
    (tmp_path / "twice.yaml").write_text("data: {name: digits, name: mnist}\nsede: ${env:NOT_SET}\nstages: [5]\n")
    (tmp_path / "open.yaml").write_text("stages: [{stage: train}\n")
    (tmp_path / "good.yaml").write_text("model: {ref: 'cifar:resnet20'}\nstages: [{stage: train}]\n")
    files = ["many.yaml", "twice.yaml", "missing.yaml", "open.yaml", "good.yaml"]
    done = prune("recipe", "check", *files)
    assert done.code == 2 and done.out == "good.yaml: ok\n"
    *lines, last = done.err.splitlines()
    assert last == "error: 20 mistakes in 4 recipes"
    starts = [
        "many.yaml:1:14: unknown architecture 'cifar:resnet5'",
        "many.yaml:1:31: unknown key 'pretraind'; did you mean 'pretrained'?",
        "many.yaml:2:14: unknown data set 'cifar11'",
        "many.yaml:2:35: data.batch_size has to be",
        "many.yaml:2:48: data.workers has to be",
        "many.yaml:4:13: unknown stage 'trian'",
        "many.yaml:5:28: stages.1.epochs has to be",
        "many.yaml:5:35: stages.1.lr has to be",
        "many.yaml:6:48: stages.2.params.ratio has to be less than 1 (got 30); write 0.3 for 30 %",
        "many.yaml:6:52: unknown key 'scop'; did you mean 'scope'?",
        "many.yaml:7:28: unknown method 'l9'",
        "many.yaml:8:31: fail_if: unknown figure 'top2'",
        "many.yaml:9:28: require: unknown figure 'top9'",
        "many.yaml:9:46: stages.5.report: 'a/b.json' has to be a plain file name",
        "twice.yaml:1:22: 'name' appears twice",
        "twice.yaml:2:1: unknown key 'sede'",
        "twice.yaml:2:7: environment variable NOT_SET is not set",
        "twice.yaml:3:10: every stage needs `stage:`",
        "missing.yaml: no such recipe",
        "open.yaml:2:1: not valid YAML",
    ]
    assert [line.startswith(f"error: {start}") for line, start in zip(lines, starts, strict=True)] == [True] * len(
        starts
    )
    done = prune("recipe", "check", "good.yaml", "open.yaml", "--json")
    assert done.code == 2 and done.json["ok"] == ["good.yaml"] and len(done.json["mistakes"]["open.yaml"]) == 1
    assert prune("run", "twice.yaml").err == "error: twice.yaml:1:22: 'name' appears twice\n"  # the first one alone
