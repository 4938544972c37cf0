"""What is known about a network without evaluating it: layers, widths, sparsity, manifest, history."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.io import TensorState, verify_checkpoint
from prunecli.checkpoint.records import printable
from prunecli.errors import ModelError
from prunecli.inputs import Inputs
from prunecli.measure.counts import Macs, count_macs, module_macs, nonzero_count, parameter_count
from prunecli.measure.energy import FORMULA
from prunecli.models.catalog import rebuild_dense
from prunecli.models.loading import LoadedModel
from prunecli.models.precision import stored_as
from prunecli.pipeline.activity import Firing
from prunecli.pipeline.workspace import Workspace
from prunecli.report.inspection_tables import (
    disagreement_note,
    firing_tables,
    history_tables,
    layer_tables,
    module_table,
    network_table,
    verification_table,
)
from prunecli.report.table import Table
from prunecli.studies.methods_used import method_of
from prunecli.studies.module_macs import TOLERANCE, ModuleMacs, disagreements, macs_by_module
from prunecli.surgery.blocks.taking_out import take_out
from prunecli.surgery.recurrent.forms import forms_of, put_in_form

_NAMED = 8


@dataclass(frozen=True)
class LayerInfo:
    """One layer that holds parameters of its own.

    Attributes:
        name: Dotted name.
        kind: Class name.
        shape: Shape of its weight.
        dense_shape: The same in the dense architecture.
        params: Its parameters.
        zeros: How many of them are exactly zero.
        macs: Multiply-accumulates for one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dense_shape: tuple[int, ...]
    params: int
    zeros: int
    macs: int


@dataclass(frozen=True)
class Inspection:
    """A network as it is inspected.

    Attributes:
        loaded: The network with its manifest.
        input_shape: Channels, height and width of one image.
        layers: Every layer with parameters.
        macs: Multiply-accumulates of one image.
        time_steps: Time steps of a spiking network.
        modules: MACs by module; None unless requested.
    """

    loaded: LoadedModel
    input_shape: tuple[int, ...]
    layers: tuple[LayerInfo, ...]
    macs: Macs
    time_steps: int | None
    modules: tuple[ModuleMacs, ...] | None = None

    def document(self, firing: Firing | None) -> dict[str, Any]:
        """Returns everything as one JSON document.

        Args:
            firing: Firing rates, where they were measured.
        """
        loaded = self.loaded
        document = {
            "model": loaded.manifest.architecture.model_dump(mode="json"),
            "path": str(loaded.path) if loaded.path else None,
            "sha256": loaded.sha256,
            "input_shape": list(self.input_shape),
            "layers": [vars(layer) for layer in self.layers],
            "firing": _firing_document(firing),
            "manifest": loaded.manifest.model_dump(mode="json", by_alias=True),
        }
        if self.modules is not None:
            document["modules"] = [module.to_dict() for module in self.modules]
        return document

    def tables(self, *, everything: bool) -> list[Table]:
        """Returns the tables for people.

        Args:
            everything: Whether all layers are listed, or only those that changed.
        """
        manifest = self.loaded.manifest
        ref, sha256 = manifest.architecture.ref, self.loaded.sha256
        nonzero = None
        if manifest.masks is not None and manifest.masks.weights:
            nonzero = nonzero_count(self.loaded.model), parameter_count(self.loaded.model)
        used = manifest.tokenizer
        tokenizer = (used.tokens, used.size) if used is not None else None
        stored = stored_as(self.loaded.model)
        figures = (self.layers, self.macs, self.time_steps, sha256, nonzero, tokenizer, stored)
        tables = [network_table(ref, self.input_shape, *figures)]
        methods = [method_of(step) for step in manifest.history]
        tables += history_tables(manifest.history, methods)
        tables += layer_tables(self.layers, everything=everything)
        if self.modules is not None:
            tables.append(module_table(self.modules))
        return tables

    def note(self) -> str | None:
        """Returns one line on how fvcore's MACs compare with ours; None unless modules were requested."""
        return None if self.modules is None else disagreement_note(disagreements(self.modules), TOLERANCE)


