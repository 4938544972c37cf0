"""A reference for pruned networks that knows nothing of traces and groups: kept positions are found by value.

Every tensor of a network gets values that occur once, so each entry of a pruned tensor says where it came from. The
reference is the untouched original with the kept values at their places and zeros everywhere else. Layer and group
normalisations count the kept channels alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunecli.inputs import Inputs, call, output_tensors


def with_unique_values(model: nn.Module, seed: int) -> nn.Module:
    """Gives every floating tensor distinct values of a size that suits its place, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in _tensors(model).items():
        if tensor.is_floating_point() and tensor.numel():
            spread = (torch.randperm(tensor.numel(), generator=generator).double() + 0.5) / tensor.numel()
            if name.endswith(("running_var", "scale")) or (tensor.dim() == 1 and name.endswith("weight")):
                values = spread + 0.5
            else:
                values = (2 * spread - 1) * (1.7 / math.sqrt(max(1, tensor.numel() // max(1, tensor.shape[0]))))
            tensor.copy_(values.reshape(tensor.shape))
    return model


def difference(original: nn.Module, pruned: nn.Module, inputs: Inputs, *, training: bool = False) -> float:
    """Largest difference of any output, relative to the largest output, in float64; infinite for other shapes."""
    reference = masked(original, pruned)
    outputs = []
    for model in (reference, copy.deepcopy(pruned).double()):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.train(training)
        with torch.no_grad():
            outputs.append(output_tensors(call(model, inputs)))
    if [t.shape for t in outputs[0]] != [t.shape for t in outputs[1]]:
        return math.inf
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in zip(*outputs, strict=True))


def masked(original: nn.Module, pruned: nn.Module) -> nn.Module:
    """The original with the values that `pruned` keeps, and zeros elsewhere."""
    reference = copy.deepcopy(original).double()
    kept: dict[str, list[Tensor]] = {}
    small = _tensors(pruned)
    ratios = {1.0}  # by which rows were multiplied; a matrix says, a bias of single numbers cannot
    for name, tensor in sorted(_tensors(reference).items(), key=lambda item: -item[1].dim()):
        if not tensor.is_floating_point():
            continue
        tried = ratios if tensor.dim() < 2 else _RATIOS
        kept[name], factors = _positions(tensor, small[name].double(), sorted(tried, reverse=True))
        ratios.update(factors.unique().tolist())
        zeros = torch.zeros_like(tensor)
        at = torch.meshgrid(*kept[name], indexing="ij") if tensor.dim() else ()
        zeros[at] = tensor[at]
        tensor.copy_(zeros)
    _normalise_kept(reference, kept)
    return reference


_RATIOS = {math.sqrt(a / b) for b in range(1, 17) for a in range(1, b + 1)}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    named: dict[str, Tensor] = dict(model.named_parameters())
    named.update(model.named_buffers())
    return {name: tensor.detach() for name, tensor in named.items()}


def _positions(big: Tensor, small: Tensor, ratios: Sequence[float]) -> tuple[list[Tensor], Tensor]:
    """For each dimension the kept positions, and what rows were multiplied by for the temperature."""
    if big.shape == small.shape and torch.equal(big, small):
        return [torch.arange(size) for size in big.shape], torch.ones_like(small)
    ordered, order = big.flatten().sort()
    rows = small.reshape(small.shape[0], -1)
    found, factors = torch.full(rows.shape, -1), torch.ones_like(rows)
    for ratio in ratios:
        wanted = rows / ratio
        above = torch.searchsorted(ordered, wanted).clamp(1, len(ordered) - 1)
        nearer_below = (wanted - ordered[above - 1]).abs() < (wanted - ordered[above]).abs()
        place = torch.where(nearer_below, above - 1, above)
        same = ((ordered[place] - wanted).abs() <= 1e-6 * wanted.abs()).all(1) & (found[:, 0] < 0)
        found[same], factors[same] = order[place[same]], ratio
    assert bool((found >= 0).all()), "values that the original does not have"
    found, kept = found.reshape(small.shape), []
    for dim, (size, stride) in enumerate(zip(big.shape, big.contiguous().stride(), strict=True)):
        positions = (found // stride % size).movedim(dim, 0).reshape(small.shape[dim], -1)
        assert bool((positions == positions[:, :1]).all()), "a pruned tensor is not a block of the original's"
        kept.append(positions[:, 0])
    return kept, factors.reshape(small.shape)


def _normalise_kept(reference: nn.Module, kept: Mapping[str, list[Tensor]]) -> None:
    for name, module in reference.named_modules():
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            positions = kept[f"{name}.weight"][0]
            if len(positions) < module.weight.numel():
                module.forward = _alone(module, positions.sort().values)  # type: ignore[method-assign]


def _alone(module: Any, kept: Tensor) -> Any:
    def forward(x: Tensor) -> Tensor:
        dim = -1 if isinstance(module, nn.LayerNorm) else 1
        part, weight, bias = x.index_select(dim, kept), module.weight[kept], module.bias[kept]
        if isinstance(module, nn.LayerNorm):
            out = F.layer_norm(part, (len(kept),), weight, bias, module.eps)
        else:
            size = module.num_channels // module.num_groups
            out = F.group_norm(part, len(torch.unique(kept // size)), weight, bias, module.eps)
        return torch.zeros_like(x).index_copy_(dim, kept, out)

    return forward
