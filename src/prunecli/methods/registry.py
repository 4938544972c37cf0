"""Finding methods, built in or brought by other packages. Torch-free."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from prunecli.errors import MethodError, unknown
from prunecli.methods.index import METHODS
from prunecli.methods.spec import MethodSpec

ENTRY_POINT_GROUP = "prunecli.methods"


@cache
def all_methods() -> dict[str, MethodSpec]:
    """Every method by name; a package's method cannot replace a built-in one.

    Raises:
        MethodError: An installed package's entry point is broken or takes a built-in name.
    """
    found = dict(METHODS)
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            spec = point.load()
        except Exception as error:
            raise MethodError(f"method {point.name!r} of an installed package cannot be loaded: {error}") from error
        if not isinstance(spec, MethodSpec) or spec.name in found:
            raise MethodError(f"entry point {point.name!r} ({point.value}) is not a MethodSpec with a name of its own")
        found[spec.name] = spec
    return found


def get_structural(name: str) -> MethodSpec:
    """Returns the method called `name`, which removes channels.

    Raises:
        MethodError: There is none, or it changes how a network runs and nothing in it.
    """
    spec = get_method(name)
    if spec.family != "structural":
        raise MethodError(
            f"method {name} removes no channels; on the command line use `prune {name}`, in Python "
            "prunecli.tokens.runtime.prune_tokens"
        )
    return spec


def get_method(name: str) -> MethodSpec:
    """Returns the method called `name`.

    Raises:
        MethodError: There is none; the message names the nearest.
    """
    methods = all_methods()
    if name not in methods:
        raise MethodError(unknown("method", name, methods, see="prune methods"))
    return methods[name]
