"""YOLO networks of ultralytics: read without running them, pruned, kept, and given back to the package."""

from __future__ import annotations

import copy
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import prunecli
from prunecli.checkpoint.io import read_manifest, read_tensors
from prunecli.checkpoint.manifest import Architecture, TokenSelection, TokenStage
from prunecli.errors import ModelError
from prunecli.exporting import package as own_package
from prunecli.inputs import logits, output_tensors
from prunecli.measure.counts import parameter_count
from prunecli.models import loading
from prunecli.models.catalog import split_reference
from prunecli.models.yolo import building, export, names, package, source
from prunecli.models.yolo.config import checked
from prunecli.surgery.outputs import chosen_outputs
from tests.conftest import Prune

pytestmark = pytest.mark.skipif(
    find_spec("ultralytics") is None, reason="needs ultralytics: pip install 'prunecli[ultralytics]'"
)
SIDE = 64
LAYERS = [
    [-1, 1, "Conv", [64, 3, 2]],
    [-1, 1, "Conv", [64, 3, 2]],
    [-1, 1, "C3k2", [128, False, 0.5]],
    [-1, 1, "Conv", [512, 3, 2]],
    [-1, 1, "SPPF", [512, 5]],
    [-1, 1, "C2PSA", [512]],
    [-1, 1, "Conv", [256, 3, 2]],
]
"""The kinds of layers that YOLO 11 and 26 have, a few of each: maps of an eighth and a sixteenth of the image."""
HEADS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "boxes": (["Detect", ["nc"]], {}),
    "one to one": (["Detect", ["nc"]], {"end2end": True, "reg_max": 1}),
    "v10": (["v10Detect", ["nc"]], {}),
    "masks 26": (["Segment26", ["nc", 32, 256]], {"end2end": True, "reg_max": 1}),
    "poses 26": (["Pose26", ["nc", "kpt_shape"]], {"kpt_shape": [5, 2], "end2end": True}),
    "turned boxes": (["OBB", ["nc", 1]], {}),
    "areas": (["SemanticSegment", ["nc"]], {}),
    "classes": (["Classify", ["nc"]], {}),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def described(head: str) -> dict[str, Any]:
    (kind, arguments), more = HEADS[head]
    scales = {"scale": "n", "scales": {"n": [0.5, 0.25, 1024]}}
    last = [-1 if kind == "Classify" else [5, 6], 1, kind, arguments]
    return checked({"nc": 3, "backbone": LAYERS, "head": [last], **scales, **more}, head)


def trained(head: str) -> Any:
    """A small network of the package as its trainer leaves it: with statistics, names and arguments."""
    model: Any = building.from_config(described(head), head).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.rand(4, 3, SIDE, SIDE))
    model.names = {number: f"kind {number}" for number in range(3)}
    model.args = {"imgsz": 96, "task": "detect"}
    return model.eval()


def write(path: Path, model: nn.Module, **entries: Any) -> Path:
    torch.save({"model": model, "train_args": {"imgsz": 96}, "version": "8.4", **entries}, path)
    return path


def run(model: nn.Module, x: Tensor, training: bool = False) -> Any:
    statistics = copy.deepcopy(model.state_dict())
    model.train(training)
    with torch.no_grad():
        output = model(x)
    model.eval().load_state_dict(statistics)
    return output


def outputs(model: nn.Module, x: Tensor, *, training: bool = False) -> list[Tensor]:
    return output_tensors(run(model, x, training))


def refuse(path: Path, problem: str, **options: Any) -> None:
    with pytest.raises(ModelError, match=problem) as refused:
        loading.load_file(path, **options)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


