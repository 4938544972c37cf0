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
    def peer(self) -> _Peer | None: ...


def installation_table(facts: Mapping[str, str]) -> Table:
    """Versions, devices and data sets."""
    return Table(("what", "found"), list(facts.items()))


def coverage_table(entries: Sequence[_Coverage]) -> Table:
    """One row for each architecture."""
    rows = [(entry.ref, entry.status, *_figures(entry), entry.reason) for entry in entries]
    return Table(("architecture", "result", "parameters kept", "implied", "difference", "why"), rows)


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


def _figures(entry: _Coverage) -> tuple[str, str, str]:
    return (f"{entry.kept:.1%}", f"{entry.implied:.1%}", f"{entry.error:.0e}") if entry.groups else ("", "", "")


def _counted(statuses: Iterable[str]) -> str:
    return ", ".join(f"{number} {status}" for status, number in Counter(statuses).items())
