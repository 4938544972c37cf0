"""torch-pruning on one architecture, with the help that its own examples give it.

Run as a program, `python -m prunecli.studies.torch_pruning REF`, it prints the result as one line of JSON: building its
graph may hang, so it needs a process that can be killed.
"""

from __future__ import annotations

import json
import math
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.copying import copied
from prunecli.errors import described
from prunecli.inputs import Inputs, call, cast_inputs, doubled_batch, output_tensors
from prunecli.measure.counts import parameter_count
from prunecli.studies.candidates import candidate

_RATIO = 0.5
_TOLERANCE = 1e-9
_COUNTING_CHANNELS = ("LayerNorm", "GroupNorm", "RMSNorm", "InstanceNorm", "EvoNorm", "Attention")
"""Modules whose result depends on the number of channels, so that masking is not the same as removing."""


def prune_uniform(
    model: nn.Module,
    example: Inputs,
    ratio: float,
    classes: int,
    *,
    round_to: int | None = None,
    keep: tuple[nn.Module, ...] = (),
) -> nn.Module:
    """A copy pruned by torch-pruning's MagnitudePruner, p = 1, the same share of every width.

    Head counts are set, and head widths adjusted afterwards, where attention is built as in timm or transformers; the
    softmax temperature stays, as for masked channels.

    Args:
        model: Any module; it is not changed.
        example: Input the model accepts.
        ratio: Share of channels to remove.
        classes: Number of outputs; layers with that many outputs are left alone.
        round_to: Widths become multiples of this.
        keep: Further layers of `model` to leave alone.
    """
    import torch_pruning as tp

    kept = {name for name, module in model.named_modules() if any(module is layer for layer in keep)}
    pruned = copied(model).eval()
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)  # frozen parameters are invisible to torch-pruning
    heads = {layer: getattr(m, count) for m, count, layers, _ in _attentions(pruned) for layer in layers}
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.MagnitudePruner(
            pruned,
            example,
            tp.importance.MagnitudeImportance(p=1),
            pruning_ratio=ratio,
            ignored_layers=_classifiers(pruned, classes) + [pruned.get_submodule(name) for name in kept],
            num_heads=heads,
            round_to=round_to,
        )
        pruner.step()
    for module, count, layers, copies in _attentions(pruned):
        number = pruner.num_heads.get(layers[0], getattr(module, count))
        width = layers[0].out_features // (copies * number)
        for name, value in ((count, number), ("head_dim", width), ("attn_dim", width * number)):
            if hasattr(module, name):
                setattr(module, name, value)
    return pruned


def _attentions(model: nn.Module) -> Iterator[tuple[nn.Module, str, list[Any], int]]:
    """Attention modules with the attribute that counts heads, the projections that make heads, and their copies."""
    for module in model.modules():
        if isinstance(getattr(module, "num_heads", None), int) and isinstance(getattr(module, "qkv", None), nn.Linear):
            yield module, "num_heads", [module.qkv], 3
        elif isinstance(getattr(module, "num_attention_heads", None), int) and hasattr(module, "q_proj"):
            yield module, "num_attention_heads", [module.q_proj, module.k_proj, module.v_proj], 1


def try_architecture(ref: str, seed: int = 0) -> dict[str, Any]:
    """Prunes half of the channels of an architecture with new weights, and checks the result.

    Args:
        ref: "source:name".
        seed: Of the weights and the inputs.

    Returns:
        `status` ("ran", "wrong" or "crashed"), `reason`, `kept` (share of the parameters), `masked` (whether the result
        was compared with the masked original) and `seconds` of pruning.
    """
    tried = candidate(ref, seed)
    torch.manual_seed(seed)
    return try_network(tried.model, tried.network.inputs(), seed)


def try_network(model: nn.Module, example: Inputs, seed: int = 0) -> dict[str, Any]:
    """Like `try_architecture`, for a network and an example of its inputs."""
    model, example, exact = _exact(_distinct(model, seed), example)
    start = time.perf_counter()
    try:
        with torch.no_grad():
            classes = output_tensors(call(model, example))[0].shape[1]
        pruned = prune_uniform(model, example, _RATIO, classes)
    except Exception as error:  # anything it may raise is the result
        return _crash("pruning", error, start)
    seconds = round(time.perf_counter() - start, 2)
    kept = round(parameter_count(pruned) / parameter_count(model), 4)
    try:
        with torch.no_grad():
            call(pruned, doubled_batch(example))
            outputs = output_tensors(call(pruned, example))
    except Exception as error:
        return _crash("forward", error, start) | {"kept": kept}
    result = {"status": "ran", "reason": "", "kept": kept, "masked": False, "seconds": seconds}
    masked = _masked(model, pruned) if exact else None
    if masked is None:
        return result
    with torch.no_grad():
        difference = _difference(output_tensors(call(masked, example)), outputs)
    if difference > _TOLERANCE:
        result |= {"status": "wrong", "reason": f"differs from the masked original by {difference:.0e}"}
    return result | {"masked": True}


def _crash(phase: str, error: Exception, start: float) -> dict[str, Any]:
    seconds = round(time.perf_counter() - start, 2)
    return {
        "status": "crashed",
        "reason": f"{phase}: {described(error, 300)}",
        "seconds": seconds,
    }


def _distinct(model: nn.Module, seed: int) -> nn.Module:
    """The network in float64 with values that are all different, so that kept positions are found by value."""
    generator = torch.Generator().manual_seed(seed)
    changed = copied(model).double()
    with torch.no_grad():
        for tensor in (*changed.parameters(), *changed.buffers()):
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * 1e-2 + 1e-6)
    return changed


def _exact(model: nn.Module, example: Inputs) -> tuple[nn.Module, Inputs, bool]:
    """Network and example in float64 and True, or in float32 and False where the network insists on that."""
    try:
        with torch.no_grad():
            call(model, cast_inputs(example, dtype=torch.float64))
    except RuntimeError:
        return model.float(), example, False
    return model, cast_inputs(example, dtype=torch.float64), True


def _classifiers(model: nn.Module, classes: int) -> list[nn.Module]:
    """Layers with as many outputs as there are classes."""
    return [
        module
        for module in model.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == classes
        and isinstance(module, (nn.Linear, nn.Conv2d))
    ]


def _masked(model: nn.Module, pruned: nn.Module) -> nn.Module | None:
    """The original with zeros for everything that the pruned network lacks.

    None where that is another function: normalisation over channels and attention see how many there are.
    """
    if any(mark in type(module).__name__ for module in model.modules() for mark in _COUNTING_CHANNELS):
        return None
    masked, remaining = copied(model), _floating(pruned)
    with torch.no_grad():
        for name, tensor in _floating(masked).items():
            kept = torch.isin(tensor, remaining[name])
            if int(kept.sum()) != remaining[name].numel():
                return None
            tensor.mul_(kept)
    return masked


def _floating(model: nn.Module) -> dict[str, Tensor]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor for name, tensor in tensors if tensor.is_floating_point()}


def _difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    """Largest difference relative to the largest value; infinite for other shapes."""
    worst = 0.0
    for one, other in zip(expected, actual, strict=True):
        if one.shape != other.shape:
            return math.inf
        worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp(min=1e-30)))
    return worst


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(try_architecture(sys.argv[1])))
