"""Showing what a token stage does: attention weights in a file, and pictures with dropped patches in grey."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from prunecli.checkpoint.durable import write_atomically
from prunecli.checkpoint.manifest import TokenSelection
from prunecli.data.loader import evaluation_batches
from prunecli.data.preparation import Preprocessing
from prunecli.engine.resources import resource_errors
from prunecli.errors import DataError, MethodError, RecipeError
from prunecli.pipeline.workspace import Workspace
from prunecli.tokens.towers import find_tower, patch_grid
from prunecli.tokens.watching import attention_maps, check_blocks, kept_patches

_SUFFIXES = (".safetensors", ".npz")
_SMALL, _ENLARGED = 64, 8
"""Images up to this width in pixels are enlarged by this factor."""
_LEAST_WIDTH = 256
_DARKER, _GREY = 3, 48
"""Dropped pixels have a third of their brightness on this grey, so that dropped black ones are visible, too."""


@dataclass(frozen=True)
class PictureRequest:
    """What to show of a token stage.

    Attributes:
        attention: File for attention weights.
        blocks: Blocks whose attention is saved; empty: those of the stages.
        overlay: Folder for pictures.
        count: Number of test images, from the first on.
    """

    attention: Path | None
    blocks: tuple[int, ...]
    overlay: Path | None
    count: int


def check_request(space: Workspace, request: PictureRequest, selector: str, checkpoint: Path) -> None:
    """Checks a request before the stage does any work.

    Args:
        space: The workspace, with the network.
        request: What to show.
        selector: The stage's selector.
        checkpoint: The file that the stage will write.

    Raises:
        DataError: There is no data set.
        MethodError: The network has no such block, or the selector merges tokens, so that no patch is dropped.
        RecipeError: The file has another suffix, a file may not be replaced, or the number of images is less than 1.
    """
    if request.count < 1:
        raise RecipeError(f"--pictures has to be at least 1 (got {request.count})")
    if request.attention is not None:
        _check_suffix(request.attention)
        if request.attention.resolve() == checkpoint.resolve():
            raise RecipeError(f"--extract-attention {request.attention}: that is the checkpoint; choose another name")
        if request.attention.is_dir():
            raise RecipeError(f"--extract-attention {request.attention}: is a directory; give the name of a file")
    if request.overlay is not None:
        if selector == "tome":
            raise MethodError("--overlay shows patches that are left out and tome merges them; choose another selector")
        if request.overlay.exists() and not request.overlay.is_dir():
            raise RecipeError(f"--overlay {request.overlay}: is a file; give the name of a folder")
    folder = request.overlay
    pictures = [] if folder is None else [_picture_path(folder, index) for index in range(request.count)]
    for path in (request.attention, *pictures):
        if path is not None and path.exists() and not space.may_replace:
            raise RecipeError(f"{path}: exists; add --force to replace it, or choose another name")
    loaded = space.model()
    if space.data_name() is None:
        flag = "--overlay" if request.attention is None else "--extract-attention"
        raise DataError(f"{flag} needs images and there is no data set; name one with --data, for instance cifar10")
    check_blocks(find_tower(loaded.model), request.blocks)


def write_attention(
    space: Workspace, selection: TokenSelection, path: Path, blocks: tuple[int, ...], count: int
) -> None:
    """Saves attention weights of the current network for the first test images.

    The file holds "block_03" and the like, shape (N, heads, L, L) as in `attention_maps`; "images", the indices of the
    images in the test split, shape (N,); and, unless tokens are merged, "kept", the patches left after the last stage,
    shape (N, K).

    Args:
        space: The workspace, with the network and its data.
        selection: The selection that the network runs with.
        path: Ends in .safetensors or .npz.
        blocks: Blocks whose attention is saved; empty: those of the stages.
        count: Number of images; all if there are fewer.

    Raises:
        DataError: No image can be read.
        MethodError: There is no such block.
        RecipeError: The file has another suffix, or exists and may not be replaced.
    """
    _check_suffix(path)
    blocks = blocks or tuple(stage.block for stage in selection.stages)
    model = space.model().model.to(space.device).eval()
    parts: dict[str, list[Tensor]] = {}
    with space.inputs.running(), resource_errors(space.recipe.data.batch_size):
        for images, indices in _images(space, count):
            maps = attention_maps(model, images.to(space.device), blocks)
            arrays = {name: weights.float() for name, weights in maps.items()}  # NumPy has no bfloat16
            kept = kept_patches(model, selection, images.to(space.device))
            arrays |= {"images": torch.tensor(indices)} | ({} if kept is None else {"kept": kept})
            for name, part in arrays.items():
                parts.setdefault(name, []).append(part.cpu())
        tensors = {name: torch.cat(batches) for name, batches in parts.items()}
    model.cpu()
    write_atomically(path, partial(_save, tensors, path.suffix), replace=space.may_replace)


def write_overlays(space: Workspace, selection: TokenSelection, folder: Path, count: int) -> None:
    """Draws the first test images as the network sees them, with dropped patches in grey.

    Args:
        space: The workspace, with the network and its data.
        selection: The selection that the network runs with.
        folder: Folder for 0000.png and so on, numbered as in the test split.
        count: Number of images; all if there are fewer.

    Raises:
        DataError: No image can be read.
        MethodError: Tokens are merged, or the grid of patches is unknown.
        RecipeError: A picture exists and may not be replaced.
    """
    model = space.model().model.to(space.device).eval()
    tower = find_tower(model)
    owner = model.get_submodule(tower.name)
    rows, columns = _grid(owner, selection.tokens - tower.prefix)
    preprocessing = space.inputs.preprocessing()
    with space.inputs.running(), resource_errors(space.recipe.data.batch_size):
        for images, indices in _images(space, count):
            kept = kept_patches(model, selection, images.to(space.device))
            if kept is None:
                raise MethodError("merged tokens leave no patch out, so there is nothing to draw; leave out --overlay")
            # One more column, for tokens that others were fused into.
            stays = torch.zeros(len(images), rows * columns + 1, dtype=torch.bool)
            stays = stays.scatter(1, kept.cpu().remainder(rows * columns + 1), True)[:, :-1]
            masks = stays.reshape(-1, rows, columns).numpy()
            for pixels, mask, index in zip(_pixels(images, preprocessing), masks, indices, strict=True):
                picture = _greyed(pixels, mask, _patch_size(owner, pixels.shape, mask.shape))
                path = _picture_path(folder, index)
                write_atomically(path, partial(picture.save, format="PNG"), replace=space.may_replace)
    model.cpu()


def _check_suffix(path: Path) -> None:
    if path.suffix not in _SUFFIXES:
        first, *others = (path.with_suffix(suffix) for suffix in _SUFFIXES)
        raise RecipeError(f"--extract-attention {path}: name it {first}, or with {', '.join(o.suffix for o in others)}")


def _picture_path(folder: Path, index: int) -> Path:
    return folder / f"{index:04d}.png"


def _images(space: Workspace, count: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Batches of the first readable test images, as the network takes them, and their indices in the split."""
    total, images = 0, islice(_readable(space), count)
    while batch := list(islice(images, space.recipe.data.batch_size)):
        yield torch.cat([image for image, _ in batch]), [index for _, index in batch]
        total += len(batch)
    space.report_bad()
    if not total:
        raise DataError(f"{space.data().name}: no test image can be read, so there is nothing to show; see --data")


