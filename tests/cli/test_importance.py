"""Criteria that look at curvature, covariance and several things at once, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_commands import checkpoint  # noqa: F401 - a fixture
from tests.conftest import Prune

DIGITS = ("--data", "digits", "--calibration-images", "96", "--batch-size", "32", "--latency-rounds", "2")


def test_a_fusion_says_what_it_weighed(prune: Prune, checkpoint: Path) -> None:  # noqa: F811
    words = ("enhanced", checkpoint, "--ratio", "0.3", *DIGITS, "--max-probes", "16", "--samples", "64")
    done = prune(*words, "-o", "x.safetensors", "--json")
    assert done.code == 0, done.err
    scoring = done.json["scoring"]
    assert set(scoring["weights"]) == {"magnitude", "activation", "gradient", "cooperative", "hessian"}
    assert sum(scoring["weights"].values()) == pytest.approx(1, abs=1e-3) and scoring["probes"] == 16
    done = prune(*words, "--no-hessian", "-o", "y.safetensors")
    assert done.code == 2 and "--max-probes belongs to the part that --no-hessian switches off" in done.err
    done = prune("inspect", "x.safetensors")
    assert done.code == 0, done.err


def test_a_bound_on_the_loss_instead_of_a_ratio(prune: Prune, checkpoint: Path) -> None:  # noqa: F811
    words = ("obs", checkpoint, "--retention", "epsilon", *DIGITS, "-o", "x.safetensors")
    done = prune(*words)
    assert done.code == 2 and "--retention epsilon needs --epsilon" in done.err
    done = prune(*words, "--epsilon", "0.01")
    assert done.code == 0, done.err
    assert "measured rise" in done.out and "epsilon" in done.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("enhanced", "--samples", "97"), "--samples 97: the calibration data has 96; ask for fewer"),
        (
            (
                "enhanced", "--no-magnitude", "--no-activation", "--no-gradient", "--no-cooperative", "--no-hessian",
            ),
            "all five parts are switched off",
        ),
        (("hap", "--min-probes", "50", "--max-probes", "9"), "--min-probes 50 is more than --max-probes 9"),
        (("obs", "--ridge", "0"), "ridge"),
        (("fisher", "--epsilon", "0.1"), "--epsilon belongs to --retention epsilon"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(
    prune: Prune,
    checkpoint: Path,  # noqa: F811
    words: tuple[str, ...],
    message: str,
) -> None:
    done = prune(words[0], checkpoint, *words[1:], *DIGITS, "-o", "x.safetensors")
    errors = [line for line in done.err.splitlines() if line.startswith("error")]
    assert done.code == 2 and len(errors) == 1 and message in errors[0], done.err
    assert not Path("x.safetensors").exists()
