"""From the network of a run to files of another program: written, compared, timed, and only then in their place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint.io import file_sha256
from prunecli.engine.detectors.index import detector_of
from prunecli.errors import DataError, ModelError, RecipeError, VerificationError
from prunecli.exporting.agreement import TOLERANCE, Agreement, agreement
from prunecli.exporting.base import ExportOptions, ExportRequest, Format, RuntimeNetwork
from prunecli.exporting.index import FORMATS
from prunecli.exporting.safetensors_plain import widths_of
from prunecli.exporting.staging import RECORD, publish, record_path, staged
from prunecli.inputs import Inputs, call, explained, map_tensors, output_tensors, sample_count
from prunecli.measure.counts import parameter_count
from prunecli.measure.environment import describe_environment, library_versions
from prunecli.measure.latency import time_paired
from prunecli.models.precision import is_narrow
from prunecli.models.token_networks import remembers
from prunecli.pipeline.export_inputs import (
    batch_of,
    decides_by_numbers,
    preparation,
    samples_for,
    tensor_infos,
)
from prunecli.pipeline.export_int8 import quantised, require_data
from prunecli.pipeline.stages.eval import latency_figures
from prunecli.pipeline.workspace import Workspace
from prunecli.report.export import (
    EXPORT_SCHEMA,
    Checked,
    ExportRecord,
    Origin,
    RuntimeLatency,
    WrittenFile,
)

_LIBRARIES = ("onnx", "onnxruntime", "onnxscript", "openvino", "transformers", "safetensors")
_CHECKED = (1, 3)
"""Batches that an export is compared on, beside the one that it was traced with."""
_IMAGES, _TEXTS = 4, 2
"""Dimensions of inputs."""
_LARGER = 32
"""Pixels by which images are higher, and half of those by which they are wider, to try another size."""


def export_network(space: Workspace, options: ExportOptions) -> tuple[ExportRecord, list[Path]]:
    """Writes the network of a run as another program reads it.

    Args:
        space: The run.
        options: How.

    Returns:
        What was written and measured, and the files, or the folder.

    Raises:
        ModelError: The format cannot express the network.
        VerificationError: What was written computes something else; no file is left.
    """
    kind = FORMATS.load(options.format)
    loaded = space.model()
    network = loaded.model.cpu().eval()
    if options.int8:
        require_data(space)
    runs = bool(kind.label)
    _tell(space, network, graph=runs)
    samples = samples_for(space) if kind.described else []
    request = ExportRequest(
        loaded,
        batch_of(samples, options.batch or 2) if samples else (),
        options.batch,
        options.dynamic_size,
        _metadata(space, options) if runs else {},
        space.sink.note,
    )
    with staged(options.path) as folder:
        written = folder / options.path.name
        kind.write(request, written)
        record = _record(space, options, request)
        if runs:
            record = _measured(space, options, kind, written, samples, record)
        record = record.model_copy(update={"files": _files(written, folder)})
        if kind.described:
            described = written / RECORD if written.is_dir() else record_path(written)
            described.write_text(record.to_json(), encoding="utf-8")
        return record, publish(folder, options.path, options.force)


def _tell(space: Workspace, network: nn.Module, *, graph: bool) -> None:
    """What a user might not expect; files without a graph keep each tensor's precision."""
    if graph and is_narrow(network):
        space.sink.note(f"{space.model().name}: is in half precision; graphs are written in single precision")
    if remembers(network):
        space.sink.note(f"{space.model().name}: remembers what it has read; exported, every call begins without memory")
    if space.untrained():
        space.sink.warn(f"{space.model().name} has random weights")


def _measured(
    space: Workspace, options: ExportOptions, kind: Format, written: Path, samples: list[Any], record: ExportRecord
) -> ExportRecord:
    """The record with how right it is, and how fast."""
    network, name = space.model().model, space.model().name
    sizes = (options.batch, options.batch) if options.batch else _CHECKED
    batches = [batch_of(samples[::-1], sizes[0]), batch_of(samples, sizes[1])]
    own = _opened(kind, written, name)
    check = _compared(space, own, kind.label, batches)
    if options.dynamic_size:
        other = _other_size(space, own, samples)
        check = max((check, other), key=lambda found: found.relative)
    if not check.telling:
        space.sink.warn(
            f"{name}: its outputs do not depend on the inputs that were tried, so comparing them says little; name "
            "images with --data"
        )
    with torch.no_grad():
        outputs = output_tensors(call(network, batches[0]))
    update: dict[str, Any] = {
        "check": _checked(check),
        "inputs": tensor_infos(own.inputs, output_tensors(batches[0]), batches[0], options),
        "outputs": tensor_infos(own.outputs, outputs, batches[0], replace(options, dynamic_size=False)),
    }
    runtimes: list[tuple[str, nn.Module]] = [(kind.label, own)]
    if options.rounds:
        runtimes += _others(space, kind, written, batches)
    if options.int8:
        entry, run = quantised(space, options, written, batches, own)
        update["int8"] = entry
        runtimes.append(("ONNX Runtime, int8", run))
    if options.rounds:
        update["latency"] = _latencies(network, runtimes, batches[0], options.rounds)
    return record.model_copy(update=update)


def _opened(kind: Format, written: Path, name: str) -> RuntimeNetwork:
    with explained(f"{name}: {kind.label} does not open what was written", ModelError, "choose another format"):
        run = kind.opened(written)
    assert isinstance(run, RuntimeNetwork), "a format with a label has something that runs it"
    return run


def _compared(space: Workspace, run: nn.Module, label: str, batches: Sequence[Any]) -> Agreement:
    name = f"{space.model().name} in {label}"
    with explained(f"{name} does not run", ModelError, "choose another format, or fix the batch with --batch 1"):
        return agreement(space.model().model, run, batches, decides=decides_by_numbers(space), name=name)


