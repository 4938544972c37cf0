"""What is seen of long work while it goes on: bars on a terminal, lines in a log, nothing for scripts."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

from tests.conftest import Prune
from tests.processes import Processes, Sent

_TAYLOR = ("taylor", "cifar:resnet20", "--ratio", 0.3, "--data", "digits", "--latency-rounds", 2, "--batch-size", 32)
_TERMINAL = {"TERM": "xterm", "COLUMNS": "80"}
_HIDDEN, _SHOWN = "\x1b[?25l", "\x1b[?25h"
"""The cursor."""
_PHASE = re.compile(
    r"(?P<name>[a-z ]+): "
    r"(running for \d+\.\d s(, (batch|probe|trial|layer|round) \d+( of \d+)?)?|finished after \d+\.\d s)"
)


def _visible(screen: str) -> list[str]:
    """What is left on a terminal after a bar that was drawn on one line, over and over, and taken away."""
    lines, row = [""], 0
    for piece in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", screen):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif re.fullmatch(r"\x1b\[\d+A", piece):
            row -= int(piece[2:-1])
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece[0] not in "\x1b\r":
            lines[row] += piece
    return lines


def test_phases_are_lines_in_a_log(prune: Prune, tmp_path: Path) -> None:
    done = prune(*_TAYLOR, "--calibration-images", 64, "--json", env={"PRUNE_LOG_EVERY": "0.05"})
    assert done.code == 0, done.err
    assert json.loads(done.out)["method"] == "taylor"
    assert "\r" not in done.err and "\x1b" not in done.err
    lines = [_PHASE.fullmatch(line) for line in done.err.splitlines() if ": running" in line or ": finished" in line]
    assert all(lines), done.err
    names = [line["name"] for line in lines if line is not None]
    order = list(dict.fromkeys(name for name in names if name in ("score", "verify", "repair")))
    assert order == ["score", "verify", "repair"]
    assert re.search(r"^score: running for .*, batch \d of 2$", done.err, re.MULTILINE)
    assert re.search(r"^repair: running for .*, trial \d of \d$", done.err, re.MULTILINE)
    assert done.err.count("repair: finished") == 1
    counted = re.findall(r"(?:batch|probe|trial|layer|round) (\d+) of (\d+)$", done.err, re.MULTILINE)
    assert counted and all(1 <= int(number) <= int(total) for number, total in counted)


def test_what_is_soon_done_and_what_is_to_be_quiet_says_nothing(prune: Prune) -> None:
    """A line comes after three seconds at the earliest, unless lines are asked for more often than that."""
    words = ("l1", "cifar:resnet20", "--ratio", 0.3, "--latency-rounds", 2)
    for more, interval in ((["-o", "a.safetensors"], "60"), (["-o", "b.safetensors", "-q"], "0.01")):
        done = prune(*words, *more, env={"PRUNE_LOG_EVERY": interval})
        assert done.code == 0 and not re.search("(running for|finished after)", done.out + done.err)


def test_a_terminal_shows_a_bar_that_goes_away(processes: Processes, tmp_path: Path) -> None:
    done = processes.run(
        [*_TAYLOR, "--calibration-images", 512], tmp_path, env=_TERMINAL, unset=["NO_COLOR"], terminal=True
    )
    assert done.code == 0, done.out
    drawn = re.sub(r"\x1b\[[\d;]*m", "", done.out)
    assert re.search(r"score [━╺╸]+ +\d+% 0:00:\d\d \S+ batch \d+ of 16", drawn)
    assert re.search(r"repair [━╺╸]+ +\d+% 0:00:\d\d \S+ trial \d of \d", drawn)
    left = _visible(drawn)
    assert not any("━" in line and ":" in line for line in left), left
    assert any(line.startswith("saved") for line in left) and any("parameters" in line for line in left)
    assert drawn.rfind(_SHOWN) > drawn.rfind(_HIDDEN) >= 0


def test_ctrl_c_leaves_a_clean_terminal(processes: Processes, tmp_path: Path) -> None:
    stopped = processes.run(
        [*_TAYLOR, "--calibration-images", 100000],
        tmp_path,
        env=_TERMINAL,
        unset=["NO_COLOR"],
        terminal=True,
        signals=[Sent(signal.SIGINT, after=1.5, group=True)],
    )
    assert stopped.code == 130
    drawn = re.sub(r"\x1b\[[\d;]*m", "", stopped.out)
    left = [line for line in _visible(drawn) if line.strip()]
    assert "━" in drawn and left[-1] == "error: stopped by Ctrl-C; no state was saved"
    assert not any("━" in line for line in left)
    assert drawn.rfind(_SHOWN) > drawn.rfind(_HIDDEN)
    assert not list(tmp_path.glob("*.safetensors"))


def test_no_colour_means_lines_on_a_terminal_too(processes: Processes, tmp_path: Path) -> None:
    env = {**_TERMINAL, "NO_COLOR": "1", "PRUNE_LOG_EVERY": "0.05"}
    words = ["l1", "cifar:resnet20", "--ratio", 0.3, "--latency-rounds", 20]
    done = processes.run(words, tmp_path, env=env, terminal=True)
    assert done.code == 0 and "\x1b" not in done.out
    assert "verify: running for" in done.out and "time: finished after" in done.out


def test_training_says_how_far_it_is_within_an_epoch(prune: Prune) -> None:
    words = ("train", "cifar:resnet20", "--data", "digits", "--epochs", 1, "--batch-size", 64, "--lr", 0.05)
    done = prune(*words, env={"PRUNE_LOG_EVERY": "0.25"})
    assert done.code == 0, done.err
    line = r"train: (\d+) %, epoch 1/1 loss \d\.\d{4}, batch (\d+)/(\d+), \d+ images/s, about \d+\.\d s left"
    found = [match for text in done.err.splitlines() if (match := re.fullmatch(line, text))]
    assert found, done.err
    for match in found:
        percent, batch, batches = map(int, match.groups())
        assert percent == 100 * batch // batches
    assert re.search(r"^epoch 1/1: loss \S+, validation top-1 \S+ %, \S+ s$", done.err, re.MULTILINE)


def test_a_wrong_interval_is_said_in_one_line(prune: Prune) -> None:
    for wrong in ("often", "nan"):
        failed = prune("l1", "cifar:resnet20", "--ratio", 0.3, env={"PRUNE_LOG_EVERY": wrong})
        assert failed.code == 2 and failed.out == ""
        said = "give the seconds between lines of progress, for instance 60, or 0 for none"
        assert failed.err == f"error: PRUNE_LOG_EVERY={wrong}: {said}\n"
