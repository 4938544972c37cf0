"""Whether a finished study is the one that is asked for, so that resuming it shows no result of other settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from prunecli.checkpoint.manifest import as_json
from prunecli.checkpoint.plain_data import leaves
from prunecli.errors import RecipeError
from prunecli.pipeline.resumption import NOT_IDENTITY
from prunecli.pipeline.workspace import Workspace
from prunecli.recipe.schema import Stage


def settings_of(space: Workspace, settings: Any, **stages: Stage) -> dict[str, JsonValue]:
    """The settings of a study, its stages and how data are read, as its report has them.

    Args:
        space: Says how data are read.
        settings: A dataclass.
        stages: By name.
    """
    space.model()  # whose checkpoint knows a data set where none is named
    data = dataclasses.asdict(space.recipe.data) | {"name": space.data_name()}
    whole = {
        **dataclasses.asdict(settings),
        **{name: dataclasses.asdict(stage) for name, stage in stages.items()},
        "data": {name: value for name, value in data.items() if name not in NOT_IDENTITY},
    }
    return {name: as_json(value) for name, value in whole.items()}


def network_of(space: Workspace) -> str:
    """The hash of a network's file, or its reference."""
    loaded = space.model()
    return loaded.sha256 or loaded.manifest.architecture.ref


def refuse_other(out: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Refuses to show a finished study for another one.

    Args:
        out: Its report.
        stored: What determined it, by name; mappings of these have dotted names.
        asked: What is asked for.

    Raises:
        RecipeError: They differ; the message names the first difference.
    """
    old, new = dict(leaves(stored)), dict(leaves(asked))
    for name in [*new, *(name for name in old if name not in new)]:
        if old.get(name) != new.get(name):
            raise RecipeError(
                f"{out}: was finished with {name} {_shown(old.get(name))} and {_shown(new.get(name))} is asked for; "
                "add --force to start again, or choose another name"
            )


def _shown(value: Any) -> str:
    return "its default" if value is None else str(value)
