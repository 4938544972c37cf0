"""What a start may import: nothing that takes longer than the answer."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from prunecli.models.loading import load_reference, save
from prunecli.report.schema import REPORT_SCHEMA, Metrics, ModelInfo, Report
from tests.conftest import Prune

_PROBE = """
import os, sys
from prunecli.__main__ import main

def report(code=0):
    sys.stdout.flush()
    forbidden = os.environ["FORBIDDEN"].split()
    os.write(seen, ",".join(name for name in forbidden if name in sys.modules).encode())
    os.write(2, b"code %d" % code)

seen = os.dup(1)
os.dup2(2, 1)
# A completion ends its process without raising anything.
end, os._exit = os._exit, lambda code: (report(code), end(0))
sys.argv[0] = "prune"
try:
    main()
except SystemExit as ended:
    report(ended.code)
"""
HEAVY = "torch timm pydantic rich numpy sklearn torchvision yaml annotated_types".split()
if not any(entry_points(group=f"prunecli.{kind}") for kind in ("methods", "criteria", "models", "data")):
    HEAVY.append("importlib.metadata")  # who has installed a plugin pays for finding it
UNASKED = ("prunecli.recipe.schema", "prunecli.methods.params", "prunecli.criteria.options", "json")
"""What makes the options of a command: the list of commands needs none of it."""


def _complete(*words: str) -> dict[str, str]:
    return {"_PRUNE_COMPLETE": "complete_zsh", "_PRUNE_WORDS": "\n".join(("prune", *words))}


def _shown(words: list[str], forbidden: tuple[str, ...], environment: dict[str, str]) -> str:
    """What a command shows, once it is certain that its process has imported none of some modules."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *words],
        env={**os.environ, "FORBIDDEN": " ".join(forbidden), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "", done.stdout
    assert done.stderr.endswith("code 0"), done.stderr
    return done.stderr.removesuffix("code 0")


@pytest.mark.parametrize(
    ("words", "environment", "forbidden"),
    [
        (["--help"], {}, UNASKED),
        (["--version"], {}, UNASKED),
        (["l1", "--help"], {}, ("prunecli.methods.sca_params", "prunecli.methods.sparse_params")),
        (["train", "--help"], {}, ("prunecli.criteria.options",)),
        (["eval", "--help"], {}, ("prunecli.methods.params",)),
        (["compare", "--help"], {}, ()),
        (["recipe", "--help"], {}, ()),
        (["recipe", "check", "--help"], {}, ()),
        ([], _complete(""), (*UNASKED, "typer")),
        ([], _complete("comp"), (*UNASKED, "typer")),
        ([], _complete("l1", "--ra"), ("typer", "json", "prunecli.methods.sca_params")),
        ([], _complete("train", "--data", ""), ("typer", "json", "prunecli.criteria.options")),
        ([], _complete("prune", "--method", ""), ("typer", "json", "prunecli.criteria.options")),
        ([], _complete("recipe", "new", "--"), ("typer",)),
        ([], {"_PRUNE_COMPLETE": "complete_fish", "_PRUNE_WORDS": "prune\neval\n--"}, ("typer",)),
        (
            [],
            {"_PRUNE_COMPLETE": "complete_bash", "COMP_WORDS": "prune\nl1\n--arch\ntimm\n:\nres", "COMP_CWORD": "5"},
            ("typer", "json"),
        ),
    ],
)
def test_help_and_completion_import_nothing_heavy(
    words: list[str], environment: dict[str, str], forbidden: tuple[str, ...]
) -> None:
    """Names of modules, where a time would depend on the machine; docs/benchmarks.md has the time."""
    assert _shown(words, (*HEAVY, *forbidden), environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and two reports."""
    folder = tmp_path_factory.mktemp("work")
    loaded = load_reference("cifar:resnet20")
    architecture = loaded.manifest.architecture.model_copy(update={"input_shape": (3, 32, 32)})
    save(folder / "a.safetensors", loaded.model, loaded.manifest.model_copy(update={"architecture": architecture}))
    for name, top1 in (("a", 90.0), ("b", 88.5)):
        model = ModelInfo(ref="cifar:resnet20", input_shape=(3, 32, 32))
        report = Report(schema=REPORT_SCHEMA, model=model, metrics=Metrics(top1=top1, params=1000))
        (folder / f"{name}.json").write_text(report.to_json())
    return folder


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("inspect {}/a.json", "top-1\t90.00 %"),
        ("inspect {}/a.json --json", '"params": 1000'),
        ("inspect {}/a.safetensors --manifest", '"ref": "cifar:resnet20"'),
        ("compare {}/a.json {}/b.json --csv", "b.json,88.5"),
        ("compare {}/a.json {}/b.json", "88.50 % (-1.50)"),
        ("compare {}/a.json {}/b.json --json --fail-if top1_drop>2", '"condition": "top1_drop > 2"'),
    ],
)
def test_reports_and_headers_are_read_without_torch(folder: Path, words: str, text: str) -> None:
    shown = _shown(words.replace("{}", str(folder)).split(), ("torch", "timm", "numpy", "rich"), {})
    assert text in shown


def test_options_of_networks_are_refused_for_a_report(prune: Prune, folder: Path) -> None:
    done = prune("inspect", folder / "a.json", "--layers", "--arch", "cifar:resnet20")
    assert done.code == 2 and "a.json: is a report, not a network; leave --arch, --layers out" in done.err


def test_the_header_says_what_the_loaded_network_does(prune: Prune, folder: Path) -> None:
    header = prune("inspect", folder / "a.safetensors", "--manifest", "--json").json
    assert header == prune("inspect", folder / "a.safetensors", "--json").json["manifest"]
