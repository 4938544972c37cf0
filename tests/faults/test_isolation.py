"""Two runs never mix, nothing is overwritten unasked, and files lead nowhere but where they lie."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import prunecli
from prunecli.checkpoint.confinement import stays_inside
from prunecli.checkpoint.durable import write_text_atomically
from prunecli.checkpoint.io import read_checkpoint, write_checkpoint
from prunecli.checkpoint.locking import locked
from prunecli.checkpoint.manifest import UsedData
from prunecli.cli.output import Output
from prunecli.errors import RecipeError
from prunecli.pipeline.resumption import saved_states
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import ModelSection, Recipe
from tests.faults.conftest import Undisturbed
from tests.faults.processes import FEW_DIGITS, PROGRESSIVE, TRAIN, Processes, sha256, when


def test_the_holder_of_a_lock_is_named(processes: Processes, tmp_path: Path) -> None:
    words = "train cifar:resnet20 --data digits --epochs 500 -o x.safetensors".split()
    command = [sys.executable, "-m", "prunecli", *words]
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert first.stderr is not None
    while "epoch 1/" not in first.stderr.readline():
        assert first.poll() is None
    second = processes.run([*words, "--force"], tmp_path)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 143 and "Resume with" in err
    assert second.code == 2 and len(second.err.splitlines()) == 1
    assert f"x.safetensors: in use by process {first.pid} on " in second.err
    assert "(prune train cifar:resnet20 --data digits --epochs 500)" in second.err


def test_the_folder_of_a_run_is_locked_too(processes: Processes, undisturbed: Undisturbed, tmp_path: Path) -> None:
    words = undisturbed.folder("run", tmp_path)
    with locked(tmp_path / "out", "prune run other.yaml"):
        refused = processes.run([*words, "--force"], tmp_path)
    assert refused.code == 2 and f"in use by process {os.getpid()}" in refused.err and "other.yaml" in refused.err
    assert not (tmp_path / "out").exists()  # nothing was written to it, so it went with the lock


def test_a_lock_survives_a_holder_that_cannot_be_named(tmp_path: Path) -> None:
    with locked(tmp_path / "x"):
        (tmp_path / "x" / "holder.json").write_text("[]")
        with pytest.raises(RecipeError, match="in use by another process; wait for it"), locked(tmp_path / "x"):
            raise AssertionError
    with locked(tmp_path / "x"):
        pass


def _writers(folder: Path) -> dict[str, list[str]]:
    return {
        "x.safetensors": TRAIN,
        "pruned.safetensors": "l1 dense.safetensors --latency-rounds 2 -o pruned.safetensors".split(),
        "report.json": "eval dense.safetensors --measure params -o report.json".split(),
        "comparison.json": "compare a.json a.json -o comparison.json".split(),
        "new.yaml": "recipe new new.yaml".split(),
        "s.yaml": "sensitivity dense.safetensors --data digits -o s.yaml --plot s.png".split(),
        "s.png": "sensitivity dense.safetensors --data digits -o t.yaml --plot s.png".split(),
        "a.json": "audit dense.safetensors --data digits -o a.json".split(),
        "a.seconds.json": "audit dense.safetensors --data digits -o a.json".split(),
        "ranks.png": "audit dense.safetensors --data digits --plots .".split(),
        "c.json": "compare dense.safetensors --methods l1 --data digits -o c.json".split(),
    }


@pytest.mark.parametrize("name", sorted(_writers(Path())))
def test_outputs_are_not_overwritten_unasked(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, name: str
) -> None:
    undisturbed.folder("progressive", tmp_path)
    (tmp_path / name).write_text("precious")
    refused = processes.run(_writers(tmp_path)[name], tmp_path)
    assert refused.code == 2 and f"{name}: exists" in refused.err and "--force" in refused.err, refused.err
    assert (tmp_path / name).read_text() == "precious"


def test_a_file_that_appears_meanwhile_is_not_overwritten(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="created in the meantime; add --force"):
        write_text_atomically(Path(__file__), "", replace=False)
    assert Path(__file__).stat().st_size
    undisturbed.folder("progressive", tmp_path)
    words = [*PROGRESSIVE, "--set", "description=x"]
    started = tmp_path / "x.safetensors"

    # The name is taken after the run has looked and before it ends.
    taker = when(tmp_path / ".err", "step 1/2", lambda: started.write_text("precious"))
    done = processes.run(words, tmp_path)
    taker.join()
    assert done.code == 0, done.err
    assert "x.safetensors: another process has written it meanwhile; saved as x-2.safetensors" in done.err
    assert started.read_text() == "precious"
    read_checkpoint(tmp_path / "x-2.safetensors")


_RECIPE = "version: 1\nmodel: {ref: 'cifar:resnet20'}\ndata: {name: digits}\nstages: [{stage: train, epochs: 1}]\n"


@pytest.mark.parametrize(
    ("extends", "link"),
    [("../base.yaml", False), ("ABSOLUTE", False), ("link.yaml", True), ("sub/../../base.yaml", False)],
)
def test_a_recipe_extends_nothing_outside_its_folder(
    processes: Processes, tmp_path: Path, extends: str, link: bool
) -> None:
    (tmp_path / "base.yaml").write_text(_RECIPE)
    folder = tmp_path / "given"
    (folder / "sub").mkdir(parents=True)
    if link:
        (folder / extends).symlink_to(tmp_path / "base.yaml")
    name = extends.replace("ABSOLUTE", str(tmp_path / "base.yaml"))
    (folder / "r.yaml").write_text(f"extends: {name}\n")
    done = processes.run("recipe check given/r.yaml".split(), tmp_path)
    assert done.code == 2 and "given/r.yaml:1:10: extends" in done.err and "leads out of" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize("key", ["weights", "teacher"])
@pytest.mark.parametrize("path", ["/etc/hostname", "../other.pt", "link.pt", "~/model.pt"])
def test_a_recipe_reads_no_network_outside(processes: Processes, tmp_path: Path, key: str, path: str) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "link.pt").symlink_to("/etc/hostname")
    weights = path if key == "weights" else "inside.pt"
    teacher = path if key == "teacher" else "parent"
    (folder / "r.yaml").write_text(
        f"model: {{weights: {weights}}}\ndata: {{name: digits}}\nstages: [{{stage: finetune, teacher: {teacher}}}]\n"
    )
    check = "recipe check r.yaml".split()
    done = processes.run(check, folder)
    assert done.code == 2 and "leads out of the recipe's folder" in done.err and "give --set" in done.err, done.err
    # What the user says on the command line or in the environment counts as meant.
    inside = (folder / "r.yaml").read_text().replace(path, "'${env:NETWORK:-inside.pt}'")
    (folder / "r.yaml").write_text(inside)
    assert processes.run(check, folder).code == 0
    assert processes.run(check, folder, env={"NETWORK": "/etc/hostname"}).code == 0
    given = processes.run("run r.yaml --dry-run --set model.weights=/etc/hostname".split(), folder)
    assert given.code == 0 and "/etc/hostname" in given.out


@pytest.mark.parametrize("value", ["${env:HOME}/../etc/hostname", "/etc/${env:NAME}", "${env:NAME:-x}${env:NAME}"])
def test_what_a_recipe_writes_around_a_variable_is_its_own(processes: Processes, tmp_path: Path, value: str) -> None:
    (tmp_path / "r.yaml").write_text(_RECIPE.replace("ref: 'cifar:resnet20'", f"weights: '{value}'"))
    environment = {"HOME": "/root", "NAME": "/hostname"}
    refused = processes.run("recipe check r.yaml".split(), tmp_path, env=environment)
    assert refused.code == 2 and "leads out of the recipe's folder" in refused.err, refused.err


@pytest.mark.parametrize("name", ["x.safetensors.state/holder.json", "x.metrics.jsonl", "x.safetensors.state/lock"])
def test_links_that_lie_ready_lead_nowhere(processes: Processes, tmp_path: Path, name: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "x.safetensors.state").mkdir()
    (tmp_path / name).symlink_to(victim)
    processes.run(TRAIN, tmp_path)
    assert victim.read_text() == "precious"


def test_a_folder_of_states_may_be_no_link(processes: Processes, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x.safetensors.state").symlink_to(tmp_path / "elsewhere")
    refused = processes.run(TRAIN, tmp_path)
    assert refused.code == 2 and "x.safetensors.state: is a symbolic link; remove it" in refused.err
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_without_a_run_is_not_resumed_into(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    words = undisturbed.folder("run", tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.yaml").write_text("precious")
    refused = processes.run([*words, "--resume"], tmp_path)
    assert refused.code == 2 and "holds no run to resume" in refused.err
    assert (tmp_path / "out" / "plan.yaml").read_text() == "precious"


def test_a_network_elsewhere_can_be_given_by_hand(processes: Processes, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "r.yaml").write_text(_RECIPE.replace("ref: 'cifar:resnet20'", "weights: /etc/hostname"))
    refused = processes.run("train r.yaml --dry-run".split(), folder)
    assert refused.code == 2 and "give --set model.weights=/etc/hostname" in refused.err
    words = "r.yaml --dry-run --set model.weights=/etc/hostname".split()
    for verb in ("run", "train"):
        given = processes.run([verb, *words], folder)
        assert given.code == 0 and "/etc/hostname" in given.out, given.err


def _with_step(source: Path, target: Path, **changes: object) -> None:
    """A checkpoint whose history says something else: what a stranger may send."""
    manifest, tensors = read_checkpoint(source)
    manifest.history[-1] = manifest.history[-1].model_copy(update=changes)
    write_checkpoint(target, tensors, manifest.model_copy(update={"aliases": {}}))


@pytest.mark.parametrize("where", ["../dense.safetensors", "ABSOLUTE", "link.safetensors"])
def test_a_manifest_names_no_parent_outside_its_folder(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, where: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    undisturbed.folder("progressive", tmp_path)
    (folder / "link.safetensors").symlink_to(tmp_path / "dense.safetensors")
    parent = where.replace("ABSOLUTE", str(tmp_path / "dense.safetensors"))
    pruned = undisturbed.result("progressive") / "x.safetensors"
    _with_step(pruned, folder / "p.safetensors", parent=parent, parent_sha256=sha256(tmp_path / "dense.safetensors"))
    words = f"finetune p.safetensors --data {FEW_DIGITS} --epochs 1 --teacher parent -o f.safetensors".split()
    refused = processes.run(words, folder)
    assert refused.code == 2 and "the parent is not in this folder" in refused.err, refused.err
    accepted = processes.run([*words, "--teacher", "../dense.safetensors"], folder)
    assert accepted.code == 0, accepted.err


@pytest.mark.parametrize("name", ["folder:/etc", "npz:/etc/x.npz", "folder:../images", "/tmp/x.npz", "npz:~/x.npz"])
def test_a_manifest_names_no_data_outside(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path, name: str
) -> None:
    data = UsedData(name=name)
    _with_step(undisturbed.result("train") / "x.safetensors", tmp_path / "p.safetensors", data=data)
    refused = processes.run("eval p.safetensors".split(), tmp_path, env={"PRUNE_DATA": str(tmp_path)})
    assert refused.code == 2 and f"outside this folder: name it with --data {name}" in refused.err, refused.err


def test_a_parent_beside_the_checkpoint_is_found(
    processes: Processes, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    undisturbed.folder("progressive", place)
    (place / "x.safetensors").write_bytes((undisturbed.result("progressive") / "x.safetensors").read_bytes())
    words = f"finetune elsewhere/x.safetensors --data {FEW_DIGITS} --epochs 1 --teacher parent -o f.safetensors".split()
    assert processes.run(words, tmp_path).code == 0
    assert prunecli.load(tmp_path / "f.safetensors") is not None


@pytest.mark.parametrize(
    ("path", "inside"),
    [("a/b", True), ("a/../b", True), ("..", False), ("a/../../b", False), ("/", False), ("a\0b", False)],
)
def test_what_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, inside: bool) -> None:
    monkeypatch.chdir(tmp_path)
    assert stays_inside(path, Path()) is inside
    (tmp_path / "loop").symlink_to("loop")
    assert stays_inside("loop/x", tmp_path) in (True, False)  # and no exception


def test_a_name_that_is_taken_by_the_time_of_the_lock_is_refused(tmp_path: Path) -> None:
    """Two commands begin together and the other one is done first."""
    space = Workspace(Recipe(model=ModelSection(ref="cifar:resnet20"), device="cpu"), Output("quiet"))
    (tmp_path / "x.safetensors").write_text("precious")
    with (
        pytest.raises(RecipeError, match="created in the meantime"),
        saved_states(space, tmp_path / "x.safetensors", {}),
    ):
        raise AssertionError
    space.in_run = True  # the folder of a run is its own
    with saved_states(space, tmp_path / "x.safetensors", {}):
        pass
