"""Inputs that an export is traced, compared and described with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from prunecli.errors import DataError, RecipeError
from prunecli.exporting.base import ExportOptions
from prunecli.exporting.graph import BATCH
from prunecli.inputs import Inputs, map_tensors, output_tensors, repeat_sample, sample_count, take_samples
from prunecli.measure.neurons import spiking_neurons
from prunecli.pipeline.workspace import Workspace
from prunecli.report.export import Preparation, TensorInfo
from prunecli.surgery.proof.trial_inputs import drawn_samples, reversed_tokens

_DRAWN, _REAL = 3, 2
"""Random inputs, and samples of the data set, in every comparison."""


def samples_for(space: Workspace) -> list[Any]:
    """Different inputs of one sample each: random ones, those of the data set, and texts with other padding."""
    samples = [*_real(space)]
    for seed in range(_DRAWN):
        with _seeded(space, space.recipe.seed + seed):
            samples.append(take_samples(space.inputs.example(), 0, 1))
    if _equal(samples[-1], samples[-2]):  # inputs that the user gave
        samples[-1] = drawn_samples(samples[-1], 1)
        samples[-2] = reversed_tokens(samples[-2]) or samples[-2]
    return [_without_padding(sample) if index == len(samples) - 1 else sample for index, sample in enumerate(samples)]


def batch_of(samples: Sequence[Any], count: int) -> Any:
    """The first samples, as one batch; from the beginning again where there are too few."""
    chosen = [samples[index % len(samples)] for index in range(count)]
    parts = [output_tensors(sample) for sample in chosen]
    if isinstance(chosen[0], list):
        return [image for sample in chosen for image in sample]
    whole = repeat_sample(chosen[0], count)
    joined = iter(
        [
            torch.cat(tensors) if _is_sample(tensors[0], chosen[0]) else tensors[0]
            for tensors in zip(*parts, strict=True)
        ]
    )
    return map_tensors(whole, lambda tensor: next(joined))


def tensor_infos(
    names: Sequence[str], tensors: Sequence[Tensor], inputs: Inputs, options: ExportOptions
) -> tuple[TensorInfo, ...]:
    """Descriptions of tensors; dimensions that may differ have names."""
    count = sample_count(inputs)
    infos = []
    for name, tensor in zip(names, tensors, strict=True):
        shape: list[int | str] = list(tensor.shape)
        if options.batch is None and tensor.dim() > 0 and shape[0] == count:
            shape[0] = BATCH
        if options.dynamic_size and tensor.dim() == 4:
            shape[2:] = ["height", "width"]
        if options.dynamic_size and tensor.dim() == 2:
            shape[1] = "length"
        infos.append(TensorInfo(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(shape)))
    return tuple(infos)


def preparation(space: Workspace) -> Preparation | None:
    """How images become inputs; None for networks that take something else."""
    prepared = space.inputs.preprocessing() if space.inputs.noun == "images" else None
    if prepared is None or not prepared.mean:
        return None
    return Preparation(
        channels=prepared.size[0],
        size=(prepared.size[1], prepared.size[2]),
        interpolation=prepared.interpolation,
        crop_pct=prepared.crop_pct,
        crop_mode=prepared.crop_mode,
        mean=prepared.mean,
        std=prepared.std,
        frames=asdict(prepared.frames) if prepared.frames is not None else None,
    )


def decides_by_numbers(space: Workspace) -> bool:
    """Whether the current network spikes, or chooses tokens: rounding may then change a sample as a whole."""
    loaded = space.model()
    chooses = loaded.manifest.tokens is not None or loaded.manifest.runtime is not None
    return chooses or bool(spiking_neurons(loaded.model))


def _real(space: Workspace) -> list[Any]:
    """Samples of the data set; none where there is no data set at hand."""
    try:
        if space.data_name() is None:
            return []
        space.inputs.check()
        batch = next(iter(space.inputs.calibration(space.data().test, _REAL, _REAL)))
    except (DataError, RecipeError):
        return []
    return [take_samples(batch, index, index + 1) for index in range(sample_count(batch))]


@contextmanager
def _seeded(space: Workspace, seed: int) -> Iterator[None]:
    """The run with another seed."""
    recipe = space.recipe
    space.recipe = replace(recipe, seed=seed)
    try:
        yield
    finally:
        space.recipe = recipe


def _is_sample(tensor: Tensor, sample: Inputs) -> bool:
    return tensor.dim() > 0 and len(tensor) == sample_count(sample)


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(output_tensors(one), output_tensors(other), strict=True)
    return all(first.shape == second.shape and torch.equal(first, second) for first, second in pairs)


def _without_padding(sample: Any) -> Any:
    """A text that fills its length: what heeds its mask has to notice."""
    if not isinstance(sample, Mapping) or "attention_mask" not in sample:
        return sample
    return {**sample, "attention_mask": torch.ones_like(sample["attention_mask"])}
