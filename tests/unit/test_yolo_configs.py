"""What a configuration of a YOLO network may say: it is checked before the package, which would run it, sees it."""

from __future__ import annotations

import copy
import functools
import json
import operator
import random
from collections.abc import Iterator
from typing import Any

import pytest

from prunecli.errors import ModelError
from prunecli.models.yolo.config import checked, class_of, with_classes

CONFIG: dict[str, Any] = {
    "nc": 3,
    "scales": {"n": [0.5, 0.25, 1024], "s": [0.5, 0.5, 1024]},
    "scale": "n",
    "backbone": [[-1, 1, "Conv", [64, 3, 2]], [-1, 2, "C3k2", [128, False, 0.25]], [-1, 1, "SPPF", [256, 5]]],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 1], 1, "Concat", [1]],
        [[1, 2], 1, "Detect", ["nc"]],
    ],
}


def changed(**entries: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CONFIG), **entries}


def with_layer(layer: list[Any]) -> dict[str, Any]:
    return changed(backbone=[[-1, 1, "Conv", [64, 3, 2]], layer])


def test_a_configuration_keeps_what_the_network_consists_of() -> None:
    kept = checked({**CONFIG, "yaml_file": "/home/someone/yolo.yaml", "note": object()}, "x.pt")
    assert kept["backbone"] == CONFIG["backbone"] and kept["head"] == CONFIG["head"]
    assert kept["scales"] == {"n": [0.5, 0.25, 1024]} and kept["scale"] == "n" and kept["channels"] == 3
    assert set(kept) == {"nc", "channels", "scale", "scales", "backbone", "head"}
    assert checked(kept, "x.pt") == kept, "what a manifest holds is checked again"
    assert class_of(kept) == "DetectionModel"


def test_names_of_classes_go_with_their_number() -> None:
    kept = checked(changed(names={0: "cat", 1: "dog", 2: 7}), "x.pt")
    assert kept["names"] == ["cat", "dog", "7"]
    assert "names" not in with_classes(kept, 5) and with_classes(kept, 3)["names"] == kept["names"]
    for names in ({0: "0", 1: "1", 2: "2"}, {0: "cat"}, ["cat", "dog", None], "cat", {1: "a", 2: "b", 3: "c"}):
        assert "names" not in checked(changed(names=names), "x.pt"), names


def test_layers_that_older_versions_named_otherwise() -> None:
    assert checked(with_layer([-1, 1, "Silence", []]), "x.pt")["backbone"][1][2] == "nn.Identity"


