"""Which modules of a network are mixtures of experts, by what they hold and what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunecli.copying import sharing_parameters
from prunecli.errors import ModelError
from prunecli.inputs import Inputs, call, explained, fitted
from prunecli.surgery.experts.routing import Decision, Routers, Routing
from prunecli.surgery.tracing.running import seeded

_LEVELS = 2
"""How far above its experts a router may be held."""
_ROUTERS = ("router", "gate", "gating")
"""Parts of names that are tried first where several modules could be the router."""
_GROUPS = ("num_group", "n_group", "n_groups", "num_groups", "num_expert_group", "num_expert_groups")
"""Attributes of routers that choose among groups of experts first."""


@dataclass(frozen=True)
class ExpertLayer:
    """One mixture of experts.

    Attributes:
        name: Dotted name of the module that holds the router and the experts.
        holders: Modules with the experts: lists of modules, or modules whose tensors have one entry for each expert.
        router: Module whose weight has a row for each expert.
        experts: How many experts there are.
        listed: Whether they are modules in lists.
        groups: Groups of consecutive experts among which the router chooses first; 1: none.
        chosen: Experts that a token is sent to; 0 if all.
    """

    name: str
    holders: tuple[str, ...]
    router: str
    experts: int
    listed: bool
    groups: int
    chosen: int

    def expert(self, index: int) -> str:
        """What an expert is called."""
        return f"{self.holders[0]}.{index}"


def expert_layers(model: nn.Module, inputs: Inputs) -> list[ExpertLayer]:
    """The mixtures of experts of a network, in the order of its modules.

    Args:
        model: Not changed.
        inputs: Inputs that it accepts.

    Raises:
        ModelError: It does not run on them.
    """
    candidates = list(_candidates(model))
    if not candidates:
        return []
    network = sharing_parameters(model).eval()
    chosen: dict[str, int] = {}
    decided: set[str] = set()

    def decide(decision: Decision) -> None:
        decided.add(decision.router)
        if decision.indices is not None:
            chosen[decision.router] = max(chosen.get(decision.router, 0), decision.indices.shape[-1])

    routing = Routing(
        network, [Routers(layer.name, layer.router, layer.experts) for layer in candidates], decide=decide
    )
    with explained("the network does not run on the example inputs", ModelError), torch.no_grad(), seeded(), routing:
        call(network, fitted(inputs, network))
    layers: dict[str, ExpertLayer] = {}
    for layer in candidates:  # of several that could be the router, the first one that decides something is
        if layer.router in decided and layer.name not in layers:
            layers[layer.name] = ExpertLayer(
                layer.name,
                layer.holders,
                layer.router,
                layer.experts,
                layer.listed,
                _groups(model, layer),
                chosen.get(layer.router, 0),
            )
    return list(layers.values())


def _groups(model: nn.Module, layer: ExpertLayer) -> int:
    for name in (layer.router, layer.name):
        for attribute in _GROUPS:
            value = getattr(model.get_submodule(name), attribute, None)
            if type(value) is int and value > 1 and layer.experts % value == 0:
                return value
    return 1


def _candidates(model: nn.Module) -> Iterator[ExpertLayer]:
    """Layers as far as what modules hold says, one for every module that could be the router."""
    modules = dict(model.named_modules())
    holders = {name: count for name, module in modules.items() if name and (count := experts_in(module)) > 1}
    around: dict[str, list[str]] = {}
    for name, count in holders.items():
        for owner in _above(name):
            if _possible_routers(modules, owner, count, holders):
                around.setdefault(owner, []).append(name)
                break
    for owner, names in around.items():
        count = holders[names[0]]
        same = tuple(name for name in names if holders[name] == count)
        listed = isinstance(modules[same[0]], (nn.ModuleList, nn.ModuleDict))
        for router in _possible_routers(modules, owner, count, holders):
            yield ExpertLayer(owner, same, router, count, listed, 1, 0)


def _above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, max(len(parts) - 1 - _LEVELS, -1), -1)]


def _possible_routers(modules: dict[str, nn.Module], owner: str, count: int, holders: dict[str, int]) -> list[str]:
    prefix = f"{owner}." if owner else ""
    inside = [holder for holder in holders if holder.startswith(prefix)]
    names = [
        name
        for name, module in modules.items()
        if name.startswith(prefix)
        and name != owner
        and not any(name == holder or name.startswith(f"{holder}.") for holder in inside)
        and any(parameter.dim() == 2 and len(parameter) == count for parameter in module._parameters.values()
                if parameter is not None)
    ]  # fmt: skip
    return sorted(names, key=lambda name: not any(part in name.rpartition(".")[2] for part in _ROUTERS))


def experts_in(module: nn.Module) -> int:
    """How many experts a module may hold: alike modules in a list, or entries of tensors of three dimensions."""
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        entries = [module._modules[name] for name in listed_experts(module)]
        names = [[name for name, _ in entry.named_parameters()] for entry in entries if entry is not None]
        alike = len({type(entry) for entry in entries}) == 1 and all(own == names[0] for own in names)
        return len(entries) if alike else 0
    if type(module).__module__.startswith("torch.nn."):
        return 0
    stacked = [parameter for parameter in module._parameters.values() if parameter is not None and parameter.dim() == 3]
    counts = {len(parameter) for parameter in stacked}
    return counts.pop() if len(counts) == 1 else 0


def listed_experts(container: nn.Module) -> list[str]:
    """Names of the entries of a list that could be experts: those with parameters."""
    return [name for name, entry in container.named_children() if any(True for _ in entry.parameters())]


def stacked_tensors(module: nn.Module, count: int) -> list[str]:
    """Names of a module's own tensors with one entry for each expert."""
    tensors: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    return [name for name, tensor in tensors.items() if tensor is not None and tensor.dim() and len(tensor) == count]