def test_networks_are_those_that_the_package_builds() -> None:
    tasks = package.tasks()
    for name in ("yolov5n", "yolov9t", "yolo11m", "yolo12n-cls", "yolo26s-seg", "yolov10n", "yolov8n-p2"):
        with package.quiet(), torch.device("meta"):
            ours, saved = tasks.parse_model(building.named(name), 3, verbose=False)
            theirs, expected = tasks.parse_model(tasks.yaml_model_load(f"{name}.yaml"), 3, verbose=False)
        assert saved == expected and [type(m) for m in ours.modules()] == [type(m) for m in theirs.modules()]
        shapes = [{key: value.shape for key, value in one.state_dict().items()} for one in (ours, theirs)]
        assert shapes[0] == shapes[1], name
    assert len(source.names()) > 150 and not any("world" in name or "yoloe" in name for name in source.names())


def test_the_package_stays_silent_and_offline_and_writes_nothing_outside(tmp_path: Path) -> None:
    code = """
import os, socket, sys
def refuse(*arguments, **options):
    raise AssertionError("asked the network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
before = dict(os.environ)
import torch
from PIL import Image
save, opening = torch.save, Image.open
from prunecli.models.loading import load_reference
load_reference("ultralytics:yolov8n-cls")
changed = {name for name, value in os.environ.items() if before.get(name) != value}
assert torch.save is save and Image.open is opening
assert not [name for name in changed if name.startswith(("YOLO", "ULTRA", "OMP", "NUM", "TF_"))]
from ultralytics import utils
assert not (utils.ONLINE or utils.AUTOINSTALL) and utils.SAFE_LOAD and os.path.isdir(utils.USER_CONFIG_DIR)
print(utils.USER_CONFIG_DIR, file=sys.stderr)
"""
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    environment = {key: value for key, value in environment.items() if not key.startswith(("YOLO", "ULTRA"))}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
    assert not Path(done.stderr.strip().splitlines()[-1]).exists(), "the folder for its settings is removed"
    assert list(tmp_path.iterdir()) == []


QUICK = ("boxes", "masks 26")
"""Boxes alone, and boxes by one assignment with more beside them."""


@pytest.mark.parametrize("head", [pytest.param(h, marks=() if h in QUICK else pytest.mark.slow) for h in HEADS])
def test_a_file_is_pruned_and_kept_and_right_in_both_modes_at_other_sizes(head: str, tmp_path: Path) -> None:
    original = trained(head)
    path = write(tmp_path / "best.pt", copy.deepcopy(original).half())
    loaded = loading.load_file(path)
    assert loaded.fixed_size == (96, 96) and loaded.manifest.architecture.config["nc"] == 3
    assert vars(loaded.model)["names"] == original.names
    reference = copy.deepcopy(original).half().float()
    x = torch.rand(2, 3, SIDE, SIDE)
    for one, other in zip(outputs(reference, x), outputs(loaded.model, x), strict=True):
        assert torch.equal(one, other)
    pruned = prunecli.prune(loaded.model, example_inputs=x[:1], ratio=0.5)
    pruned.save(tmp_path / "pruned.safetensors")
    again = prunecli.load(tmp_path / "pruned.safetensors")
    assert {p.dtype for p in again.parameters()} == {torch.float16}, "as in the file"
    assert parameter_count(again) < 0.4 * parameter_count(original)
    expecting, again = pruned.model.half().float(), again.float()
    for height, width, training in ((SIDE, SIDE, True), (SIDE, SIDE, False), (96, 160, False), (SIDE, SIDE, False)):
        x = torch.rand(2, 3, height, width)
        expected, found = (outputs(model, x, training=training) for model in (expecting, again))
        assert len(expected) == len(found) and all(torch.equal(*pair) for pair in zip(expected, found, strict=True))
        wanted, given = (chosen_outputs(run(model, x, training), None) for model in (original, again))
        assert [one.shape for one in wanted] == [one.shape for one in given], "predictions keep their shapes"


