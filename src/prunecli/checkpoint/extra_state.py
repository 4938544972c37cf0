"""What modules keep besides tensors and attributes: the results of `get_extra_state`, as in torch's state dicts."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue
from torch import nn

from prunecli.errors import ModelError


def extra_states(model: nn.Module) -> dict[str, JsonValue]:
    """The extra states of all modules that have one, by module name.

    Raises:
        ModelError: One is not plain (numbers, texts, lists, mappings of texts), so a manifest cannot hold it.
    """
    states: dict[str, JsonValue] = {}
    for name, module in model.named_modules():
        if type(module).get_extra_state is nn.Module.get_extra_state:
            continue
        state = module.get_extra_state()
        if not _is_plain(state):
            raise ModelError(
                f"{name or 'the model'} keeps a state that is no tensor and that a checkpoint cannot hold "
                f"({type(state).__name__} from get_extra_state); save the network with torch.save instead"
            )
        states[name] = state
    return states


def apply_extra_states(model: nn.Module, states: Mapping[str, JsonValue]) -> None:
    """Gives modules the extra states that `extra_states` found.

    Raises:
        ModelError: A module does not exist or takes no such state: they belong to another architecture.
    """
    modules = dict(model.named_modules())
    for name, state in states.items():
        if name not in modules or type(modules[name]).set_extra_state is nn.Module.set_extra_state:
            raise ModelError(f"the manifest has a state for module {name!r}, which the architecture does not take")
        try:
            modules[name].set_extra_state(state)
        except Exception as error:
            raise ModelError(
                f"module {name!r} does not take the state that the manifest has for it: {type(error).__name__}: {error}"
            ) from error


def _is_plain(state: object) -> bool:
    """Whether a state comes back from JSON as it was."""
    try:
        return bool(json.loads(json.dumps(state, allow_nan=False)) == state)
    except (TypeError, ValueError, RecursionError):
        return False
