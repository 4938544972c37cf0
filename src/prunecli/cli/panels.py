"""Where help lists an option: the common ones first, then the others by what they are about. Imports nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

COMMON = "Common options"
OWN, PRUNING, REPAIR, TRAINING = "Options", "Pruning", "Repair", "Training"
MEASUREMENT, MODEL, DATA, RUN, OUTPUT = "Measurement", "Model", "Data", "Run", "Output"
_ORDER = (COMMON, OWN, PRUNING, REPAIR, TRAINING, MEASUREMENT, MODEL, DATA, RUN, OUTPUT)
_FEW = 12
"""So many options need no panels."""

_COMMON = (
    *("method", "methods", "max_drop", "ratio", "sparsity", "keep_share", "keep_fraction", "blocks", "experts"),
    *("macs", "keep", "fail_if", "to", "data", "arch", "epochs", "lr", "teacher", "measure", "out", "resume"),
    *("dry_run", "set_values", "device", "help"),
)
"""In the order in which help lists them."""

_OF_STAGES = {
    "keep": PRUNING,
    "method": PRUNING,
    "recalibrate": REPAIR,
    "compensate": REPAIR,
    "calibration_images": REPAIR,
    "latency_rounds": MEASUREMENT,
    "measure": MEASUREMENT,
    "split": MEASUREMENT,
    "task": MEASUREMENT,
    "energy_images": MEASUREMENT,
    "require": MEASUREMENT,
    "offload": RUN,
}
"""Values of stages that are not about training."""

_BY_NAME = {
    **dict.fromkeys(("arch", "model_kwargs"), MODEL),
    **dict.fromkeys(("seed", "device", "threads", "set_values", "allow_code", "resume", "save_every"), RUN),
    **dict.fromkeys(("keep_states", "nproc", "max_restarts", "jobs", "executor", "track"), RUN),
    **dict.fromkeys(("out", "force", "save_recipe", "dry_run", "json", "quiet", "debug", "help", "version"), OUTPUT),
    **dict.fromkeys(("markdown", "csv", "plot", "plots", "overlay", "extract_attention", "clip_benchmark"), OUTPUT),
}


def panel_of(name: str, path: Sequence[str | int] | None = None) -> str:
    """The panel of an option that is not among the common ones.

    Args:
        name: Of its parameter.
        path: Recipe value that it sets, if it sets one.
    """
    if name in _BY_NAME or not path:
        return _BY_NAME.get(name, OWN)
    if path[0] != "stages":
        return {"model": MODEL, "data": DATA}.get(str(path[0]), RUN)
    return PRUNING if "params" in path else _OF_STAGES.get(name, TRAINING)


def in_panels(panels: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Names of options by panel, in the order in which help shows them.

    Args:
        panels: By name, where `panel_of` puts each option of a command.
    """
    if len(panels) <= _FEW:
        return [(OWN, list(panels))]
    common = [name for name in _COMMON if name in panels]
    shown: dict[str, list[str]] = {COMMON: common, **{panel: [] for panel in _ORDER[1:]}}
    for name, panel in panels.items():
        if name not in common:
            shown[panel].append(name)
    return [(panel, names) for panel, names in shown.items() if names]
