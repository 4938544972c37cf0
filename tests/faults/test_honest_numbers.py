"""Numbers say what they are: intervals hold, bounds are marked as bounds, and a report says where it comes from."""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prunecli.measure.commit import head_commit, source_commit
from prunecli.measure.counts import count_macs
from prunecli.measure.environment import describe_environment
from prunecli.measure.latency import PairedTiming, Timing, summarise
from prunecli.pipeline.timed import timing_notes
from prunecli.report.comparison import compare_reports
from prunecli.report.schema import DataInfo, Metrics, ModelInfo, Report, read_report
from prunecli.report.tables import comparison_table, interval, plain_table, report_table
from tests.faults.ratio_trials import busy_cores, ratio_trials

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _network(blocks: int) -> nn.Sequential:
    body = [layer for _ in range(blocks) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *body, *head).eval()


def test_a_network_against_itself_takes_as_long() -> None:
    """Of ten intervals, each right in 95 of 100 cases, six have to hold 1: it fails by chance once in 15,000 times."""
    model = _network(4)
    assert ratio_trials(model, copy.deepcopy(model), IMAGE, repetitions=10).covered() >= 6


@pytest.mark.slow
@pytest.mark.parametrize("burners", [0, os.cpu_count() or 1])
@pytest.mark.parametrize("same", [True, False])
def test_intervals_hold_on_a_quiet_and_on_a_busy_machine(burners: int, same: bool) -> None:
    """Of forty intervals, each right in 95 of 100 cases, 33 have to hold 1: it fails by chance once in 1,300 times."""
    model = _network(4)
    with busy_cores(burners):
        trials = ratio_trials(model, model if same else copy.deepcopy(model), IMAGE, repetitions=40)
    assert trials.covered() >= 33


@pytest.mark.slow
@pytest.mark.parametrize("burners", [0, os.cpu_count() or 1])
def test_a_real_difference_is_found_on_a_quiet_and_on_a_busy_machine(burners: int) -> None:
    with busy_cores(burners):
        trials = ratio_trials(_network(4), _network(8), IMAGE, repetitions=20)
    assert trials.covered() <= 4  # on two busy cores an interval may be wide, but the truth lies in it
    assert sum(low < 2.1 and high > 1.7 for low, high in trials.intervals) >= 15
    if burners == 0:
        assert np.median([high / low for low, high in trials.intervals]) < 1.3


def test_interrupted_runs_do_not_decide_a_ratio() -> None:
    """Twice the work, and a busy machine that interrupts the longer runs five times as often."""
    generator = np.random.default_rng(0)
    times = np.stack([generator.normal(1, 0.01, 30), generator.normal(2, 0.02, 30)], axis=1)
    times += 10 * (generator.random((30, 2)) < [0.15, 0.75])
    assert summarise(times).ratios[1] > 5
    undisturbed = summarise(times, 0.1, 0.99)
    low, high = undisturbed.ratio_intervals[1]
    assert low < 2 < high < 1.1 * low


@pytest.mark.parametrize("rounds", [2, 3, 5, 10])
def test_intervals_of_few_rounds_are_wide_enough(rounds: int) -> None:
    generator = np.random.default_rng(rounds)
    noise = 0.1 * generator.exponential(size=(300, rounds, 2))
    trials = np.exp(0.1 * generator.standard_normal((300, rounds, 2))) + noise
    bounds = [summarise(times, 0.1, 0.99).ratio_intervals[1] for times in trials]
    assert sum(low <= 1 <= high for low, high in bounds) >= 0.93 * len(bounds)
    assert all(high <= 1.001e4 * low for low, high in bounds)


def test_a_ratio_that_does_not_follow_from_the_medians_is_explained() -> None:
    same, slower = Timing(10.0, (9.0, 11.0), 30), Timing(5.0, (4.0, 6.0), 30)
    follows = PairedTiming((same, slower), (1.0, 0.505), ((1.0, 1.0), (0.4, 0.6)))
    differs = PairedTiming((same, slower), (1.0, 0.6), ((1.0, 1.0), (0.4, 0.7)))
    assert timing_notes([follows]) == []
    assert timing_notes([follows, differs, differs]) == [
        "latencies are medians; their ratio is that of the least disturbed runs, taken in turns"
    ]


