"""Which of the sets of weights in a file is the network: the state dicts and modules in nested dictionaries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from torch import Tensor

from prunecli.checkpoint.archive import Damaged
from prunecli.checkpoint.beside import is_average, is_beside
from prunecli.checkpoint.inert import (
    Inert,
    Plain,
    StoredModule,
    is_module,
    modules_of,
    plain_trees,
    plain_values,
    state_dict_of,
    unwrapped,
)
from prunecli.checkpoint.kinds import refusal
from prunecli.checkpoint.nameless import nameless_lists, with_names_of
from prunecli.checkpoint.records import printable
from prunecli.errors import ModelError, unknown

_AVERAGED = (
    *("model_ema", "state_dict_ema", "ema_state_dict", "params_ema", "ema_model", "ema"),
    *("averaged_model", "swa_model", "swa_state_dict"),
)
"""Names of exponential and other averages over the steps of training."""
_NETWORK = ("state_dict", "model_state_dict", "model", "module", "net", "network", "params", "weights")
_NO_NETWORK = ("optim", "sched", "lr_", "scaler", "loss_scaler", "amp", "rng", "random", "criterion", "loops")
"""Beginnings of the names of what else programs save."""
_CALLBACKS = "callbacks"
"""What takes part in training may keep an average there, and nothing else that is a network."""
_RAW_BESIDE_AVERAGE = "current_model_state"
"""Lightning's averaging callbacks save the average as `state_dict`, and beside it the network that was trained."""
_SETTINGS = ("args", "config", "cfg", "opt", "hparams", "hyper_parameters", "train_args")
_MAX_WRAPPERS = 8
_SHOWN = 6


@dataclass(frozen=True)
class WeightSet:
    """One set of weights.

    Attributes:
        tensors: The state dict.
        key: Its keys in the file, joined by dots; empty if the file is nothing else.
        class_path: Class of the module that was pickled as a whole; None for a state dict.
        modules: Class and settings of its modules by name, then.
        attributes: What the module itself holds in numbers and words, then.
        aside: Keys of other sets in the file.
        access: What follows `torch.load(...)` in Python to get the module, then.
    """

    tensors: dict[str, Tensor]
    key: str = ""
    class_path: str | None = None
    modules: Mapping[str, StoredModule] | None = None
    attributes: Mapping[str, Any] | None = None
    aside: tuple[str, ...] = ()
    access: str = ""


def choose_weights(content: Any, path: Path, key: str | None) -> tuple[WeightSet, tuple[str, ...]]:
    """Finds the network's weights; of several sets a complete average is preferred, then what is called a network.

    Args:
        content: What the file holds.
        path: The file, for messages.
        key: Keys joined by dots, if the user chose a set.

    Returns:
        The set, and what to tell about others.

    Raises:
        ModelError: There are none, or it is not clear which.
    """
    sets = {one.key: one for one in _sets(content, path, "")}
    nameless = nameless_lists(content, (*_NO_NETWORK, _CALLBACKS, *_SETTINGS)) if not is_module(content) else {}
    if key is not None:
        if key not in sets and key in nameless:
            return _named(nameless[key], key, sets, path)
        chosen, notes = _completed(_by_key(sets, key, path, nameless), sets, path)
        return replace(chosen, aside=tuple(name for name in sets if name != chosen.key)), notes
    if not sets:
        raise _nothing(content, path, nameless)
    empty = [name for name, one in sets.items() if not one.tensors]
    full = {name: one for name, one in sets.items() if one.tensors}
    if not full:
        module = next((one for one in sets.values() if one.class_path), None)
        what = f"a {printable(module.class_path or '')} without any tensors" if module else "no tensors"
        raise ModelError(f"{path}: holds {what}; expected a state dict or a dictionary with one inside")
    notes = tuple(f"{name!r} in {path.name} is empty and was left aside" for name in empty)
    averaged = _averages(full)
    plain = {name: one for name, one in full.items() if name not in averaged}
    named = {name: one for name, one in plain.items() if not name or _last(name) in _NETWORK}
    whole = max((len(_bare(one.tensors)) for one in plain.values()), default=0)
    complete = {name: one for name, one in averaged.items() if len(_bare(one.tensors)) >= whole}
    for name in averaged:
        if name not in complete:
            has = f"has {len(averaged[name].tensors)} of {whole} tensors"
            notes += (f"{name!r} in {path.name} {has} and was left aside; --weights-key {quote(name)}",)
    nameless = {key: listed for key, listed in nameless.items() if _is_average(key) or _fits_one(listed, full)}
    notes += _notes_on(nameless, path)
    candidates = complete or named or plain or averaged
    if len(candidates) > 1 and (complete or named):
        candidates = {name: candidates[name] for name in sorted(candidates, key=_rank)[:1]}
    if len(candidates) > 1:
        shown = ", ".join(f"{name} ({len(one.tensors)} tensors)" for name, one in list(candidates.items())[:_SHOWN])
        first = quote(next(iter(candidates)))
        raise ModelError(
            f"{path}: holds several sets of weights: {shown}; choose with --weights-key, for instance {first}"
        )
    name, chosen = next(iter(candidates.items()))
    others = [other for other in full if other != name]
    if others:
        kind = "an average, " if name in averaged else ""
        more = f"; {', '.join(others[:_SHOWN])}: --weights-key {quote(others[0])}"
        notes = (f"took the weights under {name!r} of {path.name} ({kind}{len(chosen.tensors)} tensors){more}", *notes)
    return replace(chosen, aside=(*others, *nameless)), notes


