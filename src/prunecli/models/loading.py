"""Loading networks from references, checkpoints of ours and other people's weights, and saving them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunecli.checkpoint import WEIGHT_SUFFIXES
from prunecli.checkpoint.extra_state import apply_extra_states, extra_states
from prunecli.checkpoint.finite import check_finite
from prunecli.checkpoint.foreign_files import Chosen, joined, read_foreign
from prunecli.checkpoint.io import file_sha256, read_checkpoint, read_manifest, write_checkpoint
from prunecli.checkpoint.manifest import Architecture, Manifest
from prunecli.checkpoint.masks import masks_of, packed, unpacked
from prunecli.checkpoint.tokenizers import with_tokenizer, without_tokenizer
from prunecli.copying import copied
from prunecli.errors import ModelError
from prunecli.methods.runtime import apply_recorded
from prunecli.models.catalog import build, input_spec, open_network, rebuild_dense, split_reference, takes
from prunecli.models.dialects.dialect import ForeignRequest
from prunecli.models.foreign import rebuild_foreign
from prunecli.models.index import what_was_meant
from prunecli.models.offloading import put_on_disk
from prunecli.models.precision import in_memory, in_precision, note_precision
from prunecli.models.recognition import recorded
from prunecli.models.source import DataTokens, Opened, OpenRequest
from prunecli.sparsity.spike_masks import install
from prunecli.stored import Scratch
from prunecli.surgery.blocks.taking_out import take_out
from prunecli.surgery.recurrent.forms import forms_of, put_in_form
from prunecli.surgery.removal.rebuild import apply_attributes, assign_tensors, attribute_differences

_IMAGE_DIMENSIONS = 3
_RUN_TIME_SETTINGS = ("T", "coding")
ANY_SIZE = (32, 32)
"""Image size of architectures that accept any, if neither data nor manifest have one."""


@dataclass
class LoadedModel:
    """A network and everything known about it.

    Attributes:
        model: The network, on the CPU, in evaluation mode; in single precision, or if it is large, in that of its
            file until `widen` is called.
        manifest: Architecture, normalisation and history.
        fixed_size: Image height and width that the architecture needs; None: any.
        path: The file that it was loaded from, if any.
        sha256: Hash of that file.
        notes: Messages for the user about how it was loaded.
        new: Whether its weights are random, as it was built with.
        new_classes: Whether those of its classifier are, so that it has learned no classes yet.
        chosen: Which weights of its file they are, where that has others.
    """

    model: nn.Module
    manifest: Manifest
    fixed_size: tuple[int, int] | None = None
    path: Path | None = None
    sha256: str | None = None
    notes: list[str] = field(default_factory=list)
    new: bool = False
    new_classes: bool = False
    chosen: Chosen | None = None

    @property
    def size_bytes(self) -> int | None:
        """Size of the file, or of the weights in the folder, that it was loaded from."""
        if self.path is None:
            return None
        files = [self.path] if self.path.is_file() else [f for f in self.path.iterdir() if f.suffix in WEIGHT_SUFFIXES]
        return sum(file.stat().st_size for file in files)

    @property
    def name(self) -> str:
        """Its name in tables: the file, else the reference."""
        return str(self.path) if self.path else self.manifest.architecture.ref


def load_reference(
    ref: str,
    *,
    pretrained: bool = False,
    data_classes: Callable[[], int | None] = lambda: None,
    data_tokens: Callable[[], DataTokens | None] = lambda: None,
    allow_nonfinite: bool = False,
    scratch: Scratch | None = None,
    **kwargs: Any,
) -> LoadedModel:
    """Builds a dense network from "source:name", with new or published weights.

    Args:
        ref: The reference; after some sources' names a file or folder follows.
        pretrained: Whether to fetch published weights.
        data_classes: Returns the number of classes of a data set, for networks of such sources with a new classifier.
        data_tokens: Returns the tokens of a data set, for such networks that read texts.
        allow_nonfinite: Whether weights of a file may hold NaN or infinity.
        scratch: If given, large tensors stay on the disk: in the file, or here what is built or computed.
        **kwargs: Arguments of the architecture.

    Raises:
        ModelError: The reference does not exist or the source refuses the arguments.
    """
    own = {name: value for name, value in kwargs.items() if name != "num_classes"}
    request = OpenRequest(
        own, pretrained, kwargs.get("num_classes"), data_classes, allow_nonfinite, data_tokens, scratch
    )
    opened = open_network(ref, request)
    if opened is not None:
        return offloaded(_opened(ref.partition(":")[0], opened), scratch)
    pretrained = pretrained or "@" in split_reference(ref)[1]  # open_clip's names of weights
    architecture = recorded(ref, kwargs)
    model = build(ref, pretrained=pretrained, **kwargs).eval()
    manifest = Manifest(architecture=architecture.model_copy(update={"class_name": type(model).__name__}))
    return offloaded(_with_input_spec(LoadedModel(model, manifest, new=not pretrained)), scratch)


def _opened(source: str, opened: Opened) -> LoadedModel:
    """A network that a source opened."""
    architecture = Architecture(
        ref=f"{source}:{opened.name}", config=opened.config, class_name=type(opened.model).__name__
    )
    sha256 = file_sha256(opened.path) if opened.path is not None and opened.path.is_file() else None
    loaded = LoadedModel(
        in_memory(opened.model).eval(),
        Manifest(architecture=architecture),
        path=opened.path,
        sha256=sha256,
        notes=list(opened.notes),
        new=opened.new,
        new_classes=opened.new_classes,
    )
    return _with_inputs_of(loaded, opened)


def load_file(
    path: Path,
    arch: str | None = None,
    *,
    num_classes: int | None = None,
    data_classes: Callable[[], int | None] = lambda: None,
    kwargs: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
    strip_prefix: str | None = None,
    prefer: str | None = None,
    allow_nonfinite: bool = False,
    scratch: Scratch | None = None,
) -> LoadedModel:
    """Loads a checkpoint of ours, or somebody else's weights.

    Tensors in half precision are widened, because that is how networks are run and trained here; `save` narrows them.
    Those of large networks wait for `widen`.

    Args:
        path: A safetensors file or one written by torch.save, with any suffix.
        arch: "source:name" of foreign weights; without it, the catalogue is searched. Checkpoints of ours have theirs.
        num_classes: Number of classes for foreign SegFormer weights; if they have another, the classifier is replaced.
        data_classes: Returns the number of classes for foreign weights that are an encoder alone.
        kwargs: Arguments to build the architecture of foreign weights with. For checkpoints of ours, they only change
            how a spiking network runs over time (T, coding).
        weights_key: Which set of foreign weights in the file, by its keys joined by dots.
        strip_prefix: Take only foreign tensors whose names begin with this, without it.
        prefer: The source of architectures to prefer where foreign weights fit several.
        allow_nonfinite: Whether weights may hold NaN or infinity.
        scratch: If given, large tensors stay in the file, and what is computed of them goes here.

    Raises:
        ModelError: The file is missing, unreadable, or does not fit the architecture.
    """
    _check_is_file(path)
    if arch is not None:
        split_reference(arch)
    manifest = read_manifest(path)
    if manifest is not None:
        loaded = _load_checkpoint(path, manifest, arch, allow_nonfinite, scratch)
        if weights_key is not None or strip_prefix is not None:
            option = "--weights-key" if weights_key is not None else "--strip-prefix"
            raise ModelError(f"{path}: {option} is for weights of other programs; a checkpoint of ours needs none")
        _override_settings(loaded, kwargs or {})
        return loaded
    weights = read_foreign(path, key=weights_key, prefix=strip_prefix, allow_nonfinite=allow_nonfinite, scratch=scratch)
    rebuilt = rebuild_foreign(weights, ForeignRequest(path, arch, num_classes, data_classes, prefer), kwargs or {})
    model = rebuilt.model
    note_precision(model, rebuilt.dtypes)
    architecture = rebuilt.architecture.model_copy(update={"class_name": type(model).__name__})
    loaded = LoadedModel(
        model.eval(),
        Manifest(architecture=architecture),
        path=path,
        sha256=file_sha256(path),
        notes=[*weights.notes, *rebuilt.notes],
        chosen=joined(weights.chosen, rebuilt.chosen),
    )
    loaded = _with_input_spec(loaded) if rebuilt.opened is None else _with_inputs_of(loaded, rebuilt.opened)
    return offloaded(loaded, scratch)


def _check_is_file(path: Path) -> None:
    if path.is_dir():
        hint, own = f"give a weights file ({', '.join(WEIGHT_SUFFIXES)})", path / "model.safetensors"
        if own.is_file() and read_manifest(own) is not None:
            hint = f"give the checkpoint in it, {own}"
        elif (path / "config.json").is_file():
            hint = f"write hf:{path} for a network of transformers"
        raise ModelError(f"{path}: is a directory; {hint}")
    if not path.is_file():
        raise ModelError(f"{path}: no such file; {what_was_meant(path)}")


def load_companion(
    path: Path, ref: str | None, *, allow_nonfinite: bool = False, chosen: Chosen | None = None
) -> LoadedModel:
    """Loads a network to use together with another one, such as a teacher.

    Args:
        path: The file.
        ref: The other network's reference, tried for foreign weights; if it does not fit, the catalogue is searched.
        allow_nonfinite: Whether weights may hold NaN or infinity.
        chosen: Which of the weights in a file of others; None: as `load_file` chooses.

    Raises:
        ModelError: See `load_file`.
    """
    if not path.is_file() or read_manifest(path) is not None:
        return widen(load_file(path, allow_nonfinite=allow_nonfinite))
    key, prefix = (chosen.key or None, chosen.prefix or None) if chosen is not None else (None, None)
    load = partial(load_file, path, weights_key=key, strip_prefix=prefix, allow_nonfinite=allow_nonfinite)
    try:
        return widen(load(arch=ref))
    except ModelError:
        if ref is None:
            raise
        return widen(load())


def offloaded(loaded: LoadedModel, scratch: Scratch | None) -> LoadedModel:
    """The same with large tensors that are in memory put on the disk, if there is a `scratch` file for them."""
    if scratch is not None:
        put_on_disk(loaded.model, scratch)
    return loaded


def restore(
    path: Path,
    dense: Callable[[Architecture], nn.Module] = rebuild_dense,
    *,
    allow_nonfinite: bool = False,
    scratch: Scratch | None = None,
) -> tuple[nn.Module, Manifest]:
    """Rebuilds the network of a checkpoint bit by bit, with the token selection that its manifest records.

    Args:
        path: A checkpoint of ours.
        dense: Builds the dense network to which the recorded differences are applied.
        allow_nonfinite: Whether weights may hold NaN or infinity.
        scratch: If given, large tensors stay in the file, and what is computed of them goes here.

    Raises:
        ModelError: The checkpoint is damaged or belongs to another architecture.
    """
    manifest, tensors = read_checkpoint(path, allow_nonfinite=True, scratch=scratch)
    model = dense(manifest.architecture)
    try:
        tensors, manifest = without_tokenizer(tensors, manifest)
        take_out(model, manifest.blocks)
        put_in_form(model, manifest.forms)
        if manifest.masks is not None:
            install(model, manifest.masks)
            tensors = unpacked(tensors, manifest.masks)
        apply_attributes(model, manifest.attributes)
        apply_extra_states(model, manifest.extra_state)
        assign_tensors(model, tensors, frozenset(manifest.frozen_parameters))
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    # Buffers outside the state dict may be infinite, such as attention masks.
    stored = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    check_finite(stored, path, allow_nonfinite)
    try:
        apply_recorded(model, manifest)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return model.eval(), manifest


def save(path: Path, model: nn.Module, manifest: Manifest, dense: nn.Module | None = None) -> Manifest:
    """Writes a checkpoint from which `restore` rebuilds `model`.

    Args:
        path: The file to write.
        model: The network.
        manifest: Architecture and history; attributes, extra states and frozen parameters are filled in.
        dense: A freshly built dense network; needed if the architecture is the user's own.

    Returns:
        The completed manifest.
    """
    fresh = dense if dense is not None else rebuild_dense(manifest.architecture)
    forms = forms_of(model)
    if forms or manifest.blocks:
        fresh = copied(fresh)
        take_out(fresh, manifest.blocks)
        put_in_form(fresh, forms)
    complete = manifest.model_copy(
        update={
            "forms": forms,
            "attributes": attribute_differences(fresh, model),
            "extra_state": extra_states(model),
            "frozen_parameters": [n for n, p in model.named_parameters() if not p.requires_grad],
        }
    )
    tensors = in_precision(model)
    if complete.masks is not None:
        complete.masks = masks_of(tensors, complete.masks)
        tensors = packed(tensors, complete.masks)
    write_checkpoint(path, with_tokenizer(tensors, complete.tokenizer), complete)
    return complete


def widen(loaded: LoadedModel) -> LoadedModel:
    """The same with all floating tensors of its network in single precision: that is how it is run and trained here."""
    tensors = (*loaded.model.parameters(), *loaded.model.buffers())
    if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
        loaded.model.float()
    return loaded


def _load_checkpoint(
    path: Path, manifest: Manifest, arch: str | None, allow_nonfinite: bool, scratch: Scratch | None
) -> LoadedModel:
    ref = manifest.architecture.ref
    if not ref:
        raise ModelError(
            f"{path}: holds a model of your own ({manifest.architecture.class_name}); "
            "load it in Python with prunecli.load(path, model=...)"
        )
    if arch is not None and arch != ref:
        raise ModelError(f"{path}: its manifest names {ref}, not {arch}; leave --arch out")
    shape, kind_of_input = manifest.architecture.input_shape, takes(ref)
    tokens = kind_of_input == "tokens"
    if shape and kind_of_input != "other" and len(shape) != (1 if tokens else _IMAGE_DIMENSIONS):
        kind = "a sequence" if tokens else "an image"
        raise ModelError(f"{path}: its manifest gives {list(shape)} as the shape of {kind}; the file was altered")
    model, manifest = restore(path, allow_nonfinite=allow_nonfinite, scratch=scratch)
    loaded = LoadedModel(in_memory(model), manifest, path=path, sha256=file_sha256(path))
    if not shape:
        return _with_input_spec(loaded)
    if len(shape) != _IMAGE_DIMENSIONS:
        return loaded
    loaded.fixed_size = (shape[1], shape[2])
    return loaded


def _override_settings(loaded: LoadedModel, kwargs: Mapping[str, Any]) -> None:
    """Changes how a spiking network runs over time, which does not affect its weights.

    Raises:
        ModelError: Something else is to be changed, or the network does not run over time.
    """
    architecture = loaded.manifest.architecture
    # A recipe that built the network repeats what the manifest says.
    changed = {
        name: value
        for name, value in kwargs.items()
        if name not in architecture.kwargs or architecture.kwargs[name] != value
    }
    for name in changed:
        if name not in _RUN_TIME_SETTINGS or not hasattr(loaded.model, name):
            setting = f"{name}={getattr(loaded.model, name, '')}" if name in _RUN_TIME_SETTINGS else name
            raise ModelError(
                f"{loaded.path}: a checkpoint's architecture is recorded in its manifest, so {setting} cannot be set; "
                f"for spiking ones, {' and '.join(_RUN_TIME_SETTINGS)} can"
            )
    if changed:
        settings = {name: getattr(loaded.model, name) for name in _RUN_TIME_SETTINGS} | changed
        checked = recorded(architecture.ref, {**architecture.kwargs, **changed}).kwargs
        loaded.model.prepare(**settings)  # type: ignore[operator]
        loaded.manifest = loaded.manifest.model_copy(
            update={"architecture": architecture.model_copy(update={"kwargs": checked})}
        )


def _with_input_spec(loaded: LoadedModel) -> LoadedModel:
    size, normalisation = input_spec(loaded.manifest.architecture.ref, loaded.model)
    loaded.fixed_size = size
    loaded.manifest.normalisation = loaded.manifest.normalisation or normalisation
    return loaded


def _with_inputs_of(loaded: LoadedModel, opened: Opened) -> LoadedModel:
    loaded.fixed_size = opened.size
    loaded.manifest.normalisation = opened.normalisation
    loaded.manifest.tokenizer = opened.tokenizer
    return loaded
