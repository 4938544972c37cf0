"""Finding methods, built in or added by other packages. Torch-free."""

from __future__ import annotations

from functools import cache

from prunecli.criteria.index import CRITERIA, CriterionSpec
from prunecli.errors import MethodError, unknown
from prunecli.methods.index import METHODS, method_of
from prunecli.methods.spec import FAMILIES, Family, MethodSpec


@cache
def all_methods() -> dict[str, MethodSpec]:
    """Every method by name: built-in ones, and the methods and criteria of installed packages.

    Raises:
        MethodError: An installed package's entry point is broken or its name is taken.
    """
    specs = {name: METHODS.load(name) for name in METHODS.names}
    for name in CRITERIA.names:
        if name in CRITERIA.built_in:
            continue
        if name in specs:
            raise MethodError(f"criterion {name!r} of package {CRITERIA.package(name)} has the name of a method")
        criterion = CRITERIA.load(name)
        if not isinstance(criterion, CriterionSpec) or criterion.name != name:
            raise MethodError(
                f"criterion {name!r} of package {CRITERIA.package(name)} is not a CriterionSpec of that name"
            )
        specs[name] = method_of(criterion)
    for name, spec in specs.items():
        if not isinstance(spec, MethodSpec) or spec.name != name or spec.family not in FAMILIES:
            package = METHODS.package(name)
            raise MethodError(
                f"entry point {name!r} of package {package} is not a MethodSpec of that name in one of the families "
                f"{', '.join(FAMILIES)}"
            )
    return specs


def get_method(name: str) -> MethodSpec:
    """Returns the method called `name`.

    Raises:
        MethodError: There is none; the message suggests the nearest.
    """
    methods = all_methods()
    if name not in methods:
        raise MethodError(unknown("method", name, methods, see="prune methods"))
    return methods[name]


def family_of(name: str) -> Family:
    """What runs the method called `name`.

    Raises:
        MethodError: There is no such method.
    """
    return FAMILIES[get_method(name).family]


def get_structural(name: str) -> MethodSpec:
    """Returns the method called `name`, which ranks channels.

    Raises:
        MethodError: There is none, or it does not rank channels.
    """
    spec = get_method(name)
    if spec.family != "structural":
        family = FAMILIES[spec.family]
        raise MethodError(
            f"method {name} does not rank channels, it is one of those that {family.summary}; on the command line use "
            f"`prune {name}`, in Python {family.python}"
        )
    return spec
