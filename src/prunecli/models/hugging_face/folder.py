"""Folders as `save_pretrained` writes them, on this machine, in the cache or on the hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch

from prunecli.checkpoint.header import read_header
from prunecli.checkpoint.manifest import InputNormalisation, UsedTokenizer
from prunecli.data.tokenizer import read_tokenizer
from prunecli.errors import DataError, ModelError, first_line
from prunecli.models.hugging_face.configuration import read_json
from prunecli.models.hugging_face.library import transformers

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_INDEX, _WHOLE = "model.safetensors.index.json", "model.safetensors"
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_CONVNEXT_UNCROPPED = 384
"""ConvNeXt's processor crops smaller images, and changes the proportions of the others."""
_INTERPOLATION = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""
_OTHERWISE = {
    "LevitImageProcessor": "resizes the shorter side to 256/224 of the size before it crops",
    "EfficientNetImageProcessor": "shifts pixels after it has scaled them",
}
"""Processors that do what no setting of ours says."""
_FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_TOKENIZERS = (
    *("tokenizer.json", "vocab.txt", "vocab.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
)


def find_folder(name: str) -> Path:
    """The folder of a network: a path, or a name on the hub, in the cache or fetched.

    Args:
        name: The path, or NAME or OWNER/NAME, with `@REVISION` behind it if it is to be another than main.

    Raises:
        ModelError: There is none, it cannot be fetched, or needs an agreement.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    repository, _, revision = name.partition("@")
    if path.exists() or not _HUB_NAME.fullmatch(repository):
        raise ModelError(
            f"hf:{name}: no such folder; give one with a config.json, a class of transformers or a hub name"
        )
    return _from_hub(repository, revision or None, f"hf:{name}")


def _from_hub(repository: str, revision: str | None, where: str) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    def fetch(local: bool, files: Sequence[str] = _FILES) -> Path:
        # Other formats lie in folders of their own.
        folder = snapshot_download(
            repository, revision=revision, local_files_only=local, allow_patterns=list(files), ignore_patterns=["*/*"]
        )
        return Path(folder)

    try:
        cached = fetch(True)
        if _weight_files(cached):
            return cached
    except Exception as error:  # not in the cache, which is no error yet
        if constants.HF_HUB_OFFLINE:
            raise ModelError(
                f"{where}: not in the cache ({constants.HF_HUB_CACHE}), and HF_HUB_OFFLINE is set: unset it, or fetch "
                f"it where there is a network with `hf download {repository}` and give the folder"
            ) from error
    try:
        fetched = fetch(False)
        return fetched if _weight_files(fetched) else fetch(False, (*_FILES, "pytorch_model*.bin"))
    except GatedRepoError as error:
        raise ModelError(
            f"{where}: is gated: accept its terms on its page, then `hf auth login`, or give a folder with it"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(
            f"{where}: the hub has no such network or revision, or it is private (`hf auth login`); if it is a folder, "
            "give its path"
        ) from error
    except Exception as error:  # of many types, of several libraries
        raise ModelError(
            f"{where}: not in the cache, and the hub cannot be reached ({first_line(error, 120)}); fetch it "
            f"where there is a network with `hf download {repository}` and give the folder"
        ) from error


@dataclass(frozen=True)
class WeightFiles:
    """The files with the weights of a folder.

    Attributes:
        files: The files.
        pickled: Whether they are files of torch.save.
    """

    files: tuple[Path, ...]
    pickled: bool


def weights_in(folder: Path) -> WeightFiles:
    """The weights of a folder: safetensors, whole or in shards, else files of torch.save.

    Raises:
        ModelError: There are none, or a shard or one of its tensors is missing.
    """
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: is an adapter; merge it into its network (peft's merge_and_unload) and give the folder of that"
        )
    files = _weight_files(folder)
    if not files:
        raise ModelError(
            f"{folder}: has a configuration and no weights ({_WHOLE} or {_INDEX}); give a folder with both, or for "
            "random weights its class: hf:CLASS --model-kwargs KEY=VALUE"
        )
    return WeightFiles(tuple(files), files[0].suffix == ".bin")


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        return _shards(folder / _INDEX)
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    if (folder / _PICKLED[1]).is_file():
        return _shards(folder / _PICKLED[1])
    return [folder / _PICKLED[0]] if (folder / _PICKLED[0]).is_file() else []


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which have to have the tensors that it says.

    Raises:
        ModelError: One of them, or a tensor, is missing, or lies outside the folder.
    """
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(f"{index}: lists no tensors; fetch or save it again")
    names = sorted(set(listed.values()))
    for name in names:
        if Path(name).name != name:
            raise ModelError(f"{index}: names {name[:80]!r}, which is outside its folder; the file was altered")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index}: its shard {name} is missing; fetch the network again")
    if names[0].endswith(".safetensors"):
        for name in names:
            here = {tensor for tensor, shard in listed.items() if shard == name}
            missing = sorted(here - _tensor_names(index.parent / name))
            if missing:
                raise ModelError(
                    f"{index}: {len(missing)} tensors are missing from {name}, first {missing[0]!r}; fetch it again"
                )
    return [index.parent / name for name in names]


def _tensor_names(path: Path) -> set[str]:
    with _opened(path) as file:
        return set(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    read_header(path)  # its size and structure, before a library reads it
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: not readable as safetensors ({error}); fetch it again") from error


def floating_dtypes(files: Iterable[Path]) -> set[torch.dtype]:
    """The dtypes of all floating tensors in files of safetensors, from their headers.

    Raises:
        ModelError: One cannot be read.
    """
    kinds: set[str] = set()
    for path in files:
        with _opened(path) as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys()}
    return {_FLOATING[kind] for kind in kinds if kind in _FLOATING}


