"""Pictures of what networks say: classes below an image, masks over it, boxes in it."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from prunecli.checkpoint.durable import write_atomically
from prunecli.data.pictures import Picture
from prunecli.errors import RecipeError
from prunecli.studies.prediction_answers import Answer, BestClasses, Boxes, Mask

_LEAST_WIDTH = 320
"""Smaller pictures are enlarged by a whole number, so that there is room for words."""
_LETTERS_IN_A_LINE = 40
_SMALLEST_LETTERS = 12
_BACKGROUND, _TEXT = (255, 255, 255), (20, 20, 20)
_SEE_THROUGH = 0.55
_GOLDEN = (math.sqrt(5) - 1) / 2

_Line = tuple[str, tuple[int, int, int] | None]
"""A line of text and the colour that it explains."""


def picture_paths(pictures: Sequence[Picture], folder: Path, *, replace: bool) -> list[Path]:
    """Where the picture of each image goes: no two to the same file, none to an image, none to an existing file.

    Args:
        pictures: The images.
        folder: The folder of the pictures.
        replace: Whether existing files may be replaced.

    Raises:
        RecipeError: One would replace a file that may not be.
    """
    if folder.exists() and not folder.is_dir():
        raise RecipeError(f"--out {folder}: is a file; give the name of a folder")
    images = {picture.path.resolve() for picture in pictures}
    taken: set[str] = set()
    paths = []
    for picture in pictures:
        path, number = (folder / picture.name).with_suffix(".png"), 1
        while str(path).casefold() in taken:  # there are file systems that do not tell capitals from small letters
            number += 1
            path = (folder / picture.name).with_name(f"{picture.name.stem}-{number}.png")
        taken.add(str(path).casefold())
        if path.resolve() in images:
            raise RecipeError(f"--out {folder}: {path} is one of the images; choose another folder")
        if path.exists() and not replace:
            raise RecipeError(f"{path}: exists; add --force to replace it, or choose another folder with --out")
        paths.append(path)
    return paths


def write_picture(
    path: Path, image: Image.Image, answers: Sequence[Answer], titles: Sequence[str], names: Sequence[str]
) -> None:
    """Draws the answers of one or more networks about an image, side by side.

    Args:
        path: The .png file, which is replaced.
        image: The image.
        answers: One for each network.
        titles: What the networks are called.
        names: What classes are called.
    """
    factor = max(1, math.ceil(_LEAST_WIDTH / image.width))
    enlarged = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    panels = []
    for answer, title in zip(answers, titles, strict=True):
        picture, lines = _drawn(enlarged, answer, names, factor)
        heading: list[_Line] = [(Path(title).name, None)] if len(answers) > 1 else []
        panels.append((picture, [*heading, *lines]))
    write_atomically(path, partial(_side_by_side(panels).save, format="PNG"), replace=True)


def _drawn(image: Image.Image, answer: Answer, names: Sequence[str], factor: int) -> tuple[Image.Image, list[_Line]]:
    if isinstance(answer, Mask):
        return _masked(image, answer, names)
    if isinstance(answer, Boxes):
        return _boxed(image, answer, names, factor)
    assert isinstance(answer, BestClasses), "there are three kinds of answers"
    pairs = zip(answer.numbers, answer.shares, strict=True)
    return image, [(f"{100 * share:5.1f}%  {names[number]}", None) for number, share in pairs]


def _masked(image: Image.Image, answer: Mask, names: Sequence[str]) -> tuple[Image.Image, list[_Line]]:
    shares = answer.shares()
    classes = Image.fromarray(answer.classes.astype(np.int32)).resize(image.size, Image.Resampling.NEAREST)
    pixels = functional.pil_to_tensor(classes)[0]
    masks = pixels[None] == pixels.new_tensor(list(shares))[:, None, None]
    colours = [_colour(number) for number in shares]
    drawn = draw_segmentation_masks(functional.pil_to_tensor(image), masks, alpha=_SEE_THROUGH, colors=colours)
    lines: list[_Line] = [
        (f"{100 * share:5.1f}%  {names[number]}", _colour(number)) for number, share in shares.items()
    ]
    return functional.to_pil_image(drawn), lines


def _boxed(image: Image.Image, answer: Boxes, names: Sequence[str], factor: int) -> tuple[Image.Image, list[_Line]]:
    numbers = answer.numbers.tolist()
    if not numbers:
        return image, [("nothing found", None)]
    labels = [f"{names[n]} {score:.2f}" for n, score in zip(numbers, answer.scores.tolist(), strict=True)]
    size = _letters(image.width)
    drawn = draw_bounding_boxes(
        functional.pil_to_tensor(image),
        answer.boxes * factor,
        labels,
        colors=[_colour(number) for number in numbers],
        width=max(2, size // 6),
        font=_font_file(),
        font_size=size,
    )
    return functional.to_pil_image(drawn), []


def _side_by_side(panels: Sequence[tuple[Image.Image, list[_Line]]]) -> Image.Image:
    """Images in a row, each with its lines of text below."""
    width, height = panels[0][0].size
    size = _letters(width)
    font = ImageFont.truetype(_font_file(), size)
    step, margin = round(size * 1.4), size // 2
    most = max(len(lines) for _, lines in panels)
    sheet = Image.new("RGB", (width * len(panels), height + (step * most + 2 * margin if most else 0)), _BACKGROUND)
    for index, (picture, lines) in enumerate(panels):
        # Drawn by itself, so that a long name does not run into the next one.
        caption = Image.new("RGB", (width, sheet.height - height), _BACKGROUND)
        draw = ImageDraw.Draw(caption)
        for number, (text, colour) in enumerate(lines):
            left, top = margin, margin + number * step
            if colour is not None:
                draw.rectangle((left, top, left + size, top + size), fill=colour)
                left += 2 * size
            draw.text((left, top), text, fill=_TEXT, font=font)
        sheet.paste(picture, (index * width, 0))
        sheet.paste(caption, (index * width, height))
    return sheet


def _letters(width: int) -> int:
    return max(_SMALLEST_LETTERS, width // _LETTERS_IN_A_LINE)


@cache
def _font_file() -> str:
    """A font with letters of many languages, which comes with matplotlib."""
    import matplotlib

    fonts: Any = matplotlib.get_data_path()
    return str(Path(fonts) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _colour(number: int) -> tuple[int, int, int]:
    """A colour for each class: neighbouring numbers have different hues."""
    hue = (0.6 + number * _GOLDEN) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 if number % 2 else 0.95, 0.95 if number % 3 else 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)