def test_checkpoints_keep_half_precision(tmp_path: Path, prune: Prune) -> None:
    path = write(tmp_path / "best.pt", trained("classes").half())
    out, back = tmp_path / "pruned.safetensors", tmp_path / "pruned.pt"
    commands = (
        ["l1", str(path), "--ratio", "0.5", "--image-size", "32", "-o", str(out), "-q"],
        ["export", str(out), "-o", str(back), "--json"],
    )
    for command in commands:
        done = prune(*command)
        assert done.code == 0, done.err
    assert done.json["path"] == str(back)
    yolo = package.module("models").YOLO(str(back))
    pickled = torch.load(back, weights_only=False)["model"]  # a whole network, written by this test
    assert {p.dtype for p in pickled.parameters()} == {torch.float16} and yolo.task == "classify"
    again, x = prunecli.load(out).float(), torch.rand(1, 3, 32, 32)
    assert all(torch.equal(*pair) for pair in zip(outputs(again, x), outputs(yolo.model, x), strict=True))
    tensors = read_tensors(out)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.int64}
    manifest = read_manifest(out)
    assert manifest is not None and manifest.architecture.ref == "ultralytics:ClassificationModel"
    assert "best.pt" not in json.dumps(manifest.architecture.config), "references hold no paths"


def test_networks_whose_package_has_no_such_file_are_not_exported(tmp_path: Path) -> None:
    loaded = loading.load_reference("cifar:resnet20")
    with pytest.raises(ModelError, match="cifar has no file of its own for networks of other widths; checkpoints are"):
        own_package.export(loaded, tmp_path / "x.pt")
    own = loading.load_reference("ultralytics:yolov8n-cls")
    own.manifest.tokens = TokenSelection(selector="cls", tokens=9, stages=(TokenStage(block=1, kept=4),))
    with pytest.raises(ModelError, match="leaves out tokens while it runs, which ultralytics does not; export the"):
        own_package.export(own, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_an_unpruned_network_may_be_rebuilt_by_the_package(tmp_path: Path) -> None:
    model = trained("boxes")
    export.write(model, described("boxes"), (90, 90), tmp_path / "dense.pt")
    again = loading.load_file(tmp_path / "dense.pt")
    assert all(torch.equal(*pair) for pair in zip(again.model.parameters(), model.parameters(), strict=True))
    assert again.fixed_size == (96, 96), "the next multiple of the stride of 16"
    assert isinstance(package.tasks().DetectionModel(again.model.yaml), nn.Module)


def test_of_a_training_checkpoint_the_average_is_taken(tmp_path: Path) -> None:
    model, average = trained("classes"), trained("classes")
    path = write(tmp_path / "last.pt", model, ema=average, optimizer={"state": {}}, epoch=3)
    taken = loading.load_file(path)
    weight = "model.0.conv.weight"
    assert torch.equal(taken.model.state_dict()[weight], average.state_dict()[weight])
    only = loading.load_file(write(tmp_path / "epoch.pt", None, ema=model))  # type: ignore[arg-type]
    assert torch.equal(only.model.state_dict()[weight], model.state_dict()[weight])


def test_weights_alone_need_the_name_of_their_network(tmp_path: Path) -> None:
    model: Any = source.build("yolov5n", False, num_classes=3).eval()
    torch.save(model.state_dict(), path := tmp_path / "weights.pt")
    loaded = loading.load_file(path, "ultralytics:yolov5n")
    x = torch.rand(1, 3, SIDE, SIDE)
    assert all(torch.equal(*pair) for pair in zip(outputs(loaded.model, x), outputs(model, x), strict=True))
    refuse(path, "does not fit its configuration: it lacks", arch="ultralytics:yolo26n")
    refuse(path, r"is \[16, 3, 6, 6\] and its configuration makes it \[32, 3, 6, 6\]", arch="ultralytics:yolov5s")
    refuse(path, "holds weights alone; name their network", arch="ultralytics:DetectionModel")


def test_another_number_of_classes_renews_the_last_layers(tmp_path: Path) -> None:
    model = trained("boxes")
    path = write(tmp_path / "best.pt", model)
    changed = loading.load_file(path, num_classes=7)
    assert changed.manifest.architecture.config["nc"] == 7 and "names" not in changed.manifest.architecture.config
    assert any("are new, because it now has 7 classes" in note for note in changed.notes)
    old, new = model.state_dict(), changed.model.state_dict()
    assert torch.equal(old["model.6.conv.weight"], new["model.6.conv.weight"])
    assert new["model.7.cv3.0.2.weight"].shape[0] == 7 and changed.model.model[7].nc == 7


def _layer_changed(model: Any) -> None:
    model.model[2].m[0].add = not model.model[2].m[0].add


def _activation_changed(model: Any) -> None:
    model.model[0].act = nn.ReLU()


def _narrower(model: Any) -> None:
    model.model[0].conv = nn.Conv2d(3, 8, 3, bias=False)


def _larger(model: Any) -> None:
    model.extra = nn.Linear(2, 2)


def _in_danger(model: Any) -> None:
    model.yaml["activation"] = "__import__('os').system('touch touched')"


def _downloading(model: Any) -> None:
    model.yaml["backbone"][0] = [-1, 1, "TorchVision", [512, "resnet18", "DEFAULT"]]


def _without_description(model: Any) -> None:
    del model.yaml


def _of_another_task(model: Any) -> None:
    model.yaml = building.named("yolo11n-cls")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_layer_changed, r"has other layers than this version of the package builds: 2\.m\.0: add is False, not True"),
        (_activation_changed, r"other layers .*: 0\.act: its class is ReLU, not SiLU"),
        (_narrower, r"'model\.0\.conv\.weight' is \[8, 3, 3, 3\] and its configuration makes it \[16, 3, 3, 3\], so"),
        (_larger, r"does not fit its configuration: it has 'model\.extra\.weight'"),
        (_in_danger, r"activation .* is not one of torch\.nn's written with plain numbers"),
        (_downloading, r"layer 0 is a 'TorchVision', which is not one of the layers"),
        (_without_description, r"holds no configuration \(yaml\); prune the network itself in Python"),
        (_of_another_task, r"is a DetectionModel whose configuration makes a ClassificationModel"),
        (lambda model: model.fuse(verbose=False), r"have been fused into its convolutions, for inference; give"),
    ],
)  # fmt: skip
def test_networks_that_are_not_what_they_say_are_refused(
    change: Callable[[Any], None], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = trained("boxes")
    change(model)
    refuse(write(tmp_path / "best.pt", model), problem)
    assert not (tmp_path / "touched").exists()


class Model(nn.Sequential):
    """Stands for the class of another program's networks."""


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (
            "models.yolo",
            "is of the YOLOv5 repository .* which the package ultralytics cannot run; give its",
        ),
        ("ultralytics.nn.tasks", "its network is a 'ultralytics.nn.tasks.Model', which is none of DetectionModel"),
    ],
)
def test_other_networks_of_such_names_are_refused(
    module: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"model": Model(nn.Conv2d(3, 4, 1))}, path := tmp_path / "other.pt")
    content = path.read_bytes()
    own = f"c{__name__}\nModel".encode()
    assert own in content or __name__.encode() in content
    pretend(path, module)
    refuse(path, problem)


