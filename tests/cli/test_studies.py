"""`prune audit` and `prune compare --methods` as a person and a script meet them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from prunecli.cli.completion import complete
from prunecli.models.loading import load_reference, save
from tests.cli.test_sweep import NETWORK, OWN
from tests.conftest import Prune
from tests.processes import Processes

_AUDIT = "--data digits --methods taylor --units 8 --batches 1 --batch-size 32".split()
_CONTEST = "--data digits --methods lamp --seeds 2 --images 20 --calibration-images 32 --compensate none".split()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-20 for digits, untrained."""
    torch.manual_seed(0)
    loaded = load_reference("cifar:resnet20", num_classes=10, in_chans=1)
    path = tmp_path_factory.mktemp("models") / "dense.safetensors"
    loaded.manifest.architecture.input_shape = (1, 8, 8)
    save(path, loaded.model, loaded.manifest)
    return path


def test_an_audit_prints_tables_and_a_verdict(prune: Prune, checkpoint: Path, tmp_path: Path) -> None:
    done = prune("audit", checkpoint, *_AUDIT, "--plots", "pictures")
    assert done.code == 0, done.err
    methods, agreement, verdict = done.out.split("\n\n")
    rows = [line.split("\t") for line in methods.splitlines()]
    assert rows[0][:2] == ["method", "rank correlation"] and {row[0] for row in rows[1:]} == {
        "taylor", "l2", "random", "ablation itself",
    }  # fmt: skip
    assert len(agreement.splitlines()) == 4 and all(len(line.split("\t")) == 4 for line in agreement.splitlines())
    assert "random" in verdict or "use " in verdict
    assert "ablating 8 units; the loss of a sample is" in done.err
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "agreement.png", "correlations.png", "ranks.png",
    ]  # fmt: skip
    report = json.loads((tmp_path / "dense-audit.json").read_text())
    assert report["command"] == f"prune audit {checkpoint} {' '.join(_AUDIT)} --plots pictures"
    assert set(json.loads((tmp_path / "dense-audit.seconds.json").read_text())) == {"taylor", "l2", "random"}

    again = prune("audit", checkpoint, *_AUDIT)
    assert again.code == 2 and "dense-audit.json: exists; add --force" in again.err
    same = prune("audit", checkpoint, *_AUDIT, "--plots", "pictures", "--force", "--json")
    assert same.code == 0 and same.json == report | {"seconds": same.json["seconds"]}
    assert json.loads((tmp_path / "dense-audit.json").read_text()) == report  # equal seeds, equal reports
    quiet = prune("audit", checkpoint, *_AUDIT, "--resume", "-q")
    assert quiet.err == "" and quiet.out.split("\n\n")[1:] == [agreement, verdict]
    other = prune("audit", checkpoint, *_AUDIT, "--units", "9", "--resume")
    assert other.code == 2 and other.out == ""
    assert "dense-audit.json: was finished with units 8 and 9 is asked for; add --force" in other.err


def test_methods_are_compared_in_every_mode(
    prune: Prune, processes: Processes, checkpoint: Path, tmp_path: Path
) -> None:
    done = prune("compare", checkpoint, *_CONTEST, "-o", "c.json")
    assert done.code == 0, done.err
    methods, pairs, alike, verdict = done.out.split("\n\n")
    assert [line.split("\t")[0] for line in methods.splitlines()][:2] == ["method", "as it is"]
    assert len(pairs.splitlines()) == 4 and len(alike.splitlines()) == 4
    assert " is ahead straight after removal: top-1 " in verdict and "6/6 random, seed 1: top-1 " in done.err
    report = (tmp_path / "c.json").read_bytes()
    assert json.loads(report)["settings"]["prune"]["compensate"] == "none"
    again = prune("compare", checkpoint, *_CONTEST, "-o", "c.json", "--force", "--json")
    assert again.code == 0 and again.json == json.loads(report) and (tmp_path / "c.json").read_bytes() == report
    for flag, first in (("--csv", "method,parameters,MACs,"), ("--markdown", "| method | parameters |")):
        shown = prune("compare", checkpoint, *_CONTEST, "-o", "c.json", "--resume", flag, "-q")
        assert shown.code == 0 and shown.out.startswith(first) and shown.err == ""
    words = ["compare", str(checkpoint), *_CONTEST, "-o", "c.json", "--resume"]
    drawn = processes.run(words, tmp_path, terminal=True, env={"COLUMNS": "120"})
    assert drawn.code == 0 and "kept by both / by either" in drawn.out and "…" not in drawn.out
    plan = prune("compare", checkpoint, *_CONTEST, "--dry-run")
    assert plan.code == 0 and "stages.0.params.round_to\t1" in plan.out and "stages.0.compensate\tnone" in plan.out