def _averages(sets: Mapping[str, WeightSet]) -> dict[str, WeightSet]:
    raw = [name for name in sets if _last(name) == _RAW_BESIDE_AVERAGE]
    beside = {name.removesuffix(_RAW_BESIDE_AVERAGE) + "state_dict" for name in raw}
    return {name: one for name, one in sets.items() if _is_average(name) or name in beside}


def _notes_on(nameless: Mapping[str, list[Tensor]], path: Path) -> tuple[str, ...]:
    return tuple(
        f"{name!r} in {path.name} has {len(listed)} tensors without names and was left aside; to take them for the "
        f"parameters, in order: --weights-key {quote(name)}"
        for name, listed in nameless.items()
    )


def settings_in(content: Any) -> dict[str, Plain]:
    """Numbers and words that a file says about its network, at its top and under names such as `args`."""
    if not isinstance(content, Mapping):
        return {}
    settings: dict[str, Plain] = {}
    for name in _SETTINGS:
        value = content.get(name)
        state = value.state if isinstance(value, Inert) else value
        if isinstance(state, Mapping):
            for inner in state.values():
                settings |= plain_values(inner) if isinstance(inner, Mapping) else {}
            settings |= plain_values(state)
    return settings | plain_values(content)


def _sets(content: Any, path: Path, key: str, depth: int = 0) -> Iterator[WeightSet]:
    """All sets of weights in a dictionary, those of optimizers excepted."""
    if depth > _MAX_WRAPPERS:
        raise refusal(path, "wraps its weights over and over", "save `model.state_dict()` and give that file")
    if is_module(content):
        yield _from_module(content, path, key)
        return
    if not isinstance(content, Mapping):
        return
    tensors = {str(name): value.detach() for name, value in content.items() if isinstance(value, Tensor)}
    below = [(str(name), value) for name, value in content.items() if _may_hold_weights(str(name), value)]
    inner = [
        one
        for name, value in below
        for one in _sets(value, path, f"{key}.{name}" if key else name, depth + 1)
        if not name.startswith(_CALLBACKS) or _is_average(one.key)
    ]
    if tensors and len(tensors) >= max((len(one.tensors) for one in inner), default=0):
        yield WeightSet(tensors, key)
        return
    elif not content and key:
        yield WeightSet({}, key)
    yield from inner


def _may_hold_weights(name: str, value: Any) -> bool:
    if name.lower().startswith(_NO_NETWORK) or name in _SETTINGS:
        return False
    return isinstance(value, Mapping) or is_module(value)


def _from_module(module: Inert, path: Path, key: str) -> WeightSet:
    inner, attributes = unwrapped(module)
    access = "".join(f"[{json.dumps(part)}]" for part in key.split(".") if part) + attributes
    try:
        tensors = {name: tensor.detach() for name, tensor in state_dict_of(inner).items()}
        return WeightSet(tensors, key, inner.path, modules_of(inner), plain_trees(inner.state), access=access)
    except Damaged as error:
        raise refusal(path, error.cause, error.remedy) from error