@dataclass(frozen=True)
class ImageSettings:
    """How a network's images are prepared: size (None: any) and normalisation, and what is not done as it should."""

    size: tuple[int, int] | None
    normalisation: InputNormalisation
    notes: tuple[str, ...] = ()


def image_settings(folder: Path | None, config: Any) -> ImageSettings:
    """Size and normalisation: as the image processor of a folder says, else the configuration's and ImageNet's.

    Args:
        folder: The folder; None: there is none.
        config: The configuration object.

    Raises:
        ModelError: What the file says makes no sense.
    """
    path, said = _processor(folder)
    said = said | _sizes(said)
    size = _pair(said.get("crop_size")) if said.get("do_center_crop") else None
    size = size or _pair(said.get("size")) or size_in(config)
    channels = getattr(config, "num_channels", 3)
    try:
        mean, std = _statistics(said, channels if isinstance(channels, int) else 3)
        interpolation: Any = _INTERPOLATION.get(said.get("resample", 2), "bilinear")
        normalisation = InputNormalisation(
            mean=mean,
            std=std,
            interpolation=interpolation,
            crop_pct=_crop(said, size),
            crop_mode="squash" if _squashes(said, size) else "center",
        )
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{path}: does not say how images are prepared ({first_line(error, 120)}); fetch or save it again"
        ) from error
    return ImageSettings(size, normalisation, tuple(_differences(path, said)))


def _sizes(said: dict[str, Any]) -> dict[str, Any]:
    """Sizes that are single numbers, as older files have them, as those of today."""
    sizes: dict[str, Any] = {}
    if isinstance(size := said.get("size"), int):
        sizes["size"] = {"height": size, "width": size} if _is_square(_kind_of(said)) else {"shortest_edge": size}
    if isinstance(size := said.get("crop_size"), int):
        sizes["crop_size"] = {"height": size, "width": size}
    return sizes


def _kind_of(said: dict[str, Any]) -> str:
    """The class of an image processor, by the name that it has today."""
    kind = str(said.get("image_processor_type") or said.get("feature_extractor_type") or "")
    return kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")


def _is_square(kind: str) -> bool:
    """Whether a size of one number is that of both sides, or of the shorter one."""
    found = getattr(transformers(), kind, None) if kind.endswith("ImageProcessor") else None
    return bool(getattr(found, "default_to_square", True))


def _differences(path: Path, said: dict[str, Any]) -> Iterator[str]:
    kind = _kind_of(said)
    if said.get("do_flip_channel_order"):
        yield f"{path}: {kind} gives blue before red, and prune does not: accuracies here are not those of the network"
    elif kind in _OTHERWISE:
        yield f"{path}: {kind} {_OTHERWISE[kind]}, and prune does not: accuracies here may differ a little"


def _processor(folder: Path | None) -> tuple[Path, dict[str, Any]]:
    """The file of an image processor and what it says; nothing without one."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if folder is not None and (folder / name).is_file():
            content = read_json(folder / name)
            said = content.get("image_processor", content)
            if not isinstance(said, dict):
                raise ModelError(f"{folder / name}: image_processor is no JSON object; fetch or save it again")
            return folder / name, said
    return Path(), {}


def size_in(config: Any) -> tuple[int, int] | None:
    """Height and width that a configuration names, its own or its image tower's."""
    for part in (config, getattr(config, "vision_config", None)):
        size = _pair(getattr(part, "image_size", None))
        if size is not None:
            return size
    return None


def _statistics(said: dict[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of pixels from 0 to 1."""
    if not said:
        plain = ((0.5,) * channels, (0.5,) * channels)
        return _IMAGENET if channels == len(_IMAGENET[0]) else plain
    scale = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    if not said.get("do_normalize", True):
        return (0.0,) * channels, (1 / scale,) * channels
    mean, std = said.get("image_mean", _IMAGENET[0]), said.get("image_std", _IMAGENET[1])
    return tuple(float(value) / scale for value in _listed(mean)), tuple(float(value) / scale for value in _listed(std))


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


def _pair(size: Any) -> tuple[int, int] | None:
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if {"height", "width"} <= size.keys() else size.get("shortest_edge")
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, (list, tuple)) and len(size) == 2 and all(isinstance(length, int) for length in size):
        return (size[0], size[1])
    return None


def _crop(said: dict[str, Any], size: tuple[int, int] | None) -> float:
    """The share of a resized image that is cut out of its centre."""
    share = said.get("crop_pct")
    if isinstance(share, float) and 0 < share <= 1 and size is not None and min(size) < _CONVNEXT_UNCROPPED:
        return share
    named = said.get("size")
    resized: dict[str, Any] = named if isinstance(named, dict) else {}
    lengths = [resized.get(name) for name in ("shortest_edge", "height", "width")]
    shortest = min((length for length in lengths if isinstance(length, int)), default=0)
    if size is None or not said.get("do_center_crop") or shortest < min(size):
        return 1.0
    return min(size) / shortest


def _squashes(said: dict[str, Any], size: tuple[int, int] | None) -> bool:
    """Whether a processor resizes images to a height and a width, whatever their own proportions are."""
    named = said.get("size")
    if isinstance(named, dict) and {"height", "width"} <= named.keys():
        return True
    return "crop_pct" in said and size is not None and min(size) >= _CONVNEXT_UNCROPPED


def tokenizer_of(folder: Path) -> tuple[UsedTokenizer | None, str]:
    """A folder's tokenizer, and a note if it cannot be used; None and an empty note if it has none."""
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return None, ""
    try:
        return read_tokenizer(str(folder)).record(), ""
    except DataError as error:
        return None, str(error)
