"""Everything that can be added by name: built-in tables, and what installed packages add by entry point. Torch-free."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from prunecli.errors import PruneError, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

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
        for point in _entry_points(self._group):
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


def _entry_points(group: str) -> Iterable[EntryPoint]:
    """The entry points of a group.

    Most often there are none, and then `importlib.metadata` takes longer to find that out than the rest of a start: to
    be imported, and to parse the file of every installed package. It is asked only if one of them names the group.
    """
    here = tuple(path or os.curdir for path in sys.path)
    if all(_names_no_group(path, _changed(path), group) for path in here) and not _other_finders():
        return ()
    from importlib.metadata import entry_points

    return entry_points(group=group)


def _changed(folder: str) -> int:
    """When a package was last put into a folder or taken out of it."""
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return 0


def _names_no_group(folder: str, changed: int, group: str) -> bool:
    """Whether no package in a folder of `sys.path` can have entry points of a group, as of a time of change."""
    texts = _entry_point_texts(folder, changed)
    return texts is not None and not any(f"[{group}]".encode() in text for text in texts)


@cache
def _entry_point_texts(folder: str, changed: int) -> tuple[bytes, ...] | None:
    """The `entry_points.txt` of packages in a folder that name ours; None for what is no folder, such as a zip file."""
    try:
        names = os.listdir(folder)
    except NotADirectoryError:
        return None
    except OSError:
        return ()
    texts = []
    for name in names:
        if name.lower().endswith((".dist-info", "egg-info")):
            try:
                with open(f"{folder}/{name}/entry_points.txt", "rb") as file:
                    texts.append(file.read())
            except OSError:  # most packages have none
                continue
    return tuple(text for text in texts if b"[prunecli." in text)


def _other_finders() -> bool:
    """Whether something beside Python itself says what is installed."""
    standard = "_frozen_importlib_external"
    return any(
        hasattr(finder, "find_distributions") and getattr(finder, "__module__", "") != standard
        for finder in sys.meta_path
    )