def pretend(path: Path, module: str) -> None:
    """Gives the pickled class `Model` of this module another module's name."""
    import pickle
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (main,) = (name for name in entries if name.endswith("/data.pkl"))
    old = f"c{__name__}\nModel\n".encode()
    if old not in entries[main]:
        old = b"X" + struct.pack("<I", len(__name__)) + __name__.encode()
        new = b"X" + struct.pack("<I", len(module)) + module.encode()
    else:
        new = f"c{module}\nModel\n".encode()
    assert old in entries[main], "the class is not named as expected"
    entries[main] = entries[main].replace(old, new)
    assert pickle.STOP in entries[main]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_a_manifest_cannot_make_the_package_run_or_fetch_anything() -> None:
    architecture = Architecture(ref="ultralytics:ClassificationModel", config=described("classes"))
    assert isinstance(loading.rebuild_dense(architecture), nn.Module)
    for change, problem in (
        ({"activation": "__import__('os').abort()"}, "activation .* is not one of torch.nn's"),
        ({"backbone": [[-1, 1, "Conv", [16384, 3]], [-1, 9, "C2f", [16384]]]}, "would have .* weights, more than any"),
        ({"head": [[-1, 1, "Detect", ["nc"]]]}, "its last layer makes it a DetectionModel; the file was altered"),
        ({"backbone": [[-1, 1, "nn.Upsample", [None, 16384, "nearest"]]]}, "numbers of an image of 256x256 pixels"),
        ({"backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Concat", [1]]]}, "its layers do not fit together"),
    ):
        config = {**architecture.config, "scales": {"n": [1.0, 1.0, 16384]}, **change}
        with pytest.raises(ModelError, match=problem) as refused:
            loading.rebuild_dense(Architecture(ref=architecture.ref, config=config))
        assert "\n" not in str(refused.value)