def test_methods_are_compared_by_several_processes(prune: Prune, processes: Processes, tmp_path: Path) -> None:
    """Whose report is that of one, although each of them is killed before its second method is noted."""
    (tmp_path / "own.py").write_text(NETWORK)
    words = ["compare", "module:own:net", *OWN, *_CONTEST]
    assert prune(*words, "-o", "one.json").code == 0
    done = processes.run([*words, "-o", "two.json", "--jobs", "2"], tmp_path, fault="bout:done@2")
    assert done.code == 0, done.err
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert sorted(path.name for path in tmp_path.glob("*.json*")) == ["one.json", "two.json"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--units", "5000"], "--units 5000: only 336 units of the network may be removed; ask for fewer"),
        (["--units", "3"], "--units 3: an order of so few says nothing"),
        (["--batches", "0"], "--batches has to be at least 1 (got 0)"),
        (["--batches", "1", "--batch-size", "2"], "2 calibration samples are too few to compare two halves of them"),
        (["--methods", "fishr"], "--methods: unknown method 'fishr': did you mean 'fisher'"),
        (["--methods", "token"], "--methods: method token does not rank channels"),
        (["--methods", "taylor:ratio=0.5"], "all methods remove equally much"),
        (["--keep", "*"], "no layer can shrink"),
        (["--keep", "lyer1"], "unknown layer pattern 'lyer1'"),
        (["-o", "x.yaml"], "-o x.yaml: reports are JSON; name it x.json"),
        (["--resume", "--force"], "--resume continues a run and --force starts it again"),
    ],
)
def test_what_cannot_be_audited_is_one_line(prune: Prune, checkpoint: Path, words: list[str], message: str) -> None:
    done = prune("audit", checkpoint, "--data", "digits", *words)
    assert done.code == 2 and message in done.err.splitlines()[-1], done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "taylor,fishr"], "--methods: unknown method 'fishr': did you mean 'fisher'"),
        (["--methods", "l1", "--seeds", "1"], "--seeds 1: differences are tested against how much they vary"),
        (["--methods", "l1", "--ratio", "0.5", "--params", "0.5"], "--ratio and --params say how much to remove each"),
        (["--methods", "l1", "--params", "0.001"], "--params 0.001 cannot be reached"),
        (["--methods", "l1", "--fail-if", "top1_drop > 1"], "--fail-if is for several networks"),
        (["--methods", "l1", "--compile"], "--compile is for several networks"),
        (["--methods", "l1", "--json", "--csv"], "--csv and --json exclude each other"),
        (["--seeds", "3"], "--seeds belongs to --methods"),
        (["--methods", "l1", "--jobs", "9999"], "--jobs 9999: 9,999 cores asked for, and this machine has"),
        (["--macs", "0.5"], "--macs belongs to --methods"),
        (["--compensate", "ls"], "--compensate belongs to --methods"),
        (["--methods", "l1", "--split", "train"], "--split"),
    ],
)
def test_what_cannot_be_compared_is_one_line(prune: Prune, checkpoint: Path, words: list[str], message: str) -> None:
    done = prune("compare", checkpoint, "--data", "digits", *words)
    problem = json.loads(done.out)["error"]["message"] if "--json" in words else done.err.splitlines()[-1]
    assert done.code == 2 and message in problem, done.err
    assert "Traceback" not in done.err


def test_networks_and_data_have_to_be_named(prune: Prune, checkpoint: Path, tmp_path: Path) -> None:
    for words, message in (
        (["audit"], "Missing argument 'MODEL'"),
        (["audit", "nothing.pt", "--data", "digits"], "nothing.pt"),
        (["audit", checkpoint, "--units", "8"], "no data set: name one with --data"),
        (["compare", "--methods", "l1"], "Missing argument"),
        (["compare", checkpoint, "--methods", "taylor"], "no data set: name one with --data"),
        (["compare", "a.json", "--methods", "l1"], "a.json: is a report, and --methods prunes networks"),
        (["compare", checkpoint, checkpoint, checkpoint, "--methods", "l1", "--seeds", "2"], "2 and 3 networks"),
    ):
        done = prune(*words)
        assert done.code == 2 and message in done.err.splitlines()[-1], done.err


def test_methods_are_completed_behind_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()

    def offered(*words: str) -> list[str]:
        return [word for word, _ in complete(["prune", *words])]

    assert offered("audit", "--methods", "l1,tay") == ["l1,taylor"]
    assert "fisher,l1" in offered("compare", "--methods", "fisher,") and "fisher,fisher" not in offered(
        "compare", "--methods", "fisher,"
    )
    assert "token" not in offered("audit", "--methods", "")
    assert offered("audit", "--plots", "f") == ["folder/"]
    assert offered("compare", "--split", "") == ["test", "validation"]
    assert offered("aud") == ["audit"]
