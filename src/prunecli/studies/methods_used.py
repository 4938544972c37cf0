"""Methods as the history of a checkpoint names them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prunecli.checkpoint.manifest import Step, as_json
from prunecli.methods.registry import all_methods


def method_of(step: Step) -> str:
    """The method of a step with the parameters that are not its defaults (all of them, if it is not installed).

    Args:
        step: A step of a manifest; of those that prune nothing the text is empty.
    """
    settings = step.settings if step.stage == "prune" else {}
    name, params = settings.get("method"), settings.get("params")
    if not isinstance(name, str) or not isinstance(params, dict):
        return ""
    spec = all_methods().get(name)
    defaults: Any = as_json(asdict(spec.params_class())) if spec is not None else {}
    changed = [f"{key}={value}" for key, value in params.items() if key not in defaults or value != defaults[key]]
    return " ".join([name, *changed])
