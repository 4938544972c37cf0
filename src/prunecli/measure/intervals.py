"""95 % intervals of accuracies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_RESAMPLES = 2000


def accuracy_interval(percent: float, images: int) -> tuple[float, float]:
    """Wilson's interval of a percentage that was found on so many images.

    Args:
        percent: Images that were right, of 100.
        images: How many were looked at, at least one.
    """
    from scipy.stats import binomtest

    found = binomtest(round(percent / 100 * images), images).proportion_ci(0.95, method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


def mean_recall_interval(hits: Sequence[int], images: Sequence[int]) -> tuple[float, float]:
    """Interval of the mean over classes of the share that was right, in percent; drawn anew class by class.

    Args:
        hits: Images of each class that were right.
        images: Images of each class; classes without any count nowhere.
    """
    counts = np.array([(h, n) for h, n in zip(hits, images, strict=True) if n])
    drawn = np.random.default_rng(0).binomial(counts[:, 1], counts[:, 0] / counts[:, 1], (_RESAMPLES, len(counts)))
    low, high = np.percentile((drawn / counts[:, 1]).mean(axis=1), [2.5, 97.5])
    return 100 * float(low), 100 * float(high)
