"""Spiking convolutional networks: VGG and 6Conv2FC for small images, ResNet-19 and spike-element-wise ResNets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spikingjelly.activation_based import functional, layer
from spikingjelly.activation_based.model import sew_resnet, spiking_resnet
from torch import Tensor, nn

from prunecli.errors import ModelError, unknown
from prunecli.models.spiking_neurons import NeuronConfig, SpikingNetwork

_Plan = tuple[int | str, ...]
VGG: dict[str, tuple[_Plan, int]] = {
    "vgg5": ((64, "M", 128, 128, "M"), 512),
    "vgg9": ((64, "M", 128, 256, "M", 256, 512, "M", 512, "M", 512), 512),
    "vgg11": ((64, "M", 128, 256, "M", 512, 512, "M", 512, "M", 512, 512), 512),
    "vgg16": ((64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512), 512),
    "6conv2fc": ((256, 256, 256, "M", 256, 256, 256, "M"), 2048),
}
"""Widths of the convolutions, with "M" for halving the image, and the width of the hidden linear layer."""
SEW_RESNETS = {"sew_resnet18": (2, 2, 2, 2), "sew_resnet34": (3, 4, 6, 3)}
_STEMS = ("imagenet", "cifar")
_POOLS = {"max": layer.MaxPool2d, "avg": layer.AvgPool2d}


class SpikingVGG(SpikingNetwork):
    """Convolutions, each with batch normalisation and neurons, then a hidden layer and the classifier.

    Args:
        plan: Widths and "M" as in `VGG`.
        hidden: Width of the hidden linear layer.
        neurons: How neurons are made.
        num_classes: Number of classes.
        in_chans: Channels of an image.
        image_size: Height and width; fixed, because the hidden layer reads a flattened feature map.
        width: Factor for all widths.
        pool: "max" keeps spikes binary, "avg" does not.
        T: Number of steps.
        coding: See `SpikingNetwork`.
    """

    def __init__(
        self,
        plan: Sequence[int | str],
        hidden: int,
        neurons: NeuronConfig,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        image_size: int = 32,
        width: float = 1.0,
        pool: str = "max",
        T: int = 4,
        coding: str = "direct",
    ) -> None:
        super().__init__()
        self.prepare(T, coding)
        if pool not in _POOLS:
            raise ModelError(unknown("pool", pool, _POOLS))
        self.num_classes, self.image_size = num_classes, image_size
        layers: list[nn.Module] = []
        channels, side = in_chans, image_size
        for entry in plan:
            if isinstance(entry, str):
                layers.append(_POOLS[pool](2))
                side //= 2
                continue
            out = max(1, round(entry * width))
            layers += [layer.Conv2d(channels, out, 3, padding=1, bias=False), layer.BatchNorm2d(out), neurons.make()]
            channels = out
        if side < 1:
            raise ModelError(f"images of {image_size}x{image_size} are too small; give a larger image_size")
        hidden = max(1, round(hidden * width))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            layer.Flatten(),
            layer.Linear(channels * side * side, hidden),
            neurons.make(),
            layer.Linear(hidden, num_classes),
        )
        _initialise(self)
        functional.set_step_mode(self, "m")

    def simulate(self, steps: Tensor) -> Tensor:
        """See `SpikingNetwork`."""
        return self.classifier(self.features(steps))  # type: ignore[no-any-return]


class SpikingResNet19(SpikingNetwork):
    """ResNet-19 (Zheng et al., Going Deeper With Directly-Trained Larger Spiking Neural Networks, 2021).

    Stages of 3, 3 and 2 blocks with 128, 256 and 512 channels and a hidden layer of 256; neurons follow the sum.
    """

    def __init__(
        self,
        neurons: NeuronConfig,
        *,
        num_classes: int = 10,
        in_chans: int = 3,
        width: float = 1.0,
        T: int = 4,
        coding: str = "direct",
    ) -> None:
        super().__init__()
        self.prepare(T, coding)
        self.num_classes = num_classes
        widths = [max(1, round(channels * width)) for channels in (128, 256, 512)]
        self.conv1 = layer.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = layer.BatchNorm2d(widths[0])
        self.sn1 = neurons.make()
        stages, channels = [], widths[0]
        for out, blocks, stride in zip(widths, (3, 3, 2), (1, 2, 2), strict=True):
            stages.append(_stage(channels, out, blocks, stride, neurons))
            channels = out
        self.layers = nn.Sequential(*stages)
        self.avgpool = layer.AdaptiveAvgPool2d(1)
        hidden = max(1, round(256 * width))
        self.classifier = nn.Sequential(
            layer.Flatten(), layer.Linear(channels, hidden), neurons.make(), layer.Linear(hidden, num_classes)
        )
        _initialise(self)
        functional.set_step_mode(self, "m")

    def simulate(self, steps: Tensor) -> Tensor:
        """See `SpikingNetwork`."""
        features = self.layers(self.sn1(self.bn1(self.conv1(steps))))
        return self.classifier(self.avgpool(features))  # type: ignore[no-any-return]


class SEWResNet(sew_resnet.SEWResNet, SpikingNetwork):  # type: ignore[misc]
    """Spike-element-wise ResNet (Fang et al., 2021) that adds spikes.

    Args:
        blocks: Blocks in each stage.
        neurons: How neurons are made.
        num_classes: Number of classes.
        in_chans: Channels of an image.
        stem: "imagenet": 7x7 with stride 2 and pooling; "cifar": 3x3 without either.
        T: Number of steps.
        coding: See `SpikingNetwork`.
    """

    conv1: Any
    bn1: Any
    sn1: Any
    layer1: Any
    layer2: Any
    layer3: Any
    layer4: Any
    avgpool: Any
    fc: Any

    def __init__(
        self,
        blocks: Sequence[int],
        neurons: NeuronConfig,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        stem: str = "imagenet",
        T: int = 4,
        coding: str = "direct",
    ) -> None:
        if stem not in _STEMS:
            raise ModelError(unknown("stem", stem, _STEMS))
        super().__init__(
            sew_resnet.BasicBlock, list(blocks), num_classes=num_classes, cnf="ADD", spiking_neuron=neurons.factory()
        )
        self.prepare(T, coding)
        self.num_classes = num_classes
        if stem == "cifar":
            self.conv1 = layer.Conv2d(in_chans, 64, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        elif in_chans != 3:
            self.conv1 = layer.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False)
        _initialise(self)
        functional.set_step_mode(self, "m")

    forward = SpikingNetwork.forward

    def simulate(self, steps: Tensor) -> Tensor:
        """See `SpikingNetwork`."""
        features = self.maxpool(self.sn1(self.bn1(self.conv1(steps))))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        return self.fc(self.avgpool(features).flatten(-3))  # type: ignore[no-any-return]


def _stage(in_channels: int, channels: int, blocks: int, stride: int, neurons: NeuronConfig) -> nn.Sequential:
    downsample = None
    if stride != 1 or in_channels != channels:
        downsample = nn.Sequential(
            layer.Conv2d(in_channels, channels, 1, stride=stride, bias=False), layer.BatchNorm2d(channels)
        )
    stage: list[Any] = [
        spiking_resnet.BasicBlock(in_channels, channels, stride, downsample, spiking_neuron=neurons.factory())
    ]
    stage += [
        spiking_resnet.BasicBlock(channels, channels, spiking_neuron=neurons.factory()) for _ in range(blocks - 1)
    ]
    return nn.Sequential(*stage)


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
