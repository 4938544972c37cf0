"""Everything that can be added by name: built-in tables, and what installed packages add by entry point. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from prunecli.errors import PruneError, unknown

Thing = TypeVar("Thing")


class Registry(Generic[Thing]):
    """Things of one kind by name; an import reference ("module" or "module:attribute") is loaded on first use.

    Args:
        kind: What they are, for messages: "method".
        group: The entry-point group in which packages add theirs, for instance "prunecli.methods".
        built_in: Those of this package: the thing itself, or a reference.
        error: What to raise.
        see: A command that lists them, for messages.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, Thing | str],
        error: type[PruneError],
        *,
        see: str | None = None,
    ) -> None:
        self._kind, self._group, self._error, self._see = kind, group, error, see
        self._entries = dict(built_in)
        self._loaded: dict[str, Thing] = {}

    @cached_property
    def _added(self) -> dict[str, EntryPoint]:
        added: dict[str, EntryPoint] = {}
        for point in entry_points(group=self._group):
            if point.name in self._entries or point.name in added:
                raise self._error(
                    f"{self._kind} {point.name!r} of package {_package(point)} has a name that is taken; "
                    "the package has to rename it"
                )
            added[point.name] = point
        return added

    @property
    def built_in(self) -> tuple[str, ...]:
        """Names of what this package brings."""
        return tuple(self._entries)

    @property
    def names(self) -> tuple[str, ...]:
        """All names, built-in ones first; nothing is imported.

        Raises:
            PruneError: An installed package takes a name that is there already.
        """
        return (*self._entries, *self._added)

    def package(self, name: str) -> str:
        """The installed package that added `name`; empty for a built-in thing."""
        return _package(self._added[name]) if name in self._added else ""

    def require(self, name: str) -> None:
        """Checks that a name exists.

        Raises:
            PruneError: It does not; the message suggests the nearest.
        """
        if name not in self._entries and name not in self._added:
            raise self._error(unknown(self._kind, name, self.names, see=self._see))

    def load(self, name: str) -> Thing:
        """The thing called `name`, imported if it was not yet.

        Raises:
            PruneError: There is none, or the package that brings it is broken.
        """
        self.require(name)
        if name not in self._loaded:
            self._loaded[name] = self._imported(name)
        return self._loaded[name]

    def _imported(self, name: str) -> Thing:
        if name in self._added:
            try:
                return cast(Thing, self._added[name].load())
            except Exception as error:  # whatever importing somebody else's module raises
                raise self._error(
                    f"{self._kind} {name!r} of package {_package(self._added[name])} cannot be loaded: {error}"
                ) from error
        entry = self._entries[name]
        return cast(Thing, imported(entry)) if isinstance(entry, str) else entry


def imported(reference: str) -> Any:
    """What "module" or "module:attribute" refers to."""
    module, _, attribute = reference.partition(":")
    loaded = import_module(module)
    return getattr(loaded, attribute) if attribute else loaded


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value
