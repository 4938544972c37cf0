"""Scores that were computed before: runs that differ in how much they remove rank the same network once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from prunecli.checkpoint.durable import write_atomically
from prunecli.criteria.base import Calibration, Criterion
from prunecli.inputs import map_tensors
from prunecli.surgery.groups import ChannelGroup

_GENERATOR = "<generator>"
"""What the state of the generator after scoring is called beside the scores."""


class ScoreMemory:
    """Scores in a folder, by everything that they depend on.

    That is what the caller knows about data, seed and machine, the network's tensors, the groups, the state of the
    generator, and those parameters of the method that its criterion has read: which these are is watched, so that a
    criterion that looks at the ratio is asked again at the next one.

    Args:
        folder: Where they are kept; several processes may use it at once.
        about: Everything that decides what calibration batches and their loss are, and how they are computed with.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self._folder = folder
        self._about = json.dumps(about, sort_keys=True, default=str)

    def remembering(self, method: str, criterion: Criterion) -> Criterion:
        """A criterion that looks here first.

        Args:
            method: What scores are those of.
            criterion: What computes them.
        """

        def scores(
            model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration
        ) -> dict[str, Tensor | str]:
            base = self._base(method, model, groups, calibration)
            known = self._known(base, calibration)
            if known is not None:
                return known
            options = _Watched(calibration.options)
            found = criterion(model, groups, replace(calibration, options=options))
            self._keep(base, found, {name: calibration.options[name] for name in sorted(options.read)}, calibration)
            return found

        return scores

    def _base(self, method: str, model: nn.Module, groups: Sequence[ChannelGroup], calibration: Calibration) -> str:
        """A hash of all that is known before anything is computed."""
        digest = hashlib.sha256(self._about.encode())
        described = [[group.name, group.units, group.channels] for group in groups]
        digest.update(json.dumps([method, calibration.batches is None, described]).encode())
        digest.update(calibration.generator.get_state().numpy().tobytes())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            if isinstance(tensor, Tensor):
                _update(digest, tensor)
            else:  # what a module keeps besides tensors
                digest.update(repr(tensor).encode())
        map_tensors(calibration.example_inputs, lambda tensor: _update(digest, tensor))
        return digest.hexdigest()[:32]

    def _known(self, base: str, calibration: Calibration) -> dict[str, Tensor | str] | None:
        for path in sorted(self._folder.glob(f"{base}-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    noted = json.loads(file.metadata()["noted"])
                    if any(_plain(calibration.options.get(name)) != value for name, value in noted["options"].items()):
                        continue
                    tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
            except (OSError, SafetensorError, ValueError, KeyError, TypeError):  # it is computed again
                continue
            calibration.generator.set_state(tensors.pop(_GENERATOR))
            calibration.found.update(noted["found"])
            return {name: noted["reasons"].get(name) or tensors[name] for name in noted["order"]}
        return None

    def _keep(
        self,
        base: str,
        found: Mapping[str, Tensor | str],
        options: Mapping[str, Any],
        calibration: Calibration,
    ) -> None:
        noted = {
            "options": _plain(options),
            "found": _plain(calibration.found),
            "order": list(found),
            "reasons": {name: value for name, value in found.items() if isinstance(value, str)},
        }
        tensors = {name: value.detach().contiguous() for name, value in found.items() if isinstance(value, Tensor)}
        if any(tensor.device.type != "cpu" for tensor in tensors.values()):  # what is read would lie elsewhere
            return
        tensors[_GENERATOR] = calibration.generator.get_state()
        digest = hashlib.sha256(json.dumps(noted["options"], sort_keys=True).encode()).hexdigest()[:8]
        path = self._folder / f"{base}-{digest}.safetensors"
        write_atomically(path, lambda temporary: save_file(tensors, temporary, {"noted": json.dumps(noted)}))


class _Watched(Mapping[str, Any]):
    """Parameters that know which of them were looked at."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        if name in self._values:
            self.read.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        self.read.update(self._values)
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def _update(digest: Any, tensor: Tensor) -> Tensor:
    flat = tensor.detach().cpu().contiguous()
    digest.update(f"{flat.dtype}{tuple(flat.shape)}".encode())
    digest.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return tensor


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))