def test_names_and_files_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.yaml"
    for ref, text, problem in (
        ("yolo11", "", "unknown architecture 'ultralytics:yolo11': did you mean .*, or a file of the package"),
        ("missing.pt", "", "unknown architecture .*; there is no file missing.pt"),
        ("DetectionModel", "", "unknown architecture"),
        (str(broken), "backbone: [\n", "not readable as YAML"),
        (str(broken), "backbone: &a [1]\nhead: *a\n", "has YAML anchors or aliases; write its layers out"),
        (str(broken), "- 1\n", "no configuration of a YOLO network"),
        (str(broken), "nc: 3\n", "needs a backbone and a head"),
        (str(broken), "#" * (1 << 20) + "#", "too large for a configuration"),
    ):
        broken.write_text(text)
        with pytest.raises(ModelError, match=problem) as refused:
            loading.load_reference(f"ultralytics:{ref}")
        assert "\n" not in str(refused.value)
    with pytest.raises(ModelError, match=r"its published weights are not fetched from here; fetch yolo11n\.pt with"):
        loading.load_reference("ultralytics:yolo11n", pretrained=True)
    with pytest.raises(ModelError, match="unknown argument 'colour'"):
        loading.load_reference("ultralytics:yolo11n", colour=3)
    with pytest.raises(ModelError, match="in_chans is '0' and has to be an integer"):
        loading.load_reference("ultralytics:yolo11n", in_chans=0)
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    names.package_files.cache_clear()
    assert names.listed() == []
    with pytest.raises(ModelError, match=r"needs the package of this name; pip install 'prunecli\[ultralytics\]'"):
        loading.load_reference("ultralytics:yolo11n")
    with pytest.raises(ModelError, match="did you mean timm:resnet50"):
        split_reference("resnet50")


def test_a_yaml_file_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "my-yolo11s.yaml").write_text(
        "nc: 2\nscales:\n  n: [0.5, 0.25, 64]\n  s: [0.5, 0.5, 64]\n"
        "backbone:\n  - [-1, 1, Conv, [64, 3, 2]]\n  - [-1, 2, C2f, [64, True]]\nhead:\n  - [-1, 1, Classify, [nc]]\n"
    )
    loaded = loading.load_reference(f"ultralytics:{tmp_path / 'my-yolo11s.yaml'}", data_classes=lambda: 5)
    config = loaded.manifest.architecture.config
    assert (config["scale"], config["nc"], loaded.new, loaded.fixed_size) == ("s", 5, True, (224, 224))
    assert loaded.manifest.architecture.ref == "ultralytics:ClassificationModel"
    other = loading.load_reference(f"ultralytics:{tmp_path / 'my-yolo11s.yaml'}", scale="n", in_chans=1)
    assert other.model.state_dict()["model.0.conv.weight"].shape == (16, 1, 3, 3)


