"""Detectors from data to comparison, as processes: `prune train`, a method, `finetune`, `eval`, `compare`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Prune
from tests.unit.box_folders import scenes, write_coco, write_yolo

pytestmark = pytest.mark.usefixtures("transformers_ready")
TRAINING = ("--optimizer", "adamw", "--lr", "0.002", "--batch-size", "8")


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 images to learn from and 6 to evaluate on."""
    folder = tmp_path_factory.mktemp("data") / "set"
    write_coco(folder, {"train": scenes(20), "val": scenes(6, seed=1)})
    return folder


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest detector there is, in a folder as transformers writes it."""
    import torch
    from transformers import YolosConfig, YolosForObjectDetection

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = YolosConfig(**sizes, image_size=[48, 48], patch_size=8, num_detection_tokens=5, num_labels=2)
    folder = tmp_path_factory.mktemp("model") / "yolos"
    YolosForObjectDetection(config).save_pretrained(folder)
    return folder


def test_a_detector_is_trained_pruned_finetuned_and_compared(prune: Prune, boxes: Path, yolos: Path) -> None:
    data = ("--data", f"detection:{boxes}")
    done = prune("train", f"hf:{yolos}", *data, *TRAINING, "--epochs", "2", "-o", "dense.safetensors")
    assert done.code == 0, done.err
    assert f"detection:{boxes} is read as COCO: images 20 train, 6 val" in done.err
    assert "train " in done.err and "epoch 2/2: loss" in done.err and "validation mAP@50:95" in done.err
    done = prune("taylor", "dense.safetensors", *data, "--ratio", "0.5", "--calibration-images", "8",
                 "--latency-rounds", "2", "-o", "half.safetensors")  # fmt: skip
    assert done.code == 0 and "verified" in done.out and "\nmAP@50:95 (test)\t" in done.out, done.err
    done = prune("finetune", "half.safetensors", *data, *TRAINING, "--epochs", "1", "-o", "tuned.safetensors")
    assert done.code == 0, done.err
    for name in ("dense", "tuned"):
        done = prune("eval", f"{name}.safetensors", *data, "--measure", "accuracy", "--measure", "params", "--measure",
                     "macs", "-o", f"{name}.json", "--json")  # fmt: skip
        assert done.code == 0, done.err
        metrics = done.json["metrics"]
        assert metrics["images"] == 6 and metrics["objects"] > 5 and 0 <= metrics["map50_95"] <= metrics["map50"] <= 100
        assert done.json["data"]["task"] == "detection" and set(metrics["class_ap"]) <= {"disc", "square"}
    done = prune("compare", "dense.json", "tuned.json", "--fail-if", "map50_drop > 100")
    assert done.code == 0 and "mAP@50:95" in done.out and "mAP@50" in done.out, done.err
    manifest = prune("inspect", "tuned.safetensors", *data, "--json")
    assert manifest.code == 0, manifest.err


def test_a_detector_of_torchvision_learns_and_is_judged(prune: Prune, boxes: Path, tmp_path: Path) -> None:
    data = ("--data", f"detection:{boxes}")
    ref = ("torchvision:ssdlite320_mobilenet_v3_large", "--model-kwargs", "image_size=64")
    done = prune("train", *ref, *data, *TRAINING, "--epochs", "1", "-o", "d.safetensors", "--json")
    assert done.code == 0, done.err
    assert done.json["epochs"][0]["validation"]["images"] == 2
    rows = [json.loads(line) for line in (tmp_path / "d.metrics.jsonl").read_text().splitlines()]
    assert {"validation_map50_95", "validation_map50"} <= rows[0].keys()
    done = prune("eval", "d.safetensors", *data, "--measure", "accuracy", "--measure", "macs", "--json")
    assert done.code == 0, done.err
    assert done.json["model"]["arguments"] == {"num_classes": 2, "image_size": 64}
    assert done.json["model"]["input_shape"] == [3, 48, 48]
    assert done.json["metrics"]["macs"] > 0 and "macs_uncounted" not in {
        key for key, value in done.json["metrics"].items() if value
    }


@pytest.mark.slow
def test_a_detector_of_torchvision_is_halved_and_proven(prune: Prune, boxes: Path) -> None:
    data = ("--data", f"detection:{boxes}")
    ref = ("torchvision:ssdlite320_mobilenet_v3_large", "--model-kwargs", "image_size=64")
    done = prune("train", *ref, *data, *TRAINING, "--epochs", "1", "-o", "d.safetensors")
    assert done.code == 0, done.err
    done = prune("taylor", "d.safetensors", *data, "--ratio", "0.5", "--calibration-images", "8", "--latency-rounds",
                 "2", "-o", "h.safetensors", "--json")  # fmt: skip
    assert done.code == 0, done.err
    assert done.json["verify_error"] < 1e-9 and done.json["params_after"] < 0.45 * done.json["params_before"]
    done = prune("finetune", "h.safetensors", *data, *TRAINING, "--epochs", "1", "-o", "t.safetensors")
    assert done.code == 0, done.err
    done = prune("compare", "d.safetensors", "t.safetensors", *data)
    assert done.code == 0 and "mAP@50:95" in done.out, done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "cifar:resnet20"), "has boxes and cifar:resnet20 finds none: give a detector"),
        (("train", "hf:YOLOS", "--mixup", "0.2"), "--mixup is for images with one class each"),
        (("train", "hf:YOLOS", "--label-smoothing", "0.1"), "--label-smoothing is for images with one class each"),
        (("finetune", "hf:YOLOS", "--teacher", "hf.safetensors"), "--teacher is for scores of classes"),
        (("eval", "hf:YOLOS", "--task", "zeroshot"), "--task zeroshot:"),
        (("train", "torchvision:fcos_resnet50_fpn", "--model-kwargs", "image_size=64"), "takes no image_size"),
        (("train", "torchvision:ssdlite", "--epochs", "1"), "did you mean"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    words: tuple[str, ...], message: str, prune: Prune, boxes: Path, yolos: Path
) -> None:
    given = [word.replace("hf:YOLOS", f"hf:{yolos}") for word in words]
    done = prune(*given, "--data", f"detection:{boxes}", *(() if words[0] == "eval" else ("-o", "x.safetensors")))
    assert done.code in (1, 2) and message in done.err, done.err
    assert "Traceback" not in done.err


def test_other_data_is_refused_and_damage_is_named(prune: Prune, yolos: Path, tmp_path: Path) -> None:
    done = prune("train", f"hf:{yolos}", "--data", "digits", "-o", "x.safetensors")
    assert done.code == 2 and "finds boxes and digits has none: give images with --data detection:PATH" in done.err
    write_yolo(tmp_path / "set", {"train": scenes(6), "val": scenes(3, seed=1)})
    (tmp_path / "set" / "labels" / "train" / "i0001.txt").write_text("0 1.5 0.5 0.1 0.1\n")
    done = prune("train", f"hf:{yolos}", "--data", "detection:set", "-o", "x.safetensors")
    assert done.code == 2 and "i0001.txt:1: the box from 1.45, 0.45 to 1.55, 0.55 lies outside the image" in done.err
    assert not (tmp_path / "x.safetensors").exists()
    (tmp_path / "set" / "labels" / "train" / "i0001.txt").write_text("")
    (tmp_path / "set" / "data.yaml").write_text("names: [a, b, c]")
    done = prune("train", f"hf:{yolos}", "--data", "detection:set", "-o", "x.safetensors")
    assert done.code == 2 and "has 2 outputs and detection:set has 3 classes" in done.err
