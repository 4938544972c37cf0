"""`prune sweep` in real processes: every cell runs exactly once, whatever is killed, and what comes out is read."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.conftest import Prune
from tests.processes import Processes, Sent

NETWORK = """\
from torch import nn

def net():
    widths = [(1, 16), (16, 32), (32, 32)]
    layers = [part for a, b in widths for part in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
"""
RECIPE = """\
version: 1
model: {ref: "module:own:net", example_shape: 1x1x8x8}
stages:
  - {stage: eval, measure: [params, macs]}
  - {stage: prune, method: l1, params: {ratio: 0.5}, latency_rounds: 2}
  - {stage: eval, measure: [params, macs]}
"""
OWN = ("--allow-code", "own")
ALL = {"shared 1": 1, "cells 2": 2, "cells 3": 2}
"""How often each stage of the two cells and of what they share has to be run."""
SWEEP = "recipe: base.yaml\naxes:\n  method: [l1, l2]\n  ratio: [0.3, 0.5]\n"
PAIR = "recipe: base.yaml\naxes:\n  ratio: [0.3, 0.5]\n"


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    """A recipe whose stages take a moment, and sweeps over it."""
    (tmp_path / "own.py").write_text(NETWORK)
    (tmp_path / "base.yaml").write_text(RECIPE)
    (tmp_path / "s.yaml").write_text(SWEEP)
    (tmp_path / "pair.yaml").write_text(PAIR)


def stages_run(out: Path) -> Counter[str]:
    """How often each stage was started, by folder: "shared" and "cells", and their numbers, from the logs."""
    counts: Counter[str] = Counter()
    for log in out.glob("*/*/sweep.log"):
        for number in re.findall(r"^stage (\d)/\d", log.read_text(), flags=re.MULTILINE):
            counts[f"{log.parent.parent.name} {number}"] += 1
    return counts


def finished(out: Path) -> int:
    """Rows of finished cells in the results; none is there twice."""
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert len({row["cell"] for row in rows}) == len(rows)
    return sum(row["status"] == "finished" for row in rows)


def test_cells_run_once_and_are_read(prune: Prune, tmp_path: Path) -> None:
    planned = prune("sweep", "s.yaml", *OWN, "-o", "out", "--dry-run", "--json").json
    assert planned["count"] == 4 and planned["finished"] == 0 and planned["shared"] == 1
    assert planned["axes"] == {"method": "stages.1.method", "ratio": "stages.1.params.ratio"}
    assert not (tmp_path / "out").exists()

    done = prune(
        "sweep", "s.yaml", *OWN, "-o", "out", "--jobs", "2", "--objective", "min macs where params_ratio > 0.5"
    )
    assert done.code == 0, done.err
    cells, best = done.out.split("\n\n")[0].splitlines(), done.out.split("\n\n")[-1]
    assert cells[0].startswith("method\tratio\tparameters\tMACs\tcell") and len(cells) == 5
    assert re.search(r"best: method=l1 ratio=0.3 \(macs [\d.e+]+; min macs where params_ratio > 0.5\)", best)
    assert stages_run(tmp_path / "out") == {"shared 1": 1, "cells 2": 4, "cells 3": 4}
    assert done.err.count("method=l1 ratio=0.3") == 1

    again = prune("sweep", "s.yaml", *OWN, "-o", "out", "--json").json
    assert again["ran"] == 0 and again["finished"] == 4
    (tmp_path / "s.yaml").write_text(SWEEP.replace("0.5]", "0.5, 0.7]"))
    assert prune("sweep", "s.yaml", *OWN, "-o", "out", "--dry-run", "--json").json["finished"] == 4
    more = prune("sweep", "s.yaml", *OWN, "-o", "out", "--json").json
    assert more["ran"] == 2 and more["finished"] == 6
    assert stages_run(tmp_path / "out") == {"shared 1": 1, "cells 2": 6, "cells 3": 6}

    compared = prune("compare", "out", "--json").json
    assert compared["baseline"] == "dense" and len(compared["candidates"]) == 6
    one = next(row for row in compared["candidates"] if row["name"] == "method=l1 ratio=0.5")
    own = next(row for row in more["cells"] if row["values"] == {"method": "l1", "ratio": 0.5})
    assert one["macs_ratio"] == own["figures"]["macs_ratio"] < 0.6
    assert prune("compare", *sorted((tmp_path / "out" / "cells").iterdir())).out.count("out/cells") == 6
    page = prune("report", "out", "--no-measure", "--markdown").out
    assert "| figure | dense (baseline) | method=l1 ratio=0.3 |" in page

    # What cells have come to is in their own files: the results may be gone, and damage costs the one cell.
    cells = tmp_path / "out" / "cells"
    (tmp_path / "out" / "results.jsonl").unlink()
    os.truncate(cells / own["cell"] / "pruned.json", 50)
    other = next(row for row in more["cells"] if row["values"] == {"method": "l2", "ratio": 0.7})
    os.truncate(cells / other["cell"] / "pruned.safetensors", 5000)
    damaged = prune("compare", "out", "--json")
    assert damaged.code == 2 and "method=l1 ratio=0.5, method=l2 ratio=0.7: damaged, so left out" in damaged.err
    assert len(damaged.json["candidates"]) == 4 and "pruned.json" in damaged.json["notes"][-2]
    assert prune("compare", "out", "--fail-if", "macs_ratio < 1").code == 3
    assert "2 damaged cells left out" in prune("report", "out", "--no-measure", "--markdown").out
    mended = prune("sweep", "s.yaml", *OWN, "-o", "out", "--json").json
    assert mended["ran"] == 2 and mended["cells"] == [
        {**row, "seconds": mended["cells"][index]["seconds"]} for index, row in enumerate(more["cells"])
    ]
    assert prune("compare", "out", "--json").json["candidates"] == compared["candidates"]


def test_a_cell_is_what_its_plan_alone_comes_to(prune: Prune, tmp_path: Path) -> None:
    done = prune("sweep", "pair.yaml", *OWN, "-o", "out", "--json").json
    cell = next(row["cell"] for row in done["cells"] if row["values"] == {"ratio": 0.5})
    alone = prune("run", f"out/cells/{cell}/plan.yaml", *OWN, "-o", "alone")
    assert alone.code == 0, alone.err
    for file in ("pruned.safetensors",):
        with (
            safe_open(tmp_path / "alone" / file, "pt") as a,
            safe_open(f"{tmp_path}/out/cells/{cell}/{file}", "pt") as b,
        ):
            assert set(a.keys()) == set(b.keys())
            assert all(bool((a.get_tensor(key) == b.get_tensor(key)).all()) for key in a.keys())


@pytest.mark.parametrize(
    ("fault", "before", "after"),
    [
        pytest.param("sweep:looked", {}, ALL, marks=pytest.mark.slow),
        ("sweep:noted", {"shared 1": 1, "cells 2": 1, "cells 3": 1}, ALL),
        ("cell:started", {}, ALL),
        ("cell:seeded", ALL, ALL),
        ("run:noted@2", ALL, ALL),
        pytest.param("cell:finished", ALL, ALL, marks=pytest.mark.slow),
    ],
)
def test_a_kill_costs_no_work_that_was_finished(
    processes: Processes, tmp_path: Path, fault: str, before: dict[str, int], after: dict[str, int]
) -> None:
    """The driver is killed at `sweep:` points, every worker that gets there at the others."""
    out = tmp_path / "out"
    first = processes.run(["sweep", "pair.yaml", *OWN, "-o", "out"], tmp_path, fault=fault)
    assert first.code == (-signal.SIGKILL if fault.startswith("sweep:") else 1 if fault == "cell:started" else 0)
    if fault == "cell:started":
        assert "2 of 2 cells failed" in first.err and "killed by SIGKILL" in first.err and "tried 3 times" in first.err
    assert stages_run(out) == before
    second = processes.run(["sweep", "pair.yaml", *OWN, "-o", "out"], tmp_path)
    assert second.code == 0, second.err
    assert stages_run(out) == after and finished(out) == 2


def test_workers_end_with_a_driver_that_is_killed(processes: Processes, tmp_path: Path) -> None:
    """The second cell would take hours."""
    out = tmp_path / "out"
    (tmp_path / "long.yaml").write_text("recipe: base.yaml\naxes: {stages.1.latency_rounds: [2, 100000000]}\n")
    words = ["sweep", "long.yaml", *OWN, "-o", "out", "--jobs", "2"]
    ended = processes.run(words, tmp_path, signals=[Sent(signal.SIGKILL, text="1/2 ")])
    assert ended.code == -signal.SIGKILL
    patience = time.monotonic() + 20
    while _processes_in(out) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not _processes_in(out)
    assert finished(out) == 1 and stages_run(out)["shared 1"] == 1


def _processes_in(out: Path) -> list[str]:
    """Processes that have a file below the folder open."""
    found = []
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        try:
            if any(os.readlink(link).startswith(str(out)) for link in descriptors.iterdir()):
                found.append(descriptors.parent.name)
        except OSError:
            continue
    return found


def test_interrupted_and_continued(processes: Processes, tmp_path: Path) -> None:
    ended = processes.run(
        ["sweep", "pair.yaml", *OWN, "-o", "out"], tmp_path, signals=[Sent(signal.SIGINT, text="1/2 ")]
    )
    assert ended.code == 130 and "what is finished stays so" in ended.err and "Traceback" not in ended.err
    assert finished(tmp_path / "out") >= 1 and not _processes_in(tmp_path / "out")
    assert processes.run(["sweep", "pair.yaml", *OWN, "-o", "out"], tmp_path).code == 0
    assert finished(tmp_path / "out") == 2 and stages_run(tmp_path / "out")["shared 1"] == 1


def test_a_cell_that_fails_leaves_the_others(prune: Prune, tmp_path: Path) -> None:
    (tmp_path / "f.yaml").write_text("recipe: base.yaml\naxes:\n  keep: [[], [nowhere]]\n")
    failed = prune("sweep", "f.yaml", *OWN, "-o", "out", "--json")
    assert failed.code == 1 and failed.json["finished"] == 1 and failed.json["failed"] == 1
    reason = next(row["error"] for row in failed.json["cells"] if row["status"] == "failed")
    assert "nowhere" in reason and "1 of 2 cells failed (keep=nowhere: " in failed.err and "Traceback" not in failed.err
    before = stages_run(tmp_path / "out")
    assert prune("sweep", "f.yaml", *OWN, "-o", "out").code == 1 and stages_run(tmp_path / "out") == before
    retried = prune("sweep", "f.yaml", *OWN, "-o", "out", "--retry-failed")
    assert retried.code == 1 and stages_run(tmp_path / "out") - before == {"cells 2": 1}
    assert "1 failed cell left out" in prune("report", "out", "--no-measure", "--markdown").out


def test_an_adaptive_search_is_continued(processes: Processes, prune: Prune, tmp_path: Path) -> None:
    processes.preload("optuna.samplers")
    (tmp_path / "a.yaml").write_text(
        "recipe: base.yaml\naxes:\n  method: [l1, l2]\n  ratio: {low: 0.1, high: 0.8}\n"
        "search: {kind: adaptive, cells: 4}\nobjective: max macs where macs < 400000\n"
    )
    killed = processes.run(["sweep", "a.yaml", *OWN, "-o", "out"], tmp_path, fault="sweep:noted@2")
    assert killed.code == -signal.SIGKILL and finished(tmp_path / "out") == 2
    with (tmp_path / "out" / "search.journal").open("a") as file:
        file.write('{"op_code": 5, "wor')  # as a power cut leaves it
    done = prune("sweep", "a.yaml", *OWN, "-o", "out", "--json")
    assert done.code == 0, done.err
    assert done.json["finished"] == 4 and done.json["ran"] == 2
    assert stages_run(tmp_path / "out") == {"shared 1": 1, "cells 2": 4, "cells 3": 4}
    assert all(
        row["figures"]["macs"] < 400_000 for row in done.json["cells"] if row["cell"] in done.json["best"]["cells"]
    )
    assert prune("sweep", "a.yaml", *OWN, "-o", "out", "--json").json["ran"] == 0


def test_a_terminal_shows_how_many_run(processes: Processes, tmp_path: Path) -> None:
    """The bar is drawn four times a second; the cell takes longer than that."""
    (tmp_path / "one.yaml").write_text("recipe: base.yaml\naxes: {stages.1.latency_rounds: [3000]}\n")
    shown = processes.run(["sweep", "one.yaml", *OWN, "-o", "out"], tmp_path, terminal=True, env={"TERM": "xterm"})
    assert shown.code == 0 and "\x1b[" in shown.out and "1 running" in shown.out


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("", [], "s.yaml:1:1: a sweep file is a mapping (recipe:, axes:)"),
        ("axes:\n  rato: [0.3]", [], "s.yaml:3:3: axis 'rato' matches no option; did you mean 'ratio'"),
        ("axes:\n  stages.1.params.rato: [0.3]", [], "s.yaml:3:3: axis 'stages.1.params.rato' matches no option; did"),
        ("axes:\n  measure: [[params]]", [], "s.yaml:3:3: axis 'measure' may be stages.0.measure or stages.2.measure"),
        ("axes:\n  ratio: [0.3, 30]", [], "s.yaml:3:16: stages.1.params.ratio has to be less than 1 (got 30)"),
        ("axes:\n  ratio: [0.3, 0.3]", [], "s.yaml:3:16: axis 'ratio' has 0.3 twice"),
        ("axes:\n  seed: [0, true]", [], "s.yaml:3:13: axis 'seed' has true where seed is 1; write that"),
        ("axes:\n  seed: [0, '0']", [], "s.yaml:3:13: axis 'seed' has \"0\" where seed is 0; write that"),
        ("axes:\n  save_every: [1, 2]", [], "s.yaml:3:19: axis 'save_every': 2 comes to the same as 1; leave one"),
        ("axes:\n  ratio: {low: 0.1, high: 0.5}", [], "a grid needs to know how many values: add steps"),
        ("axes:\n  ratio: {low: 0.5, high: 0.1, steps: 3}", [], "low 0.5 has to be less than high 0.1"),
        ("axes:\n  method: [l1, tylor]", [], "s.yaml:3:16: unknown method 'tylor': did you mean 'taylor'"),
        (
            "axes:\n  ratio: [0.3]\n  stages.1.params.ratio: [0.5]",
            [],
            "s.yaml:4:3: axis 'stages.1.params.ratio' changes",
        ),
        ("axes:\n  ratio: [0.3]\naxis: 3", [], "s.yaml:4:1: unknown key 'axis'; did you mean 'axes'?"),
        ("axes:\n  ratio: [0.3]\nsearch: random", [], "s.yaml:4:9: a random search needs to know how many"),
        ("axes:\n  ratio: [0.3]\nsearch: grd", [], "s.yaml:4:9: unknown search 'grd': did you mean 'grid'?"),
        ("axes:\n  ratio: [0.3]\nobjective: most top1", [], "s.yaml:4:12: objective 'most top1': write min or max"),
        ("axes:\n  seed: [0, 1]\nsearch: {kind: adaptive, cells: 2}\nobjective: max top1", [], "a lucky seed"),
        (
            "axes:\n  seed: [0]\nset: {rato: 0.4}",
            [],
            "s.yaml:4:13: set: 'rato' matches no option; did you mean 'ratio'",
        ),
        ("axes:\n  ratio: [0.3]\nset: {ratio: 0.4}", [], "s.yaml:4:14: stages.1.params.ratio is the same in all cells"),
        (
            "axes:\n  ratio: [0.3]",
            ["--set", "stages.1.params.ratio=0.4"],
            "--set stages.1.params.ratio: stages.1.params",
        ),
        ("axes:\n  ratio: [0.3]\nset: {stages.2.measure: [macs], stages: []}", [], "matches no option"),
        ("axes:\n  model: [../far.safetensors]", [], "s.yaml:3:11: model.weights ../far.safetensors leads out of"),
        ("axes:\n  model: ['hf:./gone']", [], "s.yaml:3:11: ./gone: no such folder"),
        ("axes:\n  model: [gone.safetensors]", [], "s.yaml:3:11: gone.safetensors: no such file; give a weights"),
        ("axes:\n  data.name: [digits, digit]", [], "s.yaml:3:23: unknown data set 'digit': did you mean 'digits'"),
        ("axes:\n  model: [timm:resnet1]", [], "s.yaml:3:11: unknown architecture 'timm:resnet1': did you mean"),
        ("axes:\n  ratio: [0.3]", ["--jobs", "9999"], "--jobs 9999: 9,999 cores asked for, and this machine has"),
        ("axes:\n  ratio: [0.3]", ["--cpus", "999"], "--cpus 999: 999 cores asked for, and this machine has"),
        ("axes:\n  ratio: [0.3]", ["--jobs", "0"], "--jobs has to be at least 1 (got 0)"),
        ("axes:\n  ratio: [0.3]", ["--executor", "rai"], "unknown executor 'rai': did you mean 'ray'?"),
        ("axes:\n  ratio: [0.3]", ["--address", "1.2.3.4:6379"], "--address and --executor-option are for clusters"),
        ("axes:\n  ratio: [0.3]", ["--executor", "ray", "--address", "127.0.0.1:9"], "127.0.0.1:9: cannot be reached"),
        ("axes:\n  ratio: [0.3]", ["--executor", "ray", "--address", "here"], "--address here: write it as HOST:PORT"),
        (
            "axes:\n  ratio: [0.3]",
            ["--executor", "slurm", "--executor-option", "partitoin=gpu", "--executor-option", "cluster=local"],
            "--executor-option partitoin=gpu: unknown; known are cluster, timeout_min",
        ),
        ("axes:\n  ratio: [0.3]", ["-o", "base.yaml"], "base.yaml: is a file; --out takes the name of a folder"),
        ("axes:\n  ratio: [0.3]", ["-o", "."], ".: holds something else than a sweep"),
    ],
)
def test_bad_input_is_one_line(prune: Prune, tmp_path: Path, text: str, words: list[str], message: str) -> None:
    (tmp_path / "s.yaml").write_text(f"recipe: base.yaml\n{text}\n" if text else "")
    out = [] if "-o" in words else ["-o", "out"]
    bad = prune("sweep", "s.yaml", *OWN, *out, *words)
    said = [line for line in bad.err.splitlines() if not line.endswith(" each")]
    assert bad.code == 2 and message in said[-1] and len(said) == 1, bad.err