def test_a_classifiers_scores_are_not_its_probabilities() -> None:
    model, x = trained("classes"), torch.rand(2, 3, SIDE, SIDE)
    shares, scores = model(x)
    assert torch.equal(logits((shares, scores)), scores) and not torch.equal(shares, scores)
    assert torch.equal(logits((scores, shares)), scores), "two heads: the first one"
    assert torch.equal(logits(model.train()(x)), model(x))


@pytest.fixture(scope="module")
def pruned_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    torch.manual_seed(0)
    model = trained("boxes")
    pruned = prunecli.prune(model, example_inputs=torch.rand(1, 3, SIDE, SIDE), ratio=0.5)
    path = tmp_path_factory.mktemp("yolo") / "pruned.pt"
    export.write(pruned.model, pruned.manifest.architecture.config, (96, 96), path)
    yield path, pruned


def test_the_package_opens_what_was_pruned(
    pruned_file: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pruned = pruned_file
    monkeypatch.chdir(tmp_path)
    yolo = package.module("models").YOLO(str(path))
    x = torch.rand(1, 3, 96, 128)
    assert yolo.task == "detect" and yolo.names == {0: "kind 0", 1: "kind 1", 2: "kind 2"}
    pairs = list(zip(outputs(yolo.model, x), outputs(pruned.model, x), strict=True))
    assert pairs and all(torch.equal(*pair) for pair in pairs)
    (result,) = yolo((x[0].movedim(0, -1).numpy() * 255).astype("uint8"), verbose=False)
    assert result.orig_shape == (96, 128)
    exported = yolo.export(format="onnx", imgsz=SIDE, simplify=False, verbose=False)
    session = __import__("onnxruntime").InferenceSession(exported)
    x = torch.rand(1, 3, SIDE, SIDE)
    (found,) = session.run(None, {"images": x.numpy()})
    assert torch.allclose(torch.from_numpy(found), outputs(pruned.model, x)[0], rtol=1e-3, atol=1e-2)


def test_the_packages_trainer_cannot_make_another_network_of_it(pruned_file: tuple[Path, Any], tmp_path: Path) -> None:
    path, pruned = pruned_file
    yolo = package.module("models").YOLO(str(path))
    with pytest.raises(KeyError, match="pruned by prune: its widths are not those of its configuration; train it with"):
        package.tasks().DetectionModel(yolo.model.yaml, verbose=False)
    refuse(path, "was pruned by prune; give the checkpoint that it was made from")
    with pytest.raises(ModelError, match=r"ultralytics opens files that end in \.pt"):
        export.write(pruned.model, pruned.manifest.architecture.config, None, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="a Linear is no network of ultralytics"):
        export.write(nn.Linear(1, 1), {}, None, tmp_path / "x.pt")


@pytest.mark.slow
def test_a_trainer_that_keeps_its_network_keeps_the_widths(
    pruned_file: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, pruned = pruned_file
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        (tmp_path / "labels" / split).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (SIDE, SIDE), (60 * number, 0, 0)).save(tmp_path / "images" / split / f"{number}.png")
            (tmp_path / "labels" / split / f"{number}.txt").write_text("1 0.5 0.5 0.4 0.4\n")
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images/train\nval: images/val\nnames: [a, b, c]\n")
    base: Any = package.module("models.yolo.detect").DetectionTrainer

    class KeepingTrainer(base):
        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            return weights

    options = {"data": "data.yaml", "epochs": 1, "imgsz": SIDE, "batch": 4, "workers": 0, "plots": False, "amp": False}
    yolo = package.module("models").YOLO(str(path))
    with pytest.raises(KeyError, match="pruned by prune"):
        yolo.train(project=str(tmp_path), device="cpu", **options)
    yolo = package.module("models").YOLO(str(path))
    yolo.train(trainer=KeepingTrainer, project=str(tmp_path), device="cpu", **options)
    trained_again = package.module("models").YOLO(str(yolo.trainer.best)).model
    shapes = [{name: t.shape for name, t in one.state_dict().items()} for one in (trained_again, pruned.model)]
    assert shapes[0] == shapes[1]
