"""Ways to read the names of somebody else's weights: without prefixes, and without what lies beside a network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from shlex import quote

from torch import Tensor

from prunecli.checkpoint.beside import is_average, is_beside, is_normalisation, is_teacher
from prunecli.checkpoint.foreign_files import TOP, ForeignWeights
from prunecli.checkpoint.records import printable
from prunecli.models.fingerprints import nearest_references
from prunecli.models.stored_settings import HARMLESS

_HEAD = re.compile(r"(fc|head|classifier|heads)\.(\d+)\.(weight|bias)")
_COUNTER = ".num_batches_tracked"
_SUGGESTED = 0.5
"""A prefix that leaves weights less alike to an architecture than this is not suggested."""
_SHOWN = 6
_MAX_LEVELS = 8
_FEW = 2

_Groups = dict[str, dict[str, Tensor]]
"""Tensors by the first part of their names, with the rest of their names; a name of one part has an empty rest."""


@dataclass(frozen=True)
class Reading:
    """One way to read the names of weights.

    Attributes:
        weights: The weights under the names that an architecture may have.
        removed: The prefix that their names had in the file.
        source: What `--strip-prefix` has to be for these weights, where the file has others; else empty.
        average: Whether they are an average, and the file has others.
        aside: Prefixes of other sets of weights in the file.
        lacking: For each average that does not have all tensors, how many it lacks.
        left_out: Names of tensors beside the network.
        rivals: Prefixes of sets with the same names and shapes, this one's among them; no name says what they are.
        head: Note on the classifier's name.
    """

    weights: ForeignWeights
    removed: str = ""
    source: str = ""
    average: bool = False
    aside: tuple[str, ...] = ()
    lacking: Mapping[str, int] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    head: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        notes: list[str] = []
        count = len(self.weights.tensors)
        where = "at the top" if self.source == TOP else f"under {printable(self.source)}"
        if self.aside:
            others = ", ".join("at the top" if name == TOP else printable(name) for name in self.aside)
            kind = "an average, " if self.average else ""
            option = f"--strip-prefix {quote(self.aside[0])}"
            notes.append(f"took the weights {where} ({kind}{count} tensors); {others}: {option}")
        elif self.source:
            notes.append(f"took the weights {where} ({count} tensors)")
        elif self.removed:
            notes.append(f"all names of tensors begin with {printable(self.removed)}, which is left out")
        if self.left_out:
            shown = ", ".join(printable(name) for name in self.left_out[:_SHOWN])
            more = f" and {len(self.left_out) - _SHOWN} more" if len(self.left_out) > _SHOWN else ""
            notes.append(f"left out {len(self.left_out)} tensors, by their names no part of the network: {shown}{more}")
        if any(is_normalisation(part) for name in self.left_out for part in name.split(".")):
            notes.append("what normalised images before the network is left out: it takes normalised ones")
        notes += [
            f"the average under {printable(name)} lacks {missing} tensors of the network and was left aside"
            for name, missing in self.lacking.items()
        ]
        return (*notes, self.head) if self.head else tuple(notes)


def readings(weights: ForeignWeights) -> Iterator[Reading]:
    """The weights as they are, then under prefixes, without averages, losses and metrics that lie beside them.

    What is left out has to be known by its name for no part of the network: a head beside a backbone is not.

    Args:
        weights: As they are in the file.
    """
    last = current = Reading(weights)
    yield last
    for _ in range(_MAX_LEVELS):
        following = _next(current)
        if following is None:
            break
        last = current = following
        yield current
    heads = {(match[1], match[2]) for name in last.weights.tensors if (match := _HEAD.fullmatch(name))}
    if len(heads) == 1 and _is_plain_head(last.weights, next(iter(heads))[0]):
        name, number = heads.pop()
        tensors = {_HEAD.sub(r"\1.\3", name): tensor for name, tensor in last.weights.tensors.items()}
        note = f"{name}.{number}, a classifier in a sequence, is read as {name}"
        yield replace(last, weights=replace(last.weights, tensors=tensors), head=note)


def _next(reading: Reading) -> Reading | None:
    """The reading without what lies beside the network; where nothing does, without the prefix of all names."""
    groups = _groups(reading.weights.tensors)
    beside = {part for part, group in groups.items() if is_beside(part, leaf="" in group)}
    modules = [part for part, group in groups.items() if part not in beside and "" not in group]
    averages = [part for part in modules if is_average(part)]
    teachers = [part for part in modules if is_teacher(part) and part not in averages]
    rest = [part for part in groups if part not in (*beside, *averages, *teachers)]
    if not rest:
        rest, averages, teachers = [*averages, *teachers], [], []
    if len(rest) > 1 and (rivals := _rivals(groups, rest)):
        prefixes = tuple(f"{reading.removed}{part}." for part in rivals)
        return _under(replace(reading, rivals=prefixes, source=prefixes[0]), rest[0])
    if averages or teachers or beside:
        return _without_beside(reading, groups, rest, averages, teachers)
    if len(rest) != 1 or rest[0] not in modules or not _is_all(reading.weights, f"{rest[0]}."):
        return None
    return _under(reading, rest[0])


def _under(reading: Reading, part: str) -> Reading:
    prefix = f"{part}."
    return replace(reading, weights=reading.weights.without_prefix(prefix), removed=reading.removed + prefix)


def _without_beside(
    reading: Reading, groups: _Groups, rest: list[str], averages: list[str], teachers: list[str]
) -> Reading | None:
    """The network of one level; a complete average of it, if there is one."""
    at = reading.removed
    single = len(rest) == 1 and "" not in groups[rest[0]]
    own = _of_parts(reading.weights, rest)
    if not rest or own is None or reading.average:
        return None
    within, core = _core(own.tensors)
    cores = {part: _part_of(core, groups[part]) for part in (*averages, *teachers)}
    if any(not cores[part] for part in averages):
        return None  # something else that is called so
    complete = [part for part in averages if _has_all(cores[part], core)]
    twins = [part for part in teachers if _has_all(cores[part], core)]
    source = f"{at}{rest[0]}." if single else at or (TOP if averages or teachers else "")
    if (complete or twins) and source == at:
        return None  # no option could name the other set
    aside = tuple(f"{at}{part}." for part in (*complete, *teachers))
    new = replace(
        reading,
        weights=own,
        source=source,
        aside=(*reading.aside, *aside),
        lacking={**reading.lacking, **{f"{at}{p}.": len(core) - len(cores[p]) for p in averages if p not in complete}},
        left_out=(*reading.left_out, *_left_out(reading, (*rest, *averages, *teachers))),
        rivals=(source, *(f"{at}{part}." for part in twins)) if twins and not complete else reading.rivals,
    )
    if not complete:
        return new
    tensors = {f"{within}{name}": tensor for name, tensor in cores[complete[0]].items()}
    others = (source, *aside[1:])
    return replace(new, weights=replace(own, tensors=tensors), source=aside[0], average=True, aside=others)


def _left_out(reading: Reading, kept: Collection[str]) -> Iterator[str]:
    return (f"{reading.removed}{name}" for name in reading.weights.tensors if name.partition(".")[0] not in kept)


def _groups(tensors: Mapping[str, Tensor]) -> _Groups:
    groups: _Groups = {}
    for name, tensor in tensors.items():
        first, _, rest = name.partition(".")
        groups.setdefault(first, {})[rest] = tensor
    return groups


def _of_parts(weights: ForeignWeights, parts: Collection[str]) -> ForeignWeights | None:
    """The weights whose names begin with some parts; None if something else computes, as far as the file tells."""
    beside = {name.partition(".")[0] for name in weights.modules if name} - set(parts)
    harmless = (_is_harmless(weights, part) or is_average(part) or is_teacher(part) for part in beside)
    if not all(harmless):
        return None
    return replace(
        weights,
        tensors={name: tensor for name, tensor in weights.tensors.items() if name.partition(".")[0] in parts},
        modules={name: module for name, module in weights.modules.items() if name.partition(".")[0] in ("", *parts)},
    )


def _is_all(weights: ForeignWeights, prefix: str) -> bool:
    """Whether nothing but what lies under a prefix computes anything, as far as the file tells."""
    beside = {name.partition(".")[0] for name in weights.modules if name} - {prefix.removesuffix(".")}
    return all(_is_harmless(weights, part) for part in beside)


def _is_harmless(weights: ForeignWeights, part: str) -> bool:
    """Whether a module with all inside it is a loss or metric by its name, or changes nothing by its class."""
    inside = [module.path for name, module in weights.modules.items() if f"{name}.".startswith(f"{part}.")]
    return is_beside(part, leaf=False) or all(path.rpartition(".")[2].startswith(HARMLESS) for path in inside)


def _is_plain_head(weights: ForeignWeights, head: str) -> bool:
    """Whether a classifier in a sequence has nothing but dropout beside its one layer, as far as the file tells."""
    inside = [module.path.rpartition(".")[2] for name, module in weights.modules.items() if name.startswith(f"{head}.")]
    return all(kind == "Linear" or kind.startswith(HARMLESS) for kind in inside)


def _levels(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors, then without the prefix of all that are no losses and metrics, repeatedly; and that prefix."""
    prefix, current = "", dict(tensors)
    for _ in range(_MAX_LEVELS):
        yield prefix, current
        groups = _groups(current)
        rest = [part for part, group in groups.items() if not is_beside(part, leaf="" in group)]
        if len(rest) != 1 or "" in groups[rest[0]]:
            break
        prefix, current = f"{prefix}{rest[0]}.", groups[rest[0]]


