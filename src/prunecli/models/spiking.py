"""`spiking:...`: spiking networks on spikingjelly, trained directly with surrogate gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import nn

from prunecli.checkpoint.manifest import InputNormalisation
from prunecli.errors import ModelError, unknown
from prunecli.inputs import input_channels
from prunecli.models.spiking_convolutional import SEW_RESNETS, VGG, SEWResNet, SpikingResNet19, SpikingVGG
from prunecli.models.spiking_neurons import NeuronConfig
from prunecli.models.spiking_transformers import (
    QKFORMERS,
    SPIKE_DRIVEN,
    SPIKFORMERS,
    QKFormer,
    SpikeDrivenTransformer,
    Spikformer,
)

_NEURON = tuple(field.name for field in fields(NeuronConfig))
_COMMON = ("num_classes", "in_chans", "T", "coding", *_NEURON)
_STEPS = 4
_CIFAR = InputNormalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))
_IMAGENET = InputNormalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_OWN: dict[str, tuple[str, ...]] = {
    "spikformer": ("depth", "dim", "num_heads", "patch_size", "mlp_ratio", "pool"),
    "qkformer": ("dim", "mlp_ratio"),
    "sdt": ("depth", "dim", "num_heads", "mlp_ratio"),
    "vgg": ("image_size", "width", "pool"),
    "resnet19": ("width",),
    "sew": ("stem",),
}
"""Arguments of each family, in addition to the common ones."""


def names() -> list[str]:
    """All names of this source."""
    return [*SPIKFORMERS, *QKFORMERS, *SPIKE_DRIVEN, *VGG, "resnet19", *SEW_RESNETS]


def arguments_of(name: str) -> tuple[str, ...]:
    """Arguments that an architecture takes."""
    return (*_COMMON, *_OWN[_family(name)])


def settled(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, completed with the defaults of steps, coding and neurons, which weights do not show."""
    _check_names(name, kwargs)
    neurons = asdict(_neurons(name, kwargs))
    return {"T": _STEPS, "coding": "direct"} | neurons | dict(kwargs)


def _check_names(name: str, kwargs: Mapping[str, Any]) -> None:
    for key in kwargs:
        if key not in arguments_of(name):
            raise ModelError(unknown("argument", key, arguments_of(name)) + f" (of spiking:{name})")


def build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Builds one of `names()`.

    Args:
        name: The architecture.
        pretrained: Not available.
        **kwargs: num_classes, in_chans, T, coding, the fields of `NeuronConfig`, and those of the architecture's class.

    Raises:
        ModelError: An argument does not exist or has a wrong value, or published weights are asked for.
    """
    if pretrained:
        raise ModelError(f"spiking:{name} has no published weights to fetch; give a weights file")
    _check_names(name, kwargs)
    family = _family(name)
    neurons = _neurons(name, kwargs)
    options = {key: value for key, value in kwargs.items() if key not in _NEURON}
    if family == "spikformer":
        depth, dim, heads, patch = SPIKFORMERS[name]
        defaults = {"depth": depth, "dim": dim, "num_heads": heads, "patch_size": patch}
        return Spikformer(neurons, **({**defaults, "num_classes": 1000 if patch == 16 else 10} | options))
    if family == "qkformer":
        depths, dim, stage_heads = QKFORMERS[name]
        return QKFormer(neurons, depths=depths, heads=stage_heads, **({"dim": dim} | options))
    if family == "sdt":
        depth, dim, heads, pooling = SPIKE_DRIVEN[name]
        return SpikeDrivenTransformer(
            neurons, pooling=pooling, **({"depth": depth, "dim": dim, "num_heads": heads} | options)
        )
    if family == "vgg":
        plan, hidden = VGG[name]
        return SpikingVGG(plan, hidden, neurons, **options)
    if family == "resnet19":
        return SpikingResNet19(neurons, **options)
    return SEWResNet(SEW_RESNETS[name], neurons, **options)


def input_spec(name: str, model: nn.Module) -> tuple[tuple[int, int] | None, InputNormalisation]:
    """Any image size, except for VGG; CIFAR-10's or ImageNet's statistics, or pixels in 0..1 for Poisson coding."""
    size = None
    if isinstance(model, SpikingVGG):
        size = (model.image_size, model.image_size)
    elif _for_imagenet(name, model):
        size = (224, 224)
    if getattr(model, "coding", "direct") == "poisson":
        channels = input_channels(model)
        return size, InputNormalisation(mean=(0.0,) * channels, std=(1.0,) * channels)
    return size, _IMAGENET if _for_imagenet(name, model) else _CIFAR


def _neurons(name: str, kwargs: Mapping[str, Any]) -> NeuronConfig:
    """Transformers have the surrogate of their papers by default, convolutional networks the arc tangent."""
    defaults = {} if _family(name) in ("spikformer", "qkformer", "sdt") else {"surrogate": "atan"}
    return NeuronConfig(**(defaults | {key: value for key, value in kwargs.items() if key in _NEURON}))


def _for_imagenet(name: str, model: nn.Module) -> bool:
    if isinstance(model, Spikformer):
        return bool(model.patch_embed.patch_size == 16)
    return name in ("sdt-8-384", "qkformer-10-384") or (isinstance(model, SEWResNet) and model.conv1.stride == (2, 2))


def _family(name: str) -> str:
    if name in VGG:
        return "vgg"
    return next(family for family in _OWN if name.startswith(family))
