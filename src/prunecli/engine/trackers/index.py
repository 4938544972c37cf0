"""All trackers by name; none is imported before it is asked for.

An installed package adds its own with an entry point in the group `prunecli.trackers` that names a `Tracker`.
"""

from __future__ import annotations

from collections.abc import Sequence

from prunecli.engine.trackers.base import Tracker
from prunecli.errors import RecipeError, first_line
from prunecli.registry import Registry

TRACKERS: Registry[type[Tracker]] = Registry(
    "tracker",
    "prunecli.trackers",
    {
        "trackio": "prunecli.engine.trackers.from_trackio:TrackioTracker",
        "tensorboard": "prunecli.engine.trackers.from_tensorboard:TensorBoardTracker",
        "mlflow": "prunecli.engine.trackers.from_mlflow:MLflowTracker",
        "wandb": "prunecli.engine.trackers.from_wandb:WandbTracker",
    },
    RecipeError,
)


def make_trackers(names: Sequence[str]) -> dict[str, Tracker]:
    """Trackers by their names, not started yet.

    Raises:
        RecipeError: There is no such tracker, or its library is missing or broken.
    """
    return {name: _made(name) for name in dict.fromkeys(names)}


def _made(name: str) -> Tracker:
    kind = TRACKERS.load(name)
    package = TRACKERS.package(name)
    remedy = f"update {package}" if package else f"pip install 'prunecli[{name}]'"
    try:
        return kind()
    except ModuleNotFoundError as error:
        raise RecipeError(f"--track {name}: {error.name} is not installed; {remedy}") from error
    except Exception as error:  # whatever importing somebody else's library raises
        raise RecipeError(f"--track {name}: cannot be imported ({first_line(error)}); {remedy}") from error
