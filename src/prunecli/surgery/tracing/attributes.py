"""Module attributes that hold a width, and so have to change with it.

An attribute changes for one of three reasons: its read was watched ending in a size (`equations.settle`), the class of
the layer is known (the number of groups of a grouped convolution or normalisation, timm's list of feature maps, an
adapter), or the layer's own tensors say what it is, which `slice.py` sees to. Everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from prunecli.surgery.axes import Axis, Seq, Term, resolve
from prunecli.surgery.groups import ChannelGroup, Size, Width
from prunecli.surgery.recurrent.cell import RecurrentCell
from prunecli.surgery.recurrent.projected import ProjectedLSTM
from prunecli.surgery.recurrent.stack import RecurrentStack
from prunecli.surgery.tracing.equations import Held
from prunecli.surgery.tracing.labels import Followed
from prunecli.surgery.tracing.watched import Read


def follows_its_tensors(module: nn.Module) -> bool:
    """Whether all widths among a module's attributes are those of its own tensors, or stay as they are."""
    if isinstance(module, (RecurrentStack, RecurrentCell, ProjectedLSTM)):
        return True
    if hasattr(module, "normalized_shape"):
        return getattr(module, "weight", None) is not None
    plain = type(module).__module__.startswith("torch.nn.")  # a derived class may have attributes of its own
    return plain and isinstance(module, (_ConvNd, nn.Linear, _BatchNorm, nn.PReLU, nn.Embedding, nn.RNNBase))


def width_attributes(
    model: nn.Module, followed: Followed, held: Mapping[Read, Held], groups: Mapping[Axis, ChannelGroup]
) -> list[Width]:
    """Every attribute that has to change with the width of a group.

    Args:
        model: The network.
        followed: Its run.
        held: Attributes that hold the size of a dimension.
        groups: Groups by axis.
    """
    by_axis = {axis: group.name for axis, group in groups.items()}
    widths: list[Width] = []
    for read, width in held.items():
        size = _size_of(width.term, by_axis)
        if width.divisor != 1:
            size = Size("quotient", size.number // width.divisor, parts=(size, Size("number", width.divisor)))
        if size.groups:
            widths.append(Width(read.module, read.attribute, read.path, size))
    for name, module in model.named_modules():
        counted = "num_groups" if isinstance(module, nn.GroupNorm) else "groups"
        known = isinstance(module, (_ConvNd, nn.GroupNorm)) or type(module).__module__.startswith("torchvision.ops")
        if known and name in followed.blocks and getattr(module, counted, None) == followed.blocks[name].size:
            size = _size_of(followed.blocks[name], by_axis)
            if size.groups:
                widths.append(Width(name, counted, (), size))
        widths += _feature_info(name, module, followed, by_axis)
    return list({(width.module, width.attribute, width.path): width for width in widths}.values())


def _size_of(term: Term, by_axis: Mapping[Axis, str]) -> Size:
    """A term's size as a function of the groups it contains."""
    resolved = resolve(term)
    if isinstance(resolved, Axis):
        name = by_axis.get(resolved)
        return Size("group", resolved.size, name) if name is not None else Size("number", resolved.size)
    parts = tuple(
        _size_of(item, by_axis) for item in (resolved.parts if isinstance(resolved, Seq) else resolved.factors)
    )
    return Size("sum" if isinstance(resolved, Seq) else "product", resolved.size, parts=parts)


def _feature_info(name: str, module: nn.Module, followed: Followed, by_axis: Mapping[Axis, str]) -> Iterator[Width]:
    """timm's list of feature maps: `num_chs` of each follows the output of the module it names."""
    info = getattr(module, "feature_info", None)
    if not isinstance(info, list):
        return
    for index, entry in enumerate(info):
        labels = followed.outputs.get(f"{name}.{entry.get('module')}".lstrip(".")) if isinstance(entry, dict) else None
        for term in labels[-1].dims if labels else ():
            size = _size_of(term, by_axis)
            if term.size == entry.get("num_chs") and size.groups:
                yield Width(name, "feature_info", (index, "num_chs"), size)
                break
