"""What `prune doctor` shows: facts about an installation, and what became of architectures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from prunecli.report.numbers import fixed
from prunecli.report.table import Table


class _Peer(Protocol):
    @property
    def status(self) -> str: ...
    @property
    def kept(self) -> float | None: ...
    @property
    def seconds(self) -> float | None: ...
    @property
    def reason(self) -> str: ...


class _Check(Protocol):
    @property
    def passed(self) -> bool | None: ...


class _Coverage(Protocol):
    @property
    def ref(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def kept(self) -> float: ...
    @property
    def implied(self) -> float: ...
    @property
    def groups(self) -> int: ...
    @property
    def error(self) -> float: ...
    @property
    def seconds(self) -> float: ...
    @property
    def reason(self) -> str: ...
    @property
    def processor_s(self) -> float: ...
    @property
    def held_by(self) -> Mapping[str, float]: ...
    @property
    def checks(self) -> Mapping[str, _Check]: ...
    @property
    def peer(self) -> _Peer | None: ...


_GIB = 2**30
_READABLE = {
    "usable_cores": "usable cores",
    "memory_bytes": "memory",
    "python": "Python",
    "commit": "commit of this folder",
    "prunecli_commit": "commit of prunecli",
}


def installation_table(facts: Mapping[str, str]) -> Table:
    """Versions, devices and data sets, by the names of a report's environment or of data sets."""
    rows = []
    for name, value in facts.items():
        shown = f"{fixed(int(value) / _GIB, 1)} GiB" if name == "memory_bytes" else value
        rows.append((_READABLE.get(name, name), shown))
    return Table(("what", "found"), rows)


def coverage_table(entries: Sequence[_Coverage]) -> Table:
    """One row for each architecture."""
    rows = [(entry.ref, entry.status, *_figures(entry), _passed(entry.checks), entry.reason) for entry in entries]
    columns = ("architecture", "result", "parameters kept", "implied", "difference", "seconds", "checks", "why")
    return Table(columns, rows, numeric=(2, 3, 4, 5))


def reasons_table(entries: Sequence[_Coverage]) -> Table:
    """Why layers kept their width: how many networks each kind of reason concerns, and what it holds at the most."""
    shares: dict[str, list[float]] = {}
    for entry in entries:
        for kind, share in entry.held_by.items():
            shares.setdefault(kind, []).append(share)
    largest = sorted(shares.items(), key=lambda item: -sum(item[1]))
    rows = [(kind, str(len(held)), f"{max(held):.1%}") for kind, held in largest]
    return Table(("why layers keep their width", "networks", "of the parameters, at most"), rows, numeric=(1, 2))


def peer_table(entries: Sequence[_Coverage]) -> Table:
    """Our results next to torch-pruning's, for the architectures that both tried."""
    rows = []
    for entry in entries:
        if (peer := entry.peer) is None:
            continue
        ours = (entry.status, f"{entry.kept:.1%}" if entry.groups else "", fixed(entry.seconds, 1))
        theirs = (peer.status, "" if peer.kept is None else f"{peer.kept:.1%}", fixed(peer.seconds, 1), peer.reason)
        rows.append((entry.ref, *ours, *theirs))
    columns = ("architecture", "prune", "kept", "seconds", "torch-pruning", "kept", "seconds", "why")
    return Table(columns, rows, numeric=(2, 3, 5, 6))


def status_counts(entries: Sequence[_Coverage]) -> str:
    """How many architectures came to what, in one line."""
    line = _counted(entry.status for entry in entries)
    peers = [entry.peer.status for entry in entries if entry.peer is not None]
    return f"{line}; torch-pruning: {_counted(peers)}" if peers else line


def _figures(entry: _Coverage) -> tuple[str, str, str, str]:
    seconds = fixed(entry.processor_s, 1)
    if not entry.groups:
        return "", "", "", seconds
    return f"{entry.kept:.1%}", f"{entry.implied:.1%}", f"{entry.error:.0e}", seconds


def _passed(checks: Mapping[str, _Check]) -> str:
    """Checks that were passed, of those that the original passes."""
    asked = [check for check in checks.values() if check.passed is not None]
    return f"{sum(bool(check.passed) for check in asked)} of {len(asked)}" if asked else ""


def _counted(statuses: Iterable[str]) -> str:
    return ", ".join(f"{number} {status}" for status, number in Counter(statuses).items())
