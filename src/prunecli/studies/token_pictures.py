"""Seeing what a token stage does: attention weights in a file, and pictures in which patches left out are grey."""

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
from prunecli.data.loader import Preprocessing, evaluation_batches
from prunecli.engine.resources import resource_errors
from prunecli.errors import DataError, MethodError, RecipeError
from prunecli.pipeline.workspace import Workspace
from prunecli.tokens.towers import find_tower, patch_grid
from prunecli.tokens.watching import attention_maps, check_blocks, kept_places

SUFFIXES = (".safetensors", ".npz")
_SMALL, _ENLARGED = 64, 8
"""Images up to this width, in pixels, are shown so many times as large."""
_LEAST_WIDTH = 256
_DARKER, _GREY = 3, 48
"""A pixel that is left out has that part of its light, on this grey: black is seen to be gone, too."""


@dataclass(frozen=True)
class Wanted:
    """What is to be seen of a token stage.

    Attributes:
        attention: File for attention weights.
        blocks: Of which blocks; none: those of the stages.
        overlay: Folder for pictures.
        count: How many test images, from the first on.
    """

    attention: Path | None
    blocks: tuple[int, ...]
    overlay: Path | None
    count: int


def check_wanted(space: Workspace, wanted: Wanted, selector: str, checkpoint: Path) -> None:
    """Finds what is wrong with a wish before the stage has worked for it.

    Args:
        space: With the network.
        wanted: The wish.
        selector: Of the stage.
        checkpoint: What the stage will write.

    Raises:
        DataError: There is no data set.
        MethodError: The network has no such block, or its tokens are to be merged, so none is left out.
        RecipeError: The file has another suffix, something is there that may not be replaced, or no image is asked for.
    """
    if wanted.count < 1:
        raise RecipeError(f"--pictures has to be at least 1 (got {wanted.count})")
    if wanted.attention is not None:
        _check_suffix(wanted.attention)
        if wanted.attention.resolve() == checkpoint.resolve():
            raise RecipeError(f"--extract-attention {wanted.attention}: that is the checkpoint; choose another name")
        if wanted.attention.is_dir():
            raise RecipeError(f"--extract-attention {wanted.attention}: is a directory; give the name of a file")
    if wanted.overlay is not None:
        if selector == "tome":
            raise MethodError("--overlay shows patches that are left out and tome merges them; choose another selector")
        if wanted.overlay.exists() and not wanted.overlay.is_dir():
            raise RecipeError(f"--overlay {wanted.overlay}: is a file; give the name of a folder")
    pictures = [] if wanted.overlay is None else [_picture_path(wanted.overlay, place) for place in range(wanted.count)]
    for path in (wanted.attention, *pictures):
        if path is not None and path.exists() and not space.may_replace:
            raise RecipeError(f"{path}: exists; add --force to replace it, or choose another name")
    loaded = space.model()
    if space.data_name() is None:
        flag = "--overlay" if wanted.attention is None else "--extract-attention"
        raise DataError(f"{flag} needs images and there is no data set; name one with --data, for instance cifar10")
    check_blocks(find_tower(loaded.model), wanted.blocks)