def _readable(space: Workspace) -> Iterator[tuple[Tensor, int]]:
    """One image at a time, because a batch does not say which images it lacks."""
    split, preprocessing = space.split("test"), space.inputs.preprocessing()
    for index in range(len(split.labels)):
        for image, _ in evaluation_batches(split.subset(np.array([index])), preprocessing, 1, bad=space.bad):
            yield image, index


def _save(tensors: dict[str, Tensor], suffix: str, path: Path) -> None:
    if suffix == ".safetensors":
        save_file(tensors, path)
        return
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    with path.open("wb") as stream:  # NumPy would add a suffix to a name
        np.savez(stream, **arrays)


def _grid(owner: nn.Module, patches: int) -> tuple[int, int]:
    """Rows and columns of the grid of patches.

    Raises:
        MethodError: The tower has no grid of that size, and it is not a square.
    """
    side = math.isqrt(patches)
    for rows, columns in (patch_grid(owner) or (0, 0), (side, side)):
        if rows * columns == patches:
            return rows, columns
    raise MethodError(f"{patches} patches lie in no known grid, so they cannot be drawn; leave out --overlay")


def _patch_size(owner: nn.Module, image: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a patch, from the tower, else from image size and grid."""
    for module in (owner, getattr(owner, "patch_embed", None)):
        # After a convolutional backbone, patch sizes count its pixels, not the image's.
        size: Any = None if hasattr(module, "backbone") else getattr(module, "patch_size", None)
        if size is not None:
            return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return image[0] // grid[0], image[1] // grid[1]


def _pixels(images: Tensor, preprocessing: Preprocessing) -> Any:
    """Normalised images (N, C, H, W) as bytes (N, H, W, 3)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    values = (images * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _greyed(pixels: Any, mask: Any, patch: tuple[int, int]) -> Image.Image:
    """The picture (H, W, 3), enlarged, with patches in grey where `mask` (rows, columns) is false."""
    height, width = pixels.shape[:2]
    bright = np.kron(mask, np.ones(patch, dtype=bool))[:height, :width]
    margin = [(0, height - bright.shape[0]), (0, width - bright.shape[1])]  # pixels outside all patches
    bright = np.pad(bright, margin)[:, :, None]
    factor = max(_ENLARGED if width <= _SMALL else 1, math.ceil(_LEAST_WIDTH / width))
    picture = Image.fromarray(np.where(bright, pixels, pixels // _DARKER + _GREY))
    return picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
