"""Networks whose large weights stay on the disk."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from prunecli.stored import Scratch
from prunecli.surgery.removal.derived import refer_to_new
from prunecli.widened import WORTH_STORING, can_be_widened, is_on_disk, moved_to_disk, on_disk, plain

_MAPS = Path("/proc/self/smaps")


def put_on_disk(model: nn.Module, scratch: Scratch) -> None:
    """Puts the large parameters of a network that are in memory into a scratch file, one after the other, in place.

    Args:
        model: The network.
        scratch: The file.
    """
    _replace(model, lambda tensor: moved_to_disk(tensor, scratch))


def put_in_memory(model: nn.Module) -> None:
    """Reads all parameters of a network that lie on the disk, in place."""
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and is_on_disk(parameter):
                if id(parameter) not in made:
                    own = nn.Parameter(plain(parameter.detach()), requires_grad=parameter.requires_grad)
                    made[id(parameter)] = (parameter, own)
                module._parameters[name] = made[id(parameter)][1]  # type: ignore[assignment]
    refer_to_new(model, made)


def leave_in_files(model: nn.Module, scratch: Scratch) -> None:
    """Replaces parameters that a library has mapped from files by ones that are read from them when they are needed.

    A mapping stays as long as the network, with all that was read. Where a parameter lies is asked of the system, not
    of names: libraries rename, join and convert tensors. One that is in memory goes to the scratch file.

    Args:
        model: The network, changed in place.
        scratch: Where tensors go that are computed.
    """
    mappings = list(_mapped_files())
    starts = [mapping.start for mapping in mappings]
    files: dict[str, BinaryIO] = {}

    def left(tensor: Tensor) -> Tensor:
        at = bisect.bisect_right(starts, tensor.data_ptr()) - 1
        mapping = mappings[at] if at >= 0 else None
        end = tensor.data_ptr() + tensor.numel() * tensor.element_size()
        if mapping is None or not tensor.is_contiguous() or end > mapping.end:
            return moved_to_disk(tensor, scratch)
        file = files.setdefault(mapping.path, Path(mapping.path).open("rb"))
        if os.fstat(file.fileno()).st_ino != mapping.inode:  # another file has taken its name
            return moved_to_disk(tensor, scratch)
        begin = tensor.data_ptr() - mapping.start + mapping.offset
        return on_disk(tensor, scratch.in_file(file, begin, tensor.dtype, tuple(tensor.shape)))

    _replace(model, left)


@contextmanager
def tied_again(model: nn.Module) -> Iterator[None]:
    """Ties parameters again that were tied before, since loading with `assign=True` gives each name one of its own."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    yield
    for first, *others in names.values():
        for other in others:
            module, _, leaf = other.rpartition(".")
            model.get_submodule(module)._parameters[leaf] = model.get_parameter(first)


def is_offloaded(model: nn.Module) -> bool:
    """Whether parameters of a network lie on the disk."""
    return any(map(is_on_disk, model.parameters()))


@dataclass(frozen=True)
class _Mapping:
    """Memory that shows a part of a file, unchanged.

    Attributes:
        start: Its first address.
        end: The first address behind it.
        offset: Where in the file it begins.
        inode: Number of the file.
        path: Its name.
    """

    start: int
    end: int
    offset: int
    inode: int
    path: str


def _mapped_files() -> Iterator[_Mapping]:
    """Mappings of safetensors in this process of which no page has been written to, by address; none off Linux."""
    try:
        lines = _MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    mapping: _Mapping | None = None
    for line in lines:
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):
            start, _, end = words[0].partition("-")
            named = len(words) > 5 and words[5].endswith(".safetensors")
            place = int(start, 16), int(end, 16), int(words[2], 16), int(words[4])
            mapping = _Mapping(*place, words[5]) if named else None
        elif words[0] == "Anonymous:" and mapping is not None and words[1] == "0":
            yield mapping


def _replace(model: nn.Module, instead: Callable[[nn.Parameter], Tensor]) -> None:
    made: dict[int, tuple[Tensor, Tensor]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or is_on_disk(parameter):
                continue
            if id(parameter) not in made:
                worth = parameter.numel() >= WORTH_STORING and can_be_widened(parameter, torch.float64)
                if not worth:
                    continue
                made[id(parameter)] = (parameter, instead(parameter))
            module._parameters[name] = made[id(parameter)][1]  # type: ignore[assignment]
    refer_to_new(model, made)