def _core(tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The last of these levels."""
    return list(_levels(tensors))[-1]


def _part_of(core: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first of these levels with nothing but tensors of a network; empty if none is."""
    return next((level for _, level in _levels(tensors) if _is_part(level, core)), {})


def _rivals(groups: _Groups, parts: list[str]) -> list[str]:
    """The parts, if the same tensors lie under each of them."""
    cores = [_core(groups[part])[1] for part in parts]
    same = all(_has_all(core, cores[0]) and _is_part(core, cores[0]) for core in cores[1:])
    return parts if same and len(cores[0]) >= _FEW else []


def _is_part(tensors: Mapping[str, Tensor], of: Mapping[str, Tensor]) -> bool:
    """Whether all tensors are among others by name and shape."""
    return all(name in of and of[name].shape == tensor.shape for name, tensor in tensors.items())


def _has_all(tensors: Mapping[str, Tensor], of: Mapping[str, Tensor]) -> bool:
    """Whether all of `of`, but for counters of normalisations, are among tensors."""
    return _is_part({name: tensor for name, tensor in of.items() if not name.endswith(_COUNTER)}, tensors)


def likeness(weights: ForeignWeights) -> tuple[str, float]:
    """The most similar reference, and how similar it is, from 0 to 1."""
    return nearest_references({name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}, 1)[0]


def prefix_that_fits(weights: ForeignWeights) -> str:
    """The prefix under which most tensors lie, if they are more like an architecture without it; for a message."""
    prefixes: Counter[str] = Counter()
    for name in weights.tensors:
        parts = name.split(".")
        prefixes.update(".".join(parts[:count]) + "." for count in (1, 2, 3) if count < len(parts))
    best = ("", "", _SUGGESTED)
    for prefix, count in prefixes.most_common(12):
        if 4 * count < len(weights.tensors):
            break
        ref, similarity = likeness(weights.without_prefix(prefix))
        if similarity > best[2]:
            best = (prefix, ref, similarity)
    prefix, ref, similarity = best
    if not prefix:
        return ""
    others = [name for name in weights.tensors if not name.startswith(prefix)]
    without = f" leaves out {len(others)} others, first {printable(others[0])}" if others else ""
    return (
        f"; under {printable(prefix)} lie weights like {ref}'s ({similarity:.0%}): "
        f"--strip-prefix {quote(prefix)}{without}"
    )
