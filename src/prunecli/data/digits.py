"""`digits`: handwritten digits of 8x8 pixels that come with scikit-learn; nothing to download."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prunecli.data.splits import SPLIT_SEED, ArraySplit, DataSet


def load(name: str, root: Path, download: bool) -> DataSet:
    """1,797 images of ten digits; a fixed stratified fifth is the test split."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    images = np.round(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    everything = ArraySplit(images, labels.astype(np.int64))
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=SPLIT_SEED, stratify=labels)
    return DataSet(
        name=name,
        class_names=tuple(str(digit) for digit in range(10)),
        channels=1,
        image_size=(8, 8),
        mean=(0.3053,),
        std=(0.3761,),
        flip=False,
        train=everything.subset(np.sort(train)),
        test=everything.subset(np.sort(test)),
    )