def _by_key(sets: Mapping[str, WeightSet], key: str, path: Path, nameless: Iterable[str]) -> WeightSet:
    below = [one for name, one in sets.items() if name == key or name.startswith(f"{key}.")]
    if not below:
        raise ModelError(f"{path}: {unknown('key of weights', key, [*filter(None, sets), *nameless])}")
    return min(below, key=lambda one: _rank(one.key))


def _completed(chosen: WeightSet, sets: Mapping[str, WeightSet], path: Path) -> tuple[WeightSet, tuple[str, ...]]:
    """An average of the parameters alone, with the other tensors of the network it is an average of."""
    if not chosen.tensors:
        raise ModelError(f"{path}: {chosen.key!r} is empty; leave --weights-key out, or name another key")
    others = [
        one
        for one in sets.values()
        if chosen.tensors.keys() < one.tensors.keys()
        and all(one.tensors[name].shape == tensor.shape for name, tensor in chosen.tensors.items())
    ]
    if not others or not _is_average(chosen.key):
        return chosen, ()
    rest = min(others, key=lambda one: _rank(one.key))
    count = len(rest.tensors) - len(chosen.tensors)
    filled = replace(chosen, tensors=rest.tensors | chosen.tensors)
    return filled, (f"{count} tensors that {chosen.key!r} of {path.name} does not have are those of {rest.key!r}",)


def _rank(key: str) -> tuple[int, int, str]:
    known = (*_AVERAGED, *_NETWORK)
    last = _last(key)
    return key.count("."), known.index(last) if last in known else len(known), key


def _is_average(key: str) -> bool:
    return any(is_average(part) for part in key.split("."))


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _bare(tensors: Mapping[str, Tensor]) -> set[str]:
    """Names without what wrappers add, and without those of losses and metrics."""
    names = {name.removeprefix("module.") for name in tensors if name != "n_averaged"}
    return {name for name in names if not is_beside(name.partition(".")[0], leaf="." not in name)}


def _fits_one(tensors: list[Tensor], sets: Mapping[str, WeightSet]) -> bool:
    return any(with_names_of(tensors, one.tensors) is not None for one in sets.values())


def _named(
    tensors: list[Tensor], key: str, sets: Mapping[str, WeightSet], path: Path
) -> tuple[WeightSet, tuple[str, ...]]:
    """An average of the parameters without names, with those of the network it is an average of.

    Raises:
        ModelError: There is no such network in the file.
    """
    for one in sorted(sets.values(), key=lambda one: _rank(one.key)):
        state = with_names_of(tensors, one.tensors)
        if state is not None:
            taken = f"took the {len(tensors)} tensors under {key!r} of {path.name}"
            note = f"{taken} for the parameters of {one.key or 'the network'!r}, in order"
            return replace(one, tensors=state, key=key, aside=tuple(sets)), (note,)
    raise ModelError(
        f"{path}: {key!r} has {len(tensors)} tensors without names, whose shapes are not those of the parameters of "
        f"another set in the file; {_COPY_AVERAGE}"
    )


_COPY_AVERAGE = "copy them into the network in Python (torch_ema: copy_to) and save its state_dict() with torch.save"


def _nothing(content: Any, path: Path, nameless: Mapping[str, list[Tensor]]) -> ModelError:
    if nameless:
        key, tensors = next(iter(nameless.items()))
        return ModelError(f"{path}: {key or 'the list'!r} has {len(tensors)} tensors without names; {_COPY_AVERAGE}")
    if isinstance(content, Mapping):
        keys = ", ".join(printable(str(name)) for name in list(content)[:_SHOWN])
        inside = f" (its keys: {keys})" if keys else ""
        return ModelError(f"{path}: holds no tensors{inside}; expected a state dict or a dictionary with one inside")
    kind = printable(content.path) if isinstance(content, Inert) else type(content).__name__
    held = content.state if isinstance(content, Inert) and isinstance(content.state, dict) else {}
    inside = next((f"its {name}: `x.{name}" for name, value in held.items() if is_module(value)), "`model")
    return ModelError(
        f"{path}: holds a {kind}, not a state dict of named tensors; save {inside}.state_dict()` and give that file"
    )
