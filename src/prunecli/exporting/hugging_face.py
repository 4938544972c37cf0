"""Folders: as transformers saves networks whose widths its configurations have, else with a checkpoint of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunecli.checkpoint.manifest import Manifest, UsedTokenizer
from prunecli.copying import copied
from prunecli.errors import VerificationError
from prunecli.exporting.base import ExportRequest
from prunecli.exporting.configured_widths import as_configured
from prunecli.exporting.safetensors_plain import widths_of
from prunecli.exporting.staging import WEIGHTS
from prunecli.inputs import call, output_tensors
from prunecli.models.hugging_face.library import isolated, transformers
from prunecli.models.loading import load_reference, restore, save, widen
from prunecli.models.precision import in_precision
from prunecli.surgery.configured.rebuilt import NOT_CONFIGURED

_RESAMPLING = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}
"""By Pillow's numbers."""


class HuggingFace:
    """See `prunecli.exporting.base.Format`. `prunecli.load(FOLDER)` opens both kinds of folders."""

    suffix = ""
    label = ""
    also = ()
    described = True

    def require(self) -> None:
        """Transformers is needed for its own networks alone, which could not have been loaded without it."""

    def write(self, request: ExportRequest, path: Path) -> None:
        """Writes the folder, loads it again, and compares what both networks compute, bit by bit."""
        loaded = request.loaded
        path.mkdir()
        configured = None
        if loaded.manifest.architecture.ref.startswith("hf:") and _is_plain(loaded.manifest):
            configured = as_configured(loaded.model, request.example)
            if configured is None:
                request.note(f"{NOT_CONFIGURED}: prunecli.load opens the folder")
        if configured is not None:
            _save_pretrained(configured, loaded.model, path)
            _save_tokenizer(loaded.manifest.tokenizer, path)
            _save_preprocessing(loaded.manifest, loaded.fixed_size, path)
            again = widen(load_reference(f"hf:{path}")).model
        else:
            manifest = save(path / WEIGHTS, loaded.model, loaded.manifest)
            content = {
                "library_name": "prunecli",
                "opened_by": "prunecli.load(FOLDER)",
                "architecture": manifest.architecture.model_dump(mode="json"),
                "widths": widths_of(manifest),
            }
            (path / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            again = restore(path / WEIGHTS)[0].float()
        _check(loaded.model, again.eval(), request)

    def opened(self, path: Path) -> None:
        """What is in the folder is run by the libraries that it is for."""


def _is_plain(manifest: Manifest) -> bool:
    """Whether weights are all that makes the network: transformers knows of no tokens left out, and of no masks."""
    return manifest.tokens is None and manifest.runtime is None and not manifest.forms and manifest.masks is None


def _save_pretrained(configured: nn.Module, network: nn.Module, path: Path) -> None:
    """Saves with the library, in the precision of the file that the network came from."""
    stored: Any = copied(configured)
    narrow = {name: tensor for name, tensor in in_precision(network).items() if name in dict(stored.named_parameters())}
    for name, parameter in stored.named_parameters():
        parameter.data = narrow[name].clone()
    dtypes = {tensor.dtype for tensor in narrow.values() if tensor.is_floating_point()}
    stored.config.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    with isolated():
        stored.save_pretrained(path)


def _save_tokenizer(tokenizer: UsedTokenizer | None, path: Path) -> None:
    if tokenizer is None:
        return
    from tokenizers import Tokenizer

    inner = Tokenizer.from_str(tokenizer.definition)
    special = {"pad_token": tokenizer.padding, "eos_token": tokenizer.end}
    named = {name: inner.id_to_token(number) for name, number in special.items() if number is not None}
    with isolated():
        transformers().PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(path)


def _save_preprocessing(manifest: Manifest, size: tuple[int, int] | None, path: Path) -> None:
    """How images are prepared, in the form of the library's image processors."""
    said = manifest.normalisation
    if said is None or size is None:
        return
    height, width = size
    content: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(said.mean),
        "image_std": list(said.std),
        "resample": _RESAMPLING[said.interpolation],
        "do_resize": True,
        "size": {"height": height, "width": width},
    }
    if said.crop_mode != "squash":
        content["image_processor_type"] = "CLIPImageProcessor"
        content["size"] = {"shortest_edge": round(min(size) / said.crop_pct)}
        content |= {"do_center_crop": True, "crop_size": {"height": height, "width": width}}
    (path / "preprocessor_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _check(network: nn.Module, again: nn.Module, request: ExportRequest) -> None:
    """Compares the network with what its folder gives back.

    Raises:
        VerificationError: They differ in a bit.
    """
    with torch.no_grad():
        expected, found = (output_tensors(call(model, request.example)) for model in (network, again))
    alike = len(expected) == len(found) and all(map(torch.equal, expected, found))
    if not alike:
        raise VerificationError(
            f"{request.loaded.name}: loaded from its folder it computes something else; no file left"
        )


FORMAT = HuggingFace()