def _others(space: Workspace, kind: Format, written: Path, batches: Sequence[Any]) -> Iterator[tuple[str, nn.Module]]:
    """Installed runtimes of other formats that open the file, too; one that cannot run it is left out with a word."""
    for each in kind.also:
        other = FORMATS.load(each)
        try:
            other.require()
        except ModelError:  # not installed, which matters only to who asks for it
            continue
        try:
            run = _opened(other, written, space.model().name)
            _compared(space, run, other.label, batches)
        except (ModelError, VerificationError) as error:
            space.sink.warn(f"{error}; {kind.label} runs it")
            continue
        yield other.label, run


def _other_size(space: Workspace, run: nn.Module, samples: list[Any]) -> Agreement:
    """Compares on inputs of another size: larger images of other proportions, texts of half the length."""

    def resized(tensor: Tensor) -> Tensor:
        if tensor.dim() == _IMAGES:
            height, width = tensor.shape[2:]
            return torch.nn.functional.interpolate(tensor, (height + _LARGER, width + 2 * _LARGER))
        return tensor[:, : max(1, tensor.shape[1] // 2)] if tensor.dim() == _TEXTS else tensor

    batch = map_tensors(batch_of(samples, 2), resized)
    shapes = " and ".join("x".join(map(str, tensor.shape)) for tensor in output_tensors(batch))
    name = f"{space.model().name} on inputs of {shapes}"
    with explained(f"{name} does not run", ModelError, "leave out --dynamic-size"):
        return agreement(space.model().model, run, [batch], decides=decides_by_numbers(space), name=name)


def _latencies(
    network: nn.Module, runtimes: Sequence[tuple[str, nn.Module]], inputs: Inputs, rounds: int
) -> tuple[RuntimeLatency, ...]:
    """PyTorch first; all of them on one batch, in turns."""
    timed = [network, *(run for _, run in runtimes)]
    timing = time_paired(timed, [inputs] * len(timed), rounds=rounds)
    labels = ["PyTorch", *(label for label, _ in runtimes)]
    size = {"batch_size": sample_count(inputs)}
    return tuple(
        RuntimeLatency(
            runtime=label, latency_ms=latency_figures(one).model_copy(update=size), ratio=ratio, ratio_interval=interval
        )
        for label, one, ratio, interval in zip(
            labels, timing.timings, timing.ratios, timing.ratio_intervals, strict=True
        )
    )


def _checked(found: Agreement) -> Checked:
    return Checked(
        batches=found.batches,
        largest=found.largest,
        relative=found.relative,
        tolerance=TOLERANCE,
        moved=found.moved,
        telling=found.telling,
    )


def _record(space: Workspace, options: ExportOptions, request: ExportRequest) -> ExportRecord:
    loaded = space.model()
    architecture = loaded.manifest.architecture
    learned = loaded.manifest.vocabulary
    return ExportRecord(
        schema=EXPORT_SCHEMA,
        format=options.format,
        files=(),
        network=Origin(
            name=loaded.path.name if loaded.path else loaded.name,
            ref=architecture.ref,
            sha256=loaded.sha256,
            arguments=architecture.kwargs,
            params=parameter_count(loaded.model),
        ),
        preprocessing=preparation(space) if options.format != "package" else None,
        class_names=class_names(space) if options.format != "package" else None,
        vocabulary=learned.model_dump(mode="json") if learned is not None else None,
        widths=(widths_of(loaded.manifest) or None) if options.format in ("safetensors-plain", "hf") else None,
        environment={**describe_environment(), **library_versions(_LIBRARIES)},
        seed=space.recipe.seed,
        command=space.command,
    )


def _fitting(names: tuple[str, ...] | None, space: Workspace) -> tuple[str, ...] | None:
    """Names of classes, if an output has as many."""
    with torch.no_grad():
        shapes = [tensor.shape for tensor in output_tensors(call(space.model().model, space.inputs.example()))]
    fits = names is not None and any(len(names) in shape[1:] for shape in shapes)
    return names if fits or detector_of(space.model().model) is not None else None


def class_names(space: Workspace) -> tuple[str, ...] | None:
    """Names of the classes in the order of the network's outputs: the data set's, else its configuration's."""
    loaded = space.model()
    config = loaded.manifest.architecture.config
    own = config.get("names") or (config.get("config") or {}).get("id2label")  # type: ignore[union-attr]
    if isinstance(own, dict):
        own = [own[key] for key in sorted(own, key=int)]
    try:
        data = space.data() if space.data_name() is not None else None
    except (DataError, RecipeError) as error:
        space.sink.note(f"no class names: {error}")
        data = None
    if data is not None and data.task in ("classification", "segmentation", "detection", "token-classification"):
        return _fitting(tuple(space.inputs.labels().class_names), space)
    return _fitting(tuple(map(str, own)), space) if isinstance(own, list) else None


def _metadata(space: Workspace, options: ExportOptions) -> dict[str, str]:
    """What the file itself says, so that it is not lost with the JSON beside it."""
    loaded, prepared, names = space.model(), preparation(space), class_names(space)
    said = {
        "architecture": loaded.manifest.architecture.ref,
        "checkpoint_sha256": loaded.sha256 or "",
        "command": space.command,
        "preprocessing": prepared.model_dump_json() if prepared is not None else "",
        "class_names": json.dumps(names) if names is not None else "",
    }
    return {key: value for key, value in said.items() if value}


def _files(written: Path, folder: Path) -> tuple[WrittenFile, ...]:
    files = sorted(path for path in (written if written.is_dir() else folder).iterdir() if path.is_file())
    return tuple(WrittenFile(name=path.name, bytes=path.stat().st_size, sha256=file_sha256(path)) for path in files)
