"""Detectors of three packages behind one protocol: losses, boxes, figures, and criteria that take their gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import prunecli
from prunecli.checkpoint.foreign_files import ForeignWeights
from prunecli.checkpoint.manifest import Architecture
from prunecli.cli.output import Output
from prunecli.criteria.base import Calibration
from prunecli.criteria.detection import DetectorLoss
from prunecli.criteria.gradient import fisher, taylor
from prunecli.engine.carrying import Carrier
from prunecli.engine.config import FitConfig
from prunecli.engine.detectors.base import Detector, Found, Target
from prunecli.engine.detectors.index import detector_of
from prunecli.engine.evaluate import evaluate
from prunecli.engine.fit import fit
from prunecli.engine.tasks.base import Labels
from prunecli.engine.tasks.classification import Classification
from prunecli.engine.tasks.detection import Detection, Precisions
from prunecli.errors import DataError, MethodError, ModelError, RecipeError
from prunecli.models.alternatives import choose
from prunecli.models.catalog import build
from prunecli.models.loading import load_reference, restore, save
from prunecli.models.recognition import architecture_for, identify
from prunecli.models.scoring import loss_of, scoring_of
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import DataSection, ModelSection, Recipe
from prunecli.surgery.removal.recalibrate import recalibrate_batchnorm
from prunecli.surgery.tracing.trace import trace
from tests.unit.box_folders import CLASSES, Scene, scenes, write_coco

TASK = Detection(Labels("the boxes", "detection", CLASSES))
CPU = torch.device("cpu")
SIDE = 64


def _target(boxes: list[list[float]], labels: list[int], ignored: list[bool] | None = None, side: int = SIDE) -> Target:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.long),
        "ignored": torch.tensor(ignored or [False] * len(labels), dtype=torch.bool),
        "size": torch.tensor([side, side]),
    }


def _found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Found:
    own = _target(boxes, labels)
    return {"boxes": own["boxes"], "labels": own["labels"], "scores": torch.tensor(scores)}


def _measured(found: list[Found], truth: list[Target]) -> Precisions:
    meter = TASK.meter(CPU)
    for one, other in zip(found, truth, strict=True):
        meter.update([one], [other])
    figures = meter.compute()
    assert isinstance(figures, Precisions)
    return figures


SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8
}  # fmt: skip
BOX = [8.0, 8.0, 40.0, 40.0]


def test_precisions_are_those_of_coco_and_of_each_class() -> None:
    truth = [_target([BOX], [1]), _target([], [])]
    exact = _measured([_found([BOX], [1], [0.9]), _found([], [], [])], truth)
    assert (exact.map50_95, exact.map50, exact.class_ap, exact.images, exact.objects) == (100, 100, (None, 100), 2, 1)
    # A third of each overlaps with 0.7: right at 0.5, 0.55, 0.6, 0.65 and 0.7.
    near = _measured([_found([[8.0, 8.0, 40.0, 30.5]], [1], [0.9]), _found([], [], [])], truth)
    assert near.map50 == 100 and near.map50_95 == pytest.approx(50, abs=0.01)
    wrong = _measured([_found([BOX], [0], [0.9]), _found([], [], [])], truth)
    assert wrong.map50 == 0 and TASK.named(wrong)["class_ap"] == {"square": 0.0}
    # A box of an empty image that is surer than the right one halves the precision.
    doubted = _measured([_found([BOX], [1], [0.5]), _found([BOX], [1], [0.9])], truth)
    assert doubted.map50 == pytest.approx(50, abs=0.5)


def test_what_is_ignored_makes_nothing_right_or_wrong() -> None:
    other = [50.0, 50.0, 60.0, 60.0]
    found = [_found([BOX, other], [1, 1], [0.5, 0.9])]
    counted = _measured(found, [_target([BOX], [1])])
    ignoring = _measured(found, [_target([BOX, other], [1, 1], [False, True])])
    assert counted.map50 == pytest.approx(50, abs=0.5)
    assert (ignoring.map50, ignoring.objects) == (100, 1)
    nothing = _measured([_found([], [], [])], [_target([], [])])
    assert (nothing.map50, nothing.map50_95, nothing.class_ap) == (0, 0, (None, None))


def test_boxes_are_cut_to_the_image_before_they_are_compared() -> None:
    narrow = {**_target([[8.0, 8.0, 32.0, 40.0]], [1]), "size": torch.tensor([SIDE, 32])}
    assert _measured([_found([[8.0, 8.0, 60.0, 40.0]], [1], [0.9])], [narrow]).map50_95 == 100
    whole = _target([[8.0, 8.0, 32.0, 40.0]], [1])
    assert _measured([_found([[8.0, 8.0, 60.0, 40.0]], [1], [0.9])], [whole]).map50_95 == 0


def test_a_later_epoch_that_has_found_nothing_either_is_kept() -> None:
    assert TASK.better(0.0, 0.0) and TASK.better(0.2, 0.1) and not TASK.better(0.1, 0.1) and not TASK.better(0.0, 0.1)


def _ssdlite() -> nn.Module:
    return build("torchvision:ssdlite320_mobilenet_v3_large", num_classes=2, image_size=SIDE)


def _faster() -> nn.Module:
    return build("torchvision:fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=2, min_size=SIDE, max_size=SIDE)


def _retinanet() -> nn.Module:
    return build("torchvision:retinanet_resnet50_fpn", num_classes=2, min_size=SIDE, max_size=SIDE)


def _yolos(queries: int = 6) -> nn.Module:
    from transformers import YolosConfig, YolosForObjectDetection

    return YolosForObjectDetection(
        YolosConfig(**SMALL, image_size=[SIDE, SIDE], num_detection_tokens=queries, num_labels=2)
    )


def _rt_detr() -> nn.Module:
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig

    backbone = RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[16, 16, 16], encoder_hidden_dim=32, encoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, decoder_in_channels=[32, 32, 32], d_model=32,
        decoder_ffn_dim=32, decoder_layers=2, num_queries=12, num_denoising=4, num_labels=2,
    )  # fmt: skip
    return RTDetrForObjectDetection(config)


def _yolo() -> nn.Module:
    pytest.importorskip("ultralytics")
    from ultralytics.nn.tasks import DetectionModel

    return DetectionModel("yolo11n.yaml", nc=2, verbose=False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ssdlite": _ssdlite,
    "faster r-cnn": _faster,
    "retinanet": _retinanet,
    "yolos": _yolos,
    "rt-detr": _rt_detr,
    "yolo": _yolo,
}
PACKAGES = {"yolos": "transformers", "rt-detr": "transformers", "yolo": "ultralytics"}


def _batch(detector: Detector, count: int, seed: int = 0) -> tuple[Any, list[Target]]:
    """Scenes with several objects, as a network takes them."""
    return _pictured(detector, scenes(count + 1, seed, SIDE)[1:])


LARGE = [
    Scene(str(number), (SIDE, SIDE), ((box, number % 2),))
    for number, box in enumerate([(4, 6, 40, 60), (20, 2, 62, 34), (10, 22, 60, 58), (2, 2, 30, 34)])
]
"""With one large object each: a new YOLO finds nothing else, since its boxes are twice the size of the image."""


def _pictured(detector: Detector, own: list[Scene]) -> tuple[Any, list[Target]]:
    images = [torch.tensor(list(s.draw().tobytes())).reshape(SIDE, SIDE, 3).permute(2, 0, 1) / 255 for s in own]
    targets = [_target([list(map(float, box)) for box, _ in s.boxes], [label for _, label in s.boxes]) for s in own]
    return images if detector.lists_images else torch.stack(images), targets


def _detector(network: nn.Module) -> Detector:
    detector = detector_of(network)
    assert detector is not None
    return detector


@pytest.mark.parametrize("name", NETWORKS)
def test_every_package_has_losses_classes_and_boxes(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    detector = _detector(network)
    assert detector.package == PACKAGES.get(name, "torchvision") and detector.num_classes(network) == 2
    inputs, targets = _batch(detector, 2)
    targets = [targets[0], _target([], [])]  # an image without objects
    outputs = TASK.outputs(Carrier(None), network.train(), inputs, targets)
    loss = TASK.loss(outputs, targets, 0.0)
    loss.backward()
    slopes = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert loss.dim() == 0 and loss > 0 and sum(float(slope.abs().sum()) for slope in slopes) > 0
    with torch.no_grad():
        found = TASK.predictions(Carrier(None), network.eval(), inputs)
    assert len(found) == 2
    for one in found:
        assert one["boxes"].shape == (len(one["scores"]), 4) and one["labels"].shape == one["scores"].shape
        assert ((one["labels"] >= 0) & (one["labels"] < 2)).all() and (
            (one["scores"] >= 0) & (one["scores"] <= 1)
        ).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_out_of_training_change_nothing_and_are_the_same_again(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().train()
    detector = _detector(network)
    inputs, targets = _batch(detector, 2)
    modes = [module.training for module in network.modules()]
    state = copy.deepcopy(network.state_dict())
    before = torch.get_rng_state()
    values = []
    for _ in range(2):
        with detector.settled(network):
            values.append(float(TASK.loss(detector.losses(network, inputs, targets), targets, 0.0)))
    assert values[0] == values[1]
    assert torch.equal(before, torch.get_rng_state()) and modes == [module.training for module in network.modules()]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", NETWORKS)
def test_objects_to_be_ignored_count_in_no_loss(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]()
    detector = _detector(network)
    inputs, targets = _batch(detector, 2)
    more = [
        _target([*t["boxes"].tolist(), [1.0, 1.0, 30.0, 30.0]], [*t["labels"].tolist(), 1],
                [*t["ignored"].tolist(), True])
        for t in targets
    ]  # fmt: skip
    with detector.settled(network):
        first, second = (TASK.loss(detector.losses(network, inputs, own), own, 0.0) for own in (targets, more))
    assert float(first) == float(second)


@pytest.mark.parametrize(
    ("name", "steps", "lr"),
    [
        pytest.param("ssdlite", 30, 3e-3, marks=pytest.mark.slow),
        pytest.param("yolos", 220, 5e-3, marks=pytest.mark.slow),
        ("yolo", 24, 2e-3),
    ],
)
def test_a_network_learns_to_find_the_boxes_it_is_shown(name: str, steps: int, lr: float) -> None:
    """Wrong coordinates or classes, in losses or in boxes, would be found here."""
    torch.manual_seed(0)
    network = NETWORKS[name]()
    detector = _detector(network)
    inputs, targets = _pictured(detector, LARGE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        TASK.loss(detector.losses(network, inputs, targets), targets, 0.0).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    recalibrate_batchnorm(network, [inputs])  # running statistics lag behind so few steps
    figures = evaluate(network, [(inputs, targets)], CPU, task=TASK)
    assert figures.map50 > 80 and figures.map50_95 > 40, figures


def test_training_takes_its_batches_and_keeps_the_best_epoch() -> None:
    torch.manual_seed(0)
    network = _yolos()
    detector = _detector(network)
    batches = [_batch(detector, 4, seed) for seed in range(2)]
    config = FitConfig(epochs=2, lr=1e-3, optimizer="adamw")
    result = fit(network, batches, batches[:1], config, CPU, task=TASK)
    assert [epoch.validation for epoch in result.epochs] and isinstance(result.epochs[0].validation, Precisions)
    assert result.epochs[1].loss < result.epochs[0].loss and not network.training


@pytest.mark.parametrize("criterion", [taylor, fisher])
def test_gradients_are_of_single_images_whatever_batch_they_come_in(criterion: Any) -> None:
    torch.manual_seed(0)
    network = _yolos().eval()
    detector = _detector(network)
    inputs, targets = _batch(detector, 4)
    traced = trace(network, inputs[:1])
    loss = DetectorLoss(detector)

    def scores(batches: list[Any]) -> dict[str, Tensor]:
        found = criterion(network, traced.groups, Calibration(batches=batches, loss=loss))
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    together = scores([(inputs, targets)])
    alone = scores([(inputs[i : i + 1], targets[i : i + 1]) for i in range(4)])
    assert together.keys() == alone.keys() and len(together) == len(traced.groups)
    for name, value in together.items():
        assert torch.allclose(value, alone[name], rtol=1e-6, atol=0) and float(value.max()) > 0, name
    with pytest.raises(MethodError, match="a detector's loss compares with boxes"):
        scores([inputs])


@pytest.mark.slow
def test_a_gates_derivative_is_the_change_of_the_detectors_own_loss() -> None:
    torch.manual_seed(0)
    network = _ssdlite().eval().double()
    detector = _detector(network)
    inputs, targets = _batch(detector, 1)
    inputs = [image.double() for image in inputs]
    name = "backbone.extra.0.1.0"  # a depthwise convolution's output, read by one layer
    loss = DetectorLoss(detector)
    channel, slope, step = 7, [], 1e-4

    def scaled(factor: float) -> float:
        def gate(module: nn.Module, args: Any) -> Any:
            values = args[0].clone()
            values[:, channel] *= factor
            return (values,)

        handle = network.get_submodule("backbone.extra.0.2.0").register_forward_pre_hook(gate)
        value = float(loss.of(network, inputs, targets))
        handle.remove()
        return value

    slope.append((scaled(1 + step) - scaled(1 - step)) / (2 * step))
    traced = trace(network, inputs)
    group = next(g for g in traced.groups if "backbone.extra.0.2.0.weight" in {m.name for m in g.members})
    scores = taylor(network, [group], Calibration(batches=[(inputs, targets)], loss=loss))
    value = scores[group.name]
    assert isinstance(value, Tensor) and float(value[channel]) == pytest.approx(abs(slope[0]), rel=1e-4), name


def test_in_python_a_detector_needs_no_loss_but_its_labels_in_one_form() -> None:
    torch.manual_seed(0)
    network = _yolos()
    inputs, targets = _batch(_detector(network), 4)
    given = {"example_inputs": inputs[:1], "ratio": 0.5, "data": [(inputs, targets)]}
    result = prunecli.prune(network, "taylor", **given)
    assert result.report.params_after < 0.6 * result.report.params_before and result.report.verify_error < 1e-9
    torchvisions = [{"boxes": target["boxes"], "labels": target["labels"] + 1} for target in targets]
    with pytest.raises(MethodError, match="a detector's labels are a list with a mapping for each image"):
        prunecli.prune(network, "taylor", **{**given, "data": [(inputs, torchvisions)]})
    with pytest.raises(MethodError, match="a detector's loss compares with boxes"):
        prunecli.prune(network, "fisher", **{**given, "data": [inputs]})


def test_the_right_data_is_asked_for() -> None:
    detector, classifier = _ssdlite(), build("cifar:resnet20")
    with pytest.raises(DataError, match="the boxes has boxes and net finds none: give a detector"):
        scoring_of(classifier).check_task(TASK, "net")
    labels = Classification(Labels("digits", "classification", CLASSES))
    with pytest.raises(DataError, match="net finds boxes and digits has none"):
        scoring_of(detector).check_task(labels, "net")
    scoring_of(detector).check_output(None, TASK, "net")
    with pytest.raises(DataError, match="net has 2 outputs and the boxes has 3 classes"):
        scoring_of(detector).check_output(None, Detection(Labels("the boxes", "detection", ("a", "b", "c"))), "net")
    assert isinstance(loss_of(detector), DetectorLoss)
    with pytest.raises(DataError, match=r"the boxes has boxes, and a \w+ is no detector"):
        TASK.predictions(Carrier(None), classifier, torch.zeros(1, 3, 8, 8))
    masks = build("torchvision:maskrcnn_resnet50_fpn", meta=True)
    with pytest.raises(DataError, match="MaskRCNN learns from masks"):
        _detector(masks).losses(masks, [], [])


def test_settings_for_classes_are_refused() -> None:
    for name in ("mixup", "label_smoothing"):
        with pytest.raises(RecipeError, match=f"--{name.replace('_', '-')} is for images with one class each"):
            TASK.check_settings(FitConfig(**{name: 0.1}))
    with pytest.raises(RecipeError, match="--teacher is for scores of classes"):
        TASK.check_settings(SimpleNamespace(**{**vars(FitConfig()), "teacher": "parent"}))


def test_networks_for_more_than_boxes_are_no_detectors() -> None:
    pytest.importorskip("ultralytics")
    from ultralytics.nn.tasks import SegmentationModel

    assert detector_of(SegmentationModel("yolo11n-seg.yaml", nc=2, verbose=False)) is None
    assert detector_of(build("cifar:resnet20")) is None


def test_sizes_and_classes_are_arguments_that_a_checkpoint_restores(tmp_path: Any) -> None:
    loaded = load_reference("torchvision:ssdlite320_mobilenet_v3_large", num_classes=4, image_size=96)
    path = tmp_path / "d.safetensors"
    save(path, loaded.model, loaded.manifest)
    again, manifest = restore(path)
    assert manifest.architecture.kwargs == {"num_classes": 4, "image_size": 96}
    detector = _detector(again)
    assert detector.num_classes(again) == 4 and detector.own_size(again) == (96, 96)
    image = [torch.rand(3, 70, 50, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        first, second = (network.eval()(image)[0] for network in (loaded.model, again))
    assert all(torch.equal(first[key], second[key]) for key in first)
    with pytest.raises(ModelError, match="takes no image_size; give min_size and max_size"):
        load_reference("torchvision:fcos_resnet50_fpn", image_size=96)
    with pytest.raises(ModelError, match="min_size has to be an integer from 16 to 8,192"):
        load_reference("torchvision:fcos_resnet50_fpn", min_size=4)


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("ssdlite320_mobilenet_v3_large", 10),
        ("retinanet_resnet50_fpn", 3),
        ("fcos_resnet50_fpn", 90),
        ("fasterrcnn_mobilenet_v3_large_fpn", 1),
    ],
)
def test_weights_say_how_many_kinds_of_objects_there_are(name: str, classes: int, tmp_path: Any) -> None:
    state = build(f"torchvision:{name}", meta=True, num_classes=classes).state_dict()
    found = architecture_for(f"torchvision:{name}", state, tmp_path / "weights.pth")
    assert found.kwargs == ({} if classes == 90 else {"num_classes": classes})


def test_detectors_are_recognised_by_their_weights(tmp_path: Any) -> None:
    state = build("torchvision:ssd300_vgg16", num_classes=7).state_dict()
    found = identify(state, tmp_path / "weights.pth").architecture
    assert (found.ref, found.kwargs) == ("torchvision:ssd300_vgg16", {"num_classes": 7})


def test_the_same_weights_at_two_sizes_are_two_networks(tmp_path: Any) -> None:
    names = [f"torchvision:fasterrcnn_mobilenet_v3_large_{name}" for name in ("fpn", "320_fpn")]
    state = build(names[0]).state_dict()
    both = [Architecture(ref=ref) for ref in names]
    with pytest.raises(ModelError, match="which compute different things with them; say which it is"):
        choose(both, state, ForeignWeights(state), tmp_path / "weights.pth", None)
    named = tmp_path / "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
    assert choose(both, state, ForeignWeights(state), named, None)[0] == both[1:]


@pytest.mark.parametrize(
    ("ref", "kwargs", "numbers"),
    [
        ("torchvision:ssdlite320_mobilenet_v3_large", {"num_classes": 7, "image_size": 64}, [2, 6]),
        ("torchvision:ssdlite320_mobilenet_v3_large", {"num_classes": 2, "image_size": 64}, [0, 1]),
        ("hf:YolosForObjectDetection", {"num_classes": 8, "image_size": [48, 48], **SMALL}, [3, 7]),
    ],
)
def test_networks_with_cocos_own_numbers_are_given_these(
    ref: str, kwargs: dict[str, Any], numbers: list[int], tmp_path: Any
) -> None:
    """The categories of these files are 3 and 7."""
    write_coco(tmp_path / "set", {"train": scenes(4), "val": scenes(3, seed=1)})
    recipe = Recipe(
        model=ModelSection(ref=ref, kwargs=kwargs), data=DataSection(name=f"detection:{tmp_path / 'set'}", batch_size=4)
    )
    space = Workspace(recipe, Output("quiet"))
    space.judging.check()
    task, split = space.judging.task(), space.data().training_split()
    assert [task.class_names[number] for number in numbers] == list(CLASSES)
    assert len(task.class_names) == kwargs["num_classes"]
    plain = [objects.labels.tolist() for _, objects in (split.annotated(i) for i in range(len(split.labels)))]  # type: ignore[attr-defined]
    for batches in (space.inputs.batches(split), space.inputs.calibration(split, 4).labelled):
        ((_, targets),) = batches
        own = [[numbers[label] for label in labels] for labels in plain]
        assert [target["labels"].tolist() for target in targets] == own
    assert set(task.named(Precisions(1.0, 2.0, (None,) * len(task.class_names), 1, 1))["class_ap"]) == set()


def test_published_weights_go_into_layers_that_a_checkpoint_has(tmp_path: Any) -> None:
    from torchvision import models
    from torchvision.models._api import WeightsEnum
    from torchvision.ops import FrozenBatchNorm2d

    name = "retinanet_resnet50_fpn"
    fresh = models.get_model(name, weights=None, weights_backbone=None).state_dict()
    published = {
        key: torch.rand_like(value) + 0.5 if "bn" in key or "downsample.1" in key else value
        for key, value in fresh.items()
        if "num_batches" not in key
    }
    with mock.patch.object(WeightsEnum, "get_state_dict", lambda *args, **kwargs: published):
        ours = load_reference(f"torchvision:{name}", pretrained=True, min_size=SIDE, max_size=SIDE)
        theirs = models.get_model(name, weights="DEFAULT", min_size=SIDE, max_size=SIDE).eval()
    frozen = [module for module in theirs.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert frozen and frozen[0].eps == 0.0
    path = tmp_path / "d.safetensors"
    save(path, ours.model, ours.manifest)
    image = torch.rand(1, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = theirs.backbone(image)
        for network in (ours.model, restore(path)[0]):
            given: Any = network.eval()
            for level, features in given.backbone(image).items():
                assert float((features - expected[level]).abs().max()) < 1e-4 * float(expected[level].abs().max())