def inspect_network(space: Workspace, module_depth: int | None = None) -> Inspection:
    """Looks at the network of a workspace.

    Args:
        space: The network and its inputs.
        module_depth: How deep MACs by module go; None leaves them out.

    Raises:
        ModelError: The network does not run on its example, or fvcore cannot trace it.
    """
    loaded, example = space.model(), space.inputs.example()
    with space.inputs.running():
        layers = _layers_of(loaded, example)
    modules = None if module_depth is None else tuple(macs_by_module(loaded.model, example, module_depth))
    counted = count_macs(loaded.model, example)
    return Inspection(loaded, space.inputs.shape(), tuple(layers), counted, space.activity.time_steps, modules)


def tables_of_firing(firing: Firing, *, everything: bool) -> list[Table]:
    """Tables of firing rates and energy.

    Args:
        firing: The rates.
        everything: Whether all silent and saturated channels are listed.
    """
    return firing_tables(firing.neurons, firing.metrics, FORMULA, everything=everything)


def _layers_of(loaded: LoadedModel, example: Inputs) -> list[LayerInfo]:
    """Every layer with parameters, in the order of the model."""
    original = rebuild_dense(loaded.manifest.architecture)
    take_out(original, loaded.manifest.blocks)
    put_in_form(original, forms_of(loaded.model))
    dense = dict(original.named_modules())
    macs = module_macs(loaded.model, example)
    layers = []
    for name, module in loaded.model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if not parameters:
            continue
        layers.append(
            LayerInfo(
                name=name,
                kind=type(module).__name__,
                shape=_main_shape(module),
                dense_shape=_main_shape(dense[name]),
                params=sum(parameter.numel() for parameter in parameters),
                zeros=sum(int((parameter.detach() == 0).sum()) for parameter in parameters),
                macs=macs.get(name, 0),
            )
        )
    return layers


@dataclass(frozen=True)
class Verified:
    """Whether a checkpoint still has the bytes that were written.

    Attributes:
        tensors: Every tensor, and whether it is intact.
        sealed: Whether the header has a hash (early versions wrote none); if it has, the hash is right.
        problem: What is wrong, in one line; None if nothing is.
    """

    tensors: tuple[TensorState, ...]
    sealed: bool
    problem: str | None

    def document(self) -> dict[str, Any]:
        """Returns everything as one JSON document, without the path."""
        return {
            "header": "ok" if self.sealed else "without a hash",
            "tensors": [vars(tensor) for tensor in self.tensors],
            "error": self.problem,
        }

    def table(self) -> Table:
        """Returns every tensor with its state."""
        return verification_table(self.tensors)


def verify_file(path: Path) -> Verified:
    """Compares every tensor of a checkpoint, and its header, with the recorded hashes.

    Raises:
        ModelError: The file is missing or is not a checkpoint of prune, or its header is damaged.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; give a checkpoint that prune wrote")
    manifest, tensors = verify_checkpoint(path)
    damaged = [tensor.name for tensor in tensors if not tensor.intact]
    problem = None
    if damaged:
        named = ", ".join(map(printable, damaged[:_NAMED]))
        more = f" and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        problem = f"{path}: damaged: {named}{more} ({len(damaged)} of {len(tensors)} tensors); get the file again"
    return Verified(tuple(tensors), bool(manifest.sha256), problem)


def _main_shape(module: nn.Module) -> tuple[int, ...]:
    weight = getattr(module, "weight", None)
    tensor = weight if isinstance(weight, torch.Tensor) else next(module.parameters(recurse=False))
    return tuple(tensor.shape)


def _firing_document(firing: Firing | None) -> dict[str, Any] | None:
    if firing is None:
        return None
    return {
        **vars(firing),
        "neurons": [neuron.model_dump(mode="json") for neuron in firing.neurons],
        "metrics": firing.metrics.model_dump(mode="json", exclude_none=True),
    }
