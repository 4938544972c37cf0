"""`examples/plugin`, installed for real: everything that a package can add, by entry points alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.processes import Ended, Processes

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
    yield lambda *words, **options: server.run(words, folder, **options)
    server.close()


@pytest.fixture(scope="module")
def tiny(run: Run) -> str:
    """A network of the package's source, trained on its data set."""
    done = run("train", "extras:tiny", "--data", "stripes:200", "--epochs", "3", "-o", "tiny.safetensors")
    assert done.code == 0, done.err
    return "tiny.safetensors"


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


def test_a_model_source_and_a_data_set(run: Run, tiny: str) -> None:
    done = run("eval", tiny, "--measure", "accuracy", "--json")
    assert done.code == 0 and '"stripes:200"' in done.out
    assert "extras:tiny" in run("models", "extras:").out
    assert "did you mean 'extras'" in run("train", "extra:tiny", "--data", "stripes").err
    assert run("train", "extras:tiny", "--data", "stripes:x").err == (
        "error: stripes:x: give a number of images, for instance stripes:200\n"
    )


def test_a_criterion_is_a_method(run: Run, tiny: str) -> None:
    done = run("spread", tiny, "--ratio", "0.5", "--latency-rounds", "2", "-o", "spread.safetensors")
    assert done.code == 0 and "verified" in done.out, done.err
    assert "spread" in run("inspect", "spread.safetensors").out
    assert "did you mean 'spread'" in run("prune", tiny, "--method", "spred").err


def test_a_trained_method_prunes_and_resumes_to_the_same_bytes(run: Run, tiny: str, folder: Path) -> None:
    words = ("slimming", tiny, "--epochs", "2", "--save-every", "0", "--latency-rounds", "2", "-o")
    whole = run(*words, "slim.safetensors", "--json")
    assert whole.code == 0 and '"scope": "trained"' in whole.out and '"achieved": 0.5,' in whole.out, whole.err
    assert run(*words, "stopped.safetensors", fault="fit:step@3").code == -9
    resumed = run(*words, "stopped.safetensors", "--resume")
    assert resumed.code == 0, resumed.err
    assert (folder / "slim.safetensors").read_bytes() == (folder / "stopped.safetensors").read_bytes()
    shown = run("inspect", "slim.safetensors").out
    assert "features.conv1" in shown and "1. train" in shown and "2. prune" in shown
    assert run("eval", "slim.safetensors", "--measure", "accuracy").code == 0


def test_what_a_trained_method_needs_is_said(run: Run, tiny: str) -> None:
    assert "prunes while the network trains: say for how long with --epochs" in run("slimming", tiny).err
    nothing = run("slimming", "timm:test_vit", "--data", "digits", "--epochs", "1")
    assert nothing.code == 2 and "slimming needs batch normalisations behind layers that may shrink" in nothing.err


def test_a_runtime_method_is_recorded_restored_and_missed(run: Run, folder: Path, prune: Callable[..., Ended]) -> None:
    arguments = [word for value in VIT for word in ("--model-kwargs", value)]
    network = ("timm:vit_tiny_r_s16_p8_224", *arguments, "--data", "digits", "--epochs", "1", "--batch-size", "64")
    assert run("train", *network, "-o", "vit.safetensors").code == 0
    words = ("early-exit", "vit.safetensors", "--skip", "1", "--latency-rounds", "2", "-o", "exit.safetensors")
    done = run(*words, "--json")
    assert done.code == 0 and '"skipped": [\n    2\n  ]' in done.out, done.err
    macs = [run("eval", f"{name}.safetensors", "--measure", "macs", "--json").out for name in ("vit", "exit")]
    assert macs[0] != macs[1] and '"macs"' in macs[1]
    again = run("early-exit", "exit.safetensors")
    assert again.code == 2 and "its last blocks are skipped already; start from the network without" in again.err
    assert "its last blocks are skipped already" in run("l1", "exit.safetensors", "--ratio", "0.5").err
    assert "the network has 3 blocks; skip fewer" in run("early-exit", "vit.safetensors", "--skip", "3").err
    without = prune("eval", folder / "exit.safetensors")
    assert without.code == 2 and len(without.err.splitlines()) == 1
    assert "needs method 'early-exit', which is not installed here" in without.err


@pytest.mark.parametrize(
    ("entry", "module", "message"),
    [
        ("prunecli.methods]\nbroken = broken:SPEC", "import nothing_there", "method 'broken' of package somebodys"),
        ("prunecli.methods]\nwrong = wrong:SPEC", "SPEC = 7", "'wrong' of package somebodys is not a MethodSpec"),
        ("prunecli.methods]\nl1 = taken:SPEC", "SPEC = 7", "method 'l1' of package somebodys has a name that is taken"),
        ("prunecli.criteria]\nbad = bad:SPEC", "SPEC = 7", "criterion 'bad' of package somebodys is not"),
    ],
)
def test_a_broken_package_is_named_in_one_line(tmp_path: Path, entry: str, module: str, message: str) -> None:
    name = entry.partition("\n")[2].partition(" = ")[2].partition(":")[0]
    (tmp_path / f"{name}.py").write_text(module + "\n")
    info = tmp_path / "somebodys-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{entry}\n")
    done = subprocess.run(
        [sys.executable, "-m", "prunecli", "methods"], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr
