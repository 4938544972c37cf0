"""`examples/plugin`, installed for real: everything that a package can add, by entry points alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.pages import blocks
from tests.processes import Ended, Processes, Sent

Run = Callable[..., Ended]
VIT = ["img_size=16", "patch_size=1", "embed_dim=32", "depth=3", "num_heads=2"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package, as pip installs it."""
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("packages")
    shutil.copytree(REPOSITORY / "examples" / "plugin", source)
    words = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(installed: Path, folder: Path) -> Iterator[Run]:
    """`prune` with the package."""
    server = Processes(installed)
    yield lambda *words, cwd=folder, **options: server.run(words, cwd, **options)
    server.close()


@pytest.fixture(scope="module")
def tiny(run: Run) -> str:
    """A network of the package's source, trained on its data set."""
    done = run("train", "extras:tiny", "--data", "stripes:200", "--epochs", "3", "-o", "tiny.safetensors")
    assert done.code == 0, done.err
    return "tiny.safetensors"


def _loaded_elsewhere(run: Run, path: Path, shape: tuple[int, ...]) -> tuple[list[list[float]], int]:
    """Scores and number of parameters of what `prunecli.load` gives in another process."""
    code = (
        "import json, torch, prunecli\n"
        f"model = prunecli.load({str(path)!r})\n"
        f"scores = model(torch.ones({shape})).tolist()\n"
        "print(json.dumps([scores, sum(p.numel() for p in model.parameters())]))\n"
    )
    done = run(code=code)
    assert done.code == 0, done.err
    scores, parameters = json.loads(done.out)
    return scores, parameters