@pytest.mark.parametrize(
    ("value", "kept"),
    [("nn.SiLU()", True), ("torch.nn.LeakyReLU(0.1)", True), ("nn.LeakyReLU(negative_slope=0.1, inplace=True)", True),
     (" nn.ReLU() ", True), ("nn.Hardtanh(-1.0, 1e1)", True),
     ("__import__('os').system('true')", False), ("nn.ReLU(__import__('os'))", False), ("nn.Sequential()", False),
     ("nn.ReLU()(1)", False), ("nn.ReLU() or exit()", False), ("nn.ReLU\n()", False), ("nn.Linear(1, 1)", False),
     ("torch.load('x')", False), ("nn.ReLU(a)", False), (["nn.ReLU()"], False), (7, False),
     ("nn.ReLU(" + "1," * 200, False)],
)  # fmt: skip
def test_activations_are_ones_of_torch_with_plain_numbers(value: Any, kept: bool) -> None:
    if kept:
        assert checked(changed(activation=value), "x.pt")["activation"] == value.strip()
        return
    with pytest.raises(ModelError, match=r"^x\.pt: activation .* is not one of torch\.nn's"):
        checked(changed(activation=value), "x.pt")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "no configuration of a YOLO network: it needs a backbone and a head"),
    (changed(head=[]), "needs a backbone and a head"),
    (changed(backbone="Conv"), "needs a backbone and a head"),
    (with_layer([-1, 1, "torchvision.ops.nms", []]), "layer 1 is a 'torchvision.ops.nms', which is not"),
    (with_layer([-1, 1, "TorchVision", [512, "resnet18"]]), "layer 1 is a 'TorchVision', which is not one"),
    (with_layer([-1, 1, "nn.Module", []]), "layer 1 is a 'nn.Module'"),
    (with_layer([-1, 1, "nn.modules.os", []]), "layer 1 is a 'nn.modules.os'"),
    (with_layer([-1, 1, "parse_model", []]), "layer 1 is a 'parse_model'"),
    (with_layer([-1, 1, "WorldDetect", ["nc"]]), "YOLO-World and YOLOE are not read"),
    (with_layer([-1, 1, 7, []]), "layer 1 is not written as"),
    (with_layer([-1, 1, "Conv"]), "layer 1 is not written as"),
    (with_layer([-1, 1, "Conv", 64]), "layer 1: its arguments are no short list"),
    (with_layer([-1, 1, "Conv", [1] * 17]), "its arguments are no short list"),
    (with_layer([-1, 1, "Conv", ["layers"]]), "layer 1, Conv: 'layers' is not an argument"),
    (with_layer([-1, 1, "Conv", ["__import__('os')"]]), "is not an argument that a layer may have"),
    (with_layer([-1, 1, "Conv", ["1 << 40"]]), "is not an argument that a layer may have"),
    (with_layer([-1, 1, "Conv", [{"a": 1}]]), "is not an argument that a layer may have"),
    (with_layer([-1, 1, "Conv", [[[1]]]]), r"is '\[1\]' and has to be an integer"),
    (with_layer([-1, 1, "Conv", [1 << 40]]), "has to be an integer from -1 to 16,384"),
    (with_layer([-1, 1, "Conv", [float("nan")]]), "has to be a number from -10000 to 10000"),
    (with_layer([-1, 1, "C3k2", [64, False, float("inf")]]), "has to be a number"),
    (with_layer([-1, 10**6, "C3k2", [64]]), "layer 1: repeats is '1000000' and has to be an integer from 1 to 128"),
    (with_layer([-1, 0, "Conv", [64]]), "repeats is '0'"),
    (with_layer([-1, True, "Conv", [64]]), "repeats is 'True'"),
    (with_layer([1, 1, "Conv", [64]]), "layer 1: from is '1' and has to be an integer from -1 to 0"),
    (with_layer([[-1] * 40, 1, "Concat", [1]]), "layer 1 reads 40 layers"),
    (with_layer([["a"], 1, "Concat", [1]]), "layer 1: from is 'a'"),
    (with_layer([-1, 1, "Detect", ["nc"]]), "has a Detect before its last layer"),
    (changed(backbone=[[-1, 1, "Conv", [8]]] * 600), "has 603 layers, and at most 512 make sense"),
    (changed(head=[[-1, 1, "Conv", [8]]]), "its last layer is Conv, and networks end in one of Detect"),
    (changed(nc=0), "nc is '0' and has to be an integer from 1 to 1,000,000"),
    (changed(nc="3"), "nc is '3' and has to be an integer"),
    (changed(channels=10**9), "channels is '1000000000'"),
    (changed(reg_max=-1), "reg_max is '-1'"),
    (changed(end2end="yes"), "end2end is 'yes' and has to be true or false"),
    (changed(scale="huge"), "has no size huge; it has 'n', 's'"),
    (changed(scale="../x"), "scale '../x' is not the name of a size"),
    (changed(scales=[1]), "scales is no table of sizes"),
    (changed(scales={"n": [1.0]}), "size n needs a depth, a width and a largest width"),
    (changed(scales={"n": [1.0, 1e9, 1024]}), "size n is '1000000000.0' and has to be a number from 0.001 to 16"),
    (changed(scales={"n": [1.0, float("nan"), 1024]}), "size n is 'nan'"),
    (changed(scales={}, width_multiple=-1.0), "width_multiple is '-1.0'"),
    (changed(head=[[[1, 2], 1, "Pose", ["nc", "kpt_shape"]]]), "kpt_shape is missing"),
    (changed(kpt_shape=[17]), "kpt_shape is not a number of points"),
    (changed(kpt_shape=[17, 4]), "kpt_shape is '4' and has to be an integer from 2 to 3"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "problem"), REFUSED)
def test_everything_else_is_refused_in_one_line(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=problem) as refused:
        checked(config, "x.pt")
    assert str(refused.value).startswith("x.pt: ") and "\n" not in str(refused.value) and len(str(refused.value)) < 400


NASTY: list[Any] = [
    None, True, 0, -1, 10**30, 0.5, float("nan"), float("inf"), "", "nc", "None", "Conv", "x\ny", "\0", "a" * 5000,
    [], {}, [[]], [-1, 0], {"a": 1}, {"n": [1, 1, 64]}, object(), b"x", (1, 2), {1, 2}, [None] * 40,
]  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


def test_changed_configurations_are_refused_in_one_line_or_stay_as_they_are_read() -> None:
    choose = random.Random(0)
    outcomes = [0, 0]
    for _ in range(3000):
        config = changed(names=["a", "b", "c"], activation="nn.SiLU()", kpt_shape=[5, 3])
        for _ in range(choose.randrange(1, 4)):
            *inner, last = choose.choice(list(places(config)))
            functools.reduce(operator.getitem, inner, config)[last] = copy.deepcopy(choose.choice(NASTY))  # type: ignore[index]
        try:
            kept = checked(config, "x.pt")
        except ModelError as error:
            assert str(error).isprintable() and len(str(error)) < 600
            outcomes[0] += 1
        else:
            assert checked(json.loads(json.dumps(kept)), "x.pt") == kept
            outcomes[1] += 1
    assert min(outcomes) > 200