def write_attention(
    space: Workspace, selection: TokenSelection, path: Path, blocks: tuple[int, ...], count: int
) -> None:
    """Saves what tokens of the current network pay attention to, for the first test images.

    The file holds "block_03" and the like, (N, heads, L, L) as in `attention_maps`; "images", the places of the images
    in the test split, (N,); and "kept", the patches left after the last stage, (N, K), unless tokens are merged.

    Args:
        space: With the network and its data.
        selection: What the network runs with.
        path: Ends in .safetensors or .npz.
        blocks: Which; none: those of the stages.
        count: How many images; fewer where there are fewer.

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
            found = attention_maps(model, images.to(space.device), blocks)
            found = {name: weights.float() for name, weights in found.items()}  # NumPy has no bfloat16
            kept = kept_places(model, selection, images.to(space.device))
            found |= {"images": torch.tensor(indices)} | ({} if kept is None else {"kept": kept})
            for name, part in found.items():
                parts.setdefault(name, []).append(part.cpu())
        tensors = {name: torch.cat(found) for name, found in parts.items()}
    model.cpu()
    write_atomically(path, partial(_save, tensors, path.suffix), replace=space.may_replace)


def write_overlays(space: Workspace, selection: TokenSelection, folder: Path, count: int) -> None:
    """Draws the first test images as the network is given them, with the patches that were left out greyed.

    Args:
        space: With the network and its data.
        selection: What the network runs with.
        folder: For 0000.png and so on, numbered as in the test split.
        count: How many; fewer where there are fewer.

    Raises:
        DataError: No image can be read.
        MethodError: Tokens are merged, or the patches lie in no known grid.
        RecipeError: A picture exists and may not be replaced.
    """
    model = space.model().model.to(space.device).eval()
    tower = find_tower(model)
    owner = model.get_submodule(tower.name)
    rows, columns = _grid(owner, selection.tokens - tower.prefix)
    preprocessing = space.inputs.preprocessing()
    with space.inputs.running(), resource_errors(space.recipe.data.batch_size):
        for images, indices in _images(space, count):
            kept = kept_places(model, selection, images.to(space.device))
            if kept is None:
                raise MethodError("merged tokens leave no patch out, so there is nothing to draw; leave out --overlay")
            # One column more, for tokens that others were fused into.
            stays = torch.zeros(len(images), rows * columns + 1, dtype=torch.bool)
            stays = stays.scatter(1, kept.cpu().remainder(rows * columns + 1), True)[:, :-1]
            patches = stays.reshape(-1, rows, columns).numpy()
            for pixels, seen, index in zip(_pixels(images, preprocessing), patches, indices, strict=True):
                picture = _greyed(pixels, seen, _patch_size(owner, pixels.shape, seen.shape))
                path = _picture_path(folder, index)
                write_atomically(path, partial(picture.save, format="PNG"), replace=space.may_replace)
    model.cpu()


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise RecipeError(f"--extract-attention {path}: the file has to end in {' or '.join(SUFFIXES)}")


def _picture_path(folder: Path, index: int) -> Path:
    return folder / f"{index:04d}.png"


def _images(space: Workspace, count: int) -> Iterator[tuple[Tensor, list[int]]]:
    """Batches of the first test images that can be read, as the network takes them, and their places in the split."""
    found, wanted = 0, islice(_readable(space), count)
    while batch := list(islice(wanted, space.recipe.data.batch_size)):
        yield torch.cat([image for image, _ in batch]), [index for _, index in batch]
        found += len(batch)
    space.report_bad()
    if not found:
        raise DataError(f"{space.data().name}: no test image can be read, so there is nothing to show; see --data")


def _readable(space: Workspace) -> Iterator[tuple[Tensor, int]]:
    """One by one, as a batch does not say which images it is without."""
    split, preprocessing = space.split("test"), space.inputs.preprocessing()
    for index in range(len(split.labels)):
        for image, _ in evaluation_batches(split.subset(np.array([index])), preprocessing, 1, bad=space.bad):
            yield image, index


def _save(tensors: dict[str, Tensor], suffix: str, path: Path) -> None:
    if suffix == ".safetensors":
        save_file(tensors, path)
        return
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
    with path.open("wb") as stream:  # given a name, NumPy would add a suffix to it
        np.savez(stream, **arrays)


def _grid(owner: nn.Module, patches: int) -> tuple[int, int]:
    """Rows and columns of so many patches.

    Raises:
        MethodError: They are in no grid that the tower tells of, and in no square.
    """
    side = math.isqrt(patches)
    for rows, columns in (patch_grid(owner) or (0, 0), (side, side)):
        if rows * columns == patches:
            return rows, columns
    raise MethodError(f"{patches} patches lie in no known grid, so they cannot be drawn; leave out --overlay")


def _patch_size(owner: nn.Module, image: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, int]:
    """Height and width of a patch, as the tower says, else what a grid divides an image into."""
    for module in (owner, getattr(owner, "patch_embed", None)):
        # Behind a convolutional backbone patches are counted in its pixels, not in the image's.
        size: Any = None if hasattr(module, "backbone") else getattr(module, "patch_size", None)
        if size is not None:
            return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return image[0] // grid[0], image[1] // grid[1]


def _pixels(images: Tensor, preprocessing: Preprocessing) -> Any:
    """Normalised images (N, C, H, W) as bytes (N, H, W, 3)."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocessing.mean, preprocessing.std))
    values = (images * std + mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    return values.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()


def _greyed(pixels: Any, seen: Any, patch: tuple[int, int]) -> Image.Image:
    """The picture (H, W, 3), enlarged, pale on grey where no patch (rows, columns) is seen."""
    height, width = pixels.shape[:2]
    bright = np.kron(seen, np.ones(patch, dtype=bool))[:height, :width]
    margin = [(0, height - bright.shape[0]), (0, width - bright.shape[1])]  # of pixels in no patch
    bright = np.pad(bright, margin)[:, :, None]
    factor = max(_ENLARGED if width <= _SMALL else 1, math.ceil(_LEAST_WIDTH / width))
    picture = Image.fromarray(np.where(bright, pixels, pixels // _DARKER + _GREY))
    return picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