def test_everything_is_listed_without_importing_torch(installed: Path) -> None:
    code = (
        "import sys\n"
        "from prunecli.cli.app import run\n"
        "run(['--help'])\n"
        "run(['slimming', '--help'])\n"
        "print('torch' in sys.modules, 'prune_extras.slimming' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(installed), "COLUMNS": "80"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.endswith("False False\n"), done.stdout[-300:] + done.stderr
    words = " ".join(done.stdout.split())
    for text in (
        "spread Remove the channels whose weights vary least.",
        "slimming Train with a penalty on batch normalisation scales, then remove small ones.",
        "early-exit Skip the last blocks of a vision transformer.",
        "--penalty <float>",
    ):
        assert text in words


def test_methods_are_listed_by_family(run: Run) -> None:
    listed = run("methods", "--json")
    assert listed.code == 0
    methods = {method["name"]: method for method in json.loads(listed.out)}
    families = {name: methods[name]["family"] for name in ("spread", "slimming", "early-exit")}
    assert families == {"spread": "structural", "slimming": "trained", "early-exit": "runtime"}


@pytest.mark.parametrize("page", ["docs/plugins.md", "examples/plugin/README.md"])
def test_commands_on_pages_can_be_run(run: Run, tmp_path: Path, page: str) -> None:
    found = [words for block in blocks() if block.page == page for words in block.commands() if words[0] == "prune"]
    assert len(found) == 4
    for words in found:
        done = run(*words[1:], cwd=tmp_path)
        assert done.code == 0, f"{' '.join(words)}: {done.err}"


def test_a_model_source_and_a_data_set(run: Run, tiny: str) -> None:
    done = run("eval", tiny, "--measure", "accuracy", "--json")
    assert done.code == 0 and '"stripes:200"' in done.out
    assert "extras:tiny" in run("models", "extras:").out
    assert "did you mean 'extras'" in run("train", "extra:tiny", "--data", "stripes").err
    assert run("train", "extras:tiny", "--data", "stripes:x").err == (
        "error: stripes:x: give a number of images, for instance stripes:200\n"
    )


def test_a_criterion_is_a_method(run: Run, tiny: str, folder: Path) -> None:
    done = run("spread", tiny, "--ratio", "0.5", "--latency-rounds", "2", "-o", "spread.safetensors")
    assert done.code == 0 and "verified" in done.out, done.err
    assert "spread" in run("inspect", "spread.safetensors").out
    evaluated = run("eval", "spread.safetensors", "--measure", "params", "--json")
    scores, parameters = _loaded_elsewhere(run, folder / "spread.safetensors", (2, 1, 12, 12))
    assert len(scores[0]) == 4 and parameters == json.loads(evaluated.out)["metrics"]["params"]
    assert "did you mean 'spread'" in run("prune", tiny, "--method", "spred").err


def test_a_trained_method_prunes_and_resumes_to_the_same_bytes(run: Run, tiny: str, folder: Path) -> None:
    words = ("slimming", tiny, "--epochs", "2", "--save-every", "0", "--latency-rounds", "2", "-o")
    whole = run(*words, "slim.safetensors", "--json")
    assert whole.code == 0 and '"scope": "trained"' in whole.out and '"achieved": 0.5,' in whole.out, whole.err
    assert run(*words, "stopped.safetensors", fault="fit:step@3").code == -9
    resumed = run(*words, "stopped.safetensors", "--resume")
    assert resumed.code == 0, resumed.err
    assert (folder / "slim.safetensors").read_bytes() == (folder / "stopped.safetensors").read_bytes()
    interrupted = run(*words, "interrupted.safetensors", signals=[Sent(signal.SIGINT, text="epoch 1/2")])
    assert interrupted.code == 130 and not (folder / "interrupted.safetensors").exists(), interrupted.err
    assert run(*words, "interrupted.safetensors", "--resume").code == 0
    assert (folder / "slim.safetensors").read_bytes() == (folder / "interrupted.safetensors").read_bytes()
    shown = run("inspect", "slim.safetensors").out
    assert "features.conv1" in shown and "1. train" in shown and "2. prune" in shown
    assert run("eval", "slim.safetensors", "--measure", "accuracy").code == 0


def test_errors_say_what_a_trained_method_needs(run: Run, tiny: str) -> None:
    assert "prunes while the network trains: say for how long with --epochs" in run("slimming", tiny).err
    refused = run("slimming", "timm:test_vit", "--data", "digits", "--epochs", "1")
    assert refused.code == 2 and "slimming needs batch normalisations behind layers that may shrink" in refused.err


def test_a_runtime_method_is_recorded_restored_and_missed(run: Run, folder: Path, prune: Callable[..., Ended]) -> None:
    arguments = [word for value in VIT for word in ("--model-kwargs", value)]
    network = ("timm:vit_tiny_r_s16_p8_224", *arguments, "--data", "digits", "--epochs", "1", "--batch-size", "64")
    assert run("train", *network, "-o", "vit.safetensors").code == 0
    words = ("early-exit", "vit.safetensors", "--skip", "1", "--latency-rounds", "2", "-o", "exit.safetensors")
    done = run(*words, "--json")
    assert done.code == 0 and '"skipped": [\n    2\n  ]' in done.out, done.err
    reports = [run("eval", f"{name}.safetensors", "--measure", "macs", "--json").out for name in ("vit", "exit")]
    macs = [json.loads(report)["metrics"]["macs"] for report in reports]
    assert macs[1] < 0.8 * macs[0]  # one block of three is skipped; the stem stays
    loaded = [_loaded_elsewhere(run, folder / f"{name}.safetensors", (2, 1, 16, 16)) for name in ("vit", "exit")]
    assert loaded[0][0] != loaded[1][0] and loaded[0][1] == loaded[1][1]  # another result from the same weights
    again = run("early-exit", "exit.safetensors")
    assert again.code == 2 and "its last blocks are skipped already; start from the network without" in again.err
    assert "its last blocks are skipped already" in run("l1", "exit.safetensors", "--ratio", "0.5").err
    assert "the network has 3 blocks; skip fewer" in run("early-exit", "vit.safetensors", "--skip", "3").err
    without = prune("eval", folder / "exit.safetensors")
    assert without.code == 2 and len(without.err.splitlines()) == 1
    assert "needs method 'early-exit', which is not installed here" in without.err


@pytest.mark.parametrize(
    ("group", "name", "source", "words", "message"),
    [
        ("methods", "bad", "import nothing_there", ["methods"], "method 'bad' of package somebodys cannot be loaded"),
        ("methods", "bad", "SPEC = 7", ["methods"], "'bad' of package somebodys is not a MethodSpec"),
        ("methods", "l1", "SPEC = 7", ["methods"], "method 'l1' of package somebodys has a name that is taken"),
        ("criteria", "bad", "SPEC = 7", ["methods"], "criterion 'bad' of package somebodys is not a CriterionSpec"),
        ("criteria", "bad", "import nothing_there", ["methods"], "criterion 'bad' of package somebodys cannot be"),
        ("criteria", "token", "SPEC = 7", ["methods"], "criterion 'token' of package somebodys has the name of a"),
        # tests/unit/test_catalogs.py has more of these without a process each.
        ("models", "bad", "", ["inspect", "bad:x"], "model source 'bad' of package somebodys lacks one of names"),
        (
            "data",
            "bad",
            "import nothing_there",
            ["eval", "cifar:resnet20", "--data", "bad"],
            "data set 'bad' of package",
        ),
    ],
)
def test_a_broken_package_is_named_in_one_line(
    new_processes: Processes, tmp_path: Path, group: str, name: str, source: str, words: list[str], message: str
) -> None:
    (tmp_path / "somebodys.py").write_text(source + "\n")
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    reference = "somebodys:SPEC" if group in ("methods", "criteria") else "somebodys"
    (info / "entry_points.txt").write_text(f"[prunecli.{group}]\n{name} = {reference}\n")
    if words == ["methods"]:  # which needs no torch, and is about what other processes here have read already
        command, environment = [sys.executable, "-m", "prunecli", *words], {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        code, err = done.returncode, done.stderr
    else:
        ended = new_processes.run(words, tmp_path, packages=tmp_path)
        code, err = ended.code, ended.err
    assert code == 2 and len(err.splitlines()) == 1 and message in err, err