@pytest.mark.parametrize("digits", [2, 3])
def test_what_lies_in_an_interval_lies_in_the_printed_one(digits: int) -> None:
    for low, high in np.random.default_rng(0).uniform(0.9, 1.1, (200, 2)):
        printed = json.loads(interval(min(low, high), max(low, high), digits))
        assert printed[0] <= min(low, high) and max(low, high) <= printed[1]
        assert printed[1] - printed[0] <= abs(high - low) + 2.001 * 10**-digits


class _Spectral(nn.Module):
    """Filters in the frequency domain, as in global filter networks (Rao et al., 2021)."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, size, size // 2 + 1, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.weight, s=x.shape[-2:])


class _Triangular(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        square = torch.eye(x.shape[-1]) + x[:, 0].tril(-1)
        return torch.linalg.solve_triangular(square, x[:, 0], upper=False)[:, None].expand_as(x)


@pytest.mark.parametrize(
    ("layer", "operator"),
    [
        (_Spectral(32, 32), "aten::_fft_c2r, aten::_fft_r2c"),
        (_Triangular(), "aten::linalg_solve_triangular"),
    ],
)
def test_an_uncounted_operator_marks_macs_everywhere(layer: nn.Module, operator: str) -> None:
    model = _network(1)
    counted = count_macs(nn.Sequential(model[0], layer, *model[1:]), IMAGE)
    assert counted.total == count_macs(model, IMAGE).total
    metrics = Metrics(macs=counted.total, macs_uncounted=counted.uncounted)
    report = Report(model=ModelInfo(ref="mine", input_shape=(3, 32, 32)), metrics=metrics)
    assert ("MACs", ">= 10.32M") in report_table(report).rows
    assert ("not counted", operator) in report_table(report).rows
    exact = report.model_copy(update={"metrics": Metrics(macs=10**7)})
    comparison = compare_reports(["exact", "bound"], [exact, report])
    text = comparison_table(comparison).to_markdown()
    assert "| MACs | 10.00M | >= 10.32M (x1.032) |" in text
    note = f"bound: its MACs are a lower bound, and their ratio is not exact: {operator} is not counted"
    assert comparison.notes == (note,)
    assert comparison.model_dump(mode="json")["candidates"][0]["metrics"]["macs_uncounted"] == operator.split(", ")
    plain = plain_table(comparison)
    rows = [dict(zip(plain.columns, row, strict=True)) for row in plain.rows]
    assert [row["macs_uncounted"] for row in rows] == ["", operator.replace(",", "")]
    assert ">=" not in report_table(exact).to_markdown()


@pytest.mark.parametrize(
    ("operator", "call"),
    [
        ("aten::addmv", lambda x: torch.addmv(x[0], x, x[0])),
        ("aten::addr", lambda x: torch.addr(x, x[0], x[0])),
        ("aten::linalg_matrix_exp", torch.linalg.matrix_exp),
        ("aten::_linalg_solve_ex", lambda x: torch.linalg.solve(x, x)),
        ("aten::linalg_qr", lambda x: torch.linalg.qr(x)[0]),
        ("aten::_linalg_svd", lambda x: torch.linalg.svdvals(x)),
        ("aten::_cdist_forward", lambda x: torch.cdist(x, x)),
    ],
)
def test_operators_that_multiply_and_nobody_counts_are_known(operator: str, call: Callable[[Tensor], Tensor]) -> None:
    class Calls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)

    assert count_macs(Calls(), torch.eye(4)).uncounted == (operator,)


def test_a_loss_that_is_no_number_is_said_so() -> None:
    report = Report(model=ModelInfo(ref="m", input_shape=(3, 8, 8)), metrics=Metrics(top1=10.0, loss=math.nan))
    assert report.metrics.loss is None and report.metrics.nonfinite == ("loss",)
    assert ("loss", "not finite") in report_table(report).rows
    comparison = compare_reports(["a", "b"], [report.model_copy(update={"metrics": Metrics(loss=1.0)}), report])
    assert "| loss | 1.0000 | not finite |" in comparison_table(comparison).to_markdown()
    assert comparison.candidates[0].loss_rise is None and "b: its loss is not finite" in comparison.notes[0]


def test_images_that_were_left_out_are_counted_in_a_report(tmp_path: Path) -> None:
    info = DataInfo(name="folder:x", split="test", images=5, fingerprint="0", skipped=2)
    report = Report(model=ModelInfo(ref="m", input_shape=(3, 8, 8)), data=info, metrics=Metrics(loss=1.0))
    assert ("images", "5 of folder:x (test), 2 could not be read") in report_table(report).rows
    assert "b: 2 images could not be read" in compare_reports(["a", "b"], [report, report]).notes[1]
    (tmp_path / "r.json").write_text(report.to_json())
    assert read_report(tmp_path / "r.json") == report


def test_a_report_says_on_what_it_was_made() -> None:
    environment = describe_environment()
    assert {"device", "threads", "cores", "usable_cores", "memory_bytes", "machine", "platform"} < set(environment)
    assert {"python", "torch", "numpy", "torchvision", "timm", "prunecli"} < set(environment)
    assert environment["threads"] == torch.get_num_threads()
    report = Report(
        model=ModelInfo(ref="m", input_shape=(3, 8, 8)),
        metrics=Metrics(params=1),
        environment={**environment, "commit": "0" * 40},
    )
    rows = dict(report_table(report).rows)
    assert str(environment["device"]) in rows["measured on"] and " of " in rows["measured on"]
    assert rows["commit"] == "0" * 40


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git makes the repositories of these tests")


def _git(folder: Path, *words: str) -> str:
    settings = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "protocol.file.allow=always")
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *settings, *words], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    _git(folder, "init", "-q", "-b", "main")
    _git(folder, "commit", "-q", "--allow-empty", "-m", "one")
    return folder


@needs_git
def test_the_commit_is_read_wherever_git_keeps_it(repository: Path) -> None:
    first = _git(repository, "rev-parse", "HEAD")
    (repository / "a" / "b").mkdir(parents=True)
    assert head_commit(repository / "a" / "b") == first
    _git(repository, "pack-refs", "--all")
    assert not (repository / ".git" / "refs" / "heads" / "main").exists() and head_commit(repository) == first
    _git(repository, "commit", "-q", "--allow-empty", "-m", "two")
    second = _git(repository, "rev-parse", "HEAD")
    assert head_commit(repository) == second != first
    _git(repository, "checkout", "-q", "--detach", first)
    assert head_commit(repository) == first


@needs_git
def test_worktrees_submodules_and_links_are_followed(repository: Path, tmp_path: Path) -> None:
    _git(repository, "worktree", "add", "-q", "-b", "topic/one", str(tmp_path / "worktree"))
    _git(tmp_path / "worktree", "commit", "-q", "--allow-empty", "-m", "two")
    there = _git(tmp_path / "worktree", "rev-parse", "HEAD")
    assert head_commit(tmp_path / "worktree") == there != head_commit(repository)
    _git(tmp_path / "worktree", "pack-refs", "--all")
    assert head_commit(tmp_path / "worktree") == there
    outer = tmp_path / "outer"
    outer.mkdir()
    _git(outer, "init", "-q")
    _git(outer, "commit", "-q", "--allow-empty", "-m", "outer")
    _git(outer, "submodule", "--quiet", "add", str(repository), "inner")
    assert head_commit(outer / "inner") == head_commit(repository) != head_commit(outer)
    (tmp_path / "link").symlink_to(repository)
    assert head_commit(tmp_path / "link") == head_commit(repository)


@needs_git
def test_odd_repositories_have_no_commit(repository: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    _git(empty, "init", "-q")
    assert head_commit(empty) is None
    head = repository / ".git" / "HEAD"
    secret = tmp_path / "secret"
    secret.write_text("a" * 40)
    for text in ("ref: refs/../../../secret", f"ref: {secret}", "ref: refs/heads/.invalid", "", "deadbeef", "ref: "):
        head.write_text(text)
        assert head_commit(repository) is None
    head.write_text("ref: refs/heads/circle")
    (repository / ".git" / "refs" / "heads" / "circle").write_text("ref: refs/heads/circle")
    assert head_commit(repository) is None
    head.unlink()
    os.mkfifo(head)
    assert head_commit(repository) is None
    assert head_commit(tmp_path / "nowhere") is None


@needs_git
def test_nothing_that_a_repository_names_is_run(repository: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    script = tmp_path / "script"
    script.write_text(f"#!/bin/sh\ntouch {ran}\n")
    script.chmod(0o755)
    with (repository / ".git" / "config").open("a") as config:
        config.write(f"[core]\nfsmonitor = {script}\nsshCommand = {script}\npager = {script}\n[alias]\nx = !{script}\n")
    program = "from prunecli.measure.environment import describe_environment as d; print(d()['commit'])"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2] / "src")}
    done = subprocess.run(
        ["python", "-c", program], cwd=repository, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == head_commit(repository) and not ran.exists()


@needs_git
def test_the_tools_own_commit_is_that_of_its_source() -> None:
    root = Path(__file__).resolve().parents[2]
    assert source_commit() == (_git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None)
