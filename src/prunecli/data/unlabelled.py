"""`images:PATH`: images of any kind in a folder, without classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunecli.data.folder import IMAGENET_MEAN, IMAGENET_STD, image_files
from prunecli.data.splits import DataSet, FileSplit, find_folder
from prunecli.errors import DataError


def load(path: str, root: Path, download: bool) -> DataSet:
    """Finds all images in PATH and its sub-folders; they are the test split, sorted by name.

    A relative PATH is looked for in the current folder, then in the data folder.

    Raises:
        DataError: The folder does not exist or holds no images.
    """
    folder = find_folder(f"images:{path}", path, root, "the path of a folder with images")
    files = image_files(folder, "**/*")
    if not files:
        raise DataError(f"{folder}: no images in it or in its sub-folders")
    return DataSet(
        name=f"images:{path}",
        class_names=(),
        channels=3,
        image_size=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        flip=True,
        train=None,
        test=FileSplit(folder, tuple(file.as_posix() for file in files), np.zeros(len(files), dtype=np.int64)),
        task="unlabelled",
    )
